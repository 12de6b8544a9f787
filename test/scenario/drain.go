package scenario

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

// Drain is the main topology, in which edges come and go while flows are in flight. It begins with two
// edges; a third is connected.
type Drain struct{ *Main }

func upDrain(ctx context.Context, lab *rig.Lab, opts Options) (Topology, error) {
	d := &Drain{newMain(lab, opts)}
	return d, d.up(ctx)
}

// Steps begin and end with two edges. Those that end flows on purpose come last.
func (d *Drain) Steps() []Step {
	return []Step{
		{Name: "an edge is added", Run: d.checkAdd, Loud: true},
		{Name: "an edge drains and returns", Run: d.checkDrain, Loud: true},
		{Name: "weights and a canary", Run: d.checkWeights, Loud: true},
		{Name: "an edge is removed", Run: d.checkRemove, Loud: true},
		{Name: "an edge is lost and returns", Run: d.checkFailover, Loud: true},
		{Name: "without second chances", Run: d.checkWithout, Loud: true},
	}
}

const drainFlows = 60

// rowsOf is how many rows each backend has, as an edge says.
func (e *Edge) rowsOf(ctx context.Context) (map[string]int, error) {
	var status control.Status
	if err := e.ask(ctx, &status, "status"); err != nil {
		return nil, err
	}
	rows := map[string]int{}
	for _, b := range status.Backends {
		rows[b.Name] = b.Rows
	}
	return rows, nil
}

