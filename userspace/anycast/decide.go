package anycast

import (
	"fmt"
	"strings"
	"time"
)

// Phase is what routers are told.
type Phase string

// Phases.
const (
	Withdrawn Phase = "withdrawn" // nothing
	Prepended Phase = "prepended" // come here only when there is no other way
	Announced Phase = "announced"
)

// Phases lists them all.
func Phases() []Phase { return []Phase{Withdrawn, Prepended, Announced} }

// Command is what an operator wants instead of what health says.
type Command string

// Commands.
const (
	Follow   Command = "" // health decides
	Drain    Command = "drain"
	Withdraw Command = "withdraw"
)

// Health is how this edge is.
type Health struct {
	Alive    bool     // requests get through it at all
	Problems []string // that keep it from serving well
}

// decision is what to tell routers, and why.
type decision struct {
	phase    Phase
	graceful bool // on purpose: with GRACEFUL_SHUTDOWN
	why      string
	since    time.Time
}

// decider turns health and commands into phases, without haste: time is an argument. It is not safe
// for concurrent use.
type decider struct {
	drain time.Duration
	sick  Sick

	now       decision
	begun     bool // was announced, or ordered about, since the start
	bad, well time.Time

	command  Command
	ordered  time.Time // when the command came
	stopping bool
}

func newDecider(c Config, now time.Time) *decider {
	d := &decider{now: decision{phase: Withdrawn, why: "starting", since: now}}
	d.configure(c)
	return d
}

func (d *decider) configure(c Config) {
	d.drain, d.sick = c.Drain, c.Sick
}

// order takes a command. A second one of the same kind does not start its time anew.
func (d *decider) order(c Command, now time.Time) {
	if c != d.command {
		d.command, d.ordered = c, now
	}
}

// stop drains for the daemon's end.
func (d *decider) stop(now time.Time) {
	if d.command == Follow {
		d.ordered = now
	}
	d.stopping = true
}

// decide says what to tell routers now.
func (d *decider) decide(now time.Time, h Health) decision {
	d.watch(now, h)
	next := d.next(now, h)
	next.since = d.now.since
	if next.phase != d.now.phase || next.graceful != d.now.graceful {
		next.since = now
	}
	d.begun = d.begun || next.phase == Announced
	d.now = next
	return next
}

// watch notes since when problems are there, or gone.
func (d *decider) watch(now time.Time, h Health) {
	ill := !h.Alive || len(h.Problems) > 0
	switch {
	case ill && d.bad.IsZero():
		d.bad, d.well = now, time.Time{}
	case !ill && d.well.IsZero():
		d.well, d.bad = now, time.Time{}
	}
}

func (d *decider) next(now time.Time, h Health) decision {
	switch {
	case d.command == Withdraw:
		return decision{phase: Withdrawn, why: "an operator withdrew it"}
	case !h.Alive && !d.stopping:
		return decision{phase: Withdrawn, why: "requests do not get through the daemon"}
	case d.stopping:
		return d.drained(now, "the daemon ends")
	case d.command == Drain:
		return d.drained(now, "an operator drains it")
	case len(h.Problems) > 0:
		return d.ill(now, strings.Join(h.Problems, "; "))
	case d.now.phase == Announced, !d.begun:
		return decision{phase: Announced, why: "healthy"}
	}
	if left := d.sick.Recover - now.Sub(d.well); left > 0 {
		return decision{phase: d.now.phase, why: fmt.Sprintf("healthy again; announced in %s", left.Round(100*time.Millisecond))}
	}
	return decision{phase: Announced, why: "healthy"}
}

func (d *decider) drained(now time.Time, why string) decision {
	if d.now.phase == Withdrawn || now.Sub(d.ordered) >= d.drain {
		return decision{phase: Withdrawn, why: why}
	}
	return decision{phase: Prepended, graceful: true, why: why}
}

func (d *decider) ill(now time.Time, why string) decision {
	long := now.Sub(d.bad)
	switch {
	case !d.begun, d.now.phase == Withdrawn:
		return decision{phase: Withdrawn, why: why}
	case d.now.phase == Announced && long < d.sick.After:
		return decision{phase: Announced, why: "healthy until a moment ago: " + why}
	case d.sick.Hold > 0 && long >= d.sick.After+d.sick.Hold:
		return decision{phase: Withdrawn, why: why}
	}
	return decision{phase: Prepended, why: why}
}
