package main

import (
	"net/netip"
	"time"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/userspace/control"
)

type verdictFeed struct {
	MaxFor span           `placeholder:"TIME" default:"7d" help:"No verdict lasts longer, whatever a line says; forever: no bound."`
	Never  []netip.Prefix `placeholder:"PREFIX" help:"Sources that no line may drop; repeatable."`
}

// Help is what berm verdict feed --help adds.
func (verdictFeed) Help() string {
	return `It reads a JSON object a line on standard input, so that fail2ban, CrowdSec or a model can decide. Its keys: source is an address or a prefix of at most 256 sources (of IPv6, /64s); op is add or remove; action is drop, shadow, allow or mark; for is a time, a number of seconds or forever (default: 1h); reason is cut to 15 bytes; vip, rule and evidence are shown with it. What came in meanwhile is sent together; a line alone is sent at once.

A line that is wrong is told on standard error with its number, as JSON too, and the stream goes on. What an operator decided stays. Exit code 0: every line was right. 1: some were not.

The address of a packet can be forged. Feed only sources that have completed a handshake (TCP, QUIC, HTTP), or say "validated":false: then drop becomes shadow, so that no attacker chooses whom this edge drops.

Examples:

  echo '{"source":"198.51.100.7","for":"10m","reason":"ssh","rule":7}' | berm verdict feed
  echo '{"op":"remove","source":"198.51.100.7"}' | berm verdict feed
  tail -F /var/log/bans.json | berm verdict feed --never 192.0.2.0/24
  ./detector.py | berm verdict feed --max-for 1h`
}

func (c *verdictFeed) Run(a *app) error {
	errs := out.Printer{W: a.stderr, JSON: true}
	f := control.Feed{
		MaxFor: time.Duration(c.MaxFor), Never: c.Never,
		Open: func() (control.Tables, error) {
			a.tables = nil // a daemon may have come or gone since
			return a.open()
		},
		Report: func(e control.FeedError) { _ = errs.Line(e, nil) }, // nothing is left to be done when stderr is gone
	}
	stats, err := f.Run(a.ctx, a.in)
	if err != nil {
		return err
	}
	if stats.Refused > 0 {
		a.code = exitFailed
	}
	return a.out.Value(stats, func() {
		a.out.Printf("%s: %d added, %d removed, %d not there, %d refused\n", plural(stats.Lines, "line"), stats.Added, stats.Removed, stats.Absent, stats.Refused)
	})
}

type verdictWatch struct {
	Interval time.Duration `default:"1s" help:"Between two looks."`
	Count    int           `placeholder:"N" help:"Stop after N looks."`
}

// Help is what berm verdict watch --help adds.
func (verdictWatch) Help() string {
	return `It prints a JSON object a line: each verdict that is there (added), that packets met since the last look (hit: new is how many, hits how many ever, last when that was seen), and that is there no longer (gone). So a feeder can extend what is still met, and let go of what is not.

Examples:

  berm verdict watch
  berm verdict watch | jq -c 'select(.event == "hit" and .seconds < 60) | {source, for: "10m", reason}' | berm verdict feed`
}

func (c *verdictWatch) Run(a *app) error {
	if c.Interval < 50*time.Millisecond {
		return badInput("--interval %s: want 50ms or more", c.Interval)
	}
	t, err := a.open()
	if err != nil {
		return err
	}
	lines := out.Printer{W: a.stdout, JSON: true}
	tick := time.NewTicker(c.Interval)
	defer tick.Stop()
	var hits control.Hits
	for n := 1; ; n++ {
		list, err := t.Verdicts(a.ctx)
		if a.ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range hits.Next(time.Now(), list) {
			if err := lines.Line(e, nil); err != nil {
				return nil // the reader has gone
			}
		}
		if n == c.Count {
			return nil
		}
		select {
		case <-a.ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
