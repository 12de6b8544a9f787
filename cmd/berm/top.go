package main

import (
	"context"
	"errors"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/cmd/berm/internal/top"
	"github.com/bermedge/berm/userspace/control"
)

type topCmd struct {
	Interval time.Duration `short:"i" default:"1s" help:"Between two looks, 500ms to 1m."`
	Count    int           `short:"n" placeholder:"N" help:"Print N plain views and stop."`
	Filter   string        `short:"f" placeholder:"TEXT" help:"Show only rows that contain this (a key, /, too)."`
}

// Help is what berm top --help adds.
func (topCmd) Help() string {
	return `On a terminal it is a live view: q quits, ? lists the keys. Elsewhere, or with --count, views are printed one after the other; with --json, one object a line.

Sources are estimated from sampled packets. While bermd is down, VIPs and drops are shown from the kernel half's counters, and sources and the cache are unknown.

Examples:

  berm top
  berm top --count 1
  berm top --json --interval 5s | jq -c '.sources[:3]'`
}

func (c *topCmd) Run(a *app) error {
	if c.Interval < 500*time.Millisecond || c.Interval > time.Minute {
		return badInput("--interval %s: want 500ms to 1m", c.Interval)
	}
	t, err := a.open()
	if err != nil {
		return err
	}
	o := top.Options{Interval: c.Interval, Color: a.out.Color, Filter: c.Filter, Fetch: watchTables(t)}
	if d, ok := t.(*control.Client); ok {
		o.Fetch = d.Top
		if s, err := d.Status(a.ctx); err == nil {
			o.Title = s.Node
		}
	} else {
		o.Note = "bermd is not running: sources, requests and the cache are unknown"
	}
	if a.root.JSON || c.Count > 0 || !isTerminal(a.stdout) || !isTerminal(a.in) {
		return c.stream(a, o)
	}
	p := tea.NewProgram(top.New(a.ctx, o), tea.WithContext(a.ctx), tea.WithInput(a.in), tea.WithOutput(a.stdout))
	_, err = p.Run()
	if errors.Is(err, tea.ErrInterrupted) || a.ctx.Err() != nil {
		return nil
	}
	return err
}

// stream prints one view after the other.
func (c *topCmd) stream(a *app, o top.Options) error {
	if o.Note != "" {
		a.note("%s", o.Note)
		if _, err := o.Fetch(a.ctx, 1); err != nil { // counters now; rates need a second look
			return err
		}
		if !pause(a.ctx, c.Interval) {
			return nil
		}
	}
	for n := 0; c.Count == 0 || n < c.Count; n++ {
		if n > 0 && !pause(a.ctx, c.Interval) {
			return nil
		}
		t, err := o.Fetch(a.ctx, max(int(c.Interval/time.Second), 1))
		if a.ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		t.Sources, t.VIPs, t.Drops = orEmpty(t.Sources), orEmpty(t.VIPs), orEmpty(t.Drops)
		if err := a.out.Line(t, func() { a.topText(t, o) }); err != nil {
			return nil // the reader has gone
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (a *app) topText(t control.Top, o top.Options) {
	in, dropped, shadowed, forwarded := top.Totals(t)
	a.out.Printf("%s  in %s pps %s, dropped %s pps, shadow %s pps, forwarded %s pps", time.Now().Format(time.TimeOnly),
		out.Count(in.Packets), out.Bits(in.Bytes), out.Count(dropped.Packets), out.Count(shadowed.Packets), out.Count(forwarded.Packets))
	if o.Note == "" {
		a.out.Printf(", requests %s/s, cache hits %.1f %%", out.Count(t.Requests), 100*t.Cache.HitRatio)
	}
	a.out.Printf("\n")
	for _, table := range top.Text(t, o.Filter) {
		if len(table.Rows) > 0 {
			a.out.Table(table.Header, table.Rows)
		}
	}
}
