package scenario

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/bermedge/berm/test/rig"
)

// flowLimit is how long a connection or a request may take where no failure is expected to
// show: three retransmissions of a SYN.
const flowLimit = 8 * time.Second

const (
	longFlows     = 120
	longEvery     = 50 * time.Millisecond  // each long flow asks that often
	newEvery      = 20 * time.Millisecond  // a new flow is tried that often
	newFlowLimit  = 300 * time.Millisecond // a SYN is sent again after 1 s: one lost SYN is a failure
	failoverWatch = 3 * time.Second        // after the loss
)

// checkFailover loses edge2 for good and all: link, daemon and announcement at once.
func (m *Main) checkFailover(ctx context.Context, r *Recorder) error {
	survivor, victim := m.edges[0], m.edges[1]
	flows, err := m.openLong(ctx, longFlows)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	running, stop := context.WithCancel(ctx)
	defer stop()
	for _, f := range flows {
		wg.Go(func() { f.run(running) })
	}
	fresh := &freshFlows{}
	wg.Go(func() { fresh.run(running, m) })
	// Every long flow has answers before the loss, or it would be no flow.
	err = rig.Until(ctx, flowLimit, "long flows are answered", func() (bool, error) { return slowest(flows) >= 3, nil })
	if err == nil {
		err = victim.lose()
	}
	lost := time.Now()
	if err == nil {
		err = elapse(ctx, failoverWatch)
	}
	stop()
	wg.Wait()
	if err != nil {
		return err
	}
	reportLong(r, "loss of an edge", flows, survivor.Name, lost)
	reportFresh(r, "loss of an edge", fresh, survivor.Name, lost)

	meanwhile, err := m.startCrowd(ctx, longFlows/2)
	if err != nil {
		return err
	}
	defer meanwhile.stop()
	back := time.Now()
	if err := victim.restore(ctx); err != nil {
		return fmt.Errorf("bring %s back: %w", victim.Name, err)
	}
	if err := m.awaitService(ctx); err != nil {
		return fmt.Errorf("after %s came back: %w", victim.Name, err)
	}
	r.Timed().AtMost("loss of an edge: it serves again after its return in", 20, time.Since(back).Seconds(), "s")
	if err := meanwhile.settle(ctx); err != nil {
		return err
	}
	meanwhile.report(r, "its return")
	return nil
}

// elapse lets time pass in which things are watched; it waits for nothing else.
func elapse(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// longFlow asks again and again on one connection.
type longFlow struct {
	*flow
	edge string

	mu    sync.Mutex
	times []time.Time // of answers
	err   error
	left  bool // it asks no more, by its own will
}

// leave ends the flow after the answer that it waits for.
func (f *longFlow) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left = true
}

func (m *Main) openLong(ctx context.Context, n int) ([]*longFlow, error) {
	var flows []*longFlow
	for i := range n {
		vip := []string{vip4, vip6}[i%2]
		f, err := m.openFlow(ctx, m.good, vip, flowLimit)
		if err != nil {
			return nil, err
		}
		a, err := f.get("/o/long/1")
		if err != nil {
			return nil, err
		}
		flows = append(flows, &longFlow{flow: f, edge: a.edge})
	}
	return flows, nil
}

func (f *longFlow) run(ctx context.Context) {
	defer f.close()
	// The end of the watch is no failure of a flow that is waiting for its answer.
	stop := context.AfterFunc(ctx, func() { _ = f.conn.SetDeadline(time.Now()) })
	defer stop()
	tick := time.NewTicker(longEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		_, err := f.get("/o/long/1")
		if ctx.Err() != nil {
			return
		}
		f.mu.Lock()
		if f.err = err; err == nil {
			f.times = append(f.times, time.Now())
		}
		left := f.left
		f.mu.Unlock()
		if err != nil || left {
			return
		}
	}
}

