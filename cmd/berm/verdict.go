package main

import (
	"context"
	"net/netip"
	"time"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/userspace/control"
)

type verdictCmd struct {
	Add   verdictAdd   `cmd:"" help:"Decide about a source."`
	Rm    verdictRm    `cmd:"" help:"Forget the decision about a source."`
	List  verdictList  `cmd:"" help:"List the decisions in force."`
	Feed  verdictFeed  `cmd:"" help:"Decide by lines of JSON on standard input."`
	Watch verdictWatch `cmd:"" help:"Print what becomes of decisions, as lines of JSON."`
}

// Help is what berm verdict --help adds.
func (verdictCmd) Help() string {
	return `Examples:

  berm verdict add 198.51.100.7 --for 10m --reason scraper
  berm verdict list
  berm verdict rm 198.51.100.7`
}

type verdictAdd struct {
	Source netip.Addr `arg:"" help:"Address; of IPv6 the whole /64 is meant."`
	VIP    string     `name:"vip" complete:"vip" placeholder:"NAME" help:"At this VIP only."`
	Action string     `enum:"drop,allow,shadow,mark" default:"drop" help:"drop, allow (before geo policy and limits), shadow (count only) or mark (the daemon decides)."`
	For    span       `default:"1h" help:"How long: 90s, 10m, 2h, 7d or forever."`
	Reason string     `placeholder:"TEXT" help:"Why, up to 15 bytes; it is shown wherever the verdict is."`
}

// Help is what berm verdict add --help adds.
func (verdictAdd) Help() string {
	return `It holds from the next packet on. A second verdict about the same source and VIP replaces the first.

Examples:

  berm verdict add 198.51.100.7
  berm verdict add 2001:db8:7::1 --vip web --for 7d --reason scraper
  berm verdict add 192.0.2.200 --action allow --for forever --reason monitoring`
}

func (c *verdictAdd) Run(a *app) error {
	v := control.Verdict{
		Source: c.Source, VIP: c.VIP, Action: c.Action, Reason: c.Reason, Seconds: time.Duration(c.For).Seconds(),
	}
	return a.change(func(ctx context.Context, t control.Tables) (control.Changes, error) { return t.AddVerdict(ctx, v) })
}

type verdictRm struct {
	Source netip.Addr `arg:"" complete:"verdict" help:"Address; of IPv6 the whole /64 is meant."`
	VIP    string     `name:"vip" complete:"vip" placeholder:"NAME" help:"The one at this VIP; without it, the one for every VIP."`
}

// Help is what berm verdict rm --help adds.
func (verdictRm) Help() string {
	return `Examples:

  berm verdict rm 198.51.100.7
  berm verdict rm 2001:db8:7::1 --vip web`
}

func (c *verdictRm) Run(a *app) error {
	return a.change(func(ctx context.Context, t control.Tables) (control.Changes, error) {
		return t.RemoveVerdict(ctx, c.Source, c.VIP)
	})
}

type verdictList struct{}

// Help is what berm verdict list --help adds.
func (verdictList) Help() string {
	return `Examples:

  berm verdict list
  berm verdict list --json | jq -r '.[] | select(.hits == 0) | .source'`
}

func (c *verdictList) Run(a *app) error {
	t, err := a.open()
	if err != nil {
		return err
	}
	all, err := t.Verdicts(a.ctx)
	if err != nil {
		return err
	}
	return a.out.Value(orEmpty(all), func() {
		if len(all) == 0 {
			a.out.Printf("no verdicts (berm verdict add --help)\n")
			return
		}
		rows := make([][]out.Cell, 0, len(all))
		for _, v := range all {
			r := out.Row(v.Source.String(), or(v.VIP, "every VIP"), v.Action, left(v.Seconds), count(v.Hits), v.Owner, v.Reason)
			if v.Action == "drop" {
				r[2].Style = out.Bad
			}
			rows = append(rows, r)
		}
		a.out.Table([]string{"SOURCE", "VIP", "ACTION", "LEFT>", "HITS>", "FROM", "REASON"}, rows)
	})
}

func left(seconds float64) string {
	if seconds == 0 {
		return "forever"
	}
	return out.Duration(time.Duration(seconds * float64(time.Second)))
}

func lasting(seconds float64) string {
	if seconds == 0 {
		return ", forever"
	}
	return ", " + left(seconds) + " left"
}
