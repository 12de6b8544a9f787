package main

import (
	"fmt"
	"net/netip"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/fec"
)

type fecCmd struct {
	Show    fecShow    `cmd:"" help:"Show relays, live streams and their subscribers: what paths lose, what is repaired."`
	Explain fecExplain `cmd:"" help:"Tell how much parity a path needs, and what it would leave; or what a subscriber gets, and why."`
}

// Help is what berm fec --help adds.
func (fecCmd) Help() string {
	return `A protecting relay adds parity to a UDP flow before a lossy path, a repairing one rebuilds behind it what was lost (Reed-Solomon, RFC 6865). A live stream goes to each subscriber, over datagrams of WebTransport, with as much parity as its path needs. All are set up in the file's section fec.

Examples:

  berm fec show
  berm fec explain --loss 0.05 --packets 32`
}

type fecShow struct{}

// Help is what berm fec show --help adds.
func (fecShow) Help() string {
	return `Examples:

  berm fec show
  berm fec show --json | jq '.relays[] | select(.role == "repair") | .residual'
  berm fec show --json | jq '.streams[].subscribers[] | {client, loss, k, m, residual}'`
}

// fecAll is berm fec show --json.
type fecAll struct {
	Relays  []control.Relay      `json:"relays"`
	Streams []control.LiveStream `json:"streams"`
}

func (c *fecShow) Run(a *app) error {
	d, err := a.needDaemon("fec show", "relays and streams live in the daemon")
	if err != nil {
		return err
	}
	var all fecAll
	if all.Relays, err = d.Relays(a.ctx); err != nil {
		return err
	}
	if all.Streams, err = d.LiveStreams(a.ctx); err != nil {
		return err
	}
	return a.out.Value(all, func() {
		if len(all.Relays)+len(all.Streams) == 0 {
			a.out.Printf("no relays and no streams: the file's section fec has none\n")
		}
		a.relays(all.Relays)
		if len(all.Relays) > 0 && len(all.Streams) > 0 {
			a.out.Printf("\n")
		}
		a.streams(all.Streams)
	})
}

func (a *app) streams(streams []control.LiveStream) {
	for i, s := range streams {
		if i > 0 {
			a.out.Printf("\n")
		}
		a.out.Field(s.Name, "%s -> %s%s: %s packets, %s dropped; %s, %s since the start", s.Listen, s.Host, s.Path, count(s.Packets), count(s.Dropped), plural(len(s.Subscribers), "subscriber"), count(s.Joined))
		a.out.Field("blocks", "%d packets and up to %d of parity", s.K, s.M)
		if len(s.Subscribers) == 0 {
			continue
		}
		a.out.Printf("%s\n", a.out.Paint(out.Dim, fmt.Sprintf("  %-24s %9s %7s %9s %7s %9s %11s", "SUBSCRIBER", "LOSS", "BURST", "PARITY", "LATE", "MISSING", "STAYS LOST")))
		for _, v := range s.Subscribers {
			a.out.Printf("  %-24s %8.2f%% %7.1f %8.0f%% %7s %9s %11.2g\n", v.Client, 100*v.Loss, max(v.Burst, 1), 100*float64(v.M)/float64(max(v.K, 1)), count(v.Late), count(v.Missing), v.Residual)
		}
	}
}

func (a *app) relays(relays []control.Relay) {
	for i, r := range relays {
		if i > 0 {
			a.out.Printf("\n")
		}
		a.out.Field(r.Name, "%ss %s -> %s: %s packets, %s dropped", r.Role, r.Listen, r.To, count(r.Packets), count(r.Dropped))
		if r.Role == fec.RoleProtect {
			a.out.Field("path", "loses %.3g %% in bursts of %.1f", 100*r.Loss, max(r.Burst, 1))
			a.out.Field("blocks", "%d packets and %d of parity, %s sent: %s", r.K, r.M, count(r.Parity), r.Why)
			continue
		}
		a.out.Field("received", "%s from %s, %s duplicates, %s refused", count(r.Received), plural(r.Senders, "sender"), count(r.Duplicates), count(r.Refused))
		a.out.Field("repaired", "%s packets; %s stayed lost (%.2g)", count(r.Repaired), count(r.Missing), r.Residual)
	}
}

type fecExplain struct {
	Client   string  `arg:"" optional:"" help:"Address of a live stream's subscriber, with or without port."`
	Loss     float64 `default:"-1" placeholder:"SHARE" help:"Share of packets that the path loses, such as 0.05."`
	Burst    float64 `default:"1" help:"How many it loses in a row, on average."`
	Packets  int     `default:"32" help:"Packets that a block may take: those that come within the delay."`
	Residual float64 `default:"0.0001" help:"Share of packets that may stay lost."`
	Overhead float64 `default:"0.35" help:"Most parity, in packets for each packet."`
}

