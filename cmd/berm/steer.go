package main

import (
	"github.com/bermedge/berm/cmd/berm/internal/flow"
	"github.com/bermedge/berm/cmd/berm/internal/out"
)

type steerCmd struct {
	Explain steerExplain `cmd:"" help:"Tell where the packets of a flow go, and why."`
	Plan    steerPlan    `cmd:"" help:"Show how many flows a change would move, before it is made."`
	Drain   steerDrain   `cmd:"" help:"Give a backend no new flows; it keeps those that it has."`
	Undrain steerUndrain `cmd:"" help:"Give a backend new flows again."`
	Weight  steerWeight  `cmd:"" help:"Change a backend's share of new flows."`
	Canary  steerCanary  `cmd:"" help:"Give a backend an exact share of new flows."`
}

// Help is what berm steer --help adds.
func (steerCmd) Help() string {
	return `Examples:

  berm steer explain 198.51.100.7:5000 192.0.2.10:443
  berm steer plan --drain edge2
  berm steer drain`
}

type steerExplain struct {
	Flow []string `arg:"" help:"SOURCE:PORT DESTINATION:PORT [tcp|udp], or a flow as tcpdump, ss or conntrack print it."`
}

// Help is what berm steer explain --help adds.
func (steerExplain) Help() string {
	return `It computes what the kernel half computes: VIP, flow hash, row, owner and previous owner. The protocol is TCP unless named.

Examples:

  berm steer explain 198.51.100.7:5000 192.0.2.10:443
  berm steer explain '[2001:db8::7]:5000 -> [2001:db8::10]:443/udp'
  berm steer explain 198.51.100.7,5000,192.0.2.10,443,tcp
  berm steer explain 'IP 198.51.100.7.5000 > 192.0.2.10.443: Flags [S]'`
}

func (c *steerExplain) Run(a *app) error {
	f, err := flow.Parse(c.Flow)
	if err != nil {
		return badInput("steer explain: %w", err)
	}
	t, err := a.open()
	if err != nil {
		return err
	}
	s, err := t.ExplainSteer(a.ctx, f)
	if err != nil {
		return err
	}
	return a.out.Value(s, func() {
		a.out.Field("flow", "%s %s -> %s", s.Flow.Protocol, s.Flow.Source, s.Flow.Destination)
		a.out.Field("vip", "%s", or(s.VIP, "none: not for a service of ours"))
		if s.Set != "" {
			a.out.Field("set", "%s", s.Set)
			a.out.Field("row", "%d (hash %016x)", s.Row, s.Hash)
			a.out.Field("owner", "%s", or(s.Owner, "nobody"))
			if s.Heir != "" {
				a.out.Field("heir", "%s", s.Heir)
			} else {
				a.out.Field("previous", "%s", or(s.Previous, "nobody"))
			}
		}
		st := out.Good
		switch s.Delivery {
		case "drop":
			st = out.Bad
		case "fail_open":
			st = out.Warn
		}
		a.out.Field("delivery", "%s", a.out.Paint(st, s.Delivery))
		for i, step := range s.Steps {
			a.out.Printf("%10d. %s\n", i+1, step)
		}
	})
}
