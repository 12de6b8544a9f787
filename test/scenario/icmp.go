package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

// A client whose own link is wide, behind a narrow one:
//
//	far ── home ──(narrow)── isp ── router
//
// The node isp tells the VIP that packets are too big, and since the router knows an error by its
// addresses alone, all of them land at one edge, whoever owns the flow.
const (
	far4, far6 = "203.0.113.130", "2001:db8:d::10"

	// narrowMTU lets QUIC's first packets through (1,280 bytes and headers), and nothing as large as
	// Ethernet's.
	narrowMTU = 1400
	// wideMTU of the links behind the router: a full packet of a client does not fit a tunnel.
	wideMTU = 1500
	// tunnelMTU is what a tunnel carries: wideMTU less an IPv4 header.
	tunnelMTU = wideMTU - 20
)

// ICMP is the topology of main with that client, and links behind the router that are no wider than the
// clients'.
type ICMP struct {
	*Main
	far, home, isp *rig.Node
}

func upICMP(ctx context.Context, lab *rig.Lab, opts Options) (Topology, error) {
	i := &ICMP{Main: newMain(lab, opts)}
	i.mtu = wideMTU
	if err := i.up(ctx); err != nil {
		return nil, err
	}
	if err := i.connectFar(ctx); err != nil {
		return nil, err
	}
	return i, i.count(ctx)
}

// Guide tells a person what is where.
func (i *ICMP) Guide() string {
	return i.Main.Guide() + fmt.Sprintf(`
The client far (%s, %s) is behind a link of %d bytes. Errors by the edge they land at, and those that
edges pass on: nft list table inet lab, on the router.
`, far4, far6, narrowMTU)
}

// Steps end with the control.
func (i *ICMP) Steps() []Step {
	return []Step{
		{Name: "echo", Run: i.checkEcho},
		{Name: "downloads through a narrow link", Run: i.checkNarrow, Loud: true},
		{Name: "sockets behind a narrow link", Run: i.checkSockets, Loud: true},
		{Name: "packets that fit no tunnel", Run: i.checkTunnel, Loud: true},
		{Name: "errors about what nobody sent", Run: i.checkForged},
		{Name: "without the errors of others", Run: i.checkWithout, Loud: true},
	}
}

func (i *ICMP) connectFar(ctx context.Context) error {
	for name, node := range map[string]**rig.Node{"far": &i.far, "home": &i.home, "isp": &i.isp} {
		n, err := i.lab.AddNode(name)
		if err != nil {
			return err
		}
		*node = n
	}
	errs := []error{i.home.Forward(), i.isp.Forward()}
	for _, l := range []struct {
		a, b       *rig.Node
		aDev, bDev string
		net4, net6 string // of the link, up to the last number
		bits4      string
		aEnd, bEnd [2]string
		mtu        int
	}{
		{i.far, i.home, "eth0", "far", "203.0.113.", "2001:db8:d::", "/25", [2]string{"130", "10"}, [2]string{"129", "1"}, wideMTU},
		{i.home, i.isp, "eth0", "home", "10.77.101.", "2001:db8:77:101::", "/24", [2]string{"1", "1"}, [2]string{"254", "fe"}, narrowMTU},
		{i.isp, i.router, "eth0", "isp", "10.77.100.", "2001:db8:77:100::", "/24", [2]string{"1", "1"}, [2]string{"254", "fe"}, wideMTU},
	} {
		errs = append(
			errs,
			rig.Connect(ctx,
				rig.End{Node: l.a, Dev: l.aDev, Addrs: []string{l.net4 + l.aEnd[0] + l.bits4, l.net6 + l.aEnd[1] + "/64"}},
				rig.End{Node: l.b, Dev: l.bDev, Addrs: []string{l.net4 + l.bEnd[0] + l.bits4, l.net6 + l.bEnd[1] + "/64"}}, l.mtu),
			defaultRoutes(l.a, l.net4+l.bEnd[0], l.net6+l.bEnd[1]),
		)
	}
	return errors.Join(append(
		errs,
		i.isp.Route("203.0.113.128/25", "10.77.101.1"), i.isp.Route("2001:db8:d::/64", "2001:db8:77:101::1"),
		i.router.Route("203.0.113.128/25", "10.77.100.1"), i.router.Route("2001:db8:d::/64", "2001:db8:77:100::1"),
		i.router.Route("2001:db8:77:101::/64", "2001:db8:77:100::1"), i.router.Route("10.77.101.0/24", "10.77.100.1"),
	)...)
}

// count has the router count the errors about too big packets: those that land at an edge, and those that
// an edge passes on in a tunnel.
func (i *ICMP) count(ctx context.Context) error {
	var counters, rules strings.Builder
	for _, e := range i.edges {
		fmt.Fprintf(&counters, "counter landed-%[1]s {}\ncounter passed-%[1]s {}\n", e.Name)
		fmt.Fprintf(&rules, `oifname %[1]s icmp type destination-unreachable counter name landed-%[1]s
oifname %[1]s icmpv6 type packet-too-big counter name landed-%[1]s
iifname %[1]s ip protocol 4 @nh,232,8 1 @nh,320,8 3 counter name passed-%[1]s
iifname %[1]s ip protocol 41 @nh,208,8 58 @nh,480,8 2 counter name passed-%[1]s
`, e.Name)
	}
	return i.nft(ctx, fmt.Sprintf("table inet lab {\n%schain forward { type filter hook forward priority 0;\n%s}\n}\n", counters.String(), rules.String()))
}

