package scenario

import (
	"context"
	"fmt"
	"net"

	"github.com/bermedge/berm/userspace/control"
)

// checkShare opens many new flows and asks each edge's own stack how many it got.
func (m *Main) checkShare(ctx context.Context, r *Recorder) error {
	var got []float64
	before := make([]uint64, len(m.edges))
	for i, e := range m.edges {
		c, err := e.node.Counters()
		if err != nil {
			return err
		}
		before[i] = c["Tcp.PassiveOpens"]
	}
	const flows = 6000
	var l load
	err := m.probe(ctx, m.good, nil, &l, "load", "http://"+vipPort(vip4, 80)+"/o/share/1", "--reconnect",
		"--conns", "8", "--requests", fmt.Sprint(flows), "--duration", "60s")
	if err != nil {
		return err
	}
	for i, e := range m.edges {
		c, err := e.node.Counters()
		if err != nil {
			return err
		}
		got = append(got, float64(c["Tcp.PassiveOpens"]-before[i]))
	}
	r.Equal("sharing: TCP flows answered", flows, l.Status["200"], "flows")
	// Two shares of n random flows differ by 2/sqrt(n) of each (standard deviation): 2.6 %.
	share(r, "sharing: TCP flows of edge1 and edge2", got[0], got[1])
	return m.shareUDP(ctx, r)
}

func (m *Main) shareUDP(ctx context.Context, r *Recorder) error {
	var before, got []uint64
	count := func(into *[]uint64) error {
		for _, e := range m.edges {
			n, err := e.sunk(ctx, good6)
			if err != nil {
				return err
			}
			*into = append(*into, n)
		}
		return nil
	}
	if err := count(&before); err != nil {
		return err
	}
	// Source ports take turns, so each packet is a flow of its own.
	total, err := m.packets(ctx, m.good, "--src", good6, "--dst", vipPort(vip6, sinkPort), "--pps", "20000", "--count", "20000")
	if err != nil {
		return err
	}
	all, err := m.settled(ctx, good6, before[0]+before[1]+total)
	if err != nil {
		return err
	}
	if err := count(&got); err != nil {
		return err
	}
	r.Equal("sharing: UDP flows that arrive", total, all-before[0]-before[1], "flows")
	share(r, "sharing: UDP flows of edge1 and edge2", float64(got[0]-before[0]), float64(got[1]-before[1]))
	return nil
}

func share(r *Recorder, name string, a, b float64) {
	r.AtMost(name+" differ by", 10, 100*(max(a, b)-min(a, b))/max(a, b, 1), fmt.Sprintf("%% (%.0f and %.0f)", a, b))
}

// checkExplain compares what `berm steer explain` says of flows with who answered them.
func (m *Main) checkExplain(ctx context.Context, r *Recorder) error {
	const flows = 24
	var agree uint64
	for i := range flows {
		from, vip := good4, vip4
		if i%2 == 1 {
			from, vip = good6, vip6
		}
		d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from), Port: 20000 + i}, Timeout: flowLimit}
		f, err := m.openFlowAs(ctx, m.good, d, vip, flowLimit)
		if err != nil {
			return err
		}
		a, err := f.get("/o/explain/1")
		f.close()
		if err != nil {
			return err
		}
		var says control.Steering
		// Every edge must say the same, whoever is asked.
		err = m.edges[i/2%2].ask(ctx, &says, "steer", "explain", f.conn.LocalAddr().String(), vipPort(vip, 80), "tcp")
		if err != nil {
			return err
		}
		if says.Owner == a.edge {
			agree++
		} else if uint64(i)-agree < 3 { // the first few tell enough
			m.opts.logf("flow from %s: explained as %s's, answered by %s: %v", f.conn.LocalAddr(), says.Owner, a.edge, says.Steps)
		}
	}
	r.Equal("steer explain: flows that went where it says", flows, agree, "flows")
	return nil
}
