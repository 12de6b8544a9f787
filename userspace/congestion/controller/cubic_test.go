package controller

import (
	"math"
	"testing"
	"time"
)

// TestCubicFollowsTheCurve loses one packet, and reads the window while the curve goes back up: W_max is reached after K, and left
// behind after that.
func TestCubicFollowsTheCurve(t *testing.T) {
	const rtt = 100 * ms
	const window = 1000 * 1200
	c := newCubic(Options{MaxDatagram: 1200, InitialWindow: window})
	c.Update(Event{Now: 0, PriorInFlight: window, Lost: []Packet{packet(0, 0)}, RTT: RTT{Smoothed: rtt}})
	if c.window != window*7/10 || c.curve.wMax != window {
		t.Fatalf("window %d, W_max %.0f after a loss", c.window, c.curve.wMax)
	}
	// K = cbrt(0.3·1000 segments / 0.4) = 9.086 s.
	number, at := int64(1), map[time.Duration]float64{}
	for now := rtt; now <= 13*time.Second; now += rtt {
		for range c.window / 1200 {
			c.Update(Event{Now: now, PriorInFlight: c.window, Acked: []Packet{packet(number, now-rtt+1)}, RTT: RTT{Smoothed: rtt}})
			number++
		}
		at[now.Round(time.Second)] = float64(c.window) / window
	}
	if k := c.curve.k.Seconds(); math.Abs(k-9.0856) > 0.001 {
		t.Errorf("K is %.4f s, want 9.0856", k)
	}
	for _, tt := range []struct {
		at   time.Duration
		want float64
	}{{2 * time.Second, 0.867}, {5 * time.Second, 0.974}, {9 * time.Second, 1}, {12 * time.Second, 1.012}} {
		if got := at[tt.at]; math.Abs(got-tt.want) > 0.02 {
			t.Errorf("at %s: %.3f of W_max, want %.3f", tt.at, got, tt.want)
		}
	}
}

func TestCubicFastConvergence(t *testing.T) {
	c := newCubic(Options{MaxDatagram: 1200, InitialWindow: 1_200_000})
	c.Update(Event{Now: 1 * ms, PriorInFlight: 1_200_000, Lost: []Packet{packet(0, 0)}})
	c.Update(Event{Now: 90 * ms, PriorInFlight: 840_000, Lost: []Packet{packet(1, 50*ms)}})
	if want := 840_000 * 0.85; math.Abs(c.curve.wMax-want) > 1 || c.window != 588_000 {
		t.Errorf("W_max %.0f and window %d after a loss below W_max, want %.0f and 588000", c.curve.wMax, c.window, want)
	}
}

// TestCubicTakesReductionBack is RFC 9438, 4.9.
func TestCubicTakesReductionBack(t *testing.T) {
	for _, name := range []string{Cubic, Reno} {
		c := mustNew(t, name, Options{})
		lost := []Packet{packet(0, 0), packet(1, 0)}
		c.Update(Event{Now: 50 * ms, PriorInFlight: 12000, Lost: lost})
		reduced := c.Window()
		c.Update(Event{Now: 60 * ms, PriorInFlight: 9600, Spurious: lost[:1]})
		if c.Window() != reduced {
			t.Errorf("%s: window %d after one of two losses was spurious, want %d", name, c.Window(), reduced)
		}
		c.Update(Event{Now: 60 * ms, PriorInFlight: 9600, Spurious: lost[1:]})
		if c.Window() != 12000 || c.State().SSThresh != math.MaxInt64 {
			t.Errorf("%s: window %d, threshold %d after all losses were spurious, want 12000 and none", name, c.Window(), c.State().SSThresh)
		}
	}
}

func TestCubicPersistentCongestion(t *testing.T) {
	c := newCubic(Options{MaxDatagram: 1200, InitialWindow: 120_000})
	c.Update(Event{Now: 500 * ms, PriorInFlight: 120_000, Lost: []Packet{packet(0, 0), packet(9, 400*ms)}, Persistent: true})
	if c.window != 2400 || c.ssthresh != 84_000 || c.curve.wMax != 0 {
		t.Errorf("window %d, threshold %d, W_max %.0f, want 2400, 84000 and none", c.window, c.ssthresh, c.curve.wMax)
	}
	if s := c.State(); s.Phase != SlowStart {
		t.Errorf("then in %s", s.Phase)
	}
}

