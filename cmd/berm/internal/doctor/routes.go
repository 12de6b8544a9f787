package doctor

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/maps"
)

func sysctl(key string) (string, error) {
	b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(key, ".", "/"))
	return strings.TrimSpace(string(b)), err
}

// sysctlOf asks for one of the settings that each interface has; its name may hold dots.
func sysctlOf(family, name, key string) (string, error) {
	b, err := os.ReadFile("/proc/sys/net/" + family + "/conf/" + name + "/" + key)
	return strings.TrimSpace(string(b)), err
}

const (
	internetMTU = 1500 // what clients' packets have at most, unless they are told otherwise
	overhead4   = 20   // an outer IPv4 header
	overhead6   = 40
)

func checkMTU(x *exam) {
	seen := map[string]bool{}
	for _, b := range x.edge.Backends {
		l := x.towards(b.Address)
		overhead := overhead4
		if !b.Address.Unmap().Is4() {
			overhead = overhead6
		}
		if l == nil || l.Attrs().MTU >= internetMTU+overhead || seen[l.Attrs().Name] {
			continue
		}
		name, mtu := l.Attrs().Name, l.Attrs().MTU
		seen[name] = true
		x.find(Blocks, name, sprintf("its MTU is %d, and packets of %d bytes to backend %s are %d with the tunnel's header", mtu, internetMTU, b.Name, internetMTU+overhead),
			sprintf("packets of more than %d bytes are dropped (too_big): downloads work, uploads stall", mtu-overhead),
			sprintf("ip link set dev %s mtu %d # and the switch ports and the backends' links", name, internetMTU+overhead),
			sprintf("ip route change default via GATEWAY advmss %d # else, on whoever serves the VIP", mtu-overhead-40))
	}
}

// towards is the interface that packets to an address leave by.
func (x *exam) towards(to netip.Addr) netlink.Link {
	routes, err := netlink.RouteGet(to.Unmap().AsSlice())
	if err != nil || len(routes) == 0 {
		return nil
	}
	return x.linkAt(routes[0].LinkIndex)
}

func checkNextHops(x *exam) {
	for _, b := range x.edge.Backends {
		routes, err := netlink.RouteGet(b.Address.Unmap().AsSlice())
		if err != nil || len(routes) == 0 {
			x.find(Blocks, "backend "+b.Name, sprintf("there is no route to %s", b.Address), "its flows are served by the one before it, or here",
				sprintf("ip route add %s via GATEWAY", b.Address))
			continue
		}
		l := x.linkAt(routes[0].LinkIndex)
		switch {
		case routes[0].Type == unix.RTN_LOCAL:
			x.find(Blocks, "backend "+b.Name, sprintf("%s is an address of this host", b.Address), "packets would be sent to oneself: the backend is never ready",
				"berm config check # node.name is the backend's name, or the backend has another address")
		case l == nil:
		case len(l.Attrs().HardwareAddr) != 6:
			x.find(Blocks, "backend "+b.Name, sprintf("%s is reached through %s, which is not an Ethernet interface", b.Address, l.Attrs().Name),
				"frames cannot be sent there", sprintf("ip route add %s dev NAME", b.Address))
		default:
			x.checkNeighbour(b, routes[0], l)
		}
	}
}

