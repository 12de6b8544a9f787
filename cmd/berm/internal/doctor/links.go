package doctor

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func checkInterfaces(x *exam) {
	for _, name := range x.interfaces() {
		l := x.link(name)
		if l == nil {
			x.find(Blocks, name, "there is no such interface in this network namespace", "no packet of it is seen",
				"ip link", "berm kernel up # after kernel.interfaces names one that is there")
			continue
		}
		if l.Attrs().Flags&unix.IFF_UP == 0 {
			x.find(Blocks, name, "the interface is down", "nothing comes in or goes out", "ip link set dev "+name+" up")
		} else if s := l.Attrs().OperState; s == netlink.OperDown || s == netlink.OperLowerLayerDown {
			x.find(Blocks, name, "the interface has no carrier", "nothing comes in or goes out: cable, switch port, or the peer of a veth", "ip -d link show dev "+name)
		}
		x.checkAttached(name)
	}
}

func (x *exam) checkAttached(name string) {
	s := x.edge.State
	if s == nil || !s.Up {
		return
	}
	if slices.ContainsFunc(s.Problems, rootOnly) {
		x.unknown(name, fmt.Errorf("whether the program is attached: %w", os.ErrPermission))
		return
	}
	for _, i := range s.Interfaces {
		if i.Name != name {
			continue
		}
		if i.Problem != "" {
			x.find(Blocks, name, i.Problem, "no packet of it is seen, or by another program than it should", "berm kernel up")
		}
		if i.Egress == 0 && slices.ContainsFunc(x.edge.Backends, func(b Backend) bool { return b.Server }) {
			x.find(Costs, name, "nothing of Berm's is on the way out", "servers that run no Berm are probed at their own addresses: a broken tunnel is not found",
				"berm kernel up # puts it there, or says why not")
		}
		return
	}
	x.find(Blocks, name, "the kernel half is not attached to it, and the configuration names it", "no packet of it is seen", "berm kernel up")
}

func checkMode(x *exam) {
	for _, i := range x.attached() {
		if i.mode != "generic" {
			continue
		}
		d := driver(i.name())
		fix := []string{"berm kernel up --mode native # tells what the driver objects to"}
		why := "every packet costs several times as much: the kernel has built its own form of it first"
		switch d {
		case "virtio_net", "ena", "gve":
			fix = append([]string{sprintf("ethtool -L %s combined %d", i.name(), max(1, runtime.NumCPU()/2))}, fix...)
			why += sprintf("; %s refuses native mode when no queue is left for XDP", d)
		case "":
			d = "its driver"
		}
		x.find(Costs, i.name(), sprintf("the program runs in generic mode (%s)", d), why, fix...)
	}
}

func checkQueues(x *exam) {
	cpus := uint32(runtime.NumCPU())
	for _, i := range x.attached() {
		c, err := getChannels(i.name())
		if err != nil {
			if !errors.Is(err, unix.EOPNOTSUPP) {
				x.unknown(i.name(), err)
			}
			continue
		}
		now, most, kind := c.combined, c.maxCombined, "combined"
		if most == 0 {
			now, most, kind = c.rx, c.maxRx, "rx"
		}
		if want := min(most, cpus); now < want {
			x.find(Costs, i.name(), sprintf("%d of %d receive queues are used, on %d CPUs", now, most, cpus),
				"packets are handled by as many CPUs as there are queues; the others stand idle", sprintf("ethtool -L %s %s %d", i.name(), kind, want))
		}
	}
}

func checkLRO(x *exam) {
	for _, i := range x.attached() {
		if flags, err := x.flags(i.name()); err != nil {
			if !errors.Is(err, unix.EOPNOTSUPP) {
				x.unknown(i.name(), err)
			}
		} else if flags&flagLRO != 0 {
			x.find(Blocks, i.name(), "large receive offload is on", "the card merges packets into ones larger than the MTU, which cannot be forwarded",
				sprintf("ethtool -K %s lro off", i.name()))
		}
	}
}

// checkGRO: in generic mode the program sees what GRO has merged.
func checkGRO(x *exam) {
	for _, i := range x.attached() {
		if i.mode != "generic" || len(x.edge.Backends) == 0 {
			continue
		}
		if on, err := ethtoolGet(i.name(), ethtoolGetGRO); err == nil && on != 0 {
			x.find(Blocks, i.name(), "generic receive offload is on, and the program runs in generic mode, behind it",
				"packets arrive merged, larger than the MTU, and are dropped (too_big) when they have to be encapsulated",
				sprintf("ethtool -K %s gro off", i.name()))
		}
	}
}

