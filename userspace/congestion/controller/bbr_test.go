package controller

import (
	"math"
	"testing"
	"time"
)

// The tests of this file are the example test cases of draft-ietf-ccwg-bbr-06, appendix A, in its order.

// newRun is a flow of BBR alone on a link.
func newRun(t testing.TB, change func(l *link)) (*sim, *flow) {
	t.Helper()
	s := newSim(1, 0)
	if change != nil {
		change(&s.link)
	}
	return s, s.add(t, BBR, Options{}, 0)
}

// deep gives the link a queue in which nothing is lost.
func deep(l *link) { l.queue *= 8 }

// shallow gives it one in which bandwidth probing loses packets: a quarter of a bandwidth-delay product.
func shallow(l *link) { l.queue /= 4 }

func within(got, want, share float64) bool {
	return math.Abs(got-want) <= share*want
}

func TestBBRExitsStartupOnPlateau(t *testing.T) {
	s, f := newRun(t, deep)
	f.until(t, 2*time.Second, "a third round without growth", func(b *bbr) bool { return b.fullBWCount == 3 })
	b := f.watched
	if !b.fullBWNow || !b.fullBWReached || b.state != Drain {
		t.Errorf("full_bw_now %t, full_bw_reached %t, in %s", b.fullBWNow, b.fullBWReached, b.state)
	}
	if !within(b.maxBW, s.link.rate, 0.02) {
		t.Errorf("max_bw is %.2f Mbit/s of 50", b.maxBW/megabit)
	}
}

func TestBBRExitsStartupOnLossWhenAppLimited(t *testing.T) {
	s, f := newRun(t, nil)
	f.appRate = 20 * megabit
	s.run(time.Second)
	if b := f.watched; b.state != Startup || b.fullBWReached {
		t.Fatalf("in %s before any loss", b.state)
	}
	s.link.loss = 0.2
	f.until(t, time.Second, "the end of Startup", leaves(Startup))
	b := f.watched
	// With so little in flight, Drain may end with the same acknowledgement.
	if !b.rs.appLimited || b.drainStartRound != b.roundCount || !b.fullBWNow || !b.fullBWReached || b.undoState != Startup {
		t.Errorf("app limited %t, in %s, full_bw_now %t, full_bw_reached %t, undo_state %q",
			b.rs.appLimited, b.state, b.fullBWNow, b.fullBWReached, b.undoState)
	}
	if b.inflightLongterm == unbounded {
		t.Error("inflight_longterm is not set")
	}
}

func TestBBRExitsDrainOnInflight(t *testing.T) {
	_, f := newRun(t, nil)
	f.until(t, 2*time.Second, "Drain", in(Drain))
	if pacing, _ := f.watched.gains(); pacing != 0.5 {
		t.Errorf("pacing gain %g in Drain", pacing)
	}
	f.until(t, time.Second, "the end of Drain", leaves(Drain))
	b := f.watched
	if b.inFlight > b.inflight(b.bw, 1) || b.roundCount > b.drainStartRound+3 || !b.isInAProbeBWState() {
		t.Errorf("left for %s with %d in flight of %d, after %d rounds", b.state, b.inFlight, b.inflight(b.bw, 1), b.roundCount-b.drainStartRound)
	}
}

// TestBBRExitsDrainOnTime takes more bandwidth away than the draft's 10 %, since pacing at half of it would still drain the queue.
func TestBBRExitsDrainOnTime(t *testing.T) {
	s, f := newRun(t, deep)
	f.until(t, 2*time.Second, "Drain", in(Drain))
	s.link.rate *= 0.3
	b := f.watched
	f.until(t, 5*time.Second, "the end of Drain", func(b *bbr) bool {
		return b.state != Drain
	})
	if rounds := b.roundCount - b.drainStartRound; rounds != 4 || b.inFlight <= b.inflight(b.bw, 1) || !b.isInAProbeBWState() {
		t.Errorf("left for %s in the %dth round, with %d in flight of %d", b.state, rounds, b.inFlight, b.inflight(b.bw, 1))
	}
}

func TestBBRExitsProbeUpOnPlateau(t *testing.T) {
	_, f := newRun(t, deep)
	f.until(t, 10*time.Second, "ProbeBW_UP", in(ProbeBWUp))
	f.until(t, 2*time.Second, "the end of ProbeBW_UP", leaves(ProbeBWUp))
	b := f.watched
	if b.state != ProbeBWDown || !b.fullBWNow || b.fullBWCount != 3 || f.lost > 0 || b.prevProbeTooHigh {
		t.Errorf("left for %s, full_bw_now %t, full_bw_count %d, %d packets lost", b.state, b.fullBWNow, b.fullBWCount, f.lost)
	}
}

