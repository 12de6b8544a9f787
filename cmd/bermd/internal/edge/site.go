package edge

import (
	"context"
	"fmt"
	"slices"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/config"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/steer"
)

// spillOf finds a service of the file with the spill that is in force, and with the one that is asked for. The caller
// holds reloading.
func (e *Edge) spillOf(s control.Spill) (now, then config.VIP, err error) {
	cfg := e.cfg.Load()
	i := slices.IndexFunc(cfg.VIPs, func(v config.VIP) bool { return v.Name == s.VIP })
	if i < 0 {
		return now, then, fmt.Errorf("VIP %q is none of the file's: %w", s.VIP, maps.ErrNotFound)
	}
	now = cfg.VIPs[i]
	if said, ok := e.kernel.spills[s.VIP]; ok {
		now.Spill = said
	}
	then = now
	if s.To != "" {
		then.Spill.To = s.To
	}
	if then.Spill.BasisPoints = s.BasisPoints; s.BasisPoints == 0 {
		then.Spill = steer.Spill{}
	}
	if err := cfg.CheckSpill(then); err != nil {
		return now, then, fmt.Errorf("VIP %q: %w", s.VIP, err)
	}
	return now, then, nil
}

// Spill changes the share of a service's new flows that begins at another site.
func (e *Edge) Spill(_ context.Context, s control.Spill) (done control.Changes, err error) {
	e.reloading.Lock()
	defer e.reloading.Unlock()
	now, then, err := e.spillOf(s)
	if err != nil || then.Spill == now.Spill {
		return done, err
	}
	err = e.kernel.use(func(set *maps.Set) error {
		said, had := e.kernel.spills[s.VIP]
		if e.kernel.spills == nil {
			e.kernel.spills = map[string]steer.Spill{}
		}
		e.kernel.spills[s.VIP] = then.Spill
		err := control.ApplyVIPs(set, e.kernel.wanted(e.cfg.Load()))
		switch {
		case err == nil:
		case had:
			e.kernel.spills[s.VIP] = said
		default:
			delete(e.kernel.spills, s.VIP)
		}
		return err
	})
	if err != nil {
		return done, err
	}
	what := fmt.Sprintf("no new flow of %s begins at another site", s.VIP)
	if p := then.Spill.BasisPoints; p > 0 {
		what = fmt.Sprintf("%.2f %% of the new flows of %s begin at site %s", float64(p)/100, s.VIP, then.Spill.To)
	}
	e.log.Info("order", "what", what)
	done.Changed = append(done.Changed, what+", on this edge alone: say it on the other edges too")
	return done, nil
}

// planSpill says what that would mean.
func (e *Edge) planSpill(s control.Spill) (control.SpillPlan, error) {
	e.reloading.Lock()
	defer e.reloading.Unlock()
	now, then, err := e.spillOf(s)
	if err != nil {
		return control.SpillPlan{}, err
	}
	before, after := now.Spill.BasisPoints, then.Spill.BasisPoints
	moved := max(before, after) - min(before, after)
	if before > 0 && after > 0 && now.Spill.To != then.Spill.To {
		moved = max(before, after) // who began at the one begins at the other, or here
	}
	view := func(x steer.Spill) control.Spill {
		return control.Spill{VIP: s.VIP, To: x.To, BasisPoints: x.BasisPoints}
	}
	return control.SpillPlan{VIP: s.VIP, Before: view(now.Spill), After: view(then.Spill), Moved: moved}, nil
}