// awaitShare waits until all edges say that one has a number of rows that is right.
func (m *Main) awaitShare(ctx context.Context, name string, right func(rows int) bool) error {
	var seen map[string]int
	err := rig.Until(ctx, 20*time.Second, "the edges agree on the rows of "+name, func() (bool, error) {
		for _, e := range m.edges {
			rows, err := e.rowsOf(ctx)
			if seen = rows; err != nil || !right(rows[name]) {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("%w; rows: %v", err, seen)
	}
	return nil
}

// share is right where rows are about so much of all.
func about(share float64) func(int) bool {
	return func(rows int) bool {
		off := float64(rows)/maps.RowCount - share
		return off < 0.02 && off > -0.02
	}
}

func none(rows int) bool { return rows == 0 }

// chances are the packets that each edge has given a second chance.
func (m *Main) chances(ctx context.Context) (map[string]uint64, error) {
	n := map[string]uint64{}
	for _, e := range m.edges {
		var status control.Status
		if err := e.ask(ctx, &status, "status"); err != nil {
			return nil, err
		}
		n[e.Name] = status.Kernel.Chances
	}
	return n, nil
}

// under runs what is done to the edges while flows are in flight, and checks the flows.
func (d *Drain) under(ctx context.Context, r *Recorder, what string, do func(c *crowd) error) error {
	before, err := d.chances(ctx)
	if err != nil {
		return err
	}
	c, err := d.startCrowd(ctx, drainFlows)
	if err != nil {
		return err
	}
	defer c.stop()
	if err := do(c); err != nil {
		return err
	}
	if err := c.finish(ctx); err != nil {
		return err
	}
	c.report(r, what)
	after, err := d.chances(ctx)
	if err != nil {
		return err
	}
	var sum uint64
	for name, n := range after {
		sum += n - before[name]
	}
	r.AtLeast(what+": packets that needed a second chance", 1, float64(sum), "packets")
	return nil
}

// checkAdd: the newcomer starts, the others learn of it, and it announces itself.
func (d *Drain) checkAdd(ctx context.Context, r *Recorder) error {
	if err := d.addSpare(ctx); err != nil {
		return err
	}
	return d.under(ctx, r, "an edge is added", func(*crowd) error {
		var plan control.Plan
		if err := d.edges[0].ask(ctx, &plan, "steer", "plan", "--add", "edge3"); err != nil {
			return err
		}
		fresh := d.spares[0]
		d.listed++
		if err := fresh.start(ctx); err != nil {
			return err
		}
		for _, e := range d.edges {
			if err := e.reload(ctx); err != nil {
				return err
			}
		}
		d.edges, d.spares = append(d.edges, fresh), nil
		if err := d.routerKnows(ctx); err != nil {
			return err
		}
		if err := d.awaitRows(ctx); err != nil {
			return err
		}
		rows, err := d.edges[0].rowsOf(ctx)
		if err != nil {
			return err
		}
		r.Equal("an edge is added: rows that moved, as planned", uint64(plan.Sets[0].Moved), uint64(rows["edge3"]), "rows")
		r.Equal("an edge is added: rows that move beyond the minimum", 0, uint64(plan.Sets[0].Moved-plan.Sets[0].Least), "rows")
		return d.awaitService(ctx)
	})
}

// routerKnows has the router speak with all edges, and waits for its ways.
func (m *Main) routerKnows(ctx context.Context) error {
	e := m.edges[len(m.edges)-1]
	if err := m.configureRouter(ctx); err != nil {
		return err
	}
	if err := e.announce(); err != nil {
		return err
	}
	return m.awaitPaths(ctx, len(m.edges), 20*time.Second)
}

// checkDrain: an order on the edge itself, which the others learn from it.
func (d *Drain) checkDrain(ctx context.Context, r *Recorder) error {
	drained := d.edges[1]
	return d.under(ctx, r, "an edge drains and returns", func(c *crowd) error {
		var plan control.Plan
		if err := d.edges[0].ask(ctx, &plan, "steer", "plan", "--drain", drained.Name); err != nil {
			return err
		}
		rows, err := drained.rowsOf(ctx)
		if err != nil {
			return err
		}
		r.Equal("drain: rows that move, as planned", uint64(rows[drained.Name]), uint64(plan.Sets[0].Moved), "rows")

		fresh := &freshFlows{}
		running, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { fresh.run(running, d.Main) })
		defer func() { stop(); wg.Wait() }()
		ordered := time.Now()
		if _, err := drained.berm(ctx, "steer", "drain"); err != nil {
			return err
		}
		if err := d.awaitShare(ctx, drained.Name, none); err != nil {
			return err
		}
		if err := elapse(ctx, 2*time.Second); err != nil {
			return err
		}
		stop()
		wg.Wait()
		d.reportDrained(r, fresh, c, drained.Name, ordered)

		if _, err := drained.berm(ctx, "steer", "undrain"); err != nil {
			return err
		}
		return d.awaitShare(ctx, drained.Name, about(1/float64(len(d.edges))))
	})
}

// reportDrained: no new flow, and all old ones.
func (d *Drain) reportDrained(r *Recorder, fresh *freshFlows, c *crowd, name string, ordered time.Time) {
	var last time.Duration
	var failed, served uint64
	fresh.mu.Lock()
	defer fresh.mu.Unlock()
	for _, t := range fresh.tries {
		switch after := t.start.Sub(ordered); {
		case t.err != nil:
			failed++
		case t.edge == name:
			last = max(last, after)
		case after > 0:
			served++
		}
	}
	r.Timed().AtMost("drain: last new flow that the drained edge got, begun after the order by", 1, last.Seconds(), "s")
	r.Timed().AtLeast("drain: new flows that the others got since", 50, float64(served), "flows")
	r.Equal("drain: new flows that failed", 0, failed, "flows")
	var idle uint64
	theirs := c.on(name)
	for _, f := range theirs {
		f.mu.Lock()
		if f.err != nil || !f.times[len(f.times)-1].After(ordered.Add(time.Second)) {
			idle++
		}
		f.mu.Unlock()
	}
	r.AtLeast("drain: flows of the drained edge", drainFlows/6, float64(len(theirs)), "flows")
	r.Equal("drain: of those without an answer a second later", 0, idle, "flows")
}

// checkWeights: shares change to and fro.
func (d *Drain) checkWeights(ctx context.Context, r *Recorder) error {
	e := d.edges[2]
	return d.under(ctx, r, "weights and a canary", func(*crowd) error {
		for _, step := range []struct {
			share float64
			args  []string
		}{
			{0.6, []string{"weight", "3"}},
			{1 / 3., []string{"weight", "0"}},
			{0.01, []string{"canary", "--share", "1%"}},
			{1 / 3., []string{"canary", "--share", "0%"}},
		} {
			if _, err := e.berm(ctx, append([]string{"steer"}, step.args...)...); err != nil {
				return err
			}
			if err := d.awaitShare(ctx, e.Name, about(step.share)); err != nil {
				return err
			}
			rows, err := d.edges[0].rowsOf(ctx)
			if err != nil {
				return err
			}
			r.Near(fmt.Sprintf("steer %v: share of %s", step.args, e.Name), 100*step.share, 0.1, 100*float64(rows[e.Name])/maps.RowCount, "% of the rows")
		}
		return nil
	})
}

// checkRemove: an edge drains, its flows end, it leaves the router, and the others forget it.
func (d *Drain) checkRemove(ctx context.Context, r *Recorder) error {
	last := d.edges[2]
	return d.under(ctx, r, "an edge is removed", func(c *crowd) error {
		if _, err := last.berm(ctx, "steer", "drain"); err != nil {
			return err
		}
		if err := d.awaitShare(ctx, last.Name, none); err != nil {
			return err
		}
		for _, f := range c.on(last.Name) {
			f.leave()
		}
		if err := c.downloaded(ctx); err != nil {
			return err
		}
		if err := last.bird.Stop(2 * time.Second); err != nil {
			return err
		}
		d.edges, d.listed = d.edges[:2], 2
		if err := d.awaitPaths(ctx, len(d.edges), 20*time.Second); err != nil {
			return err
		}
		for _, e := range d.edges {
			if err := e.reload(ctx); err != nil {
				return err
			}
		}
		return errors.Join(d.awaitRows(ctx), last.bermd.Stop(20*time.Second))
	})
}

// downloaded waits until every download is over.
func (c *crowd) downloaded(ctx context.Context) error {
	return rig.Until(ctx, 30*time.Second, "the downloads end", func() (bool, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.over == c.downloads, nil
	})
}

// checkWithout shows that these checks can fail: without second chances a drain breaks flows.
func (d *Drain) checkWithout(ctx context.Context, r *Recorder) error {
	set := func(steering string) error {
		d.steering = steering
		for _, e := range d.edges {
			if err := e.reload(ctx); err != nil {
				return err
			}
		}
		return nil
	}
	if err := set("  second_chance: 0s\n"); err != nil {
		return err
	}
	c, err := d.startCrowd(ctx, drainFlows)
	if err != nil {
		return err
	}
	defer c.stop()
	e := d.edges[1]
	theirs := c.on(e.Name)
	if _, err := e.berm(ctx, "steer", "drain"); err != nil {
		return err
	}
	if err := d.awaitShare(ctx, e.Name, none); err != nil {
		return err
	}
	if err := c.settle(ctx); err != nil {
		return err
	}
	n, _ := broken(theirs)
	r.AtLeast(fmt.Sprintf("without second chances: of %d flows of the drained edge reset", len(theirs)), float64(len(theirs))/2, float64(n), "flows")
	others := slices.DeleteFunc(slices.Clone(c.flows), func(f *longFlow) bool { return f.edge == e.Name })
	n, how := broken(others)
	r.Equal(fmt.Sprintf("without second chances: of %d flows of the other edge reset", len(others)), 0, n, "flows"+how)
	if _, err := e.berm(ctx, "steer", "undrain"); err != nil {
		return err
	}
	return errors.Join(set(""), d.awaitService(ctx))
}
