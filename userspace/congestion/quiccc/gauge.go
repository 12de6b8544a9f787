package quiccc

import (
	"math/bits"
	"net/netip"
	"time"

	"github.com/bermedge/berm/userspace/congestion/controller"
)

// every is how often a connection reports, as long as there is something to report.
const every = time.Second

// rateOver is how long deliveries are added up for a rate. Less is the time between two packets, not a rate.
const rateOver = 50 * time.Millisecond

// sample is what a connection measured since it last reported.
type sample struct {
	begun                         bool // the connection is new
	sent, delivered, lost, resent uint64
	rtt, minRTT, deviation        time.Duration
	kbps                          uint32
	bursts                        [8]uint32
}

// packets is the weight of a sample.
func (s *sample) packets() uint64 { return s.delivered + s.lost }

// gauge adds up what a connection measures.
type gauge struct {
	client netip.Addr
	told   time.Duration // when it last reported; 0: not yet
	sample

	rateFrom  time.Duration // deliveries are added up from here
	rateBytes int64
	run       uint64 // losses in a row that have not ended
	runAfter  int64  // the number of the last of them
	spurious  uint64 // lost that were not; taken off losses to come
	known     bool   // told of before
}

// update takes an event in. deviation is that of the round trip.
func (g *gauge) update(e *controller.Event, deviation time.Duration) {
	g.delivered += uint64(len(e.Acked) + len(e.Spurious))
	g.resent += uint64(len(e.Lost))
	g.lost += uint64(len(e.Lost))
	g.spurious += uint64(len(e.Spurious))
	back := min(g.spurious, g.lost)
	g.lost -= back
	g.spurious -= back
	g.runs(e.Lost)
	if e.HasRTT {
		g.rtt, g.minRTT, g.deviation = e.RTT.Smoothed, e.RTT.Min, deviation
	}
	g.rate(e)
}

// runs adds losses in a row to the histogram, as they end.
func (g *gauge) runs(lost []controller.Packet) {
	for _, p := range lost {
		if g.run > 0 && p.Number != g.runAfter+1 {
			g.endRun()
		}
		g.run, g.runAfter = g.run+1, p.Number
	}
	if len(lost) > 0 {
		g.endRun()
	}
}

func (g *gauge) endRun() {
	g.bursts[burstClass(g.run)]++
	g.run = 0
}

// burstClass is the place of a run in the histogram: 1, 2, 3-4, 5-8 … 65 and more.
func burstClass(n uint64) int { return min(bits.Len64(n-1), 7) }

func (g *gauge) rate(e *controller.Event) {
	if g.rateFrom == 0 || e.PriorInFlight == 0 {
		g.rateFrom, g.rateBytes = e.Now, 0
		return
	}
	for _, p := range e.Acked {
		g.rateBytes += int64(p.Bytes)
	}
	took := e.Now - g.rateFrom
	if took < max(rateOver, e.RTT.Smoothed) {
		return
	}
	kbps := float64(g.rateBytes) * 8 / took.Seconds() / 1000
	g.kbps = max(g.kbps, uint32(min(kbps, 1<<32-1)))
	g.rateFrom, g.rateBytes = e.Now, 0
}

func (g *gauge) due(now time.Duration) bool {
	if g.told == 0 {
		g.told = now
	}
	return g.rtt > 0 && now-g.told >= every
}

// take returns what was added up, and begins anew.
func (g *gauge) take(now time.Duration) sample {
	s := g.sample
	s.begun = !g.known
	g.known, g.told = true, now
	g.sample = sample{rtt: s.rtt, minRTT: s.minRTT, deviation: s.deviation}
	return s
}
