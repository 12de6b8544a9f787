package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/loader"
	"github.com/bermedge/berm/maps"
)

// require skips a test the machine cannot run; where skips are forbidden it fails.
func require(t testing.TB, err error) {
	t.Helper()
	if err != nil && os.Getenv("BERM_NO_SKIP") != "" {
		t.Fatal("may not skip:", err)
	} else if err != nil {
		t.Skip(err)
	}
}

// host is an edge in namespaces of its own, with which nothing is wrong.
type host struct {
	t    *testing.T
	edge Edge
	// What few kernels can make without hardware: more links, and flags that ethtool reports.
	links []netlink.Link
	flags uint32
}

func (h *host) examine() Report {
	list := func() ([]netlink.Link, error) {
		all, err := netlink.LinkList()
		return append(all, h.links...), err
	}
	return examine(h.edge, list, func(name string) (uint32, error) {
		if h.flags != 0 {
			return h.flags, nil
		}
		return ethtoolFlags(name)
	})
}

const vip = "192.0.2.10"

func newHost(t *testing.T) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		require(t, errors.New("needs root"))
	}
	_, err := exec.LookPath("ethtool")
	require(t, err)
	runtime.LockOSThread() // for good: the runtime ends a locked thread with its goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		t.Fatal("namespaces:", err)
	}
	h := &host{t: t}
	const pins = "/sys/fs/bpf/berm"
	h.ok(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("test", "/sys/fs/bpf", "bpf", 0, "mode=1777"), os.Mkdir(pins, 0o755))
	h.run("ip link set lo up")
	h.run("ip link add edge0 mtu 1520 numrxqueues 1 numtxqueues 1 type veth peer name wire0 mtu 1520 numrxqueues 1 numtxqueues 1")
	h.run("ethtool -K wire0 tx off")
	h.run("ip link set edge0 up")
	h.run("ip link set wire0 up")
	h.run("ip addr add 10.9.0.1/24 dev edge0")
	h.run("ip addr add " + vip + "/32 dev lo")
	h.run("ip route add default via 10.9.0.254")
	h.run("ip neigh replace 10.9.0.2 lladdr 02:00:00:00:00:02 dev edge0 nud permanent")
	h.accept("wire0")
	h.edge = Edge{
		Kernel: loader.Options{Interfaces: []string{"edge0"}, Pins: pins, Cgroup: loader.CgroupNone, Group: "0"},
		State: &loader.State{
			Up: true, Pins: pins, Group: "0",
			Interfaces: []loader.Interface{{Name: "edge0", Attached: true, Mode: "native"}},
			Programs:   []loader.Program{{Name: "xdp_berm", Instructions: 100, JITed: 100}},
		},
		Self4:    netip.MustParseAddr("10.9.0.1"),
		VIPs:     []VIP{{"web", netip.MustParseAddr(vip), true, false}},
		Backends: []Backend{{Name: "edge2", Address: netip.MustParseAddr("10.9.0.2"), Ready: true}},
	}
	return h
}

func (h *host) ok(errs ...error) {
	h.t.Helper()
	if err := errors.Join(errs...); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) run(command string) {
	h.t.Helper()
	if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
		h.t.Fatalf("%s: %v: %s", command, err, out)
	}
}

// accept attaches a program that passes everything.
func (h *host) accept(name string) {
	h.t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
	h.ok(err)
	defer prog.Close()
	l, err := netlink.LinkByName(name)
	h.ok(err, netlink.LinkSetXdpFdWithFlags(l, prog.FD(), unix.XDP_FLAGS_DRV_MODE))
}

func (h *host) sysctl(path, value string) {
	h.t.Helper()
	h.ok(os.WriteFile("/proc/sys/"+path, []byte(value), 0))
}

// TestNothingWrong: whoever is well gets no medicine.
func TestNothingWrong(t *testing.T) {
	h := newHost(t)
	// As with bermd run --all-in-one where no group has the default's name: the pins are another's, and the daemon answers.
	h.edge.Kernel.Group, h.edge.State.Group = "nobody-of-ours", "bin"
	r := Examine(h.edge)
	for _, f := range r.Findings {
		if f.Check != "sysctl" && f.Check != "jit" && f.Check != "kernel_version" { // those are the test machine's own
			t.Errorf("found %+v", f)
		}
	}
	if len(r.NotChecked) > 0 {
		t.Errorf("not checked: %+v", r.NotChecked)
	}
	if len(r.Checked) != len(checks) {
		t.Errorf("%d of %d checks ran", len(r.Checked), len(checks))
	}
}

