package main

import (
	"context"
	"time"

	"github.com/bermedge/berm/userspace/control"
)

// ratesBetween is the difference of two readings. A counter that fell was reset by a new
// kernel half; it started from zero.
func ratesBetween(before, now control.Drops, seconds float64) dropRates {
	was := map[uint32]control.Drop{}
	for _, d := range before.Drops {
		was[d.Number] = d
	}
	r := dropRates{Seconds: seconds, Drops: []control.TopDrop{}}
	for _, d := range now.Drops {
		b := was[d.Number]
		td := control.TopDrop{Reason: d.Reason, Dropped: perSecond(b.Dropped, d.Dropped, seconds), Shadowed: perSecond(b.Shadowed, d.Shadowed, seconds)}
		r.Packets += td.Dropped.Packets
		r.Bytes += td.Dropped.Bytes
		r.Drops = append(r.Drops, td)
	}
	return r
}

func perSecond(before, now control.Counter, seconds float64) control.Rate {
	diff := func(b, n uint64) float64 {
		if n < b {
			b = 0
		}
		return float64(n-b) / seconds
	}
	return control.Rate{Packets: diff(before.Packets, now.Packets), Bytes: diff(before.Bytes, now.Bytes)}
}

// watchTables makes rates out of counters, for a view that the daemon cannot give.
func watchTables(t control.Tables) func(context.Context, int) (control.Top, error) {
	var (
		last   time.Time
		drops  control.Drops
		before = map[string]control.VIPCounters{}
	)
	return func(ctx context.Context, _ int) (top control.Top, err error) {
		vips, err := t.VIPs(ctx)
		if err != nil {
			return top, err
		}
		d, err := t.Drops(ctx)
		if err != nil {
			return top, err
		}
		now := time.Now()
		seconds := now.Sub(last).Seconds()
		first := last.IsZero()
		for _, v := range vips {
			b := before[v.Name]
			if first {
				b = v.Counters
			}
			top.VIPs = append(top.VIPs, control.TopVIP{
				Name: v.Name, Address: v.Address, Port: v.Port, Protocol: v.Protocol,
				In: perSecond(b.In, v.Counters.In, seconds), Dropped: perSecond(b.Dropped, v.Counters.Dropped, seconds),
				Shadowed: perSecond(b.Shadowed, v.Counters.Shadowed, seconds), Forwarded: perSecond(b.Forwarded, v.Counters.Forwarded, seconds),
			})
			before[v.Name] = v.Counters
		}
		if first {
			drops, seconds = d, 0
		}
		if seconds > 0 {
			top.Drops = ratesBetween(drops, d, seconds).Drops
		}
		top.Seconds, top.Sources = seconds, []control.TopSource{}
		drops, last = d, now
		return top, nil
	}
}