func (x *exam) checkNeighbour(b Backend, route netlink.Route, l netlink.Link) {
	via, family := b.Address.Unmap(), unix.AF_INET
	if gw, ok := netip.AddrFromSlice(route.Gw); ok && !gw.IsUnspecified() {
		via = gw.Unmap()
	}
	if !via.Is4() {
		family = unix.AF_INET6
	}
	list, err := netlink.NeighList(l.Attrs().Index, family)
	if err != nil {
		x.unknown("backend "+b.Name, err)
		return
	}
	n := slices.IndexFunc(list, func(n netlink.Neigh) bool {
		ip, ok := netip.AddrFromSlice(n.IP)
		return ok && ip.Unmap() == via
	})
	const broken = netlink.NUD_FAILED | netlink.NUD_INCOMPLETE
	name := l.Attrs().Name
	switch {
	case n >= 0 && list[n].State&broken != 0:
		x.find(Blocks, "backend "+b.Name, sprintf("its next hop %s does not answer on %s", via, name), "its flows are served by the one before it, or here",
			sprintf("ip neigh show to %s dev %s", via, name), sprintf("ping -c 3 -I %s %s", name, via))
	case !b.Ready && n < 0 && x.edge.TablesErr == nil:
		x.find(Blocks, "backend "+b.Name, sprintf("nobody has asked for the Ethernet address of its next hop %s on %s yet", via, name),
			"its flows are served by the one before it, or here; bermd asks, once it runs", sprintf("ping -c 3 -I %s %s", name, via))
	case !b.Ready && n >= 0:
		x.find(Blocks, "backend "+b.Name, sprintf("this host knows its next hop %s, and the kernel half does not", via),
			"its flows are served by the one before it, or here; bermd writes it, once it runs", "systemctl restart bermd")
	}
}

// checkHealth: who has no next hop is told of already.
func checkHealth(x *exam) {
	for _, b := range x.edge.Backends {
		where := "backend " + b.Name
		if b.Silence.Why == "" || slices.ContainsFunc(x.report.Findings, func(f Finding) bool { return f.Check == "next_hop" && f.Where == where }) {
			continue
		}
		x.find(Blocks, where, sprintf("it does not answer its probe (%s): %s", b.Silence.Probe, b.Silence.Why), "its rows are the others': it gets no new flows",
			sprintf("ping -c 3 %s # no answer: the host is down, or the network between", b.Address),
			sprintf("ip neigh show to %s # whose Ethernet address is it?", b.Address),
			"berm doctor # there: what is asked has to run, and its firewall to let the probe in")
	}
}

// checkSelf: tunnels arrive at node.address4 and node.address6, and leave from them.
func checkSelf(x *exam) {
	for _, a := range []netip.Addr{x.edge.Self4, x.edge.Self6} {
		if a.IsValid() && !isLocal(a) {
			x.find(Blocks, a.String(), "the configuration names it as this edge's own address, and no interface has it",
				"what other edges send through tunnels does not arrive", sprintf("ip addr add %s dev NAME", netip.PrefixFrom(a, a.BitLen())))
		}
	}
	if len(x.edge.Backends) > 0 && !x.edge.Self4.IsValid() && !x.edge.Self6.IsValid() {
		x.find(Blocks, "node.address4", "this edge has backends and no address of its own", "nothing can be sent through a tunnel, and none arrives",
			"berm config check # node.address4: an address of this host")
	}
}

func isLocal(a netip.Addr) bool {
	routes, err := netlink.RouteGet(a.Unmap().AsSlice())
	return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
}

func checkVIPs(x *exam) {
	if x.edge.TablesErr != nil {
		x.unknown("VIPs", x.edge.TablesErr)
	}
	seen := map[netip.Addr]bool{}
	for _, v := range x.edge.VIPs {
		if !v.Local || seen[v.Address] || isLocal(v.Address) {
			continue
		}
		seen[v.Address] = true
		x.find(Blocks, "VIP "+v.Name, sprintf("no interface of this host has %s", v.Address),
			"packets that this host is to serve pass the program, and then find no one: they are forwarded, or refused",
			sprintf("ip addr add %s dev lo", netip.PrefixFrom(v.Address, v.Address.BitLen())))
	}
}

// checkReversePath: an inner packet comes in by another way than its answer goes out.
func checkReversePath(x *exam) {
	all, err := sysctlOf("ipv4", "all", "rp_filter")
	if err != nil {
		x.unknown("net.ipv4.conf.all.rp_filter", err)
		return
	}
	for _, i := range x.attached() {
		own, err := sysctlOf("ipv4", i.name(), "rp_filter")
		if err != nil {
			x.unknown(i.name(), err)
			continue
		}
		const strict = 1 // of "all" and the interface's own, the higher one counts
		if max(number(all), number(own)) != strict || defaultVia(i.Attrs().Index) {
			continue
		}
		var fix []string
		if number(all) == strict {
			fix = append(fix, "sysctl -w net.ipv4.conf.all.rp_filter=0")
		}
		x.find(Blocks, i.name(), "the reverse path filter is strict, and the default route leaves by another interface",
			"the stack silently drops what clients and tunnels send in by it", append(fix, "sysctl -w net/ipv4/conf/"+i.name()+"/rp_filter=2")...)
	}
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0
	}
	return n
}