func checkVLANOffload(x *exam) {
	for _, i := range x.attached() {
		tagged := slices.ContainsFunc(x.links, func(l netlink.Link) bool {
			return l.Type() == "vlan" && l.Attrs().ParentIndex == i.Attrs().Index
		})
		flags, err := x.flags(i.name())
		if tagged && err == nil && flags&flagRxVLAN != 0 && i.mode != "generic" && i.Type() != "veth" {
			x.find(Blocks, i.name(), "the card takes VLAN tags off, and the interface has VLANs",
				"the program sees no tag, so that what it sends on leaves untagged", sprintf("ethtool -K %s rxvlan off", i.name()))
		}
	}
}

// peer is the other end of a veth pair, as far as it can be found.
type peer struct {
	netlink.Link
	enter string // how a command gets there: "" or "ip netns exec NAME "
	ns    netns.NsHandle
}

// errPeerHidden says that the other end is in a namespace that has no name.
var errPeerHidden = errors.New("the other end is in a network namespace without a name: look there")

// peerOf finds the other end of a veth, in this namespace or in one with a name.
func (x *exam) peerOf(i iface) (p peer, done func(), err error) {
	done = func() {}
	attrs := i.Attrs()
	if attrs.NetNsID < 0 {
		if l := x.linkAt(attrs.ParentIndex); l != nil {
			return peer{Link: l, ns: netns.None()}, done, nil
		}
		return p, done, errPeerHidden
	}
	const dir = "/run/netns"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return p, done, errPeerHidden
	}
	for _, e := range entries {
		ns, err := netns.GetFromPath(dir + "/" + e.Name())
		if err != nil {
			continue
		}
		if id, err := netlink.GetNetNsIdByFd(int(ns)); err != nil || id != attrs.NetNsID {
			_ = ns.Close()
			continue
		}
		h, err := netlink.NewHandleAt(ns)
		if err != nil {
			_ = ns.Close()
			return p, done, fmt.Errorf("look into namespace %s: %w", e.Name(), err)
		}
		l, err := h.LinkByIndex(attrs.ParentIndex)
		h.Close()
		if err != nil {
			_ = ns.Close()
			return p, done, fmt.Errorf("device %d of namespace %s: %w", attrs.ParentIndex, e.Name(), err)
		}
		return peer{l, "ip netns exec " + e.Name() + " ", ns}, func() { _ = ns.Close() }, nil
	}
	return p, done, errPeerHidden
}

// inside runs fn in the peer's namespace, on a thread of its own.
func (p peer) inside(fn func() error) error {
	if !p.ns.IsOpen() {
		return fn()
	}
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if err := netns.Set(p.ns); err != nil {
			errc <- fmt.Errorf("enter the namespace of %s: %w", p.Attrs().Name, err)
			return
		}
		errc <- fn()
	}()
	return <-errc
}

// eachPeer calls fn for the other end of every veth that the edge sends through.
func (x *exam) eachPeer(fn func(iface, peer)) {
	if len(x.edge.Backends) == 0 {
		return // nothing is sent onward
	}
	for _, i := range x.attached() {
		if i.Type() != "veth" {
			continue
		}
		p, done, err := x.peerOf(i)
		if err != nil {
			x.unknown(i.name(), err)
			continue
		}
		fn(i, p)
		done()
	}
}

func checkTxChecksum(x *exam) {
	x.eachPeer(func(i iface, p peer) {
		var on uint32
		err := p.inside(func() (err error) {
			on, err = ethtoolGet(p.Attrs().Name, ethtoolGetTxChecksum)
			return err
		})
		switch {
		case err != nil:
			x.unknown(p.Attrs().Name, err)
		case on != 0:
			x.find(Blocks, p.Attrs().Name, sprintf("transmit checksum offload is on at the other end of %s", i.name()),
				"TCP segments arrive without a checksum; once forwarded, the receiver drops them and connections hang",
				sprintf("%sethtool -K %s tx off", p.enter, p.Attrs().Name))
		}
	})
}

func checkPeerXDP(x *exam) {
	x.eachPeer(func(i iface, p peer) {
		if xdp := p.Attrs().Xdp; xdp != nil && xdp.Attached {
			return
		}
		name := p.Attrs().Name
		pins := "/sys/fs/bpf/berm-" + strings.ReplaceAll(name, ".", "-")
		x.find(Blocks, name, sprintf("the other end of %s has no XDP program", i.name()),
			"the kernel silently drops every frame that the program sends back through a veth",
			sprintf("%sberm --pins %s kernel up --interface %s --mode native --cgroup none --rate-cells 64 # without VIPs it passes everything",
				strings.Replace(p.enter, "ip netns exec ", "nsenter --net=/run/netns/", 1), pins, name))
	})
}