// TestCubicIdleDoesNotGrow is RFC 9438, 5.8: the curve's time stops while nothing is in flight, and while the window is not used.
func TestCubicIdleDoesNotGrow(t *testing.T) {
	c := newCubic(Options{MaxDatagram: 1200, InitialWindow: 120_000})
	c.Update(Event{Now: 50 * ms, PriorInFlight: 120_000, Lost: []Packet{packet(0, 0)}})
	c.Update(Event{Now: 100 * ms, PriorInFlight: 84_000, Acked: []Packet{packet(1, 60*ms)}, RTT: RTT{Smoothed: 50 * ms}})
	before := c.window
	c.Sent(time.Hour, 0, packet(2, time.Hour))
	c.Update(Event{Now: time.Hour + 50*ms, PriorInFlight: 84_000, Acked: []Packet{packet(2, time.Hour)}, RTT: RTT{Smoothed: 50 * ms}})
	if grown := c.window - before; grown < 0 || grown > 1200 {
		t.Errorf("the window grew by %d bytes over an idle hour", grown)
	}
	c.AppLimited(2400)
	before = c.window
	c.Update(Event{Now: 2 * time.Hour, PriorInFlight: 2400, Acked: []Packet{packet(3, 2*time.Hour-50*ms)}, RTT: RTT{Smoothed: 50 * ms}})
	c.Update(Event{Now: 2*time.Hour + 1, PriorInFlight: 84_000, Acked: []Packet{packet(4, 2*time.Hour-50*ms)}, RTT: RTT{Smoothed: 50 * ms}})
	if grown := c.window - before; grown < 0 || grown > 1200 {
		t.Errorf("the window grew by %d bytes over an hour of little use", grown)
	}
}

// TestCubicAverage holds the simulated rate against RFC 9438, 5.1, where every ten thousandth packet is lost.
func TestCubicAverage(t *testing.T) {
	s := newSim(1, 0)
	s.link.rtt = 200 * ms
	s.link.rate = 200 * megabit
	s.link.drop = func(_ *flow, number int64) bool { return number%10_000 == 9_999 }
	f := s.add(t, Cubic, Options{}, 0)
	got := s.goodput(f, 15*time.Second, 30*time.Second) * s.link.rate / 1200 * 0.2
	want := math.Pow(0.4*3.7/(4*0.3), 0.25) * math.Pow(0.2, 0.75) / math.Pow(1e-4, 0.75) // 316 segments; Reno: 122
	if got < 0.85*want || got > 1.15*want {
		t.Errorf("%.0f segments in flight on average, want %.0f", got, want)
	}
}

// TestHyStart leaves slow start at longer round trips, without a loss.
func TestHyStart(t *testing.T) {
	s := newSim(1, 0)
	s.link.queue *= 10 // five rounds of conservative growth triple the window
	f := s.add(t, Cubic, Options{}, 0)
	conservative := false
	for at := 10 * ms; at < 3*time.Second && f.cc.State().Phase != Avoidance; at += 10 * ms {
		s.run(at)
		conservative = conservative || f.cc.State().Phase == Conservative
	}
	c := f.cc.(*cubic)
	if c.State().Phase != Avoidance || !conservative || f.lost > 0 || c.ssthresh == math.MaxInt64 {
		t.Errorf("in %s (conservative before: %t) with %d losses, threshold %d", c.State().Phase, conservative, f.lost, c.ssthresh)
	}
	if bdp := int64(312_500); c.ssthresh < bdp || c.ssthresh > 8*bdp {
		t.Errorf("slow start ended at %d bytes: %.1f bandwidth-delay products", c.ssthresh, float64(c.ssthresh)/float64(bdp))
	}
}

// TestHyStartJitter goes back to slow start when round trips are short again.
func TestHyStartJitter(t *testing.T) {
	h := newHystart()
	now := time.Duration(0)
	round := func(rtt time.Duration) (over bool) {
		sent := now
		for range hystartSamples {
			now += ms
			over = h.update(Event{Now: now, Acked: []Packet{packet(0, sent)}, RTT: RTT{Latest: rtt}, HasRTT: true}) || over
		}
		return over
	}
	round(50 * ms)
	round(52 * ms)
	if h.conservative {
		t.Error("conservative at 2 ms more")
	}
	round(60 * ms)
	if !h.conservative || h.growth(1200) != 300 {
		t.Errorf("at 8 ms more: conservative %t, growth %d of 1200", h.conservative, h.growth(1200))
	}
	round(51 * ms)
	if h.conservative {
		t.Error("still conservative after jitter")
	}
	round(60 * ms)
	for i := range hystartCSSRounds {
		if over := round(60 * ms); over != (i == hystartCSSRounds-1) {
			t.Errorf("round %d of longer round trips: over is %t", i+1, over)
		}
	}
}
