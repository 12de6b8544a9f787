package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

// Addresses of the main topology. Clients and the VIP are in documentation ranges, the links
// between the router, the edges and the origin in 10.77.0.0/16 and 2001:db8:77::/48.
const (
	vip4 = "203.0.113.10"
	vip6 = "2001:db8:f::10"

	good4, good6     = "192.0.2.10", "2001:db8:a::10"
	watched4         = "192.0.2.200" // same host, in a country whose rule is in shadow form
	blocked4         = "198.51.100.10"
	blocked6         = "2001:db8:b::10"
	greedy4, greedy6 = "198.51.100.140", "2001:db8:c::10"

	routerID   = "10.77.0.254"
	originHost = "10.77.9.1"
	originAddr = originHost + ":8000"
	edgeName   = "edge.test" // the name in URLs and in the certificate

	// linkMTU is what the links behind the router mostly have: a full packet of a client and its tunnel header.
	linkMTU = 1600
)

// Greedy clients may send so many packets a second, and so many more at once.
const (
	greedyRate  = 1000
	greedyBurst = 50
)

// Main is the topology of the scenario "main":
//
//	good ────┐                  ┌── edge1 (bermd, XDP, BIRD)
//	blocked ─┼── router (BIRD) ─┼── edge2 (bermd, XDP, BIRD)
//	greedy ──┘       ECMP       └── origin
type Main struct {
	lab  *rig.Lab
	opts Options

	router, good, blocked, greedy, origin *rig.Node
	edges                                 []*Edge // that serve
	cert                                  string  // path of the certificate clients trust
	originCounts                          string  // socket
	bird                                  *rig.Proc

	mtu          int                         // of the links behind the router
	routes       func(context.Context) error // of the router to the VIPs; nil: what BIRD learns
	siteOf       func(*Edge) string          // nil: all edges are at one
	apart        bool                        // the files name no other sites
	routerConfig string                      // "": edges announce by a BIRD of their own
	edgeConfig   func(*Edge) string          // added to an edge's file
	makeCert     func(context.Context) error
	tls          string             // section tls of the edges' files
	edgeFile     func(*Edge) string // instead of an edge's file
	plain        bool               // nobody speaks TLS

	spares      []*Edge           // edges that are connected, and take no part yet
	listed      int               // how many edges the files name
	steering    string            // more of section steer of the edges' files, by lines
	failures    int               // probes that a peer may miss
	units       bool              // bermd runs under the lab's stand-in for systemd, which can start it again
	services    []service         // beside those that all labs have
	vipSettings map[string]string // more of the edges' files, by VIP: ", key: value"
	edgeSysctls map[string]string
}

func upMain(ctx context.Context, lab *rig.Lab, opts Options) (Topology, error) {
	m := newMain(lab, opts)
	return m, m.up(ctx)
}

func newMain(lab *rig.Lab, opts Options) *Main {
	m := &Main{lab: lab, opts: opts, originCounts: lab.Path("origin.counts"), mtu: linkMTU, listed: 2, failures: 3}
	m.makeCert = m.makeCertificate
	return m
}

// up builds everything, and returns when the service is there.
func (m *Main) up(ctx context.Context) error {
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"network", m.buildNetwork},
		{"origin", m.startOrigin},
		{"certificate", m.makeCert},
		{"edges", m.startEdges},
		{"router", m.startRouter},
		{"service", m.awaitService},
	} {
		start := time.Now()
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		m.opts.logf("up: %s (%s)", step.name, time.Since(start).Round(time.Millisecond))
	}
	return nil
}

// Guide tells a person what is where.
func (m *Main) Guide() string {
	return fmt.Sprintf(`Clients: good (%s, %s), blocked (%s, country XX), greedy (%s, %d packets/s).
The service is https://%s/ at %s and %s; objects are at /o/…, a counting UDP service is at port %d.

  bermlab shell %[10]s good      then: curl --cacert %[11]s --resolve %[6]s:443:%[7]s https://%[6]s/o/1 -i
  bermlab shell %[10]s edge1     then: berm --config %[12]s status
  bermlab down %[10]s
`, good4, good6, blocked4, greedy4, greedyRate, edgeName, vip4, vip6, sinkPort, m.lab.Name, m.cert, m.edges[0].config)
}

