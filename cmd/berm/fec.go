package main

import (
	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/fec"
)

type fecCmd struct {
	Show    fecShow    `cmd:"" help:"Show the relays: what the path loses, what is repaired."`
	Explain fecExplain `cmd:"" help:"Tell how much parity a path needs, and what it would leave."`
}

// Help is what berm fec --help adds.
func (fecCmd) Help() string {
	return `A protecting relay adds parity to a UDP flow before a lossy path, a repairing one rebuilds behind it what was lost (Reed-Solomon, RFC 6865). They are set up in the file's section fec.

Examples:

  berm fec show
  berm fec explain --loss 0.05 --packets 32`
}

type fecShow struct{}

// Help is what berm fec show --help adds.
func (fecShow) Help() string {
	return `Examples:

  berm fec show
  berm fec show --json | jq '.[] | select(.role == "repair") | .residual'`
}

func (c *fecShow) Run(a *app) error {
	d, err := a.needDaemon("fec show", "the relays live in the daemon")
	if err != nil {
		return err
	}
	relays, err := d.Relays(a.ctx)
	if err != nil {
		return err
	}
	return a.out.Value(relays, func() { a.relays(relays) })
}

func (a *app) relays(relays []control.Relay) {
	if len(relays) == 0 {
		a.out.Printf("no relays: the file's section fec has none\n")
		return
	}
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
	Loss     float64 `required:"" placeholder:"SHARE" help:"Share of packets that the path loses, such as 0.05."`
	Burst    float64 `default:"1" help:"How many it loses in a row, on average."`
	Packets  int     `default:"32" help:"Packets that a block may take: those that come within the delay."`
	Residual float64 `default:"0.0001" help:"Share of packets that may stay lost."`
	Overhead float64 `default:"0.35" help:"Most parity, in packets for each packet."`
}

// Help is what berm fec explain --help adds.
func (fecExplain) Help() string {
	return `It computes what a protecting relay computes: the loss that blocks of each shape leave, exactly, on a path that loses in bursts (the model of Gilbert), and chooses the least parity that will do.

Examples:

  berm fec explain --loss 0.05
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
	switch {
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
