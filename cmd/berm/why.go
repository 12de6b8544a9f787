package main

import (
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"github.com/bermedge/berm/cmd/berm/internal/flow"
	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/cmd/berm/internal/why"
	"github.com/bermedge/berm/loader"
	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/control"
)

type whyCmd struct {
	Flow   []string `arg:"" help:"Source address, for all VIPs; or SOURCE:PORT DESTINATION:PORT [tcp|udp], or a flow as tcpdump, ss or conntrack print it."`
	Ack    bool     `help:"Ask about a packet of a connection that is there, instead of one that opens it. A line of tcpdump tells the flags itself."`
	Length int      `placeholder:"BYTES" help:"Payload bytes of the packet." default:"0"`
}

// Help is what berm why --help adds.
func (whyCmd) Help() string {
	return `The packet is made up and given to the kernel half's own program, once more loaded over the live tables: what that program writes it has for itself, so no limit is charged, nothing is counted and nothing is sent. What it decided is told stage by stage, with the entry of the table that it met. It needs root (CAP_BPF, CAP_NET_ADMIN).

Examples:

  sudo berm why 198.51.100.7
  sudo berm why 198.51.100.7:5000 192.0.2.10:443
  sudo berm why --length 1200 'IP 198.51.100.7.5000 > 192.0.2.10.443: Flags [P.], seq 1:1201'`
}

// somePort is where a client that was given without a port comes from.
const somePort = 40000

func (c *whyCmd) Run(a *app) error {
	if c.Length < 0 || c.Length > 3000 {
		return badInput("--length %d: want 0 to 3000", c.Length)
	}
	o, err := a.kernelOptions()
	if err != nil {
		return err
	}
	t, err := loader.NewTwin(o)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fail(exitPermission, "Run it as root: it loads the program once more, to replay a packet.", "why: %w", err)
	case errors.Is(err, maps.ErrNotUp):
		return fail(exitAbsent, "Load the kernel half: berm kernel up.", "why: %w", err)
	case err != nil:
		return err
	}
	a.closers = append(a.closers, t.Close)
	packets, err := c.packets(t.Tables())
	if err != nil {
		return err
	}
	asker := why.New(t)
	answers := make([]why.Answer, 0, len(packets))
	for _, p := range packets {
		w, err := asker.Ask(a.ctx, p)
		if err != nil {
			return err
		}
		answers = append(answers, w)
	}
	if t.Running != "" && t.Running != t.Tag {
		a.note("the program that runs is of another version (tag %s, this one %s): berm kernel upgrade", t.Running, t.Tag)
	}
	return a.out.Value(answers, func() {
		for i, w := range answers {
			if i > 0 {
				a.out.Printf("\n")
			}
			a.why(w)
		}
		if len(answers) == 0 {
			a.out.Printf("there is no VIP of its family: all its packets pass untouched\n")
		}
	})
}

// packets are those to ask about: of the flow, or of the source to every VIP.
func (c *whyCmd) packets(set *maps.Set) ([]why.Packet, error) {
	list, err := set.VIPs.List()
	if err != nil {
		return nil, err
	}
	source, err := netip.ParseAddr(strings.Join(c.Flow, " "))
	if err != nil {
		f, err := flow.Parse(c.Flow)
		if err != nil {
			return nil, badInput("why: %w", err)
		}
		p, err := c.packet(f, list)
		return []why.Packet{p}, err
	}
	var packets []why.Packet
	for _, v := range list {
		if v.Address.Unmap().Is4() != source.Unmap().Is4() {
			continue
		}
		p, err := c.packet(control.Flow{
			Protocol: v.Protocol.String(), Source: netip.AddrPortFrom(source.Unmap(), somePort), Destination: netip.AddrPortFrom(v.Address.Unmap(), v.Port),
		}, list)
		if err != nil {
			return nil, err
		}
		packets = append(packets, p)
	}
	return packets, nil
}

// packet is one of the flow: where a service speaks QUIC, a packet of QUIC.
func (c *whyCmd) packet(f control.Flow, list []maps.VIP) (p why.Packet, err error) {
	if f.Source.Addr().Unmap().Is4() != f.Destination.Addr().Unmap().Is4() {
		return p, badInput("why: %s and %s are of different families", f.Source.Addr(), f.Destination.Addr())
	}
	p = why.Packet{Source: f.Source, Destination: f.Destination, Flags: why.FlagSYN, Payload: c.Length}
	if p.Protocol, err = maps.ParseProtocol(f.Protocol); err != nil {
		return p, badInput("why: %w", err)
	}
	if c.Ack {
		p.Flags = why.FlagACK
	} else if flags, ok := flow.TCPFlags(c.Flow); ok {
		p.Flags = flags
	}
	quic := slices.ContainsFunc(list, func(v maps.VIP) bool {
		return v.Protocol == p.Protocol && v.Address.Unmap() == f.Destination.Addr().Unmap() && v.Port == f.Destination.Port() &&
			(v.QUIC || v.Gate.Retry != maps.GateOff || v.Gate.BadInitials != maps.ActionNone)
	})
	switch {
	case p.Protocol != maps.ProtocolUDP || !quic:
	case c.Ack:
		p.QUIC = why.Short
	default:
		p.QUIC = why.Initial
	}
	return p, nil
}

func (a *app) why(w why.Answer) {
	a.out.Field("flow", "%s %s -> %s (%s)", w.Flow.Protocol, w.Flow.Source, w.Flow.Destination, w.Packet)
	for _, s := range w.Stages {
		style := out.Dim
		switch s.Decision {
		case "drop":
			style = out.Bad
		case "shadow":
			style = out.Warn
		case "allow":
			style = out.Good
		}
		entry := ""
		if s.Entry != "-" {
			entry = a.out.Paint(out.Dim, "  "+s.Entry)
		}
		a.out.Field(s.Stage, "%s%s", a.out.Paint(style, s.Says), entry)
	}
	style := out.Good
	if w.Reason != "" {
		style = out.Bad
	}
	a.out.Field("so", "%s", a.out.Paint(style, w.Because))
}
