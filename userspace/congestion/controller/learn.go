package controller

import (
	"math"
	"slices"
	"time"
)

// LossMeter measures which share of a connection's packets its path loses without congestion: among packets whose round trip was
// not longer than the path's shortest by more than a quarter, and no more of those than among the ones sent with less in flight
// than the path has carried. The first leaves out queues that overflow, the second those too short to be seen in round trips, and
// policers. The zero value is ready.
type LossMeter struct {
	began     time.Duration // the round trip at hand
	acked     int64         // bytes, in it
	carried   float64       // the most bytes that were delivered in the shortest round trip
	lastHigh  time.Duration // when about as much was in flight
	low, high tally         // of packets that were sent, and heard of, with less in flight; and of others
}

type tally struct {
	sent, lost int64 // packets
}

const (
	meterQueue      = 5 * time.Millisecond // timers and acknowledgement delays
	meterMemory     = 1024                 // round trips, after which little is left of what was carried
	meterLow        = 0.9                  // of what was carried
	meterKept       = 1 << 16              // packets, after which older ones count half
	meterMinPackets = 100
	meterMinLost    = 4 // expected among those with less in flight: none at all would be telling
)

// Observe takes what the controller's Update does.
func (m *LossMeter) Observe(e Event) {
	m.carry(e)
	if float64(e.PriorInFlight) >= meterLow*m.carried {
		m.lastHigh = e.Now
	}
	if e.RTT.Latest > e.RTT.Min+max(e.RTT.Min/4, meterQueue) {
		return
	}
	for _, p := range e.Acked {
		m.tally(p).sent++
	}
	for _, p := range e.Lost {
		t := m.tally(p)
		t.sent++
		t.lost++
	}
	for _, p := range e.Spurious {
		m.tally(p).lost--
	}
	if m.low.sent+m.high.sent > meterKept {
		m.low, m.high = m.low.half(), m.high.half()
	}
}

func (m *LossMeter) carry(e Event) {
	if m.began == 0 {
		m.began = e.Now
	}
	m.acked += sum(e.Acked)
	took := e.Now - m.began
	if took < max(e.RTT.Smoothed, time.Millisecond) {
		return
	}
	m.carried = max(m.carried*(1-1./meterMemory), float64(m.acked)*e.RTT.Min.Seconds()/took.Seconds())
	m.began, m.acked = e.Now, 0
}

func (m *LossMeter) tally(p Packet) *tally {
	if p.Sent > m.lastHigh {
		return &m.low
	}
	return &m.high
}

// Share returns the share, and how many packets it rests on: none before enough were sent with less in flight. As long as
// those say nothing against it, it is that of all packets, else theirs.
func (m *LossMeter) Share() (packets int64, share float64) {
	all := tally{m.low.sent + m.high.sent, m.low.lost + m.high.lost}
	share = all.share()
	expected := share * float64(m.low.sent)
	switch {
	case m.low.sent < meterMinPackets || share > 0 && expected < meterMinLost:
		return 0, 0
	case float64(m.low.lost) < expected-1.5*math.Sqrt(expected):
		return m.low.sent, m.low.share()
	}
	return all.sent, share
}

// floor is the loss floor that the connection has shown so far, if it has: one standard error less than the share, since a few
// packets say little.
func (m *LossMeter) floor() (f lossFloor, known bool) {
	packets, share := m.Share()
	if packets == 0 {
		return 0, false
	}
	return lossFloor(min(max(0, share-math.Sqrt(share/float64(packets))), MaxLossFloor)), true
}

func (t tally) half() tally { return tally{t.sent / 2, t.lost / 2} }

func (t tally) share() float64 {
	return max(0, float64(t.lost)/float64(max(t.sent, 1)))
}

// FloorLearner learns the loss floor of a prefix from what the meters of its clients' connections say. The floor is what three
// of four clients lose at least: clients that claim losses raise it only where they are most of the prefix's, and it is
// never above MaxLossFloor; whoever claims none takes only what the floor gave. A client counts once, however many connections
// it has. The zero value is ready; it is not safe for concurrent use.
type FloorLearner struct {
	sources [floorSources]floorSource
	used    int
}

type floorSource struct {
	key        uint64
	sent, lost float64 // packets
	updated    time.Duration
}

const (
	floorSources = 32
	floorMemory  = 20_000      // packets of a client, after which older ones count half
	floorKept    = time.Hour   // without a word from a client
	floorGrace   = time.Minute // for which a client's place is not another's
)

// Learn takes the share of a connection that ended, or of an interval: source tells clients apart (a hash of the address, or of
// the /64).
func (l *FloorLearner) Learn(now time.Duration, source uint64, packets int64, share float64) {
	if packets <= 0 || math.IsNaN(share) {
		return
	}
	s := l.find(now, source)
	if s == nil {
		return
	}
	n := float64(min(packets, floorMemory))
	s.sent += n
	s.lost += n * min(max(share, 0), 1)
	if s.sent > floorMemory {
		s.sent, s.lost = s.sent/2, s.lost/2
	}
	s.updated = max(s.updated, now)
}

// find returns the client's place, or a free one, or that of the client which was silent longest; nil if none was for long.
func (l *FloorLearner) find(now time.Duration, source uint64) *floorSource {
	oldest := 0
	for i := range l.used {
		if l.sources[i].key == source {
			return &l.sources[i]
		}
		if l.sources[i].updated < l.sources[oldest].updated {
			oldest = i
		}
	}
	if l.used < floorSources {
		l.used++
		oldest = l.used - 1
	} else if now-l.sources[oldest].updated < floorGrace {
		return nil
	}
	l.sources[oldest] = floorSource{key: source, updated: now}
	return &l.sources[oldest]
}

// Floor is the loss floor to begin connections with. Each client counts with one standard error less than its share, and few
// clients with less than all of it: one with a half, two with two thirds.
func (l *FloorLearner) Floor(now time.Duration) float64 {
	var shares [floorSources]float64
	n := 0
	for _, s := range l.sources[:l.used] {
		if now-s.updated > floorKept || s.sent == 0 {
			continue
		}
		p := s.lost / s.sent
		shares[n] = max(0, p-math.Sqrt(p/s.sent))
		n++
	}
	if n == 0 {
		return 0
	}
	slices.Sort(shares[:n])
	quarter := shares[(n-1)/4]
	return min(quarter*float64(n)/float64(n+1), MaxLossFloor)
}
