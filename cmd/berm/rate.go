package main

import (
	"context"
	"slices"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/userspace/control"
)

type rateCmd struct {
	Set  rateSet  `cmd:"" help:"Make or change a class."`
	List rateList `cmd:"" help:"List the classes."`
}

// Help is what berm rate --help adds.
func (rateCmd) Help() string {
	return `A class limits each source (an IPv4 address, an IPv6 /64) by itself. VIPs and prefixes name the class that holds.

Examples:

  berm rate set default --packets 1000 --packets-burst 2000
  berm rate list`
}

type rateSet struct {
	Name         string    `arg:"" complete:"rate" help:"Name of the class, up to 15 bytes."`
	Packets      *quantity `placeholder:"N" help:"Packets per second; 0 = unlimited."`
	PacketsBurst *quantity `placeholder:"N" help:"Packets at once."`
	Bytes        *quantity `placeholder:"N" help:"Bytes of IP packets per second; 0 = unlimited."`
	BytesBurst   *quantity `placeholder:"N" help:"Bytes at once."`
	SYNs         *quantity `name:"syns" placeholder:"N" help:"TCP connection attempts per second; 0 = unlimited."`
	SYNsBurst    *quantity `name:"syns-burst" placeholder:"N" help:"Connection attempts at once."`
	Shadow       *bool     `negatable:"" help:"Count what would be refused, and refuse nothing; --no-shadow enforces."`
}

// Help is what berm rate set --help adds.
func (rateSet) Help() string {
	return `What is not named stays as it is; a class that does not exist is made without limits. A rate without a burst gets a burst of one second. Numbers take k, M and G (decimal). Limits hold for each edge: the flows of one source spread over the edges of a site.

Examples:

  berm rate set default --packets 1000 --packets-burst 2000
  berm rate set strict --syns 20 --bytes 10M
  berm rate set strict --shadow`
}

func (c *rateSet) Run(a *app) error {
	t, err := a.open()
	if err != nil {
		return err
	}
	all, err := t.Rates(a.ctx)
	if err != nil {
		return err
	}
	r := control.RateClass{Name: c.Name}
	if i := slices.IndexFunc(all, func(r control.RateClass) bool { return r.Name == c.Name }); i >= 0 {
		r = all[i]
	}
	if err := c.apply(&r); err != nil {
		return err
	}
	return a.change(func(ctx context.Context, t control.Tables) (control.Changes, error) { return t.SetRate(ctx, r) })
}

func (c *rateSet) apply(r *control.RateClass) error {
	for _, l := range []struct {
		flag             string
		rate, burst      *quantity
		intoRate, intoBu *uint64
	}{
		{"packets", c.Packets, c.PacketsBurst, &r.Packets, &r.PacketsBurst},
		{"bytes", c.Bytes, c.BytesBurst, &r.Bytes, &r.BytesBurst},
		{"syns", c.SYNs, c.SYNsBurst, &r.SYNs, &r.SYNsBurst},
	} {
		if l.rate != nil {
			*l.intoRate = uint64(*l.rate)
		}
		switch {
		case l.burst != nil:
			*l.intoBu = uint64(*l.burst)
		case l.rate != nil && (*l.intoBu == 0 || *l.intoRate == 0):
			*l.intoBu = *l.intoRate
		}
		if *l.intoRate == 0 && *l.intoBu != 0 {
			return badInput("--%s-burst %d: means nothing without --%s", l.flag, *l.intoBu, l.flag)
		}
	}
	if c.Shadow != nil {
		r.Shadow = *c.Shadow
	}
	return nil
}

type rateList struct{}

// Help is what berm rate list --help adds.
func (rateList) Help() string {
	return `Examples:

  berm rate list
  berm rate list --json | jq '.[] | select(.shadow)'`
}

func (c *rateList) Run(a *app) error {
	t, err := a.open()
	if err != nil {
		return err
	}
	all, err := t.Rates(a.ctx)
	if err != nil {
		return err
	}
	return a.out.Value(orEmpty(all), func() {
		if len(all) == 0 {
			a.out.Printf("no rate classes (berm rate set --help)\n")
			return
		}
		rows := make([][]out.Cell, 0, len(all))
		for _, r := range all {
			mode := out.Cell{Text: "enforced"}
			if r.Shadow {
				mode = out.Cell{Text: "shadow", Style: out.Warn}
			}
			row := out.Row(r.Name, limit(r.Packets, r.PacketsBurst), limit(r.Bytes, r.BytesBurst), limit(r.SYNs, r.SYNsBurst), "", r.Owner)
			row[4] = mode
			rows = append(rows, row)
		}
		a.out.Table([]string{"CLASS", "PACKETS/s+BURST>", "BYTES/s+BURST>", "SYNS/s+BURST>", "MODE", "FROM"}, rows)
	})
}

func limit(rate, burst uint64) string {
	if rate == 0 {
		return "-"
	}
	return count(rate) + "+" + count(burst)
}
