package edge

import (
	"context"
	"fmt"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/steer"
)

// Order changes what a backend is to be. Of this edge, all others learn it with the next probe.
func (e *Edge) Order(_ context.Context, o control.Order) (control.Changes, error) {
	var done control.Changes
	if o.Backend == "" {
		o.Backend = e.cfg.Load().Node.Name
	}
	err := e.kernel.use(func(*maps.Set) error {
		self, err := e.kernel.steer.Order(orderOf(o))
		if err != nil {
			return err
		}
		where := "on this edge alone: say it on the other edges too"
		if self {
			e.probes.say(e.kernel.steer.Own())
			where = "and the other edges learn it with their next probe"
		}
		for _, s := range sentences(o) {
			done.Changed = append(done.Changed, s+", "+where)
			e.log.Info("order", "what", s)
		}
		return nil
	})
	return done, err
}

func orderOf(o control.Order) steer.Order {
	return steer.Order{Backend: o.Backend, Draining: o.Draining, Weight: o.Weight, Share: o.Share}
}

// sentences tell what an order asks for.
func sentences(o control.Order) (out []string) {
	switch {
	case o.Draining != nil && *o.Draining:
		out = append(out, fmt.Sprintf("%s drains: it gets no new flows, and keeps those that it has to their end", o.Backend))
	case o.Draining != nil:
		out = append(out, fmt.Sprintf("%s gets new flows again", o.Backend))
	}
	switch {
	case o.Weight != nil && *o.Weight > 0:
		out = append(out, fmt.Sprintf("%s has weight %d", o.Backend, *o.Weight))
	case o.Weight != nil:
		out = append(out, fmt.Sprintf("%s has the file's weight", o.Backend))
	}
	switch {
	case o.Share != nil && *o.Share > 0:
		out = append(out, fmt.Sprintf("%s is a canary with %.2f %% of the rows", o.Backend, float64(*o.Share)/100))
	case o.Share != nil:
		out = append(out, fmt.Sprintf("%s is no canary", o.Backend))
	}
	return out
}

// Plan says what a change of rows would mean.
func (e *Edge) Plan(_ context.Context, p control.PlanRequest) (control.Plan, error) {
	change := steer.Change{Remove: p.Remove}
	for _, name := range p.Add {
		change.Add = append(change.Add, steer.Backend{Name: name})
	}
	for _, o := range p.Orders {
		if o.Backend == "" {
			o.Backend = e.cfg.Load().Node.Name
		}
		change.Orders = append(change.Orders, orderOf(o))
	}
	if p.Sets != nil {
		change.Sets = map[string][]steer.Backend{}
	}
	for set, members := range p.Sets {
		for _, m := range members {
			change.Sets[set] = append(change.Sets[set], steer.Backend{Name: m.Name, Weight: m.Weight})
		}
	}
	out := control.Plan{Sets: []control.SetPlan{}}
	err := e.kernel.use(func(*maps.Set) error {
		plans, err := e.kernel.steer.Plan(change)
		for _, x := range plans {
			s := control.SetPlan{Set: x.Set, Rows: maps.RowCount, Moved: x.Moved, Least: x.Least, Backends: []control.BackendPlan{}}
			for _, b := range x.Backends {
				s.Backends = append(s.Backends, control.BackendPlan{Name: b.Name, Before: b.Before, After: b.After})
			}
			out.Sets = append(out.Sets, s)
		}
		return err
	})
	for _, s := range p.Spills {
		if err != nil {
			break
		}
		var plan control.SpillPlan
		plan, err = e.planSpill(s)
		out.Spills = append(out.Spills, plan)
	}
	return out, err
}