func (i *ICMP) nft(ctx context.Context, commands string) error {
	file, err := i.lab.WriteFile("router.nft", 0o644, []byte(commands))
	if err != nil {
		return err
	}
	if out, err := i.router.Run(ctx, "nft", "-f", file); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// told is where errors about too big packets were seen, by edge.
type told struct {
	landed  map[string]uint64 // the router sent them there
	passed  map[string]uint64 // that edge sent them on
	reached map[string]uint64 // its stack has had them
}

func (i *ICMP) told(ctx context.Context) (told, error) {
	t := told{map[string]uint64{}, map[string]uint64{}, map[string]uint64{}}
	out, err := i.router.Output(ctx, "nft", "-j", "list", "counters", "table", "inet", "lab")
	if err != nil {
		return t, err
	}
	var list struct {
		Nftables []struct {
			Counter struct {
				Name    string
				Packets uint64
			}
		}
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return t, fmt.Errorf("nft: %w", err)
	}
	for _, x := range list.Nftables {
		if name, ok := strings.CutPrefix(x.Counter.Name, "landed-"); ok {
			t.landed[name] = x.Counter.Packets
		} else if name, ok := strings.CutPrefix(x.Counter.Name, "passed-"); ok {
			t.passed[name] = x.Counter.Packets
		}
	}
	for _, e := range i.edges {
		c, err := e.node.Counters()
		if err != nil {
			return t, err
		}
		t.reached[e.Name] = c["Icmp.InDestUnreachs"] + c["Icmp6InPktTooBigs"]
	}
	return t, nil
}

func (t told) since(before told) told {
	minus := func(a, b map[string]uint64) map[string]uint64 {
		d := map[string]uint64{}
		for k, v := range a {
			d[k] = v - b[k]
		}
		return d
	}
	return told{minus(t.landed, before.landed), minus(t.passed, before.passed), minus(t.reached, before.reached)}
}

func total(by map[string]uint64) (n uint64) {
	for _, v := range by {
		n += v
	}
	return n
}

// owner of a flow, as an edge explains it.
func (m *Main) owner(ctx context.Context, from, to, proto string) (string, error) {
	var says control.Steering
	if err := m.edges[0].ask(ctx, &says, "steer", "explain", from, to, proto); err != nil {
		return "", err
	}
	if says.Owner == "" {
		return "", fmt.Errorf("flow from %s has no owner: %v", from, says.Steps)
	}
	return says.Owner, nil
}

// portOf finds a port of a client, from the first on, whose flow to the service is an edge's.
func (m *Main) portOf(ctx context.Context, client, to, proto, owner string, first int) (int, error) {
	for port := first; port < first+100; port++ {
		o, err := m.owner(ctx, net.JoinHostPort(client, strconv.Itoa(port)), to, proto)
		if err != nil {
			return 0, err
		}
		if o == owner {
			return port, nil
		}
	}
	return 0, fmt.Errorf("none of 100 flows is %s's", owner)
}

// forget has a node forget what it has learned of paths.
func forget(ctx context.Context, nodes ...*rig.Node) error {
	for _, n := range nodes {
		for _, family := range []string{"-4", "-6"} {
			if out, err := n.Run(ctx, "ip", family, "route", "flush", "cache"); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
		}
	}
	return nil
}

func (i *ICMP) forgetAll(ctx context.Context) error {
	nodes := []*rig.Node{i.good, i.far}
	for _, e := range i.edges {
		nodes = append(nodes, e.node)
	}
	return forget(ctx, nodes...)
}

var (
	routeMTU  = regexp.MustCompile(`\bmtu (?:lock )?(\d+)`)
	socketMTU = regexp.MustCompile(`\bpmtu:(\d+)`)
	socketMSS = regexp.MustCompile(`\bmss:(\d+)`)
)

// number finds a number in what a program printed; 0 if there is none.
func number(in *regexp.Regexp, out string) uint64 {
	f := in.FindStringSubmatch(out)
	if f == nil {
		return 0
	}
	n, err := strconv.ParseUint(f[1], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// learnedMTU is what a node has learned of the path to an address; 0 = nothing.
func learnedMTU(ctx context.Context, n *rig.Node, to string) (uint64, error) {
	out, err := n.Run(ctx, "ip", "route", "get", to)
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	return number(routeMTU, out), nil
}

// socket is what `ss` says of a node's connection with another end.
func socket(ctx context.Context, n *rig.Node, other string) (string, error) {
	return n.Run(ctx, "ss", "-tinH", "dst", other)
}