func (m *Main) buildNetwork(ctx context.Context) error {
	for name, node := range map[string]**rig.Node{
		"router": &m.router, "good": &m.good, "blocked": &m.blocked, "greedy": &m.greedy, "origin": &m.origin,
	} {
		n, err := m.lab.AddNode(name)
		if err != nil {
			return err
		}
		*node = n
	}
	if err := m.router.Forward(); err != nil {
		return err
	}
	type stub struct {
		node        *rig.Node
		addrs       []string // of the node
		gw4, gw6    string   // of the router
		bits4, bits string
		mtu         int
	}
	for _, s := range []stub{
		{m.good, []string{good4 + "/24", watched4 + "/24", good6 + "/64"}, "192.0.2.1", "2001:db8:a::1", "/24", "/64", 0},
		{m.blocked, []string{blocked4 + "/25", blocked6 + "/64"}, "198.51.100.1", "2001:db8:b::1", "/25", "/64", 0},
		{m.greedy, []string{greedy4 + "/25", greedy6 + "/64"}, "198.51.100.129", "2001:db8:c::1", "/25", "/64", 0},
		{m.origin, []string{"10.77.9.1/24", "2001:db8:77:9::1/64"}, "10.77.9.254", "2001:db8:77:9::fe", "/24", "/64", m.mtu},
	} {
		err := rig.Connect(ctx,
			rig.End{Node: s.node, Dev: "eth0", Addrs: s.addrs},
			rig.End{Node: m.router, Dev: s.node.Name, Addrs: []string{s.gw4 + s.bits4, s.gw6 + s.bits}}, s.mtu)
		if err != nil {
			return err
		}
		if err := defaultRoutes(s.node, s.gw4, s.gw6); err != nil {
			return err
		}
	}
	for i := range m.listed {
		e := newEdge(m, i+1)
		if err := e.connect(ctx); err != nil {
			return err
		}
		m.edges = append(m.edges, e)
	}
	return nil
}

// addSpare connects an edge that takes no part yet.
func (m *Main) addSpare(ctx context.Context) error {
	e := newEdge(m, m.listed+len(m.spares)+1)
	m.spares = append(m.spares, e)
	return e.connect(ctx)
}

func defaultRoutes(n *rig.Node, gw4, gw6 string) error {
	return errors.Join(n.Route("default4", gw4), n.Route("default6", gw6))
}

func (m *Main) startOrigin(ctx context.Context) error {
	p, err := startActor(m.origin, "origin", originAddr, m.originCounts)
	if err != nil {
		return err
	}
	return awaitCounts(ctx, p, m.originCounts)
}

// awaitCounts waits until an actor answers.
func awaitCounts(ctx context.Context, p *rig.Proc, socket string) error {
	return rig.Until(ctx, 10*time.Second, p.Name+" answers", func() (bool, error) {
		if done, err := p.Exited(); done {
			return false, fmt.Errorf("%s ended: %w: %s", p.Name, err, p.Tail(5))
		}
		var any json.RawMessage
		return readCounts(ctx, socket, &any) == nil, nil
	})
}

func (m *Main) makeCertificate(context.Context) error {
	cert, key, err := selfSigned([]string{edgeName}, vip4, vip6)
	if err != nil {
		return err
	}
	if m.cert, err = m.lab.WriteFile("cert.pem", 0o644, cert); err != nil {
		return err
	}
	m.tls = fmt.Sprintf("{certificates: [{cert: %s, key: %s}]}", m.cert, m.lab.Path("key.pem"))
	for name, secret := range map[string][]byte{"key.pem": key, "secret": []byte("bermlab-site-secret-0123456789ab\n")} {
		path, err := m.lab.WriteFile(name, 0o640, secret)
		if err != nil {
			return err
		}
		if err := os.Chown(path, 0, daemonUser); err != nil {
			return err
		}
	}
	return nil
}