func TestBBRExitsProbeUpOnLossWhenAppLimited(t *testing.T) {
	s, f := newRun(t, deep)
	f.until(t, 10*time.Second, "ProbeBW_UP", in(ProbeBWUp))
	f.appRate = 30 * megabit
	f.until(t, time.Second, "a sample of the application's rate", func(b *bbr) bool { return b.rs.appLimited && b.roundStart })
	s.run(s.now + 200*ms)
	b := f.watched
	if b.state != ProbeBWUp {
		t.Fatalf("in %s before any loss", b.state)
	}
	s.link.loss = 0.3
	f.until(t, time.Second, "the end of ProbeBW_UP", leaves(ProbeBWUp))
	// With so little in flight, ProbeBW_DOWN may end with the same acknowledgement.
	if b.cycleStamp != s.now || !b.prevProbeTooHigh || b.undoState != ProbeBWUp {
		t.Errorf("left for %s, prev_probe_too_high %t, undo_state %q", b.state, b.prevProbeTooHigh, b.undoState)
	}
	if b.inflightLongterm != unbounded {
		t.Errorf("an application-limited sample set inflight_longterm to %d", b.inflightLongterm)
	}
}

func TestBBRStaysWhileAppLimited(t *testing.T) {
	t.Run("Startup", func(t *testing.T) {
		s, f := newRun(t, nil)
		f.appRate = 5 * megabit
		s.run(4900 * ms) // until ProbeRTT is due
		if b := f.watched; b.state != Startup {
			t.Errorf("in %s", b.state)
		}
	})
	t.Run("ProbeBW_UP", func(t *testing.T) {
		s, f := newRun(t, deep)
		f.until(t, 10*time.Second, "ProbeBW_UP", in(ProbeBWUp))
		f.appRate = 5 * megabit
		for b := f.watched; s.now < b.probeRTTMinStamp+4900*ms; s.run(s.now + 50*ms) {
			if b.state != ProbeBWUp {
				t.Fatalf("in %s at %s", b.state, s.now)
			}
		}
	})
}

func TestBBRExitsProbeDownOnInflight(t *testing.T) {
	_, f := newRun(t, nil)
	f.until(t, 10*time.Second, "ProbeBW_UP", in(ProbeBWUp))
	f.until(t, 2*time.Second, "ProbeBW_DOWN", in(ProbeBWDown))
	if pacing, _ := f.watched.gains(); pacing != 0.9 {
		t.Errorf("pacing gain %g in ProbeBW_DOWN", pacing)
	}
	f.until(t, 5*time.Second, "the end of ProbeBW_DOWN", leaves(ProbeBWDown))
	b := f.watched
	if b.state != ProbeBWCruise || b.inFlight > b.inflightWithHeadroom() || b.inFlight > b.inflight(b.maxBW, 1) {
		t.Errorf("left for %s with %d in flight of %d", b.state, b.inFlight, b.inflight(b.maxBW, 1))
	}
}

// TestBBRExitsProbeDownAfterTime takes 15 % away, where the draft says 10: at 0.9·0.99 of the rate, 10 would still drain.
func TestBBRExitsProbeDownAfterTime(t *testing.T) {
	s, f := newRun(t, deep)
	f.until(t, 10*time.Second, "ProbeBW_UP", in(ProbeBWUp))
	f.until(t, 2*time.Second, "ProbeBW_DOWN", in(ProbeBWDown))
	s.link.rate *= 0.85
	f.watched.probeRTTMinStamp = s.now // ProbeRTT is not to come between
	f.until(t, 4*time.Second, "the end of ProbeBW_DOWN", leaves(ProbeBWDown))
	b := f.watched
	if b.state != ProbeBWRefill {
		t.Fatalf("left for %s, with %d in flight of %d", b.state, b.inFlight, b.inflight(b.maxBW, 1))
	}
	if in := b.now - b.cycleStamp; in < b.bwProbeWait || b.bwProbeWait < 2*time.Second || b.bwProbeWait > 3*time.Second {
		t.Errorf("after %s of %s", in, b.bwProbeWait)
	}
}

