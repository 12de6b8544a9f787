package controller

import (
	"testing"
	"time"
)

// TestBBRQueueIsBounded holds a lone flow's queue below a bandwidth-delay product where four are free, once Startup is over.
func TestBBRQueueIsBounded(t *testing.T) {
	s, f := newRun(t, deep)
	got := s.goodput(f, 3*time.Second, 7*time.Second)
	if bdp := int64(312_500); s.link.maxQueue > bdp*11/10 || got < 0.95 {
		t.Errorf("a queue of up to %.2f products at %.2f of the link", float64(s.link.maxQueue)/float64(bdp), got)
	}
	c := newSim(1, 0)
	deep(&c.link)
	g := c.add(t, Cubic, Options{}, 0)
	c.goodput(g, 3*time.Second, 7*time.Second)
	if c.link.maxQueue < 2*s.link.maxQueue {
		t.Errorf("CUBIC's queue of %d bytes is not far above BBR's of %d", c.link.maxQueue, s.link.maxQueue)
	}
}

// TestTwoFlowsShare has a second flow come after five seconds, and looks at ten seconds of both when twenty have passed.
func TestTwoFlowsShare(t *testing.T) {
	for _, tt := range []struct {
		name          string
		first, second string
		floor         float64
		leastFirst    float64 // of the link
		leastSecond   float64
	}{
		{"bbr, bbr", BBR, BBR, 0, 0.3, 0.2}, // on its way to halves, which takes a minute
		{"cubic, cubic", Cubic, Cubic, 0, 0.3, 0.25},
		{"reno, reno", Reno, Reno, 0, 0.25, 0.25},
		{"cubic, bbr", Cubic, BBR, 0, 0.1, 0.2},
		{"cubic, bbr with the greatest floor", Cubic, BBR, MaxLossFloor, 0.1, 0.2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSim(1, 0)
			s.link.rate, s.link.queue = s.link.rate*0.4, s.link.queue*2/5 // 20 Mbit/s
			a := s.add(t, tt.first, Options{}, 0)
			b := s.add(t, tt.second, Options{LossFloor: tt.floor}, 5*time.Second)
			s.run(20 * time.Second)
			before := b.delivered
			first := s.goodput(a, 20*time.Second, 10*time.Second)
			second := float64(b.delivered-before) / 10 / s.link.rate
			t.Logf("%.3f and %.3f", first, second)
			if first < tt.leastFirst || second < tt.leastSecond || first+second < 0.9 {
				t.Errorf("%.3f and %.3f of the link, want at least %g and %g, and 0.9 together", first, second, tt.leastFirst, tt.leastSecond)
			}
		})
	}
}

// TestFloorIsOutOfForceWhereAQueueIsFull is why CUBIC keeps its share beside a flow whose floor is wrong.
func TestFloorIsOutOfForceWhereAQueueIsFull(t *testing.T) {
	b := newBBR(Options{MaxDatagram: 1200, InitialWindow: 12_000, LossFloor: 0.1})
	for _, tt := range []struct {
		minRTT, before, now time.Duration
		want                lossFloor
	}{
		{50 * ms, 50 * ms, 50 * ms, 0.1},
		{50 * ms, 76 * ms, 75 * ms, 0.1},
		{50 * ms, 75 * ms, 200 * ms, 0.1}, // jitter
		{50 * ms, 76 * ms, 76 * ms, 0},
		{50 * ms, 76 * ms, unmeasured, 0},
		{ms, 5 * ms, 5 * ms, 0.1},
		{ms, 7 * ms, 7 * ms, 0},
		{50 * ms, unmeasured, unmeasured, 0.1},
		{unmeasured, 50 * ms, 50 * ms, 0.1},
	} {
		b.minRTT, b.roundRTT = tt.minRTT, [2]time.Duration{tt.before, tt.now}
		if got := b.floorInForce(); got != tt.want {
			t.Errorf("floor %g at %s, and %s the round before, of at least %s; want %g", got, tt.now, tt.before, tt.minRTT, tt.want)
		}
	}
}

// TestAppLimitedDoesNotInflate has the application write 2 of 50 Mbit/s: the estimate stays near that, and the window far from the path's
// product of 312,500 bytes.
func TestAppLimitedDoesNotInflate(t *testing.T) {
	for _, name := range []string{BBR, Cubic, Reno} {
		s := newSim(1, 0)
		f := s.add(t, name, Options{}, 0)
		f.appRate = 2 * megabit
		s.run(20 * time.Second)
		if w := f.cc.Window(); w > 100_000 {
			t.Errorf("%s: a window of %d bytes, where 12,500 are in flight", name, w)
		}
		if b := f.cc.State().Bandwidth; b > 6*megabit {
			t.Errorf("%s: an estimate of %.1f Mbit/s", name, b/megabit)
		}
		if f.lost > 0 {
			t.Errorf("%s: %d packets lost", name, f.lost)
		}
	}
}

// TestBBRKeepsEstimateWhileAppLimited has the application pause within the rate the path was found to have.
func TestBBRKeepsEstimateWhileAppLimited(t *testing.T) {
	s, f := newRun(t, nil)
	s.run(4 * time.Second)
	before := f.watched.maxBW
	f.appRate = 2 * megabit
	s.run(12 * time.Second)
	if after := f.watched.maxBW; !within(after, before, 0.05) {
		t.Errorf("an estimate of %.1f Mbit/s became %.1f", before/megabit, after/megabit)
	}
}

