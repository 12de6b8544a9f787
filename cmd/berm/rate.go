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
	return `A class limits each source (an IPv4 address, an IPv6 /64) by itself; by the flags --aggregate all sources of an IPv4 /24 or IPv6 /48 together; and by the flags --network all of a network (ASN) that the prefix table knows (geo.networks in the configuration). VIPs and prefixes name the class that holds.

Examples:

  berm rate set default --packets 1000 --packets-burst 2000
  berm rate list`
}

type rateSet struct {
	Name      string     `arg:"" complete:"rate" help:"Name of the class, up to 15 bytes."`
	Source    rateLimits `embed:"" set:"whom=a source"`
	Aggregate rateLimits `embed:"" prefix:"aggregate-" set:"whom=all sources of an IPv4 /24 or IPv6 /48"`
	Network   rateLimits `embed:"" prefix:"network-" set:"whom=all sources of a network (ASN)"`
	Shadow    *bool      `negatable:"" help:"Count what would be refused, and refuse nothing; --no-shadow enforces."`
}

type rateLimits struct {
	Packets       *quantity `placeholder:"N" help:"Packets per second of ${whom}; 0 = unlimited."`
	PacketsBurst  *quantity `placeholder:"N" help:"Packets at once of ${whom}."`
	Bytes         *quantity `placeholder:"N" help:"Bytes of IP packets per second of ${whom}; 0 = unlimited."`
	BytesBurst    *quantity `placeholder:"N" help:"Bytes at once of ${whom}."`
	SYNs          *quantity `name:"syns" placeholder:"N" help:"TCP connection attempts per second of ${whom}; 0 = unlimited."`
	SYNsBurst     *quantity `name:"syns-burst" placeholder:"N" help:"Connection attempts at once of ${whom}."`
	Initials      *quantity `placeholder:"N" help:"QUIC Initials per second of ${whom}, of which a connection takes one to three; 0 = unlimited."`
	InitialsBurst *quantity `placeholder:"N" help:"Initials at once of ${whom}."`
}

// Help is what berm rate set --help adds.
func (rateSet) Help() string {
	return `What is not named stays as it is; a class that does not exist is made without limits. A rate without a burst gets a burst of one second. Numbers take k, M and G (decimal). Limits hold for each edge: the flows of one source spread over the edges of a site.

Where a limit of an aggregate is exceeded, each of its 256 parts (IPv4 addresses, IPv6 /56) still gets a share of one in 256, so that who sends little is not refused for what others send, or for what somebody sends in their names. The parts of a network are its /24s and /48s, put together by a hash. TCP connections that this edge has are spared.

Examples:

  berm rate set default --packets 1000 --packets-burst 2000
  berm rate set strict --syns 20 --bytes 10M --initials 40
  berm rate set strict --aggregate-packets 100k --aggregate-syns 500
  berm rate set strict --network-packets 1M --network-syns 5000
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
	if err := c.Source.apply("", &r.RateLimits); err != nil {
		return err
	}
	if err := c.Aggregate.apply("aggregate-", &r.Aggregate); err != nil {
		return err
	}
	if err := c.Network.apply("network-", &r.Network); err != nil {
		return err
	}
	if c.Shadow != nil {
		r.Shadow = *c.Shadow
	}
	return a.change(func(ctx context.Context, t control.Tables) (control.Changes, error) { return t.SetRate(ctx, r) })
}

func (c *rateLimits) apply(prefix string, r *control.RateLimits) error {
	for _, l := range []struct {
		flag             string
		rate, burst      *quantity
		intoRate, intoBu *uint64
	}{
		{"packets", c.Packets, c.PacketsBurst, &r.Packets, &r.PacketsBurst},
		{"bytes", c.Bytes, c.BytesBurst, &r.Bytes, &r.BytesBurst},
		{"syns", c.SYNs, c.SYNsBurst, &r.SYNs, &r.SYNsBurst},
		{"initials", c.Initials, c.InitialsBurst, &r.Initials, &r.InitialsBurst},
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
			return badInput("--%[1]s-burst %[2]d: means nothing without --%[1]s", prefix+l.flag, *l.intoBu)
		}
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
			rows = append(rows, append(limitRow(r.Name, "source", r.RateLimits), mode, out.Cell{Text: r.Owner}))
			if r.Aggregate != (control.RateLimits{}) {
				rows = append(rows, append(limitRow("", "/24, /48", r.Aggregate), out.Row("", "")...))
			}
			if r.Network != (control.RateLimits{}) {
				rows = append(rows, append(limitRow("", "network", r.Network), out.Row("", "")...))
			}
		}
		a.out.Table([]string{"CLASS", "OF", "PACKETS/s+BURST>", "BYTES/s+BURST>", "SYNS/s+BURST>", "INITIALS/s+BURST>", "MODE", "FROM"}, rows)
	})
}

func limitRow(name, of string, l control.RateLimits) []out.Cell {
	return out.Row(name, of, limit(l.Packets, l.PacketsBurst), limit(l.Bytes, l.BytesBurst), limit(l.SYNs, l.SYNsBurst), limit(l.Initials, l.InitialsBurst))
}

func limit(rate, burst uint64) string {
	if rate == 0 {
		return "-"
	}
	return count(rate) + "+" + count(burst)
}