// Help is what berm fec explain --help adds.
func (fecExplain) Help() string {
	return `It computes what a protecting relay computes: the loss that blocks of each shape leave, exactly, on a path that loses in bursts (the model of Gilbert), and chooses the least parity that will do. Of a subscriber it tells what the daemon chose, by which losses, and what came of it.

Examples:

  berm fec explain --loss 0.05
  berm fec explain 198.51.100.7
  berm fec explain --loss 0.03 --burst 3 --packets 80 --json`
}

// fecAnswer is berm fec explain --json.
type fecAnswer struct {
	Path   fec.Path    `json:"path"`
	Plan   fec.Plan    `json:"plan"`
	Shapes []fecChoice `json:"shapes"` // with less parity than the plan, and one with more
}

type fecChoice struct {
	fec.Params
	Overhead float64 `json:"overhead"`
	Residual float64 `json:"residual"`
}

func (c *fecExplain) Run(a *app) error {
	if c.Client != "" {
		return c.subscriber(a)
	}
	switch {
	case c.Loss == -1:
		return badInput("want --loss SHARE, or a subscriber's address")
	case c.Loss < 0 || c.Loss > 1:
		return badInput("--loss %g: want a share from 0 to 1", c.Loss)
	case c.Burst < 1 || c.Burst > 1000:
		return badInput("--burst %g: want 1 to 1000 packets", c.Burst)
	case c.Packets < 1 || c.Packets > fec.MaxSymbols:
		return badInput("--packets %d: want 1 to %d", c.Packets, fec.MaxSymbols)
	case c.Residual <= 0 || c.Residual >= 1:
		return badInput("--residual %g: want a share between 0 and 1", c.Residual)
	case c.Overhead < 0 || c.Overhead > 2:
		return badInput("--overhead %g: want 0 to 2", c.Overhead)
	}
	path := fec.Path{Loss: c.Loss, Burst: c.Burst}
	answer := fecAnswer{Path: path, Plan: fec.Choose(path, fec.Goal{Residual: c.Residual, Overhead: c.Overhead, Packets: c.Packets})}
	for m := 0; m <= answer.Plan.M+1 && answer.Plan.K+m <= fec.MaxSymbols; m++ {
		p := fec.Params{K: answer.Plan.K, M: m}
		answer.Shapes = append(answer.Shapes, fecChoice{p, p.Overhead(), path.Residual(p)})
	}
	return a.out.Value(answer, func() {
		a.out.Field("plan", "%s: %s", answer.Plan.Params, answer.Plan.Why)
		a.out.Printf("%s\n", a.out.Paint(out.Dim, "  SHAPE    OVERHEAD  STAYS LOST"))
		for _, s := range answer.Shapes {
			mark := " "
			if s.Params == answer.Plan.Params {
				mark = ">"
			}
			a.out.Printf("%s %-8s %7.1f%%  %10.2g\n", mark, s.Params, 100*s.Overhead, s.Residual)
		}
	})
}

// fecSubscriber is berm fec explain ADDRESS --json: an entry for each session.
type fecSubscriber struct {
	Stream string `json:"stream"`
	control.Subscriber
}

func (c *fecExplain) subscriber(a *app) error {
	var only uint16
	addr, err := netip.ParseAddr(c.Client)
	if err != nil {
		ap, perr := netip.ParseAddrPort(c.Client)
		if perr != nil {
			return badInput("%q: want an address, such as 198.51.100.7, with or without port", c.Client)
		}
		addr, only = ap.Addr(), ap.Port()
	}
	d, err := a.needDaemon("fec explain", "subscribers are the daemon's")
	if err != nil {
		return err
	}
	streams, err := d.LiveStreams(a.ctx)
	if err != nil {
		return err
	}
	found := []fecSubscriber{}
	for _, s := range streams {
		for _, v := range s.Subscribers {
			if v.Client.Addr().Unmap() == addr.Unmap() && (only == 0 || v.Client.Port() == only) {
				found = append(found, fecSubscriber{s.Name, v})
			}
		}
	}
	return a.out.Value(found, func() {
		if len(found) == 0 {
			a.out.Printf("%s subscribes to no stream\n", c.Client)
		}
		for i, v := range found {
			if i > 0 {
				a.out.Printf("\n")
			}
			a.out.Field("subscriber", "%s of %s for %.0f s", v.Client, v.Stream, v.Seconds)
			a.out.Field("path", "loses %.3g %% in bursts of %.1f, by its reports of the last seconds", 100*v.Loss, max(v.Burst, 1))
			if v.Before > 0 {
				a.out.Field("before", "its prefix lost %.3g %% when it came, by the kernel half", 100*v.Before)
			}
			a.out.Field("plan", "%s: %s", fec.Params{K: v.K, M: v.M}, v.Why)
			a.out.Field("sent", "%s packets and %s of parity; %s were too late for its connection", count(v.Sent), count(v.Parity), count(v.Late))
			a.out.Field("asked", "more parity of %s, which it gets where its round trip is within the stream's delay", plural(int(v.Nacks), "block"))
			a.out.Field("missing", "%s packets stayed lost (%.2g)", count(v.Missing), v.Residual)
		}
	})
}
