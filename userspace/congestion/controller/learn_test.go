package controller

import (
	"math"
	"testing"
	"time"
)

// slow gives the link 20 Mbit/s and 20 ms.
func slow(l *link) { l.rate, l.rtt, l.queue = 20*megabit, 20*ms, 100_000 }

// TestLossMeter tells loss without congestion from what queues and policers drop.
func TestLossMeter(t *testing.T) {
	for _, tt := range []struct {
		name      string
		cc        string
		loss      float64
		change    func(l *link)
		low, high float64
	}{
		{"random losses of a BBR flow", BBR, 0.03, slow, 0.015, 0.04},
		{"many", BBR, 0.08, slow, 0.05, 0.09},
		{"random losses of a CUBIC flow", Cubic, 0.02, nil, 0.012, 0.024},
		{"a CUBIC flow's own queue", Cubic, 0, slow, 0, 0.001},
		{"a short queue", BBR, 0, func(l *link) { slow(l); l.queue = 12_500 }, 0, 0.002},
		{"a shorter queue, and CUBIC", Cubic, 0, func(l *link) { slow(l); l.queue = 4800 }, 0, 0.002},
		{"a policer", BBR, 0, func(l *link) { l.rate = 10 * megabit; l.policer = 50_000 }, 0, 0.01}, // that drops a quarter of what Startup sends
		{"a policer, and CUBIC", Cubic, 0, func(l *link) { l.rate = 10 * megabit; l.policer = 50_000 }, 0, 0.005},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSim(1, tt.loss)
			if tt.change != nil {
				tt.change(&s.link)
			}
			f := s.add(t, tt.cc, Options{}, 0)
			var m LossMeter
			f.meter = &m
			s.run(15 * time.Second)
			packets, share := m.Share()
			if share < tt.low || share > tt.high || packets == 0 && tt.low > 0 {
				t.Errorf("%.4f of %d packets, want %g to %g (low %+v, high %+v)", share, packets, tt.low, tt.high, m.low, m.high)
			}
		})
	}
}

// TestLossMeterForgets has losses end: their share is gone after some times as many packets as the meter remembers.
func TestLossMeterForgets(t *testing.T) {
	var m LossMeter
	now := time.Duration(0)
	rounds := func(n int, lost ...Packet) {
		for i := range n {
			inFlight := int64(100 - 10*(i%6)) // packets
			e := Event{PriorInFlight: inFlight * 1200, RTT: RTT{50 * ms, 50 * ms, 50 * ms}, HasRTT: true}
			for range inFlight {
				e.Acked = append(e.Acked, packet(0, now+ms))
			}
			for _, p := range lost {
				p.Sent = now + ms
				e.Lost = append(e.Lost, p)
			}
			now += 51 * ms
			e.Now = now
			m.Observe(e)
		}
	}
	rounds(100, packet(0, 0), packet(0, 0))
	if _, share := m.Share(); share < 0.02 || share > 0.03 {
		t.Fatalf("%.4f of a path that loses two packets of some 77", share)
	}
	rounds(8 * meterKept / 77)
	if packets, share := m.Share(); packets == 0 || share > 0.0005 {
		t.Errorf("%.4f of %d packets, long after the last loss", share, packets)
	}
}

