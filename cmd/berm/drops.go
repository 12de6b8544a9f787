package main

import (
	"time"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/control"
)

type dropsCmd struct {
	Watch    bool          `short:"w" help:"Print rates by reason until interrupted."`
	Interval time.Duration `default:"1s" help:"Between two prints of --watch."`
	Count    int           `placeholder:"N" help:"Stop --watch after N prints."`
	All      bool          `short:"a" help:"Show reasons that never dropped anything, too."`
	Stages   bool          `help:"Show where in the pipeline packets left it, too."`
}

// Help is what berm drops --help adds.
func (dropsCmd) Help() string {
	return `"Dropped" is what was refused; "shadow" is what would have been, were its rule enforced. Counters start when the kernel half is loaded.

Examples:

  berm drops
  berm drops --watch
  berm drops --watch --json | jq -c 'select(.packets > 1000)'
  berm drops --stages`
}

func (c *dropsCmd) Run(a *app) error {
	if c.Interval < 100*time.Millisecond {
		return badInput("--interval %s: want 100ms or more", c.Interval)
	}
	t, err := a.open()
	if err != nil {
		return err
	}
	if c.Watch {
		return c.watch(a, t)
	}
	d, err := t.Drops(a.ctx)
	if err != nil {
		return err
	}
	d.Drops, d.Stages = orEmpty(d.Drops), orEmpty(d.Stages)
	return a.out.Value(d, func() {
		rows := c.rows(d)
		if len(rows) == 0 {
			a.out.Printf("nothing was dropped\n")
		} else {
			a.out.Table([]string{"REASON", "NR>", "DROPPED>", "BYTES>", "SHADOW>", "BYTES>", "BECAUSE"}, rows)
		}
		if c.Stages {
			a.stages(d.Stages)
		}
	})
}

func (c *dropsCmd) rows(d control.Drops) (rows [][]out.Cell) {
	for _, r := range d.Drops {
		if !c.All && r.Dropped.Packets == 0 && r.Shadowed.Packets == 0 {
			continue
		}
		row := out.Row(r.Reason, sprintf("%d", r.Number), count(r.Dropped.Packets), out.Bytes(float64(r.Dropped.Bytes)),
			count(r.Shadowed.Packets), out.Bytes(float64(r.Shadowed.Bytes)), maps.Drop(r.Number).Meaning())
		mark(row, 6, true, out.Dim)
		mark(row, 2, r.Dropped.Packets > 0, out.Bad)
		mark(row, 4, r.Shadowed.Packets > 0, out.Warn)
		rows = append(rows, row)
	}
	return rows
}

func mark(row []out.Cell, i int, on bool, st out.Style) {
	if on {
		row[i].Style = st
	}
}

func (a *app) stages(all []control.Stage) {
	var rows [][]out.Cell
	for _, s := range all {
		if s.Count.Packets > 0 {
			rows = append(rows, out.Row(s.Stage, s.Exit, count(s.Count.Packets), out.Bytes(float64(s.Count.Bytes))))
		}
	}
	if len(rows) > 0 {
		a.out.Printf("\n")
		a.out.Table([]string{"STAGE", "EXIT", "PACKETS>", "BYTES>"}, rows)
	}
}

// dropRates is one print of berm drops --watch --json.
type dropRates struct {
	Time    time.Time         `json:"time"`
	Seconds float64           `json:"seconds"`
	Packets float64           `json:"packets"` // dropped per second, all reasons
	Bytes   float64           `json:"bytes"`
	Drops   []control.TopDrop `json:"drops"` // per second
}

func (c *dropsCmd) watch(a *app, t control.Tables) error {
	before, err := t.Drops(a.ctx)
	if err != nil {
		return err
	}
	last := time.Now()
	ticker := time.NewTicker(c.Interval)
	defer ticker.Stop()
	screen := a.redraw()
	for n := 0; c.Count == 0 || n < c.Count; n++ {
		select {
		case <-a.ctx.Done():
			return nil
		case <-ticker.C:
		}
		now, err := t.Drops(a.ctx)
		if a.ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		at := time.Now()
		r := ratesBetween(before, now, at.Sub(last).Seconds())
		r.Time = at
		before, last = now, at
		if err := a.out.Line(r, func() { c.print(a, screen, r) }); err != nil {
			return nil // the reader has gone: head, a closed pipe
		}
	}
	return nil
}

func (c *dropsCmd) print(a *app, screen *screen, r dropRates) {
	var rows [][]out.Cell
	for _, d := range r.Drops {
		if c.All || d.Dropped.Packets > 0 || d.Shadowed.Packets > 0 {
			row := out.Row(d.Reason, out.Count(d.Dropped.Packets), out.Bits(d.Dropped.Bytes), out.Count(d.Shadowed.Packets))
			mark(row, 1, d.Dropped.Packets > 0, out.Bad)
			mark(row, 3, d.Shadowed.Packets > 0, out.Warn)
			rows = append(rows, row)
		}
	}
	screen.draw(func(p *out.Printer) {
		p.Printf("%s  dropped %s packets/s, %s\n", p.Paint(out.Dim, r.Time.Format(time.TimeOnly)), out.Count(r.Packets), out.Bits(r.Bytes))
		if len(rows) > 0 {
			p.Table([]string{"REASON", "PACKETS/s>", "BITS/s>", "SHADOW/s>"}, rows)
		}
	})
}
