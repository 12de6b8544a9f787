package main

import (
	"strings"

	"github.com/bermedge/berm/cmd/berm/internal/flow"
	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/userspace/control"
)

type steerCmd struct {
	Explain steerExplain `cmd:"" help:"Tell where the packets of a flow go, and why."`
	Plan    steerPlan    `cmd:"" help:"Show how many flows a change would move, before it is made."`
	Drain   steerDrain   `cmd:"" help:"Give a backend no new flows; it keeps those that it has."`
	Undrain steerUndrain `cmd:"" help:"Give a backend new flows again."`
	Weight  steerWeight  `cmd:"" help:"Change a backend's share of new flows."`
	Canary  steerCanary  `cmd:"" help:"Give a backend an exact share of new flows."`
	Spill   steerSpill   `cmd:"" help:"Let a share of a service's new flows begin at another site."`
}

// Help is what berm steer --help adds.
func (steerCmd) Help() string {
	return `Examples:

  berm steer explain 198.51.100.7:5000 192.0.2.10:443
  berm steer plan --drain edge2
  berm steer drain`
}

type steerExplain struct {
	Flow    []string `arg:"" optional:"" help:"SOURCE:PORT DESTINATION:PORT [tcp|udp], or a flow as tcpdump, ss or conntrack print it."`
	CID     string   `name:"cid" xor:"quic" placeholder:"HEX" help:"QUIC connection ID that a packet is for."`
	Payload string   `xor:"quic" placeholder:"HEX" help:"Start of a UDP payload, from which the connection ID is taken."`
}

// Help is what berm steer explain --help adds.
func (steerExplain) Help() string {
	return `It computes what the kernel half computes: VIP, flow hash, row, owner and previous owner, and for QUIC the server ID in the connection ID. The protocol is TCP unless named, or UDP with a connection ID. A connection ID alone tells format, server ID and backend.

Examples:

  berm steer explain 198.51.100.7:5000 192.0.2.10:443
  berm steer explain '[2001:db8::7]:5000 -> [2001:db8::10]:443/udp'
  berm steer explain 198.51.100.7,5000,192.0.2.10,443,tcp
  berm steer explain --cid 08c4605e4504cc4f
  berm steer explain 198.51.100.7:5000 192.0.2.10:443 udp --payload 4008c4605e4504cc4f9a3b
  berm steer explain 'IP 198.51.100.7.5000 > 192.0.2.10.443: Flags [S]'`
}

func (c *steerExplain) Run(a *app) error {
	f, err := c.flow()
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
		if s.Flow.Source.IsValid() {
			a.out.Field("flow", "%s %s -> %s", s.Flow.Protocol, s.Flow.Source, s.Flow.Destination)
			a.out.Field("vip", "%s", or(s.VIP, "none: not for a service of ours"))
		}
		if s.CID != nil {
			a.out.Field("cid", "%s", s.Flow.CID)
			a.out.Field("server id", "%d (format %d)", s.CID.ServerID, s.CID.Format)
			a.out.Field("backend", "%s", or(s.CID.Backend, "nobody"))
		}
		if s.Set != "" {
			a.out.Field("set", "%s", s.Set)
		}
		if s.Row >= 0 {
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
		if s.Spill != "" {
			a.out.Field("spill", "%s", s.Spill)
		}
		if s.Carry != "" {
			a.out.Field("carry", "%s", s.Carry)
		}
		a.out.Field("delivery", "%s", a.out.Paint(st, s.Delivery))
		for i, step := range s.Steps {
			a.out.Printf("%10d. %s\n", i+1, step)
		}
	})
}

// flow is what the command line asks about.
func (c *steerExplain) flow() (f control.Flow, err error) {
	cid, long := c.CID, false
	if c.Payload != "" {
		if cid, long, err = flow.ConnectionID(c.Payload); err != nil {
			return f, err
		}
	}
	if len(c.Flow) > 0 || cid == "" {
		if f, err = flow.Parse(c.Flow); err != nil {
			return f, err
		}
	}
	if cid != "" {
		f.Protocol = "udp"
	}
	f.CID, f.Long = strings.ToLower(cid), long
	return f, nil
}