// TestConnectionLearnsItsFloor has connections that are the first on their path: one that loses packets at random is near its
// full rate within two seconds, the loss of another's own making raises no floor that would keep it up, and a floor that is
// wrong is put right.
func TestConnectionLearnsItsFloor(t *testing.T) {
	policed := func(l *link) { l.rate = 10 * megabit; l.policer = 50_000 }
	short := func(l *link) { slow(l); l.queue = 12_500 }
	for _, tt := range []struct {
		name      string
		loss      float64
		given     float64
		change    func(l *link)
		low, high float64 // of the floor
		lost      float64 // at most, of all packets
		goodput   float64
	}{
		{"few losses", 0.01, 0, nil, 0.007, 0.011, 0.02, 0.85},
		{"losses", 0.02, 0, nil, 0.015, 0.021, 0.03, 0.85},
		{"many", 0.05, 0, nil, 0.04, 0.051, 0.06, 0.8},
		{"more than its prefix has", 0.03, 0.01, nil, 0.02, 0.031, 0.04, 0.85},
		{"none", 0, 0, nil, 0, 0, 0.001, 0.9},
		{"none, though its prefix has", 0, MaxLossFloor, nil, 0, 0, 0.001, 0.9},
		{"a policer's", 0, 0, policed, 0, 0.02, 0.04, 0.9},
		{"a short queue's", 0, 0, short, 0, 0.001, 0.004, 0.9},
		{"a short queue's, where its prefix has others", 0, MaxLossFloor, short, 0, 0.001, 0.01, 0.9},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSim(1, tt.loss)
			if tt.change != nil {
				tt.change(&s.link)
			}
			var m LossMeter
			f := s.add(t, BBR, Options{LossFloor: tt.given, Losses: &m}, 0)
			f.meter = &m
			s.run(2 * time.Second)
			sent, lost := len(f.packets), f.lost
			got := s.goodput(f, 2*time.Second, 6*time.Second)
			if floor := f.cc.State().LossFloor; floor < tt.low || floor > tt.high {
				t.Errorf("floor %.4f, want %g to %g (low %+v, high %+v)", floor, tt.low, tt.high, m.low, m.high)
			}
			if share := float64(f.lost-lost) / float64(len(f.packets)-sent); share > tt.lost {
				t.Errorf("%.4f of its packets were lost, want at most %g", share, tt.lost)
			}
			if got < tt.goodput {
				t.Errorf("goodput %.3f of the link, want %g", got, tt.goodput)
			}
		})
	}
}

func TestFloorLearner(t *testing.T) {
	var l FloorLearner
	if f := l.Floor(0); f != 0 {
		t.Errorf("floor %g of nothing", f)
	}
	l.Learn(0, 1, 2000, 0.04)
	if f := l.Floor(0); f < 0.015 || f > 0.02 {
		t.Errorf("floor %g after one client, want somewhat less than a half of 0.04", f)
	}
	for source := range uint64(20) {
		l.Learn(0, source, 2000, 0.04)
	}
	if f := l.Floor(0); f < 0.032 || f > 0.04 {
		t.Errorf("floor %g after twenty clients, want nearly 0.04", f)
	}
	if f := l.Floor(2 * time.Hour); f != 0 {
		t.Errorf("floor %g after two silent hours", f)
	}
	l.Learn(0, 1, 0, 0.5)
	l.Learn(0, 1, 1000, math.NaN())
	l.Learn(0, 1, -5, 0.5)
	if f := l.Floor(0); f > 0.04 {
		t.Errorf("floor %g after samples of nothing", f)
	}
}

// TestFloorLearnerAgainstOneClient has a client claim every loss, on as many connections as it likes: by not acknowledging.
func TestFloorLearnerAgainstOneClient(t *testing.T) {
	var l FloorLearner
	for source := range uint64(8) {
		l.Learn(0, source, 5000, 0)
	}
	for range 10_000 {
		l.Learn(0, 99, 1<<40, 1)
	}
	if f := l.Floor(0); f != 0 {
		t.Errorf("one client of nine made the floor %g", f)
	}
	for range 10_000 {
		l.Learn(0, 98, 1<<40, math.Inf(1))
	}
	if f := l.Floor(0); f != 0 {
		t.Errorf("two clients of ten made the floor %g", f)
	}
	var alone FloorLearner
	alone.Learn(0, 1, 1<<40, 1)
	if f := alone.Floor(0); f > MaxLossFloor {
		t.Errorf("floor %g above the greatest", f)
	}
}

// TestFloorLearnerAgainstManyAddresses has one client come from ever new addresses: it waits a minute for each place.
func TestFloorLearnerAgainstManyAddresses(t *testing.T) {
	var l FloorLearner
	for source := range uint64(floorSources) {
		l.Learn(0, source, 5000, 0)
	}
	now := 2 * time.Second
	for source := range uint64(100_000) {
		l.Learn(now, 1000+source, 5000, 1)
	}
	if f := l.Floor(now); f != 0 {
		t.Errorf("addresses made up in two seconds made the floor %g", f)
	}
	for source := range uint64(floorSources) { // honest clients are still there, and say so
		l.Learn(now+floorGrace, source, 100, 0)
	}
	for source := range uint64(100_000) {
		l.Learn(now+floorGrace+time.Second, 1000+source, 5000, 1)
	}
	if f := l.Floor(now + floorGrace + time.Second); f != 0 {
		t.Errorf("then %g", f)
	}
}
