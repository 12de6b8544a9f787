package scenario

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/bermedge/berm/test/rig"
)

// checkBlocked sends counted packets from a blocked country: all are dropped with their reason
// and none reaches a socket.
func (m *Main) checkBlocked(ctx context.Context, r *Recorder) error {
	dropped, _, err := m.drops(ctx, "geo")
	if err != nil {
		return err
	}
	before, err := m.blocked.Counters()
	if err != nil {
		return err
	}
	var total uint64
	for _, args := range [][]string{
		{"--src", blocked4, "--dst", vipPort(vip4, sinkPort), "--pps", "20000", "--count", "10000"},
		{"--src", blocked6, "--dst", vipPort(vip6, sinkPort), "--pps", "20000", "--count", "10000"},
		{"--src", blocked4, "--dst", vipPort(vip4, 443), "--kind", "syn", "--pps", "20000", "--count", "5000"},
	} {
		n, err := m.packets(ctx, m.blocked, args...)
		if err != nil {
			return err
		}
		total += n
	}
	after, _, err := m.drops(ctx, "geo")
	if err != nil {
		return err
	}
	var reached uint64
	for _, source := range []string{blocked4, blocked6} {
		n, err := m.sunk(ctx, source)
		if err != nil {
			return err
		}
		reached += n
	}
	counters, err := m.blocked.Counters()
	if err != nil {
		return err
	}
	r.Equal("blocked country: packets dropped for it", total, after-dropped, "packets")
	r.Equal("blocked country: packets that reach a socket", 0, reached, "packets")
	r.Equal("blocked country: TCP segments it gets back", 0, counters.Since(before)["Tcp.InSegs"], "segments")
	_, err = m.openFlow(ctx, m.blocked, vip4, time.Second)
	r.Same("blocked country: a real connection", "refused", map[bool]string{true: "refused", false: "accepted"}[err != nil], "")
	return nil
}

// checkShadow sends from a country whose rule is in shadow form: everything arrives, and what
// would have been dropped is counted.
func (m *Main) checkShadow(ctx context.Context, r *Recorder) error {
	dropped, shadowed, err := m.drops(ctx, "geo")
	if err != nil {
		return err
	}
	arrived, err := m.sunk(ctx, watched4)
	if err != nil {
		return err
	}
	total, err := m.packets(ctx, m.good, "--src", watched4, "--dst", vipPort(vip4, sinkPort), "--pps", "10000", "--count", "5000")
	if err != nil {
		return err
	}
	got, err := m.settled(ctx, watched4, arrived+total)
	if err != nil {
		return err
	}
	dropped2, shadowed2, err := m.drops(ctx, "geo")
	if err != nil {
		return err
	}
	r.Equal("shadow rule: packets that reach the socket", total, got-arrived, "packets")
	r.Equal("shadow rule: packets counted", total, shadowed2-shadowed, "packets")
	r.Equal("shadow rule: packets dropped", 0, dropped2-dropped, "packets")
	return nil
}

// settled waits until the sinks have counted want packets of a source, or no more come.
func (m *Main) settled(ctx context.Context, source string, want uint64) (n uint64, err error) {
	last, since := uint64(0), time.Now()
	err = rig.Until(ctx, 5*time.Second, "packets of "+source+" settle", func() (bool, error) {
		if n, err = m.sunk(ctx, source); err != nil {
			return false, err
		}
		if n != last {
			last, since = n, time.Now()
		}
		return n >= want || time.Since(since) > 300*time.Millisecond, nil
	})
	return n, err
}

// checkRate lets one flow send at ten times its limit. One flow, because each edge enforces the
// limit on what it sees: a source's flows spread over edges get the limit of each. The sender
// comes before all others: a pause longer than the burst would leave some of the limit unused.
func (m *Main) checkRate(ctx context.Context, r *Recorder) error {
	const seconds = 10
	for _, c := range []struct{ family, src, vip string }{{"v4", greedy4, vip4}, {"v6", greedy6, vip6}} {
		arrived, err := m.sunk(ctx, c.src)
		if err != nil {
			return err
		}
		dropped, _, err := m.drops(ctx, "rate_packets")
		if err != nil {
			return err
		}
		var s sent
		err = m.probe(ctx, m.greedy, onCPU(0), &s, "packets", "--src", c.src, "--dst", vipPort(c.vip, sinkPort), "--sport", "4444",
			"--pps", strconv.Itoa(10*greedyRate), "--duration", fmt.Sprintf("%ds", seconds))
		if err != nil {
			return err
		}
		now, err := m.settled(ctx, c.src, arrived+s.Sent)
		if err != nil {
			return err
		}
		dropped2, _, err := m.drops(ctx, "rate_packets")
		if err != nil {
			return err
		}
		passed := now - arrived
		r.Timed().Near("over-rate client "+c.family+": sends", 10*greedyRate, 0.05, float64(s.Sent-s.Lost)/s.Seconds, "packets/s")
		// What it may send at once beyond its rate is 0.5 % of ten seconds.
		r.Timed().Near("over-rate client "+c.family+": is held to", greedyRate, 0.02, float64(passed)/s.Seconds, "packets/s")
		r.Equal("over-rate client "+c.family+": passed and dropped", s.Sent-s.Lost, passed+dropped2-dropped, "packets")
	}
	return nil
}
