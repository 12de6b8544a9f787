package scenario

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

// TwoSites is the main topology with two sites of two edges each. The router sends the clients' prefixes to the one or
// the other, as the routers between two anycast sites do.
//
//	                   ┌── edge1 ┐ site a, region us
//	good ──── router ──┼── edge2 ┘
//	           ECMP    ├── edge3 ┐ site b, region eu
//	                   └── edge4 ┘
type TwoSites struct{ *Main }

// The lab's sites and their regions.
const (
	siteA = "a"
	siteB = "b"
)

var regionOf = map[string]string{siteA: "us", siteB: "eu"}

// clientTable is the router's table of routes for the good client's prefixes.
const clientTable = "77"

func upTwoSites(ctx context.Context, lab *rig.Lab, opts Options) (Topology, error) {
	t := TwoSites{newMain(lab, opts)}
	t.listed, t.vipSettings = 4, map[string]string{}
	t.siteOf = func(e *Edge) string {
		if e.Name == "edge1" || e.Name == "edge2" {
			return siteA
		}
		return siteB
	}
	t.Main.routes = func(ctx context.Context) error {
		for _, rule := range [][]string{
			{"ip", "rule", "add", "from", good4 + "/24", "lookup", clientTable},
			{"ip", "-6", "rule", "add", "from", good6 + "/64", "lookup", clientTable},
		} {
			if _, err := t.router.Run(ctx, rule...); err != nil {
				return err
			}
		}
		return t.route(ctx, t.edges)
	}
	return t, t.up(ctx)
}

// Guide tells a person what is where.
func (t TwoSites) Guide() string {
	return t.Main.Guide() + fmt.Sprintf(`
Sites: edge1 and edge2 are %q, edge3 and edge4 %q. The router's routes for the good client: ip route show table %s.
`, siteA, siteB, clientTable)
}

// Steps begin and end with the clients at site a.
func (t TwoSites) Steps() []Step {
	return []Step{
		{Name: "routes flip in downloads", Run: t.checkFlip, Loud: true},
		{Name: "spill", Run: t.checkSpill, Loud: true},
		{Name: "a region's service", Run: t.checkRegion},
		{Name: "without other sites", Run: t.checkWithout, Loud: true},
	}
}

// site is where the edge is.
func (e *Edge) site() string {
	if e.m.siteOf == nil {
		return "lab"
	}
	return e.m.siteOf(e)
}

func (e *Edge) region() string { return regionOf[e.site()] }

// otherSites is what the edge's file says of the sites besides its own.
func (e *Edge) otherSites() string {
	if e.m.siteOf == nil || e.m.apart {
		return ""
	}
	members := map[string][]string{}
	for _, peer := range e.m.peers() {
		if s := peer.site(); s != e.site() {
			members[s] = append(members[s], fmt.Sprintf("{name: %s, address: %s}", peer.Name, peer.addr4))
		}
	}
	out := "sites:\n"
	for site, list := range members {
		out += fmt.Sprintf("  %s: {region: %s, backends: {edges: [%s]}}\n", site, regionOf[site], strings.Join(list, ", "))
	}
	return out
}

// at lists the edges of a site.
func (t TwoSites) at(site string) (out []*Edge) {
	for _, e := range t.edges {
		if e.site() == site {
			out = append(out, e)
		}
	}
	return out
}

