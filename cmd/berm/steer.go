package main

import (
	"strings"

	"github.com/bermedge/berm/cmd/berm/internal/flow"
	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/userspace/control"
)

type steerCmd struct {
	Explain steerExplain `cmd:"" help:"Tell where the packets of a flow go, and why."`
	Ufrag   steerUfrag   `cmd:"" help:"Make an ICE username fragment that names an edge, or read one."`
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
	Ufrag   string   `xor:"quic" placeholder:"UFRAG" help:"ICE username fragment that a connectivity check shows."`
	Payload string   `xor:"quic" placeholder:"HEX" help:"Start of a UDP payload, from which the connection ID is taken."`
}

// Help is what berm steer explain --help adds.
func (steerExplain) Help() string {
	return `It computes what the kernel half computes: VIP, flow hash, row, owner and previous owner, for QUIC the server ID in the connection ID, and for WebRTC that in the ICE username fragment. The protocol is TCP unless named, or UDP with a connection ID. A connection ID alone tells format, server ID and backend.

Examples:

  berm steer explain 198.51.100.7:5000 192.0.2.10:443
  berm steer explain '[2001:db8::7]:5000 -> [2001:db8::10]:443/udp'
  berm steer explain 198.51.100.7,5000,192.0.2.10,443,tcp
  berm steer explain --cid 08c4605e4504cc4f
  berm steer explain 198.51.100.7:5000 192.0.2.10:443 udp --payload 4008c4605e4504cc4f9a3b
  berm steer explain 198.51.100.7:5000 192.0.2.10:3478 udp --ufrag AAcAAAABq2Sh8P0i
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
		if s.Ufrag != nil {
			a.out.Field("ufrag", "%s", s.Ufrag.Ufrag)
			a.out.Field("server id", "%d", s.Ufrag.ServerID)
			a.out.Field("backend", "%s", or(s.Ufrag.Backend, "nobody"))
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
	if len(c.Flow) > 0 || cid == "" && c.Ufrag == "" {
		if f, err = flow.Parse(c.Flow); err != nil {
			return f, err
		}
	}
	if cid != "" || c.Ufrag != "" {
		f.Protocol = "udp"
	}
	f.CID, f.Long, f.Ufrag = strings.ToLower(cid), long, c.Ufrag
	return f, nil
}

type steerUfrag struct {
	Backend string `arg:"" optional:"" help:"Edge that it names; without it, this one."`
	Decode  string `placeholder:"UFRAG" help:"Tell whom a fragment names, instead of making one."`
}

// Help is what berm steer ufrag --help adds.
func (steerUfrag) Help() string {
	return `A server of WebRTC gives the fragment out as its own in the session description (a=ice-ufrag). The connectivity checks of clients show it, and services with stun: true send them, and all else of the same flow, to the edge that it names, from whatever address the client sends. Each is made once: one for each session.

Examples:

  berm steer ufrag
  berm steer ufrag edge2
  berm steer ufrag --decode AAcAAAABq2Sh8P0i`
}

func (c *steerUfrag) Run(a *app) error {
	t, err := a.open()
	if err != nil {
		return err
	}
	if c.Decode == "" {
		u, err := t.MintUfrag(a.ctx, c.Backend)
		if err != nil {
			return err
		}
		return a.out.Value(u, func() { a.out.Printf("%s\n", u.Ufrag) })
	}
	s, err := t.ExplainSteer(a.ctx, control.Flow{Ufrag: c.Decode})
	if err != nil {
		return err
	}
	if s.Ufrag == nil {
		return badInput("steer ufrag: %s", strings.Join(s.Steps, "; "))
	}
	return a.out.Value(s.Ufrag, func() {
		a.out.Field("server id", "%d", s.Ufrag.ServerID)
		a.out.Field("backend", "%s", or(s.Ufrag.Backend, "nobody"))
	})
}