// defaultVia says whether answers to the world leave by this interface.
func defaultVia(index int) bool {
	routes, err := netlink.RouteGet(net.IPv4(198, 51, 100, 1)) // any address that only the default route covers
	return err == nil && len(routes) > 0 && routes[0].LinkIndex == index
}

func checkIPv6(x *exam) {
	if !slices.ContainsFunc(x.edge.VIPs, func(v VIP) bool { return !v.Address.Unmap().Is4() }) {
		return
	}
	for _, i := range x.attached() {
		if v, err := sysctlOf("ipv6", i.name(), "disable_ipv6"); errors.Is(err, fs.ErrNotExist) || v == "1" {
			x.find(Blocks, i.name(), "IPv6 is off, and a VIP has an IPv6 address", "the stack drops what the program lets in",
				"sysctl -w net/ipv6/conf/"+i.name()+"/disable_ipv6=0")
		}
	}
}

// setting is one that should not be below least.
type setting struct {
	key   string
	least int
	why   string
}

// wanted are settings below which something suffers.
var wanted = []setting{
	{"net.core.rmem_max", 7 << 20, "QUIC's socket loses packets in a burst: HTTP/3 is slow"},
	{"net.core.wmem_max", 7 << 20, "QUIC's socket blocks in a burst: HTTP/3 is slow"},
	{"net.core.somaxconn", 4096, "connections are refused in a burst"},
	{"net.ipv4.tcp_syncookies", 1, "a flood of SYNs fills the queue, and nobody can connect"},
}

// wantedByGates is what services whose gates answer with cookies need.
var wantedByGates = setting{"net.ipv4.tcp_syncookies", 2, "the kernel gives cookies to nobody but itself: floods that a gate should answer reach the stack"}

func checkSysctls(x *exam) {
	list := wanted
	if slices.ContainsFunc(x.edge.VIPs, func(v VIP) bool { return v.Cookies }) {
		list = append(slices.Clone(wanted), wantedByGates)
	}
	for _, w := range list {
		v, err := sysctl(w.key)
		switch {
		case errors.Is(err, fs.ErrNotExist): // only the first network namespace shows it
		case err != nil:
			x.unknown(w.key, err)
		case number(v) < w.least:
			x.find(Costs, w.key, sprintf("it is %s, below %d", v, w.least), w.why, sprintf("sysctl -w %s=%d", w.key, w.least))
		}
	}
}

// symptoms are drop reasons that speak of the set-up rather than of clients.
var symptoms = []struct {
	drop     maps.Drop
	why, fix string
}{
	{maps.DropTunnelPeer, "a host that is no backend of this edge sends it tunnels: the edges' lists of backends differ", "berm config check # compare backends: on both edges"},
	{maps.DropTunnelTag, "another edge's tunnels carry tags of another secret", "sha256sum $SECRET_FILE # steer.secret_file must be the same on all edges of a site"},
	{maps.DropNoBackend, "rows name backends whose next hops are unknown, and this host is no backend itself", "berm status # which backends are not ready"},
	{maps.DropTooBig, "packets do not fit into the MTU with the tunnel's header", "berm doctor # see mtu, gro and lro"},
	{maps.DropNoService, "clients ask for ports that no VIP has, at an address that is strict", "berm vip list"},
}

func checkDrops(x *exam) {
	for _, s := range symptoms {
		if n := x.edge.Drops[s.drop]; n > 0 {
			x.find(Costs, "drops "+s.drop.String(), sprintf("%d packets were dropped since the kernel half was loaded", n), s.why, s.fix)
		}
	}
}