// TestFindings breaks one thing after the other. Where the fix is a command that a test can run,
// it is run, and the finding must be gone.
func TestFindings(t *testing.T) {
	for _, tc := range []struct {
		name  string
		broke func(*host)
		check string
		where string
		fix   string // part of one command
		mend  bool   // run the commands, and look again
	}{
		{"bpffs", func(h *host) {
			pins := h.t.TempDir() + "/pins"
			h.edge.Kernel.Pins = pins
			h.ok(os.Mkdir(pins, 0o755))
			h.t.Cleanup(func() { _ = unix.Unmount(pins, unix.MNT_DETACH) }) // what the fix mounts
		}, "bpffs", "/pins", "mount -t bpf bpf", true},
		{"closed folder", func(h *host) {
			dir := "/sys/fs/bpf/closed"
			h.ok(os.Mkdir(dir, 0o700))
			h.edge.Kernel.Pins = dir + "/berm"
		}, "bpffs", "/sys/fs/bpf/closed", "chmod o+x", true},
		{"cgroup", func(h *host) { h.edge.Kernel.Cgroup = "/proc" }, "cgroup", "cgroup /proc", "--cgroup auto", false},
		{"contract", func(h *host) { h.ok(os.Mkdir(fmt.Sprintf("%s/v%d", h.edge.Kernel.Pins, maps.Contract+1), 0o755)) }, "contract", "/v", "berm kernel down", false},
		{"not up", func(h *host) { h.edge.State = &loader.State{} }, "kernel_half", "/sys/fs/bpf/berm", "berm kernel up", false},
		{"attached nowhere", func(h *host) { h.edge.State.Interfaces = nil }, "kernel_half", "/sys/fs/bpf/berm", "berm kernel up", false},
		{"observing", func(h *host) { h.edge.State.ObserveOnly = true }, "kernel_half", "observe_only", "berm reload", false},
		{"no group", func(h *host) { h.edge.Kernel.Group = "nobody-of-ours" }, "group", "group nobody-of-ours", "groupadd --system nobody-of-ours", false},
		{"wrong group", func(h *host) { h.edge.Kernel.Group, h.edge.State.Group = "daemon", "bin" }, "group", "/sys/fs/bpf/berm", "berm kernel up", false},
		{"not in group", func(h *host) {
			h.edge.Kernel.Group, h.edge.State.Group, h.edge.DaemonUser = "bin", "bin", "nobody"
		}, "group", "user nobody", "usermod -aG bin nobody", false},
		{"no daemon", func(h *host) { h.edge.Daemon = errors.New("bermd is not running") }, "daemon", "bermd", "systemctl start bermd", false},
		{"vanished", func(h *host) { h.run("ip link del edge0") }, "interface", "edge0", "ip link", false},
		{"down", func(h *host) { h.run("ip link set edge0 down") }, "interface", "edge0", "ip link set dev edge0 up", true},
		{"no carrier", func(h *host) { h.run("ip link set wire0 down") }, "interface", "edge0", "ip -d link show", false},
		{"not attached", func(h *host) { h.edge.State.Interfaces[0].Name = "lo" }, "interface", "edge0", "berm kernel up", false},
		{"renamed", func(h *host) { h.edge.State.Interfaces[0].Problem = "the device is called x now" }, "interface", "edge0", "berm kernel up", false},
		{"nothing on the way out", func(h *host) { h.edge.Backends[0].Server = true }, "interface", "edge0", "berm kernel up", false},
		{"generic", func(h *host) { h.edge.State.Interfaces[0].Mode = "generic" }, "mode", "edge0", "--mode native", false},
		{"few queues", func(h *host) {
			if runtime.NumCPU() < 2 {
				require(h.t, errors.New("needs two CPUs"))
			}
			h.run("ip link add many0 numrxqueues 2 numtxqueues 2 type veth peer name many1 numrxqueues 2 numtxqueues 2")
			h.run("ethtool -L many0 rx 1 tx 1")
			h.run("ip link set many0 up; ip link set many1 up")
			h.edge.Kernel.Interfaces, h.edge.State.Interfaces[0].Name, h.edge.Backends = []string{"many0"}, "many0", nil
		}, "queues", "many0", "ethtool -L many0", true},
		{"lro", func(h *host) {
			h.run("ip link add tap0 type veth peer name tap1; ip link set tap0 up; ip link set tap1 up")
			h.edge.Kernel.Interfaces, h.edge.State.Interfaces[0].Name = []string{"tap0"}, "tap0"
			h.flags = flagLRO // no device without hardware has it
		}, "lro", "tap0", "ethtool -K tap0 lro off", false},
		{"gro", func(h *host) {
			h.edge.State.Interfaces[0].Mode = "generic"
			h.run("ethtool -K edge0 gro on")
		}, "gro", "edge0", "ethtool -K edge0 gro off", true},
		{"vlan offload", func(h *host) {
			h.links = []netlink.Link{
				&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "phys0", Index: 9000, Flags: 1}},
				&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "phys0.7", Index: 9001, ParentIndex: 9000}, VlanId: 7},
			}
			h.edge.Kernel.Interfaces, h.edge.State.Interfaces[0].Name = []string{"phys0"}, "phys0"
			h.flags = flagRxVLAN
		}, "vlan_offload", "phys0", "ethtool -K phys0 rxvlan off", false},
		{"checksum offload", func(h *host) { h.run("ethtool -K wire0 tx on") }, "tx_checksum", "wire0", "ethtool -K wire0 tx off", true},
		{"peer without XDP", func(h *host) { h.run("ip link set wire0 xdpdrv off") }, "xdp_peer", "wire0", "kernel up --interface wire0", false},
		{"mtu", func(h *host) { h.run("ip link set edge0 mtu 1500") }, "mtu", "edge0", "ip link set dev edge0 mtu 1520", false},
		{"mtu of IPv6 tunnels", func(h *host) {
			h.run("ip addr add 2001:db8:9::1/64 dev edge0 nodad; ip neigh replace 2001:db8:9::2 lladdr 02:00:00:00:00:02 dev edge0 nud permanent")
			h.edge.Backends[0].Address = netip.MustParseAddr("2001:db8:9::2")
		}, "mtu", "edge0", "ip link set dev edge0 mtu 1540", false},
		{"no route", func(h *host) {
			h.run("ip route del default")
			h.edge.Backends[0].Address = netip.MustParseAddr("10.8.0.2")
		}, "next_hop", "backend edge2", "ip route add 10.8.0.2 via", false},
		{"oneself", func(h *host) { h.edge.Backends[0].Address = netip.MustParseAddr("10.9.0.1") }, "next_hop", "backend edge2", "berm config check", false},
		{"not Ethernet", func(h *host) {
			h.run("ip tuntap add tun9 mode tun; ip link set tun9 mtu 1600 up; ip route add 10.7.0.0/24 dev tun9")
			h.edge.Backends[0].Address = netip.MustParseAddr("10.7.0.2")
		}, "next_hop", "backend edge2", "ip route add 10.7.0.2 dev", false},
		{"silent neighbour", func(h *host) { h.run("ip neigh replace 10.9.0.2 dev edge0 nud failed") }, "next_hop", "backend edge2", "ping -c 3 -I edge0 10.9.0.2", false},
		{"unknown neighbour", func(h *host) { h.run("ip neigh del 10.9.0.2 dev edge0"); h.edge.Backends[0].Ready = false }, "next_hop", "backend edge2", "ping -c 3 -I edge0 10.9.0.2", false},
		{"forgotten neighbour", func(h *host) { h.edge.Backends[0].Ready = false }, "next_hop", "backend edge2", "systemctl restart bermd", false},
		{"silent backend", func(h *host) { h.edge.Backends[0].Silence = Silence{"udp 9191", "i/o timeout"} }, "health", "backend edge2", "ping -c 3 10.9.0.2", false},
		{"self", func(h *host) {
			h.run("ip addr del 10.9.0.1/24 dev edge0; ip link add wan0 mtu 1520 type veth peer name wan1; ip link set wan0 up; ip link set wan1 up; ip route add default dev wan0")
		}, "self_address", "10.9.0.1", "ip addr add 10.9.0.1/32", false},
		{"no self", func(h *host) { h.edge.Self4 = netip.Addr{} }, "self_address", "node.address4", "node.address4", false},
		{"VIP missing", func(h *host) { h.run("ip addr del " + vip + "/32 dev lo") }, "vip_address", "VIP web", "ip addr add 192.0.2.10/32 dev lo", true},
		{"rp_filter", func(h *host) {
			h.run("ip link add wan0 type veth peer name wan1; ip link set wan0 up; ip link set wan1 up; ip route replace default dev wan0")
			h.sysctl("net/ipv4/conf/edge0/rp_filter", "1")
		}, "rp_filter", "edge0", "sysctl -w net/ipv4/conf/edge0/rp_filter=2", true},
		{"rp_filter of all", func(h *host) {
			h.run("ip link add wan0 type veth peer name wan1; ip link set wan0 up; ip link set wan1 up; ip route replace default dev wan0")
			h.sysctl("net/ipv4/conf/all/rp_filter", "1")
		}, "rp_filter", "edge0", "sysctl -w net.ipv4.conf.all.rp_filter=0", true},
		{"IPv6 off", func(h *host) {
			h.run("ip addr add 2001:db8::10/128 dev lo nodad")
			h.edge.VIPs[0].Address = netip.MustParseAddr("2001:db8::10")
			h.sysctl("net/ipv6/conf/edge0/disable_ipv6", "1")
		}, "ipv6", "edge0", "sysctl -w net/ipv6/conf/edge0/disable_ipv6=0", true},
		{"SYN cookies of a gate", func(h *host) {
			h.edge.VIPs[0].Cookies = true
			h.sysctl("net/ipv4/tcp_syncookies", "1")
		}, "sysctl", "net.ipv4.tcp_syncookies", "sysctl -w net.ipv4.tcp_syncookies=2", true},
		{"no SYN cookies", func(h *host) { h.sysctl("net/ipv4/tcp_syncookies", "0") }, "sysctl", "net.ipv4.tcp_syncookies", "sysctl -w net.ipv4.tcp_syncookies=1", true},
		{"short queue", func(h *host) { h.sysctl("net/core/somaxconn", "128") }, "sysctl", "net.core.somaxconn", "sysctl -w net.core.somaxconn=4096", true},
		{"wrong secret", func(h *host) { h.edge.Drops = map[maps.Drop]uint64{maps.DropTunnelTag: 7} }, "drops", "drops tunnel_tag", "secret_file", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t)
			tc.broke(h)
			f, ok := found(h.examine(), tc.check, tc.where)
			if !ok {
				t.Fatalf("not found: %+v", h.examine())
			}
			if f.What == "" || f.Why == "" || !slices.ContainsFunc(f.Fix, func(s string) bool { return strings.Contains(s, tc.fix) }) {
				t.Errorf("finding %+v: want a fix with %q", f, tc.fix)
			}
			if !tc.mend {
				return
			}
			for _, fix := range f.Fix {
				h.run(fix)
			}
			// A link that came up has carrier a moment later.
			for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) { // sleep: it polls
				still, ok := found(h.examine(), tc.check, tc.where)
				if !ok {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("after %q still: %+v", f.Fix, still)
				}
			}
		})
	}
}

