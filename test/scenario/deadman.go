package scenario

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

// Deadman is the main topology, with peers that miss a silent edge only after a while and a BIRD that
// knows nothing of its daemon: whatever helps new flows is in the edge's own kernel half.
type Deadman struct{ *Main }

// patience is more failed probes than there are in a hang of the lab's.
const patience = 200

func upDeadman(ctx context.Context, lab *rig.Lab, opts Options) (Topology, error) {
	d := &Deadman{newMain(lab, opts)}
	d.failures = patience
	return d, d.up(ctx)
}

// Steps hang edge2's daemon.
func (d *Deadman) Steps() []Step {
	return []Step{
		{Name: "kill -STOP of bermd", Run: d.checkHang, Loud: true},
		{Name: "without the dead man's switch", Run: d.checkWithout, Loud: true},
	}
}

// hang is how long the daemon is stopped: below the time that a request may take.
const hang = 3 * time.Second

// hung stops a daemon for a while, and returns what new flows saw of it.
func (d *Deadman) hung(ctx context.Context, e *Edge, meanwhile func() error) (fresh *freshFlows, stopped time.Time, err error) {
	fresh = &freshFlows{}
	running, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { fresh.run(running, d.Main) })
	defer func() { stop(); wg.Wait() }()
	stopped = time.Now()
	if err := e.bermd.Signal(syscall.SIGSTOP); err != nil {
		return nil, stopped, err
	}
	defer func() {
		if contErr := e.bermd.Signal(syscall.SIGCONT); err == nil {
			err = contErr
		}
	}()
	if err := elapse(ctx, hang); err != nil {
		return nil, stopped, err
	}
	err = meanwhile()
	stop()
	wg.Wait()
	return fresh, stopped, err
}

func (e *Edge) handed(ctx context.Context) (uint64, error) {
	var status control.Status
	err := e.ask(ctx, &status, "status")
	return status.Kernel.Handed, err
}

func (d *Deadman) checkHang(ctx context.Context, r *Recorder) error {
	victim, peer := d.edges[1], d.edges[0]
	c, err := d.startCrowd(ctx, drainFlows)
	if err != nil {
		return err
	}
	defer c.stop()
	before, err := victim.handed(ctx)
	if err != nil {
		return err
	}
	var during *crowd
	fresh, stopped, err := d.hung(ctx, victim, func() (err error) {
		during, err = d.startCrowd(ctx, drainFlows/2)
		return err
	})
	if during != nil {
		defer during.stop()
	}
	if err != nil {
		return err
	}
	var last time.Duration
	var served, early uint64
	for _, t := range fresh.tries {
		switch after := t.start.Sub(stopped); {
		case t.err != nil && t.start.Add(newFlowLimit).Before(stopped):
			early++
		case t.err != nil:
			last = max(last, after)
		case after > 0 && t.edge == peer.Name:
			served++
		}
	}
	r.Timed().Equal("kill -STOP: new flows failed before it", 0, early, "flows")
	r.Timed().AtMost("kill -STOP: last new flow that failed, begun after it by", 1, last.Seconds(), "s (500 ms of silence, and what is under way)")
	r.Timed().AtLeast("kill -STOP: new flows that the peer served", 50, float64(served), "flows")
	r.Equal("kill -STOP: flows begun meanwhile that the hung edge has", 0, uint64(len(during.on(victim.Name))), "flows")
	r.AtLeast("kill -STOP: flows that the hung edge had", drainFlows/4, float64(len(c.on(victim.Name))), "flows")

	if err := rig.Until(ctx, 20*time.Second, victim.Name+" answers again", func() (bool, error) {
		_, err := victim.rowsOf(ctx)
		return err == nil, nil
	}); err != nil {
		return err
	}
	if err := d.awaitService(ctx); err != nil {
		return fmt.Errorf("after kill -CONT: %w", err)
	}
	if err := c.finish(ctx); err != nil {
		return err
	}
	c.report(r, "kill -STOP and -CONT, flows from before")
	if err := during.finish(ctx); err != nil {
		return err
	}
	during.report(r, "kill -STOP and -CONT, flows begun meanwhile")
	after, err := victim.handed(ctx)
	if err != nil {
		return err
	}
	r.Timed().AtLeast("kill -STOP: packets of new flows that the hung edge's kernel half handed on", 20, float64(after-before), "packets")
	return nil
}

// checkWithout shows that it is the dead man's switch: without it new flows fail until the end.
func (d *Deadman) checkWithout(ctx context.Context, r *Recorder) error {
	set := func(steering string) error {
		d.steering = steering
		for _, e := range d.edges {
			if err := e.reload(ctx); err != nil {
				return err
			}
		}
		return nil
	}
	if err := set("  deadman: 0s\n"); err != nil {
		return err
	}
	fresh, stopped, err := d.hung(ctx, d.edges[1], func() error { return nil })
	if err != nil {
		return err
	}
	var last time.Duration
	for _, t := range fresh.tries {
		if t.err != nil {
			last = max(last, t.start.Sub(stopped))
		}
	}
	r.AtLeast("without the dead man's switch: last new flow that failed, begun after kill -STOP by", hang.Seconds()-0.7, last.Seconds(), "s")
	if err := set(""); err != nil {
		return err
	}
	return d.awaitService(ctx)
}