// route has the router send the good client's packets to these edges.
func (t TwoSites) route(ctx context.Context, edges []*Edge) error {
	for _, f := range []struct {
		args []string
		addr func(*Edge) string
	}{
		{[]string{"ip", "route", "replace", vip4, "table", clientTable}, func(e *Edge) string { return e.addr4 }},
		{[]string{"ip", "-6", "route", "replace", vip6, "table", clientTable}, func(e *Edge) string { return e.addr6 }},
	} {
		args := slices.Clone(f.args)
		for _, e := range edges {
			args = append(args, "nexthop", "via", f.addr(e))
		}
		if _, err := t.router.Run(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// sent is what the edges of a site have sent to the other, by exit.
func (t TwoSites) sent(ctx context.Context, site string) (carried, spilled uint64, err error) {
	for _, e := range t.at(site) {
		var status control.Status
		if err := e.ask(ctx, &status, "status"); err != nil {
			return 0, 0, err
		}
		carried += status.Kernel.Carried
		spilled += status.Kernel.Spilled
	}
	return carried, spilled, nil
}

const siteFlows = 40

// checkFlip: all that began at a site ends well there, whatever routers do meanwhile.
func (t TwoSites) checkFlip(ctx context.Context, r *Recorder) error {
	if err := t.route(ctx, t.at(siteA)); err != nil {
		return err
	}
	before, _, err := t.sent(ctx, siteB)
	if err != nil {
		return err
	}
	c, h3, err := t.flip(ctx, downloadTime)
	if err != nil {
		return err
	}
	c.report(r, "flip")
	r.AtLeast("flip: flows that began at site a", siteFlows, float64(len(c.on("edge1"))+len(c.on("edge2"))), "flows")
	r.Same("flip: the download over HTTP/3 is complete", "true", fmt.Sprint(h3.complete), fmt.Sprintf("(after %.1f s) %s", h3.took.Seconds(), last(h3)))
	r.Equal("flip: its restarts", 0, h3.requests-1, "requests to the origin beside the first")
	after, _, err := t.sent(ctx, siteB)
	if err != nil {
		return err
	}
	r.AtLeast("flip: packets that site b carried back", 100, float64(after-before), "packets")
	return t.newFlows(ctx, r, "after the flip", vip4, siteB)
}

// last is what a client that failed said in the end.
func last(d download) string {
	if d.complete {
		return ""
	}
	return d.said[max(0, len(d.said)-200):]
}

// flip begins flows and downloads at site a, over TCP and QUIC, has the router take them to site b, and waits for
// their end.
func (t TwoSites) flip(ctx context.Context, limit time.Duration) (*crowd, download, error) {
	c, err := t.startCrowd(ctx, siteFlows)
	if err != nil {
		return nil, download{}, err
	}
	defer c.stop()
	paced, err := QUICRebind{t.Main}.originPaced(ctx)
	if err != nil {
		return nil, download{}, err
	}
	var h3 download
	var h3Err error
	var wg sync.WaitGroup
	wg.Go(func() { h3, h3Err = QUICRebind{t.Main}.download(ctx, vip4, 443, limit) })
	err = rig.Until(ctx, flowLimit, "the download over HTTP/3 has begun", func() (bool, error) {
		n, err := QUICRebind{t.Main}.originPaced(ctx)
		return n > paced, err
	})
	err = errors.Join(err, t.route(ctx, t.at(siteB)))
	if err == nil {
		err = c.finish(ctx)
	}
	wg.Wait()
	return c, h3, errors.Join(err, h3Err)
}

// newFlows checks that new ones are all answered at a site.
func (t TwoSites) newFlows(ctx context.Context, r *Recorder, when, vip, site string) error {
	const flows = 20
	var there uint64
	for range flows {
		f, err := t.openFlow(ctx, t.good, vip, flowLimit)
		if err != nil {
			return err
		}
		a, err := f.get("/o/site/1")
		f.close()
		if err != nil {
			return err
		}
		if e := t.edge(a.edge); e != nil && e.site() == site {
			there++
		}
	}
	r.Equal(fmt.Sprintf("%s: new flows that begin at site %s", when, site), flows, there, "flows")
	return nil
}

// checkWithout is the control: where the edges know of no other site, the same breaks what was in flight.
func (t TwoSites) checkWithout(ctx context.Context, r *Recorder) error {
	set := func(apart bool) error {
		t.apart = apart
		for _, e := range t.edges {
			if err := e.reload(ctx); err != nil {
				return err
			}
		}
		return nil
	}
	if err := errors.Join(set(true), t.route(ctx, t.at(siteA))); err != nil {
		return err
	}
	c, h3, err := t.flip(ctx, pacedTime+3*time.Second)
	if err != nil {
		return err
	}
	n, _ := broken(c.flows)
	r.Equal(fmt.Sprintf("without other sites: of %d flows in flight reset", len(c.flows)), uint64(len(c.flows)), n, "flows")
	c.mu.Lock()
	r.Equal(fmt.Sprintf("without other sites: of %d downloads (curl) cut", c.downloads), uint64(c.downloads), uint64(len(c.cut)), "downloads")
	c.mu.Unlock()
	r.Same("without other sites: the download over HTTP/3 is complete", "false", fmt.Sprint(h3.complete), "")
	return errors.Join(set(false), t.route(ctx, t.at(siteA)), t.awaitRows(ctx))
}

// The share that spills, in basis points, and the flows it is measured with.
const (
	spillPoints = 2500
	spillFlows  = 4000
)

// checkSpill: a share of new flows begins at the other site, by chance as much as asked; those that are there stay,
// wherever they are, while the share changes.
func (t TwoSites) checkSpill(ctx context.Context, r *Recorder) error {
	if err := t.route(ctx, t.at(siteA)); err != nil {
		return err
	}
	spill := func(points int) error {
		for _, e := range t.at(siteA) {
			for _, vip := range []string{"web4", "web6", "tls4", "tls6"} {
				if _, err := e.berm(ctx, "steer", "spill", vip, "--to", siteB, "--share", fmt.Sprintf("%.2f%%", float64(points)/100)); err != nil {
					return err
				}
			}
		}
		return nil
	}
	var plan control.Plan
	if err := t.edges[0].ask(ctx, &plan, "steer", "plan", "--spill", fmt.Sprintf("web4=%s:%d%%", siteB, spillPoints/100)); err != nil {
		return err
	}
	if len(plan.Spills) != 1 {
		return fmt.Errorf("a plan of one spill has %d", len(plan.Spills))
	}
	r.Equal("spill: new flows that go elsewhere, as planned", spillPoints, uint64(plan.Spills[0].Moved), "basis points")

	here, err := t.startCrowd(ctx, siteFlows)
	if err != nil {
		return err
	}
	defer here.stop()
	if err := spill(spillPoints); err != nil {
		return err
	}
	if err := t.measureSpill(ctx, r); err != nil {
		return err
	}
	both, err := t.openLong(ctx, siteFlows)
	if err != nil {
		return err
	}
	spilled := &crowd{m: t.Main, flows: both, cancel: func() {}}
	defer spilled.stop()
	for _, f := range both {
		spilled.wg.Go(func() { f.run(ctx) })
	}
	if err := errors.Join(spilled.settle(ctx), spill(0), spilled.settle(ctx)); err != nil {
		return err
	}
	r.AtLeast("spill: flows that began at site b", 1, float64(len(spilled.on("edge3"))+len(spilled.on("edge4"))), "flows")
	if err := errors.Join(here.finish(ctx), spilled.finish(ctx)); err != nil {
		return err
	}
	here.report(r, "spill, begun before it")
	n, how := broken(spilled.flows)
	r.Equal(fmt.Sprintf("spill, begun in it: of %d flows reset when it ended", len(both)), 0, n, "flows"+how)
	return t.newFlows(ctx, r, "spill ended", vip4, siteA)
}

// opened is how many connections the stacks of a site's edges have accepted.
func (t TwoSites) opened(site string) (n float64, err error) {
	for _, e := range t.at(site) {
		c, err := e.node.Counters()
		if err != nil {
			return 0, err
		}
		n += float64(c["Tcp.PassiveOpens"])
	}
	return n, nil
}

// measureSpill counts at the stacks of the edges where new flows begin.
func (t TwoSites) measureSpill(ctx context.Context, r *Recorder) error {
	a, errA := t.opened(siteA)
	b, errB := t.opened(siteB)
	_, before, err := t.sent(ctx, siteA)
	if err := errors.Join(errA, errB, err); err != nil {
		return err
	}
	var l load
	err = t.probe(ctx, t.good, nil, &l, "load", "http://"+vipPort(vip4, 80)+"/o/spill/1", "--reconnect",
		"--conns", "8", "--requests", strconv.Itoa(spillFlows), "--duration", "60s")
	if err != nil {
		return err
	}
	a2, errA := t.opened(siteA)
	b2, errB := t.opened(siteB)
	_, after, err := t.sent(ctx, siteA)
	if err := errors.Join(errA, errB, err); err != nil {
		return err
	}
	r.Equal("spill: TCP flows answered", spillFlows, l.Status["200"], "flows")
	// The share of n flows has a standard deviation of sqrt(p(1-p)/n), here 0.7 %: one run in 30,000 is off by more than
	// four of them by chance.
	const p = spillPoints / 10_000.
	sigma := 100 * math.Sqrt(p*(1-p)/spillFlows)
	got := 100 * (b2 - b) / (a2 - a + b2 - b)
	r.AtMost(fmt.Sprintf("spill: share of new flows that begin at site b (%.2f %%) differs from that asked for by", got), 4.2*sigma, math.Abs(got-100*p), "points of per cent")
	r.AtLeast("spill: packets of new flows sent to site b", p*spillFlows/2, float64(after-before), "packets")
	return nil
}

// checkRegion: edges outside of a service's region refuse its packets, or carry them there unread.
func (t TwoSites) checkRegion(ctx context.Context, r *Recorder) error {
	set := func(settings string) error {
		t.vipSettings["web6"] = settings
		for _, e := range t.edges {
			if err := e.reload(ctx); err != nil {
				return err
			}
		}
		return nil
	}
	if err := errors.Join(t.route(ctx, t.at(siteA)), set(", region: "+regionOf[siteB])); err != nil {
		return err
	}
	before, err := t.refused(ctx)
	if err != nil {
		return err
	}
	if f, err := t.openFlow(ctx, t.good, vip6, time.Second); err == nil {
		f.close()
		r.Same("region: a flow at an edge outside", "refused", "opened", "")
	} else {
		r.Same("region: a flow at an edge outside", "refused", "refused", "")
	}
	after, err := t.refused(ctx)
	if err != nil {
		return err
	}
	r.AtLeast("region: packets dropped for it", 1, float64(after-before), "packets")
	why, err := t.edges[0].berm(ctx, "why", fmt.Sprintf("[%s]:5000", good6), vipPort(vip6, 80))
	if err != nil {
		return err
	}
	r.Same("region: berm why names it", "true", fmt.Sprint(strings.Contains(string(why), `"region"`)), "")
	if err := t.newFlows(ctx, r, "region: another service there", vip4, siteA); err != nil {
		return err
	}
	if err := t.route(ctx, t.at(siteB)); err != nil {
		return err
	}
	if err := t.newFlows(ctx, r, "region: at an edge within", vip6, siteB); err != nil {
		return err
	}

	if err := errors.Join(t.route(ctx, t.at(siteA)), set(", region: "+regionOf[siteB]+", outside: carry")); err != nil {
		return err
	}
	opened, err := t.opened(siteA)
	if err != nil {
		return err
	}
	if err := t.newFlows(ctx, r, "region: carried by an edge outside", vip6, siteB); err != nil {
		return err
	}
	now, err := t.opened(siteA)
	if err != nil {
		return err
	}
	r.Equal("region: connections that edges outside accepted meanwhile", 0, uint64(now-opened), "connections")
	return set("")
}

// refused is what site a's edges dropped because of a service's region.
func (t TwoSites) refused(ctx context.Context) (n uint64, err error) {
	for _, e := range t.at(siteA) {
		var drops control.Drops
		if err := e.ask(ctx, &drops, "drops"); err != nil {
			return 0, err
		}
		for _, d := range drops.Drops {
			if d.Reason == "region" {
				n += d.Dropped.Packets
			}
		}
	}
	return n, nil
}