func (m *Main) startEdges(ctx context.Context) error {
	for _, e := range m.edges {
		if err := e.prepare(ctx); err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	// All at once: what takes long is the kernel's verifier.
	var all errgroup.Group
	for _, e := range m.edges {
		all.Go(func() error { return e.loadKernel(ctx) })
	}
	if err := all.Wait(); err != nil {
		return err
	}
	for _, e := range m.edges {
		if err := e.launchDaemon(ctx); err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	for _, e := range m.edges {
		if err := e.awaitReady(ctx); err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	return nil
}

func (m *Main) startRouter(ctx context.Context) (err error) {
	if m.routes != nil {
		return m.routes(ctx)
	}
	if m.routerConfig != "" {
		if m.bird, err = startBIRD(m.lab, m.router, m.routerConfig); err != nil {
			return err
		}
		return m.awaitPaths(ctx, len(m.edges), 20*time.Second)
	}
	if m.bird, err = startBIRD(m.lab, m.router, birdRouter(birdCommon, routerID, m.edges)); err != nil {
		return err
	}
	for _, e := range m.edges {
		if err := e.announce(); err != nil {
			return err
		}
	}
	return m.awaitPaths(ctx, len(m.edges), 20*time.Second)
}

// configureRouter tells a running router of all edges that serve.
func (m *Main) configureRouter(ctx context.Context) error {
	if _, err := m.lab.WriteFile(m.router.Name+"-bird.conf", 0o644, []byte(birdRouter(birdCommon, routerID, m.edges))); err != nil {
		return err
	}
	_, err := m.router.Run(ctx, "birdc", "-s", m.lab.Path(m.router.Name+"-bird.ctl"), "configure")
	return err
}

// awaitService waits until the edges agree on the rows and new flows of both families are answered by
// every edge.
func (m *Main) awaitService(ctx context.Context) error {
	if err := m.awaitRows(ctx); err != nil {
		return err
	}
	for _, vip := range []string{vip4, vip6} {
		seen := map[string]bool{}
		var last error
		err := rig.Until(ctx, 20*time.Second, "all edges answer at "+vip, func() (bool, error) {
			f, err := m.openFlow(ctx, m.good, vip, time.Second)
			if err != nil {
				last = err
				return false, nil
			}
			defer f.close()
			r, err := f.get("/")
			if last = err; err == nil {
				seen[r.edge] = true
			}
			return len(seen) == len(m.edges), nil
		})
		if err != nil {
			return fmt.Errorf("%w; seen so far: %v; last error: %w", err, seen, last)
		}
	}
	return nil
}

// awaitRows waits until every edge gives every edge its rows, the same ones. While they differ, or are
// about to move, a new flow breaks with the row it began on.
func (m *Main) awaitRows(ctx context.Context) error {
	var seen []map[string]int
	err := rig.Until(ctx, 20*time.Second, "the edges agree on the rows", func() (bool, error) {
		seen = nil
		for _, e := range m.edges {
			var status control.Status
			if err := e.ask(ctx, &status, "status"); err != nil {
				return false, nil
			}
			rows := map[string]int{}
			for _, b := range status.Backends {
				rows[b.Name] = b.Rows
			}
			seen = append(seen, rows)
		}
		for _, rows := range seen {
			if !maps.Equal(rows, seen[0]) || len(rows) != len(m.edges) || slices.Contains(slices.Collect(maps.Values(rows)), 0) {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("%w; rows as each edge sees them: %v", err, seen)
	}
	return nil
}

// Steps are in an order that leaves the caches warm for those that measure time.
func (m *Main) Steps() []Step {
	return []Step{
		{Name: "privilege of bermd", Run: m.checkPrivilege},
		{Name: "objects over each protocol", Run: m.checkFetch, Loud: true},
		{Name: "network facts of paths", Run: m.checkPaths},
		{Name: "congestion controllers", Run: m.checkControllers},
		{Name: "a blocked country", Run: m.checkBlocked},
		{Name: "a rule in shadow form", Run: m.checkShadow},
		{Name: "an over-rate client", Run: m.checkRate, Loud: true},
		{Name: "a good client beside an over-rate one", Run: m.checkNeighbour, Loud: true},
		{Name: "sharing of new flows", Run: m.checkShare, Loud: true},
		{Name: "steer explain", Run: m.checkExplain},
		{Name: "purge by URL", Run: m.checkPurge},
		{Name: "program upgrade under load", Run: m.checkUpgrade, Loud: true},
		{Name: "kill -9 of bermd", Run: m.checkCrash},
		{Name: "loss of an edge", Run: m.checkFailover},
	}
}
