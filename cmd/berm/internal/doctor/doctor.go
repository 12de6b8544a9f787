// Package doctor looks for the known causes of "it does not forward" on this host, and names the
// command that mends each. It reads; it changes nothing.
package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/loader"
	"github.com/bermedge/berm/maps"
)

// Severity says whether a finding stops packets, or costs something.
type Severity string

// The severities.
const (
	Blocks Severity = "blocks" // packets or connections are lost
	Costs  Severity = "costs"  // slower, or less protected, than it could be
)

// Finding is one cause of trouble.
type Finding struct {
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	Where    string   `json:"where"` // interface, backend, VIP, file or sysctl
	What     string   `json:"what"`
	Why      string   `json:"why"` // what comes of it
	Fix      []string `json:"fix"` // commands, to be run as root
}

// Unknown is a check that could not look.
type Unknown struct {
	Check string `json:"check"`
	Where string `json:"where"`
	Why   string `json:"why"`
}

// Report is what an examination found.
type Report struct {
	Findings   []Finding `json:"findings"`
	Checked    []string  `json:"checked"`
	NotChecked []Unknown `json:"not_checked"`
}

// Edge is what is known of this edge before the host itself is looked at.
type Edge struct {
	Kernel     loader.Options // as configured
	State      *loader.State  // nil: see StateErr
	StateErr   error
	Daemon     error // why it does not answer; nil: it does
	DaemonUser string
	Self4      netip.Addr
	Self6      netip.Addr
	VIPs       []VIP
	Backends   []Backend
	Drops      map[maps.Drop]uint64
	TablesErr  error // why VIPs, Backends and Drops are unknown
}

// VIP is a service of this edge.
type VIP struct {
	Name    string
	Address netip.Addr
	Local   bool // this host may be asked to serve it
	Cookies bool // its gate may answer SYNs with cookies
}

// Backend is another host that packets are sent to.
type Backend struct {
	Name    string
	Address netip.Addr
	Ready   bool // as the kernel half knows it
	Server  bool // runs no Berm
	Silence Silence
}

// Silence is that a backend does not answer, as the daemon knows it.
type Silence struct {
	Probe string // how it is asked
	Why   string // empty: it answers, or nobody asks
}

// check is one line of the examination.
type check struct {
	name string
	run  func(*exam)
}

// checks are what is looked at, from the ground up: what comes first explains what follows.
var checks = []check{
	{"kernel_version", checkVersion},
	{"jit", checkJIT},
	{"bpffs", checkBPFFS},
	{"cgroup", checkCgroup},
	{"contract", checkContract},
	{"kernel_half", checkKernelHalf},
	{"group", checkGroup},
	{"daemon", checkDaemon},
	{"interface", checkInterfaces},
	{"mode", checkMode},
	{"queues", checkQueues},
	{"lro", checkLRO},
	{"gro", checkGRO},
	{"vlan_offload", checkVLANOffload},
	{"tx_checksum", checkTxChecksum},
	{"xdp_peer", checkPeerXDP},
	{"mtu", checkMTU},
	{"next_hop", checkNextHops},
	{"health", checkHealth},
	{"self_address", checkSelf},
	{"vip_address", checkVIPs},
	{"rp_filter", checkReversePath},
	{"ipv6", checkIPv6},
	{"sysctl", checkSysctls},
	{"drops", checkDrops},
}

// exam is one examination.
type exam struct {
	edge   Edge
	links  []netlink.Link
	flags  func(name string) (uint32, error) // ethtool's, of an interface
	name   string                            // of the running check
	report Report
}

// Examine runs every check, in the network namespace of the calling thread.
func Examine(e Edge) Report { return examine(e, netlink.LinkList, ethtoolFlags) }

func examine(e Edge, list func() ([]netlink.Link, error), flags func(string) (uint32, error)) Report {
	x := &exam{edge: e, flags: flags, report: Report{Findings: []Finding{}, Checked: []string{}, NotChecked: []Unknown{}}}
	links, err := list()
	if err != nil {
		x.name = "interface"
		x.unknown("netlink", err)
	}
	x.links = links
	for _, c := range checks {
		x.name = c.name
		x.report.Checked = append(x.report.Checked, c.name)
		c.run(x)
	}
	return x.report
}

// find notes a finding of the running check.
func (x *exam) find(s Severity, where, what, why string, fix ...string) {
	x.report.Findings = append(x.report.Findings, Finding{x.name, s, where, what, why, fix})
}

// unknown notes that the running check could not look.
func (x *exam) unknown(where string, err error) {
	why := err.Error()
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EPERM) {
		why += " (run berm doctor as root)"
	}
	x.report.NotChecked = append(x.report.NotChecked, Unknown{x.name, where, why})
}

// attached are the edge's interfaces that exist, with the mode in which the program runs there.
func (x *exam) attached() (found []iface) {
	modes := map[string]string{}
	if x.edge.State != nil {
		for _, i := range x.edge.State.Interfaces {
			modes[i.Name] = i.Mode
		}
	}
	for _, name := range x.interfaces() {
		if l := x.link(name); l != nil {
			found = append(found, iface{l, modes[name]})
		}
	}
	return found
}

// iface is an interface that packets come in through.
type iface struct {
	netlink.Link
	mode string // native, generic, or "" when not attached
}

func (i iface) name() string { return i.Attrs().Name }

// interfaces are those that the configuration names, and those that the kernel half is attached to.
func (x *exam) interfaces() []string {
	names := append([]string{}, x.edge.Kernel.Interfaces...)
	if x.edge.State == nil {
		return names
	}
	for _, i := range x.edge.State.Interfaces {
		if !slices.Contains(names, i.Name) {
			names = append(names, i.Name)
		}
	}
	return names
}

func (x *exam) link(name string) netlink.Link {
	for _, l := range x.links {
		if l.Attrs().Name == name {
			return l
		}
	}
	return nil
}

func (x *exam) linkAt(index int) netlink.Link {
	for _, l := range x.links {
		if l.Attrs().Index == index {
			return l
		}
	}
	return nil
}

func sprintf(format string, args ...any) string { return fmt.Sprintf(format, args...) }
