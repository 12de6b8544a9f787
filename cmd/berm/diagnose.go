package main

import (
	"net/netip"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/userspace/control"
)

type diagnoseCmd struct {
	IP netip.Addr `arg:"" help:"Address of a client."`
}

// Help is what berm diagnose --help adds.
func (diagnoseCmd) Help() string {
	return `It splits the time until an answer begins into a round trip to the client's network (IPv4 /24, IPv6 /48), what the edge takes, and what waits for origins, by averages in which late requests weigh most, and names the largest.

Examples:

  berm diagnose 203.0.113.7
  berm diagnose 203.0.113.7 --json | jq -r .segment`
}

func (c *diagnoseCmd) Run(a *app) error {
	d, err := a.needDaemon("diagnose", "requests are timed by the daemon")
	if err != nil {
		return err
	}
	x, err := d.Diagnose(a.ctx, c.IP)
	if err != nil {
		return err
	}
	return a.out.Value(x, func() { a.diagnosis(x) })
}

func (a *app) diagnosis(x control.Diagnosis) {
	a.out.Field("segment", "%s: %s", a.out.Paint(out.Warn, x.Segment), x.Why)
	if x.Segment == "unknown" {
		return
	}
	a.out.Field("network", "%.1f ms a round trip to %s, %.1f of them queues; %s connections, loss %.2f %%", 1000*x.Network, x.Prefix, 1000*x.Queues, count(x.Connections), 100*x.Loss)
	a.out.Field("edge", "%.1f ms, over %s requests", 1000*x.Edge, count(x.Requests))
	a.out.Field("origin", "%.1f ms; %s requests waited for one", 1000*x.Origin, count(x.Fetched))
}
