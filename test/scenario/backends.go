package scenario

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

// Backends is an edge that serves nothing itself, before servers that run no Berm. Edge and servers share a
// segment, which the router's bridge is.
//
//	good ────┐              ┌── edge (bermd, XDP)
//	greedy ──┴── router ────┼── gue4, gue6: GUE over IPv4 and IPv6
//	             (bridge)   ├── ipip
//	                        └── direct: L2, with the VIP on lo
type Backends struct {
	*Main
	servers []*server
}

// server is a host that runs no Berm: an HTTP server, and what takes packets out of tunnels.
type server struct {
	name, addr, via string
	node            *rig.Node
	origin, unwrap  *rig.Proc
	counts, tunnel  string // sockets
}

const (
	segment4, segment6 = "10.77.1.", "2001:db8:77:1::"
	guePort            = "6080"
)

func upBackends(ctx context.Context, lab *rig.Lab, opts Options) (Topology, error) {
	b := &Backends{Main: newMain(lab, opts)}
	b.plain, b.edgeFile = true, b.file
	for i, s := range []server{{name: "gue4", via: "gue"}, {name: "gue6", via: "gue"}, {name: "ipip", via: "ipip"}, {name: "direct", via: "l2"}} {
		s.addr = segment4 + strconv.Itoa(11+i)
		if s.name == "gue6" {
			s.addr = segment6 + strconv.Itoa(11+i)
		}
		s.counts, s.tunnel = lab.Path(s.name+".counts"), lab.Path(s.name+"-unwrap.counts")
		b.servers = append(b.servers, &s)
	}
	return b, b.up(ctx)
}

func (b *Backends) up(ctx context.Context) error {
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"network", b.build},
		{"servers", b.startServers},
		{"edge", b.startEdge},
		{"service", b.awaitServers},
	} {
		start := time.Now()
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		b.opts.logf("up: %s (%s)", step.name, time.Since(start).Round(time.Millisecond))
	}
	return nil
}

// Guide tells a person what is where.
func (b *Backends) Guide() string {
	return fmt.Sprintf(`The service is http://%s/ and http://[%s]/; the header Cache-Status names the server.

  bermlab shell %[3]s good      then: curl -i http://%[1]s/o/1
  bermlab shell %[3]s edge1     then: berm --config %[4]s status
  bermlab down %[3]s
`, vip4, vip6, b.lab.Name, b.edges[0].config)
}

func (b *Backends) build(ctx context.Context) (err error) {
	for name, node := range map[string]**rig.Node{"router": &b.router, "good": &b.good, "greedy": &b.greedy} {
		if *node, err = b.lab.AddNode(name); err != nil {
			return err
		}
	}
	if err := b.router.Forward(); err != nil {
		return err
	}
	for _, c := range []struct {
		node        *rig.Node
		addrs, gate []string
	}{
		{b.good, []string{good4 + "/24", good6 + "/64"}, []string{"192.0.2.1", "2001:db8:a::1"}},
		{b.greedy, []string{greedy4 + "/25", greedy6 + "/64"}, []string{"198.51.100.129", "2001:db8:c::1"}},
	} {
		err := rig.Connect(ctx, rig.End{Node: c.node, Dev: "eth0", Addrs: c.addrs},
			rig.End{Node: b.router, Dev: c.node.Name, Addrs: []string{c.gate[0] + "/25", c.gate[1] + "/64"}}, 0)
		if err := errors.Join(err, defaultRoutes(c.node, c.gate[0], c.gate[1])); err != nil {
			return err
		}
	}
	e := newEdge(b.Main, 1)
	b.edges = []*Edge{e}
	if e.node, err = b.attach(ctx, e.Name, e.addr4, e.addr6); err != nil {
		return err
	}
	ports := []string{e.Name}
	for i, s := range b.servers {
		addr4, addr6 := segment4+strconv.Itoa(11+i), segment6+strconv.Itoa(11+i)
		if s.node, err = b.attach(ctx, s.name, addr4, addr6); err != nil {
			return err
		}
		// Else the kernel forgets IPv6 addresses of a link that goes down, and the server never returns.
		if err := s.node.Sysctl("net.ipv6.conf.eth0.keep_addr_on_down", "1"); err != nil {
			return err
		}
		if err := s.node.AddAddr("lo", vip4+"/32", vip6+"/128"); err != nil {
			return err
		}
		ports = append(ports, s.name)
	}
	if err := errors.Join(b.router.AddBridge("segment", ports...), b.router.AddAddr("segment", segment4+"254/24", segment6+"fe/64")); err != nil {
		return err
	}
	for _, n := range append([]*rig.Node{e.node}, nodesOf(b.servers)...) {
		if err := defaultRoutes(n, segment4+"254", segment6+"fe"); err != nil {
			return err
		}
	}
	// What answers the made-up sources goes nowhere.
	_, err4 := b.router.Run(ctx, "ip", "route", "add", "blackhole", madeUp4)
	return errors.Join(err4, b.router.Route(vip4+"/32", e.addr4), b.router.Route(vip6+"/128", e.addr6), b.router.AcceptXDP(e.Name))
}