func TestBBREntersAndExitsProbeRTT(t *testing.T) {
	s, f := newRun(t, nil)
	f.until(t, 7*time.Second, "ProbeRTT", in(ProbeRTT))
	if entered := s.now; entered < 5*time.Second {
		t.Errorf("entered after %s", entered)
	}
	if _, gain := f.watched.gains(); gain != 0.5 {
		t.Errorf("window gain %g", gain)
	}
	f.until(t, time.Second, "no more than half the product in flight", func(b *bbr) bool {
		return b.probeRTTDoneStamp != 0 && b.inFlight <= b.probeRTTCwnd()
	})
	began, b := s.now, f.watched
	f.until(t, time.Second, "the end of ProbeRTT", leaves(ProbeRTT))
	if held := s.now - began; held < 200*ms || !b.probeRTTRoundDone || b.state != ProbeBWCruise {
		t.Errorf("left for %s after %s", b.state, held)
	}
	if got := s.goodput(f, s.now+200*ms, time.Second); got < 0.9 {
		t.Errorf("then %.2f of the link", got)
	}
}

func TestBBRSkipsProbeRTTAfterIdle(t *testing.T) {
	s, f := newRun(t, nil)
	f.until(t, 5*time.Second, "ProbeBW_CRUISE", in(ProbeBWCruise))
	f.paused = true
	s.run(s.now + 6*time.Second)
	b := f.watched
	if f.inFlight != 0 {
		t.Fatalf("%d bytes in flight when idle", f.inFlight)
	}
	f.paused = false
	f.trySend()
	if !b.idleRestart || !within(b.pacingRate, b.bw, 0.011) {
		t.Errorf("idle_restart %t, pacing at %.2f of bw", b.idleRestart, b.pacingRate/b.bw)
	}
	for end := s.now + 2*time.Second; s.now < end; s.run(s.now + 10*ms) {
		if b.state == ProbeRTT {
			t.Fatal("in ProbeRTT")
		}
	}
}

func TestBBRStartupWithAggregation(t *testing.T) {
	s, f := newRun(t, func(l *link) { l.slot = 30 * ms; l.queue *= 2 })
	most, extra := int64(0), int64(0)
	f.until(t, 3*time.Second, "the end of Startup", func(b *bbr) bool {
		most, extra = max(most, b.cwnd), max(extra, b.extraAcked)
		return b.state != Startup
	})
	b := f.watched
	if bdp := 312_500.0; float64(most) <= 2*bdp || extra == 0 {
		t.Errorf("a window of at most %.2f products, extra_acked at most %d", float64(most)/bdp, extra)
	}
	// Slots of 30 ms in samples of 80 ms overestimate by up to 3/8.
	if b.maxBW < 0.95*s.link.rate || b.maxBW > 1.38*s.link.rate {
		t.Errorf("max_bw is %.2f Mbit/s of 50", b.maxBW/megabit)
	}
}

func TestBBRCruiseWithAggregation(t *testing.T) {
	s, f := newRun(t, nil)
	f.until(t, 5*time.Second, "ProbeBW_CRUISE", in(ProbeBWCruise))
	b := f.watched
	s.link.slot = 30 * ms
	got := s.goodput(f, s.now+500*ms, time.Second)
	slot := int64(0.03 * s.link.rate) // 187,500 bytes come at once
	if b.extraAcked < slot/2 || b.extraAcked > 2*slot {
		t.Errorf("extra_acked is %d, of slots of %d bytes", b.extraAcked, slot)
	}
	if want := b.bdpMultiple(b.bw, 2) + b.extraAcked; b.maxInflight() < want {
		t.Errorf("max_inflight is %d, want %d", b.maxInflight(), want)
	}
	if got < 0.93 {
		t.Errorf("goodput %.2f of the link", got)
	}
}

func TestBBRSubPacketProduct(t *testing.T) {
	s, f := newRun(t, func(l *link) { *l = link{rate: 64_000 / 8, rtt: 10 * ms, queue: 40 * simMSS, rng: l.rng} })
	f.until(t, 60*time.Second, "ProbeBW_CRUISE", in(ProbeBWCruise))
	b := f.watched
	if b.cwnd < 4*simMSS || b.minPipeCwnd() != 4*simMSS {
		t.Errorf("a window of %d", b.cwnd)
	}
	if b.pacingRate > 1.05*s.link.rate {
		t.Errorf("pacing at %.0f bytes/s of %.0f", b.pacingRate, s.link.rate)
	}
	if got := s.goodput(f, s.now, 20*time.Second); got < 0.85 {
		t.Errorf("goodput %.2f of the link", got)
	}
}