func slowest(flows []*longFlow) int {
	least := math.MaxInt
	for _, f := range flows {
		f.mu.Lock()
		least = min(least, len(f.times))
		f.mu.Unlock()
	}
	return least
}

func reportLong(r *Recorder, what string, flows []*longFlow, survivor string, lost time.Time) {
	var theirs, broken, silent uint64
	var stall time.Duration
	for _, f := range flows {
		if f.edge != survivor {
			continue
		}
		theirs++
		if f.err != nil {
			broken++
		}
		after := false
		for i := 1; i < len(f.times); i++ {
			stall = max(stall, f.times[i].Sub(f.times[i-1]))
			after = after || f.times[i].After(lost)
		}
		if !after {
			silent++
		}
	}
	r.AtLeast(what+": long flows of the survivor", longFlows/4, float64(theirs), "flows")
	r.Equal(what+": flows of the survivor reset", 0, broken, "flows")
	r.Equal(what+": flows of the survivor without an answer since", 0, silent, "flows")
	r.Timed().AtMost(what+": longest stall of a survivor's flow", failoverWatch.Seconds(), stall.Seconds(), "s")
}

// freshFlows opens a new flow every few milliseconds and notes how each went.
type freshFlows struct {
	mu    sync.Mutex
	tries []freshTry
}

type freshTry struct {
	start time.Time
	edge  string
	err   error
}

func (n *freshFlows) run(ctx context.Context, m *Main) {
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(newEvery)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		vip := []string{vip4, vip6}[i%2]
		wg.Go(func() {
			t := freshTry{start: time.Now()}
			t.edge, t.err = m.freshFlow(ctx, vip)
			if ctx.Err() != nil {
				return // cut off by the end of the watch
			}
			n.mu.Lock()
			n.tries = append(n.tries, t)
			n.mu.Unlock()
		})
	}
}

func (m *Main) freshFlow(ctx context.Context, vip string) (edge string, err error) {
	f, err := m.openFlow(ctx, m.good, vip, newFlowLimit)
	if err != nil {
		return "", err
	}
	defer f.close()
	a, err := f.get("/o/fresh/1")
	return a.edge, err
}

func reportFresh(r *Recorder, what string, n *freshFlows, survivor string, lost time.Time) {
	var early, wrong, served uint64
	var last time.Duration // after the loss
	for _, t := range n.tries {
		switch after := t.start.Sub(lost); {
		case t.err != nil && t.start.Add(newFlowLimit).Before(lost):
			early++
		case t.err != nil:
			last = max(last, after)
		case after > 0 && t.edge != survivor:
			wrong++
		case after > 0:
			served++
		}
	}
	r.Timed().Equal(what+": new flows failed before it", 0, early, "flows")
	r.Timed().AtMost(what+": last new flow that failed, started after it by", 1, last.Seconds(), "s")
	r.Timed().AtLeast(what+": new flows that went to the survivor", 80, float64(served), "flows")
	r.Equal(what+": new flows answered by the lost one", 0, wrong, "flows")
}

// lose takes the edge's link and kills its programs, as a power cut would.
func (e *Edge) lose() error {
	return errors.Join(e.node.Down("eth0"), e.bermd.Kill(), e.bird.Kill())
}

// restore brings the edge back. Its kernel half is still attached.
func (e *Edge) restore(ctx context.Context) error {
	if err := e.node.Up("eth0"); err != nil {
		return err
	}
	// Routes went with the link.
	if err := defaultRoutes(e.node, e.link4router, e.link6router); err != nil {
		return err
	}
	if err := e.startDaemon(ctx); err != nil {
		return err
	}
	if err := e.announce(); err != nil {
		return err
	}
	return e.m.awaitPaths(ctx, len(e.m.edges), 20*time.Second)
}

// failures lists distinct errors, for people.
func failures(counts map[string]uint64) string {
	var list []string
	for what, n := range counts {
		list = append(list, fmt.Sprintf("%d × %s", n, what))
	}
	return strings.Join(list, ", ")
}