func found(r Report, check, where string) (Finding, bool) {
	i := slices.IndexFunc(r.Findings, func(f Finding) bool { return f.Check == check && strings.Contains(f.Where, where) })
	if i < 0 {
		return Finding{}, false
	}
	return r.Findings[i], true
}

// TestPeerInNamedNamespace: labs and containers have the other end elsewhere.
func TestPeerInNamedNamespace(t *testing.T) {
	h := newHost(t)
	name := fmt.Sprintf("bermdoc-%d", os.Getpid())
	h.ok(unix.Mount("test", "/run", "tmpfs", 0, ""))
	here, err := netns.Get()
	h.ok(err)
	there, err := netns.NewNamed(name)
	h.ok(err)
	t.Cleanup(func() { _ = errors.Join(there.Close(), netns.DeleteNamed(name)) })
	h.ok(netns.Set(here))
	h.run("ip link set wire0 xdpdrv off")
	l, err := netlink.LinkByName("wire0")
	h.ok(err, netlink.LinkSetNsFd(l, int(there)))
	h.run("ip netns exec " + name + " ip link set wire0 up")
	h.run("ip netns exec " + name + " ethtool -K wire0 tx on")
	if f, ok := found(h.examine(), "tx_checksum", "wire0"); !ok || f.Fix[0] != "ip netns exec "+name+" ethtool -K wire0 tx off" {
		t.Errorf("checksum offload: %+v", h.examine())
	}
	if f, ok := found(h.examine(), "xdp_peer", "wire0"); !ok || !strings.HasPrefix(f.Fix[0], "nsenter --net=/run/netns/"+name+" berm ") {
		t.Errorf("peer without XDP: %+v", h.examine())
	}
	h.ok(unix.Unmount("/run", unix.MNT_DETACH))
	if r := h.examine(); !slices.ContainsFunc(r.NotChecked, func(u Unknown) bool { return u.Check == "tx_checksum" && u.Where == "edge0" }) {
		t.Errorf("a hidden peer is not told of: %+v", r.NotChecked)
	}
}

// TestNotChecked: what needs root says so.
func TestNotChecked(t *testing.T) {
	r := Examine(Edge{StateErr: &fs.PathError{Op: "open", Path: "/sys/fs/bpf/berm", Err: fs.ErrPermission}, Kernel: loader.Options{Pins: "/sys/fs/bpf/berm", Cgroup: loader.CgroupNone, Group: "0"}})
	if !slices.ContainsFunc(r.NotChecked, func(u Unknown) bool {
		return u.Check == "kernel_half" && strings.HasSuffix(u.Why, "(run berm doctor as root)")
	}) {
		t.Errorf("not checked: %+v", r.NotChecked)
	}
}

func TestVersion(t *testing.T) {
	for release, want := range map[string][2]int{"6.1.0-28-amd64": {6, 1}, "6.18-rc3": {6, 18}, "5.15+": {5, 15}, "10.0": {10, 0}} {
		if got, ok := version(release); !ok || got != want {
			t.Errorf("version(%q) = %v, %v", release, got, ok)
		}
	}
	for _, release := range []string{"", "six", "6", "6.x"} {
		if v, ok := version(release); ok {
			t.Errorf("version(%q) = %v", release, v)
		}
	}
}
