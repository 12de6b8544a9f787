package scenario

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/bermedge/berm/test/rig"
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
		if err := s.startUnwrap(ctx); err != nil {
			return err
		}
	}
	return awaitCounts(ctx, s.origin, s.counts)
}

func (s *server) startUnwrap(ctx context.Context) (err error) {
	if s.unwrap, err = startActor(s.node, "unwrap", s.via, guePort, s.tunnel); err != nil {
		return err
	}
	return awaitCounts(ctx, s.unwrap, s.tunnel)
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