func nodesOf(servers []*server) (nodes []*rig.Node) {
	for _, s := range servers {
		nodes = append(nodes, s.node)
	}
	return nodes
}

// attach makes a node in the segment.
func (b *Backends) attach(ctx context.Context, name, addr4, addr6 string) (*rig.Node, error) {
	n, err := b.lab.AddNode(name)
	if err != nil {
		return nil, err
	}
	return n, rig.Connect(ctx, rig.End{Node: n, Dev: "eth0", Addrs: []string{addr4 + "/24", addr6 + "/64"}}, rig.End{Node: b.router, Dev: name}, linkMTU)
}

func (b *Backends) startServers(ctx context.Context) error {
	for _, s := range b.servers {
		if err := s.start(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

func (s *server) start(ctx context.Context) (err error) {
	if s.origin, err = startActor(s.node, "origin", ":80", s.counts, s.name); err != nil {
		return err
	}
	if s.via == "gue" || s.via == "ipip" {
		if s.unwrap, err = startActor(s.node, "unwrap", s.via, guePort, s.tunnel); err != nil {
			return err
		}
		if err := awaitCounts(ctx, s.unwrap, s.tunnel); err != nil {
			return err
		}
	}
	return awaitCounts(ctx, s.origin, s.counts)
}

func (b *Backends) startEdge(ctx context.Context) error {
	return errors.Join(b.edges[0].lay(), b.edges[0].raise(ctx))
}

// file is what the operator of this edge would have written.
func (b *Backends) file(e *Edge) string {
	var backends strings.Builder
	for _, s := range b.servers {
		fmt.Fprintf(&backends, "    - {name: %s, address: %q, via: %s}\n", s.name, s.addr, s.via)
	}
	return fmt.Sprintf(`node: {name: %s, site: lab, address4: %s, address6: %q}
kernel:
  interfaces: [eth0]
  mode: native
  pins: %s
  cgroup: %s
  group: nogroup
  rate_cells: 65536
listen:
  http: ["127.0.0.1:8080"]
  https: []
  status_allow: [127.0.0.0/8, "::1/128"]
admin: {socket: %s, metrics: "127.0.0.1:9190"}
vips:
  - {name: web4, address: %s, port: 80, protocol: tcp, backends: servers}
  - {name: web6, address: %q, port: 80, protocol: tcp, backends: servers}
backends:
  servers:
%ssteer:
  probe: {protocol: http, port: 80, path: /health, interval: 200ms, timeout: 150ms, failures: 3, successes: 2}
%sorigins:
  lab: {urls: ["http://127.0.0.1:9"]}
routes: [{host: "*", path: /, origin: lab}]
log: {level: info, format: text}
`, e.Name, e.addr4, e.addr6, e.pins, e.cgroup, e.socket, vip4, vip6, backends.String(), b.steering)
}

// awaitServers waits until every server answers new flows of both families.
func (b *Backends) awaitServers(ctx context.Context) error {
	for _, vip := range []string{vip4, vip6} {
		seen := map[string]bool{}
		var last error
		err := rig.Until(ctx, 20*time.Second, "all servers answer at "+vip, func() (bool, error) {
			f, err := b.openFlow(ctx, b.good, vip, time.Second)
			if err != nil {
				last = err
				return false, nil
			}
			defer f.close()
			a, err := f.get("/o/1")
			if last = err; err == nil {
				seen[a.edge] = true
			}
			return len(seen) == len(b.servers), nil
		})
		if err != nil {
			return fmt.Errorf("%w; seen so far: %v; last error: %w", err, seen, last)
		}
	}
	return nil
}

// Steps begin and end with four servers. The one that ends flows on purpose comes last.
func (b *Backends) Steps() []Step {
	return []Step{
		{Name: "each way to a server", Run: b.checkWays},
		{Name: "weights and a drain, under floods", Run: b.checkMoves, Loud: true},
		{Name: "a server is lost and returns", Run: b.checkLoss, Loud: true},
		{Name: "a server that says it is ill", Run: b.checkIll, Loud: true},
		{Name: "without second chances", Run: b.checkWithoutChances, Loud: true},
	}
}

// unwrapped is what a server has taken out of tunnels.
func (s *server) unwrapped(ctx context.Context) (c unwrapCounts, err error) {
	if s.unwrap != nil {
		err = readCounts(ctx, s.tunnel, &c)
	}
	return c, err
}

// checkWays: downloads and flows through each server, and what the tunnels carried.
func (b *Backends) checkWays(ctx context.Context, r *Recorder) error {
	c, err := b.startCrowd(ctx, 2*drainFlows)
	if err != nil {
		return err
	}
	defer c.stop()
	for _, f := range c.flows {
		f.leave()
	}
	if err := c.finish(ctx); err != nil {
		return err
	}
	c.report(r, "four servers")
	for _, s := range b.servers {
		r.AtLeast(s.name+": flows of "+strconv.Itoa(len(c.flows)), float64(len(c.flows))/10, float64(len(c.on(s.name))), "flows")
		n, err := s.unwrapped(ctx)
		if err != nil {
			return err
		}
		if s.unwrap != nil {
			r.AtLeast(s.name+": packets that came in "+strings.ToUpper(s.via), 100, float64(n.Packets), "packets")
			r.Equal(s.name+": of another length than their tunnel said", 0, n.Odd, "packets")
		}
	}
	var got control.Steering
	if err := b.edges[0].ask(ctx, &got, "steer", "explain", "192.0.2.10:40000", vip4+":80"); err != nil {
		return err
	}
	says := map[string]string{"gue4": "in GUE (UDP port 6080)", "gue6": "in GUE (UDP port 6080)", "ipip": "in IPIP", "direct": "to its Ethernet address"}[got.Owner]
	steps := strings.Join(got.Steps, "; ")
	r.Add(Check{"steer explain names the way to " + got.Owner, says != "" && strings.Contains(steps, says), says, steps, ""})
	return nil
}

// fates are the packets of rows that have moved to a server.
type fates struct{ newcomer, former, crowded uint64 }

func (b *Backends) fates(ctx context.Context) (n fates, err error) {
	var list []control.VIP
	err = b.edges[0].ask(ctx, &list, "vip", "list")
	for _, v := range list {
		n.newcomer += v.Counters.Newcomer.Packets
		n.former += v.Counters.Former.Packets
		n.crowded += v.Counters.Crowded.Packets
	}
	return n, err
}

// order has the edge change a server's part, and waits until its rows are so.
func (b *Backends) order(ctx context.Context, right func(int) bool, name string, args ...string) error {
	if _, err := b.edges[0].berm(ctx, append(append([]string{"steer"}, args...), name)...); err != nil {
		return err
	}
	return b.awaitShare(ctx, name, right)
}

// flooded runs do while SYNs come of made-up sources, and SYNs and ACKs in the good client's name, with
// the ports of its flows among them.
func (b *Backends) flooded(ctx context.Context, r *Recorder, do func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var sent uint64
	var errs []error
	for _, f := range []struct{ src, kind, pps string }{{madeUp4, "syn", "10000"}, {good4, "syn", "5000"}, {good4, "ack", "5000"}} {
		wg.Go(func() {
			for ctx.Err() == nil {
				n, err := b.packets(ctx, b.greedy, "--src", f.src, "--dst", vipPort(vip4, 80), "--kind", f.kind, "--pps", f.pps, "--duration", "1s")
				mu.Lock()
				sent += n
				if ctx.Err() == nil && err != nil {
					errs = append(errs, err)
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	err := do(ctx)
	cancel()
	wg.Wait()
	r.AtLeast("floods: packets meanwhile", 10_000, float64(sent), "packets")
	return errors.Join(append(errs, err)...)
}

// checkMoves: shares change to and fro while flows are in flight and floods come.
func (b *Backends) checkMoves(ctx context.Context, r *Recorder) error {
	before, err := b.fates(ctx)
	if err != nil {
		return err
	}
	c, err := b.startCrowd(ctx, drainFlows)
	if err != nil {
		return err
	}
	defer c.stop()
	err = b.flooded(ctx, r, func(ctx context.Context) error {
		for _, o := range []struct {
			name  string
			share func(int) bool
			args  []string
		}{
			{"gue4", about(3. / 6), []string{"weight", "3"}},
			{"direct", none, []string{"drain"}},
			{"ipip", none, []string{"drain"}},
			{"gue4", about(1. / 2), []string{"weight", "0"}},
			{"direct", about(1. / 3), []string{"undrain"}},
		} {
			if err := b.order(ctx, o.share, o.name, o.args...); err != nil {
				return err
			}
		}
		// Flows that begin now, with rows that have moved up to four times.
		newcomers, err := b.startCrowd(ctx, drainFlows)
		if err != nil {
			return err
		}
		defer newcomers.stop()
		r.Equal("drained: flows begun since that it has", 0, uint64(len(newcomers.on("ipip"))), "flows")
		for _, o := range []struct {
			name  string
			share func(int) bool
			args  []string
		}{{"gue6", none, []string{"drain"}}, {"ipip", about(1. / 3), []string{"undrain"}}, {"gue6", about(1. / 4), []string{"undrain"}}} {
			if err := b.order(ctx, o.share, o.name, o.args...); err != nil {
				return err
			}
		}
		if err := newcomers.finish(ctx); err != nil {
			return err
		}
		newcomers.report(r, "begun while rows moved")
		return nil
	})
	if err != nil {
		return err
	}
	if err := c.finish(ctx); err != nil {
		return err
	}
	c.report(r, "begun before rows moved")
	after, err := b.fates(ctx)
	if err != nil {
		return err
	}
	r.AtLeast("packets of newcomers", 1000, float64(after.newcomer-before.newcomer), "packets")
	r.AtLeast("packets of older flows", 1000, float64(after.former-before.former), "packets")
	b.opts.logf("SYNs that found no place: %d", after.crowded-before.crowded)
	return nil
}

// checkLoss: only the lost server's flows break.
func (b *Backends) checkLoss(ctx context.Context, r *Recorder) error {
	lost := b.servers[1]
	c, err := b.startCrowd(ctx, drainFlows)
	if err != nil {
		return err
	}
	defer c.stop()
	// A download through the lost server breaks, as it must: let them end.
	if err := c.downloaded(ctx); err != nil {
		return err
	}
	if err := lost.node.Down("eth0"); err != nil {
		return err
	}
	at := time.Now()
	if err := b.awaitShare(ctx, lost.name, none); err != nil {
		return err
	}
	r.AtMost("a server is lost: its rows go to others within", 10, time.Since(at).Seconds(), "s")
	var status control.Status
	if err := b.edges[0].ask(ctx, &status, "status"); err != nil {
		return err
	}
	for _, s := range status.Backends {
		if s.Name == lost.name {
			r.Add(Check{"a server is lost: its state", !s.Healthy && s.Error != "", "silent, and why", fmt.Sprintf("healthy %t: %s", s.Healthy, s.Error), ""})
		}
	}
	meanwhile, err := b.startCrowd(ctx, drainFlows/2)
	if err != nil {
		return err
	}
	defer meanwhile.stop()
	if err := lost.node.Up("eth0"); err != nil {
		return err
	}
	// Routes went with the link; those of IPv6 come back once its address counts as its own again.
	err = rig.Until(ctx, 10*time.Second, lost.name+" has its routes again", func() (bool, error) {
		return lost.node.Route("default6", segment6+"fe") == nil, nil
	})
	if err := errors.Join(err, lost.node.Route("default4", segment4+"254")); err != nil {
		return err
	}
	if err := b.awaitShare(ctx, lost.name, about(1./4)); err != nil {
		return err
	}
	if err := errors.Join(b.awaitServers(ctx), meanwhile.finish(ctx)); err != nil {
		return err
	}
	meanwhile.report(r, "its return")
	var others []*longFlow
	for _, f := range c.flows {
		if f.edge != lost.name {
			others = append(others, f)
		}
	}
	n, how := broken(others)
	r.AtLeast("a server is lost: flows of the others", drainFlows/2, float64(len(others)), "flows")
	r.Equal("a server is lost: flows of the others reset", 0, n, "flows"+how)
	return nil
}

// checkIll: a server whose health answers with an error loses its rows, and keeps its flows.
func (b *Backends) checkIll(ctx context.Context, r *Recorder) error {
	ill := b.servers[3]
	c, err := b.startCrowd(ctx, drainFlows)
	if err != nil {
		return err
	}
	defer c.stop()
	if err := askActor(ctx, "POST", ill.counts, new(originCounts)); err != nil {
		return err
	}
	if err := b.awaitShare(ctx, ill.name, none); err != nil {
		return err
	}
	r.AtLeast("ill: flows that the server has", 1, float64(len(c.on(ill.name))), "flows")
	if err := c.settle(ctx); err != nil {
		return err
	}
	if err := askActor(ctx, "POST", ill.counts, new(originCounts)); err != nil {
		return err
	}
	if err := b.awaitShare(ctx, ill.name, about(1./4)); err != nil {
		return err
	}
	if err := c.finish(ctx); err != nil {
		return err
	}
	c.report(r, "a server that says it is ill")
	return nil
}

// checkWithoutChances shows that these checks can fail: without second chances a drain breaks flows.
func (b *Backends) checkWithoutChances(ctx context.Context, r *Recorder) error {
	set := func(steering string) error {
		b.steering = steering
		return b.edges[0].reload(ctx)
	}
	if err := set("  second_chance: 0s\n"); err != nil {
		return err
	}
	c, err := b.startCrowd(ctx, drainFlows)
	if err != nil {
		return err
	}
	defer c.stop()
	theirs := c.on("direct")
	if err := b.order(ctx, none, "direct", "drain"); err != nil {
		return err
	}
	if err := c.settle(ctx); err != nil {
		return err
	}
	n, _ := broken(theirs)
	r.AtLeast(fmt.Sprintf("without second chances: of %d flows of the drained server reset", len(theirs)), float64(len(theirs))/2, float64(n), "flows")
	if err := errors.Join(set(""), b.order(ctx, func(rows int) bool { return rows > maps.RowCount/5 }, "direct", "undrain")); err != nil {
		return err
	}
	return b.awaitServers(ctx)
}