// TestRecoversFromPersistentCongestion cuts the link for two seconds.
func TestRecoversFromPersistentCongestion(t *testing.T) {
	for _, name := range []string{BBR, Cubic, Reno} {
		s := newSim(1, 0)
		f := s.add(t, name, Options{}, 0)
		s.run(4 * time.Second)
		s.link.drop = func(*flow, int64) bool { return true }
		s.run(6 * time.Second)
		s.link.drop = nil
		for s.now < 9*time.Second && f.persistent == 0 {
			s.run(s.now + ms)
		}
		if f.persistent == 0 || f.cc.Window() > 20*simMSS {
			t.Fatalf("%s: persistent congestion %d times, window %d", name, f.persistent, f.cc.Window())
		}
		if got := s.goodput(f, s.now+3*time.Second, 3*time.Second); got < 0.8 {
			t.Errorf("%s: then %.2f of the link", name, got)
		}
	}
}

// TestMarksAreCongestion marks packets from a quarter of the queue on, where nothing is dropped: queues stay short, whatever
// the floor.
func TestMarksAreCongestion(t *testing.T) {
	for _, tt := range []struct {
		name  string
		floor float64
	}{{BBR, 0}, {BBR, MaxLossFloor}, {Cubic, 0}, {Reno, 0}} {
		s := newSim(1, 0)
		deep(&s.link)
		s.link.mark = 100_000
		f := s.add(t, tt.name, Options{LossFloor: tt.floor}, 0)
		got := s.goodput(f, 3*time.Second, 5*time.Second)
		if s.link.maxQueue > 350_000 || got < 0.8 {
			t.Errorf("%s with floor %g: a queue of up to %d bytes at %.2f of the link", tt.name, tt.floor, s.link.maxQueue, got)
		}
	}
}

// TestNoAllocations holds what a packet costs: nothing for the collector, once the table of packets fits the flow.
func TestNoAllocations(t *testing.T) {
	for _, name := range []string{BBR, Cubic, Reno} {
		c := mustNew(t, name, Options{LossFloor: 0.02})
		var m LossMeter
		var l FloorLearner
		number, now := int64(0), time.Duration(0)
		acked, lost := make([]Packet, 0, 64), make([]Packet, 0, 8)
		round := func() {
			acked, lost = acked[:0], lost[:0]
			for i := range 40 {
				p := packet(number, now)
				c.Sent(now, int64(i)*1200, p)
				if number++; i%20 == 7 {
					lost = append(lost, p)
				} else {
					acked = append(acked, p)
				}
			}
			now += 50 * ms
			e := Event{Now: now, PriorInFlight: 48_000, Acked: acked, Lost: lost, RTT: RTT{50 * ms, 50 * ms, 50 * ms}, HasRTT: true}
			c.Update(e)
			c.AppLimited(0)
			m.Observe(e)
			l.Learn(now, uint64(number)%50, 40, 0.05)
			_, _, _ = c.Window(), c.PacingRate(), c.State()
			_ = l.Floor(now)
		}
		round()
		if n := testing.AllocsPerRun(200, round); n != 0 {
			t.Errorf("%s: %g allocations a round trip", name, n)
		}
	}
}

// TestSentPackets has numbers with gaps, numbers that two spaces share, and packets of which nothing more is heard.
func TestSentPackets(t *testing.T) {
	var table sentPackets
	take := func(number int64, sent time.Duration) bool {
		_, ok := table.take(packet(number, sent))
		return ok
	}
	if take(0, 0) {
		t.Error("took what was not put")
	}
	table.put(sentPacket{number: 3, sent: 1})
	table.put(sentPacket{number: 3, sent: 2}) // of the next space
	if take(3, 1) || !take(3, 2) || take(3, 2) {
		t.Error("two packets of one number: the later one is remembered, once")
	}
	for i := range int64(10 * minSlots) { // all in flight
		table.put(sentPacket{number: i, sent: 3})
	}
	for i := range int64(10 * minSlots) {
		if !take(i, 3) {
			t.Fatalf("packet %d of %d in flight is forgotten", i, 10*minSlots)
		}
	}
	if table.live != 0 {
		t.Errorf("%d packets are left", table.live)
	}
	for i := range int64(4 * maxSlots) { // never heard of
		table.put(sentPacket{number: i, sent: 4})
	}
	if len(table.slots) != maxSlots || table.live != maxSlots || !take(4*maxSlots-1, 4) {
		t.Errorf("%d slots for %d packets", len(table.slots), table.live)
	}
}

func TestMaxFilter(t *testing.T) {
	var f maxFilter
	values := []int64{5, 9, 3, 2, 2, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 7}
	want := []int64{5, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 7}
	for round, value := range values {
		if got := f.update(value, int64(round), 10); got != want[round] {
			t.Errorf("greatest of the last 10 rounds at round %d: %d, want %d", round, got, want[round])
		}
	}
	if got := f.update(1, 100, 10); got != 1 {
		t.Errorf("after a long silence: %d", got)
	}
}
