package main

import (
	"strings"
	"time"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/userspace/control"
)

type anycastCmd struct {
	Status   anycastStatus   `cmd:"" help:"Show what is announced, why, and how the sessions with routers are."`
	Announce anycastAnnounce `cmd:"" help:"Follow health again: announce while the edge is healthy."`
	Drain    anycastDrain    `cmd:"" help:"Make routers prefer other edges, then withdraw."`
	Withdraw anycastWithdraw `cmd:"" help:"Withdraw at once."`
}

// Help is what berm anycast --help adds.
func (anycastCmd) Help() string {
	return `A drain and a withdrawal hold until berm anycast announce, whatever health says, and over restarts of the daemon.

Examples:

  berm anycast status
  berm anycast drain
  berm anycast announce`
}

type anycastStatus struct{}

// Help is what berm anycast status --help adds.
func (anycastStatus) Help() string {
	return `Exit code 0: announced to every router. 1: not, or not to all.

Examples:

  berm anycast status
  berm anycast status --json | jq -r '.peers[] | select(.up | not) | .address'`
}

func (c *anycastStatus) Run(a *app) error {
	d, err := a.needDaemon("anycast status", "routers speak with the daemon, and know nothing of a stopped one")
	if err != nil {
		return err
	}
	s, err := d.Anycast(a.ctx)
	if err != nil {
		return err
	}
	for _, p := range s.Peers {
		if !p.Up {
			a.code = exitFailed
		}
	}
	if s.Phase != "announced" {
		a.code = exitFailed
	}
	return a.out.Value(s, func() { a.anycast(s) })
}

type anycastAnnounce struct{}

// Help is what berm anycast announce --help adds.
func (anycastAnnounce) Help() string {
	return `It ends a drain or a withdrawal. A sick edge stays as its health says.

Examples:

  berm anycast announce`
}

func (c *anycastAnnounce) Run(a *app) error { return a.orderAnycast("announce") }

type anycastDrain struct{}

// Help is what berm anycast drain --help adds.
func (anycastDrain) Help() string {
	return `The path is prepended (anycast.prepend) and marked with GRACEFUL_SHUTDOWN (65535:0) for anycast.drain, and then withdrawn. Flows in progress go on: other edges hand them over.

Examples:

  berm anycast drain
  berm anycast drain && until berm anycast status --json | jq -e '.phase == "withdrawn"'; do sleep 1; done`
}

func (c *anycastDrain) Run(a *app) error { return a.orderAnycast("drain") }

type anycastWithdraw struct{}

// Help is what berm anycast withdraw --help adds.
func (anycastWithdraw) Help() string {
	return `Examples:

  berm anycast withdraw`
}

func (c *anycastWithdraw) Run(a *app) error { return a.orderAnycast("withdraw") }

func (a *app) orderAnycast(command string) error {
	d, err := a.needDaemon("anycast "+command, "routers speak with the daemon, and know nothing of a stopped one")
	if err != nil {
		return err
	}
	s, err := d.OrderAnycast(a.ctx, control.AnycastOrder{Command: command})
	if err != nil {
		return err
	}
	return a.tell(control.Changes{Changed: s.Changed}, byDaemon)
}

func (a *app) anycast(s control.Anycast) {
	style := map[string]out.Style{"announced": out.Good, "prepended": out.Warn, "withdrawn": out.Bad}[s.Phase]
	a.out.Field("phase", "%s for %s: %s", a.out.Paint(style, s.Phase), out.Duration(time.Since(s.Since)), s.Why)
	if s.Command != "" {
		a.out.Field("command", "%s (until berm anycast announce)", s.Command)
	}
	a.out.Field("as", "%d", s.AS)
	if len(s.Routes) > 0 {
		rows := make([][]out.Cell, 0, len(s.Routes))
		for _, r := range s.Routes {
			rows = append(rows, out.Row(r.Prefix.String(), r.NextHop, sprintf("%d", r.MED), sprintf("%d", r.Prepend), or(strings.Join(r.Communities, " "), "-")))
		}
		a.out.Printf("\n")
		a.out.Table([]string{"PREFIX", "NEXT HOP", "MED>", "PREPENDED>", "COMMUNITIES"}, rows)
	}
	rows := make([][]out.Cell, 0, len(s.Peers))
	for _, p := range s.Peers {
		state := out.Cell{Text: p.State, Style: out.Good}
		if !p.Up {
			state.Style = out.Bad
		}
		watch := out.Cell{Text: "-"}
		if p.BFD != nil {
			watch = out.Cell{Text: sprintf("%s, %.0fms", p.BFD.State, p.BFD.Interval), Style: out.Good}
			if p.BFD.State != "up" {
				watch.Style = out.Warn
			}
		}
		row := out.Row(p.Address.String(), sprintf("%d", p.AS), "", out.Duration(time.Since(p.Since)), "", sprintf("%d", p.Received), p.Error)
		row[2], row[4] = state, watch
		rows = append(rows, row)
	}
	a.out.Printf("\n")
	a.out.Table([]string{"ROUTER", "AS>", "BGP", "SINCE>", "BFD", "RECEIVED>", "LAST ERROR"}, rows)
}
