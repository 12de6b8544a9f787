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

// Steps begin and end with four servers. The one that ends flows on purpose comes last.
func (b *Backends) Steps() []Step {
	return []Step{
		{Name: "each way to a server", Run: b.checkWays},
		{Name: "weights and a drain, under floods", Run: b.checkMoves, Loud: true},
		{Name: "a server is lost and returns", Run: b.checkLoss, Loud: true},
		{Name: "a server that says it is ill", Run: b.checkIll, Loud: true},
		{Name: "a server that takes no tunnels", Run: b.checkDeaf},
		{Name: "servers that answer at their own address alone", Run: b.checkAstray},
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
	r.Add(Check{Name: "steer explain names the way to " + got.Owner, OK: says != "" && strings.Contains(steps, says), Want: says, Got: steps})
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
			r.Add(Check{Name: "a server is lost: its state", OK: !s.Healthy && s.Error != "", Want: "silent, and why", Got: fmt.Sprintf("healthy %t: %s", s.Healthy, s.Error)})
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

// checkDeaf: a server that answers probes, and whose end of the tunnel is gone, gets nothing.
func (b *Backends) checkDeaf(ctx context.Context, r *Recorder) error {
	deaf := b.servers[0]
	if err := deaf.unwrap.Stop(2 * time.Second); err != nil {
		return err
	}
	if err := b.awaitShare(ctx, deaf.name, none); err != nil {
		return err
	}
	var status control.Status
	if err := b.edges[0].ask(ctx, &status, "status"); err != nil {
		return err
	}
	for _, s := range status.Backends {
		if s.Name == deaf.name {
			r.Add(Check{Name: "a server that takes no tunnels: its state", OK: strings.Contains(s.Error, "nobody takes GUE"), Want: "nobody takes GUE there", Got: s.Error})
		}
	}
	if err := deaf.startUnwrap(ctx); err != nil {
		return err
	}
	return errors.Join(b.awaitShare(ctx, deaf.name, about(1./4)), b.awaitServers(ctx))
}

// checkAstray: servers that answer at their own addresses, and not what clients get, are taken out: one whose
// end of the tunnel is gone without a word, one that has lost the service's address.
func (b *Backends) checkAstray(ctx context.Context, r *Recorder) error {
	ipip, direct := b.servers[2], b.servers[3]
	vip := func(verb string) error {
		_, err := direct.node.Run(ctx, "ip", "address", verb, vip4+"/32", "dev", "lo")
		return err
	}
	if err := errors.Join(ipip.unwrap.Stop(2*time.Second), vip("del")); err != nil {
		return err
	}
	if err := errors.Join(b.awaitShare(ctx, ipip.name, none), b.awaitShare(ctx, direct.name, none)); err != nil {
		return err
	}
	var status control.Status
	if err := b.edges[0].ask(ctx, &status, "status"); err != nil {
		return err
	}
	for _, s := range status.Backends {
		if s.Name == ipip.name || s.Name == direct.name {
			r.Add(Check{Name: s.Name + " answers at its own address alone: its state", OK: !s.Healthy && strings.Contains(s.Error, "through its tunnel, for "+vip4), Want: "through its tunnel, for " + vip4, Got: s.Error})
		}
		r.Add(Check{Name: s.Name + ": its probes", OK: strings.HasSuffix(s.Probe, "through its tunnel") || s.Self, Want: "through its tunnel", Got: s.Probe + s.Direct})
		if s.Name == ipip.name || s.Name == direct.name {
			_, err := b.edges[0].node.Run(ctx, "curl", "-sf", "--max-time", "5", "http://"+s.Address.String()+"/health")
			got := "an answer"
			if err != nil {
				got = err.Error()
			}
			r.Add(Check{Name: s.Name + " answers at its own address", OK: err == nil, Want: "an answer", Got: got})
		}
	}
	if err := errors.Join(ipip.startUnwrap(ctx), vip("add")); err != nil {
		return err
	}
	return errors.Join(b.awaitShare(ctx, ipip.name, about(1./4)), b.awaitShare(ctx, direct.name, about(1./4)), b.awaitServers(ctx))
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