func TestBBRFindsTenfoldBandwidth(t *testing.T) {
	s, f := newRun(t, func(l *link) { l.rate /= 5; l.queue /= 20 })
	f.until(t, 20*time.Second, "inflight_longterm, after ProbeBW_UP", func(b *bbr) bool {
		return b.state == ProbeBWCruise && b.inflightLongterm != unbounded
	})
	s.link.rate *= 10
	s.link.queue *= 40
	// The increment doubles each round: what must be acknowledged for a datagram more halves.
	perInc, doubled := int64(0), 0
	f.until(t, 15*time.Second, "90 of 100 Mbit/s", func(b *bbr) bool {
		if b.state == ProbeBWUp && b.roundStart {
			if perInc > 0 && b.probeUpAckedPerInc < perInc && b.probeUpAckedPerInc > simMSS {
				doubled++
			}
			perInc = b.probeUpAckedPerInc
		}
		return b.maxBW > 90*megabit
	})
	if doubled < 3 {
		t.Errorf("the increment grew %d times", doubled)
	}
}

func TestBBRAdaptsToTenthOfBandwidth(t *testing.T) {
	s, f := newRun(t, func(l *link) { l.rate *= 2; l.queue *= 2 })
	f.until(t, 5*time.Second, "ProbeBW_CRUISE", in(ProbeBWCruise))
	s.link.rate /= 10
	s.link.queue /= 10
	f.until(t, 3*time.Second, "a short-term bound of bandwidth", func(b *bbr) bool { return b.bwShortterm < b.maxBW/2 })
	f.until(t, 20*time.Second, "max_bw of the path's 10 Mbit/s", func(b *bbr) bool { return b.maxBW < 1.05*s.link.rate })
	if got := s.goodput(f, s.now+time.Second, 5*time.Second); got < 0.8 {
		t.Errorf("then %.2f of the link", got)
	}
}

func TestBBRWithPolicer(t *testing.T) {
	s, f := newRun(t, func(l *link) { l.rate = 10 * megabit; l.policer = 50_000; l.tokens = 50_000 })
	f.until(t, 5*time.Second, "a short-term bound, in ProbeBW", func(b *bbr) bool {
		return b.isInAProbeBWState() && b.bwShortterm < b.maxBW && b.inflightShortterm < unbounded
	})
	got := s.goodput(f, s.now+5*time.Second, 15*time.Second)
	lost, sent := f.lost, len(f.packets)
	s.run(s.now + 10*time.Second)
	share := float64(f.lost-lost) / float64(len(f.packets)-sent)
	if got < 0.8 || share > 0.1 {
		t.Errorf("goodput %.2f of the tokens, %.1f %% lost", got, 100*share)
	}
}

func TestBBRSpuriousFastRecovery(t *testing.T) {
	s, f := newRun(t, deep)
	f.until(t, 10*time.Second, "ProbeBW_UP", in(ProbeBWUp))
	b := f.watched
	s.run(s.now + 60*ms) // samples of the probe
	from := s.now
	s.link.extra = func(_ *flow, number int64) time.Duration {
		if s.now < from+10*ms && number%3 == 0 {
			return 30 * ms
		}
		return 0
	}
	f.until(t, time.Second, "losses that end ProbeBW_UP", leaves(ProbeBWUp))
	if b.state != ProbeBWDown || b.undoState != ProbeBWUp || b.undoInflightLongterm != unbounded || b.inflightLongterm == unbounded {
		t.Fatalf("left for %s, undo_state %q, inflight_longterm %d after %d", b.state, b.undoState, b.inflightLongterm, b.undoInflightLongterm)
	}
	f.until(t, time.Second, "ProbeBW_REFILL, when they arrive after all", in(ProbeBWRefill))
	if b.inflightLongterm != unbounded || b.undoState != "" || !math.IsInf(b.bwShortterm, 1) || b.inflightShortterm != unbounded {
		t.Errorf("inflight_longterm %d, bw_shortterm %g, inflight_shortterm %d, undo_state %q",
			b.inflightLongterm, b.bwShortterm, b.inflightShortterm, b.undoState)
	}
	f.until(t, time.Second, "ProbeBW_UP again", in(ProbeBWUp))
}

func TestBBRSpuriousTimeout(t *testing.T) {
	s, f := newRun(t, deep)
	f.until(t, 10*time.Second, "ProbeBW_UP", in(ProbeBWUp))
	b := f.watched
	s.run(s.now + 60*ms)
	window := b.cwnd
	var lost []Packet
	for _, p := range f.packets[f.oldest:] {
		if !p.acked {
			lost = append(lost, p.Packet)
		}
	}
	b.Update(Event{Now: s.now, PriorInFlight: f.inFlight, Lost: lost, Persistent: true})
	if b.state != ProbeBWDown || b.undoState != ProbeBWUp || b.cwnd != 4*simMSS || b.inflightLongterm == unbounded {
		t.Fatalf("in %s, undo_state %q, window %d, inflight_longterm %d", b.state, b.undoState, b.cwnd, b.inflightLongterm)
	}
	b.Update(Event{Now: s.now + 50*ms, Spurious: lost})
	if b.state != ProbeBWRefill || b.cwnd < window*2/3 || b.priorCwnd < window || b.inflightLongterm != unbounded {
		t.Errorf("in %s, window %d of %d, inflight_longterm %d", b.state, b.cwnd, window, b.inflightLongterm)
	}
}

func TestBBRProbeRTTDuringStartup(t *testing.T) {
	_, f := newRun(t, nil)
	f.appRate = 5 * megabit
	f.until(t, 7*time.Second, "ProbeRTT", in(ProbeRTT))
	if f.watched.fullBWReached {
		t.Error("full_bw_reached")
	}
	f.until(t, time.Second, "Startup again", in(Startup))
	f.appRate = 0
	f.until(t, 3*time.Second, "the full bandwidth", func(b *bbr) bool { return b.maxBW > 48*megabit })
}

func TestBBRLossDuringProbeUpWithLongterm(t *testing.T) {
	s, f := newRun(t, shallow)
	f.until(t, 20*time.Second, "ProbeBW_UP with inflight_longterm", func(b *bbr) bool {
		return b.state == ProbeBWUp && b.inflightLongterm != unbounded && b.ackPhase == acksProbeStarting
	})
	b := f.watched
	before, target := b.inflightLongterm, b.targetInflight()
	s.link.loss = 0.4
	f.until(t, time.Second, "the end of ProbeBW_UP", leaves(ProbeBWUp))
	if b.state != ProbeBWDown || !b.prevProbeTooHigh {
		t.Errorf("left for %s, prev_probe_too_high %t", b.state, b.prevProbeTooHigh)
	}
	if low := int64(0.65 * float64(target)); b.inflightLongterm >= before || b.inflightLongterm < low {
		t.Errorf("inflight_longterm is %d, want %d to %d", b.inflightLongterm, low, before)
	}
}

func TestBBRAppLimitedDuringRefill(t *testing.T) {
	_, f := newRun(t, deep)
	f.until(t, 10*time.Second, "ProbeBW_REFILL", in(ProbeBWRefill))
	b := f.watched
	maxBW := b.maxBW
	f.appRate = 5 * megabit
	f.until(t, time.Second, "ProbeBW_UP", leaves(ProbeBWRefill))
	if b.state != ProbeBWUp || b.maxBW < maxBW {
		t.Errorf("in %s, max_bw %.2f of %.2f Mbit/s", b.state, b.maxBW/megabit, maxBW/megabit)
	}
	f.until(t, time.Second, "a sample of the application's", func(b *bbr) bool { return b.rs.appLimited && b.rs.rate < maxBW/2 })
	f.appRate = 0
	f.until(t, 3*time.Second, "ProbeBW_DOWN", in(ProbeBWDown))
	if b.maxBW < 0.99*maxBW {
		t.Errorf("max_bw fell from %.2f to %.2f Mbit/s", maxBW/megabit, b.maxBW/megabit)
	}
}

// TestIntervalsBeginWithTheConnection has a clock that shows an hour as the first packet is sent: nothing is overdue then.
func TestIntervalsBeginWithTheConnection(t *testing.T) {
	b := newBBR(Options{MaxDatagram: 1200, InitialWindow: 12_000})
	now := time.Hour
	p := packet(0, now)
	b.Sent(now, 0, p)
	now += 50 * ms
	b.Update(Event{Now: now, PriorInFlight: 1200, Acked: []Packet{p}, RTT: RTT{50 * ms, 50 * ms, 50 * ms}, HasRTT: true})
	if b.state != Startup || b.appLimited != 0 {
		t.Errorf("in %s after one round trip", b.state)
	}
	if b.extraAcked > 1200 {
		t.Errorf("%d bytes more than expected were acknowledged, of 1200", b.extraAcked)
	}
}
