package controller

import (
	"math"
	"time"
)

// reno is the controller of RFC 9002, 7 and appendix B.
type reno struct {
	windowed
	acked int64 // in avoidance: bytes acknowledged since the window last grew
}

func newReno(o Options) *reno {
	return &reno{windowed: newWindowed(o)}
}

func (r *reno) Name() string { return Reno }

func (r *reno) Update(e Event) {
	if r.congested(e) {
		r.reduce(e.Now, 0.5) // kLossReductionFactor
		r.acked = 0
	}
	if e.Persistent {
		r.collapse()
		return
	}
	r.grow(e)
}

// grow widens the window by what was acknowledged in slow start, and by a datagram a window afterwards (RFC 9002, 7.3).
func (r *reno) grow(e Event) {
	acked := r.countable(e)
	if acked == 0 {
		return
	}
	if r.window < r.ssthresh {
		r.widen(acked)
		return
	}
	r.acked += acked
	if r.acked >= r.window {
		r.acked -= r.window
		r.widen(r.mss)
	}
}

// windowed is what Reno and CUBIC share: a window that losses reduce once a round trip, and that grows only while it is used.
type windowed struct {
	mss              int64
	window, ssthresh int64
	recovering       bool
	recoveryStart    time.Duration // packets sent up to then belong to the last reduction (RFC 9002, 7.3.2)
	delivered        int64
	limitedUntil     int64 // delivered bytes up to which the application, not the window, held the flow back
}

func newWindowed(o Options) windowed {
	return windowed{mss: int64(o.MaxDatagram), window: o.InitialWindow, ssthresh: math.MaxInt64, recoveryStart: -1}
}

func (w *windowed) Window() int64       { return w.window }
func (w *windowed) PacingRate() float64 { return 0 }
func (w *windowed) minWindow() int64    { return 2 * w.mss } // kMinimumWindow

func (w *windowed) Sent(time.Duration, int64, Packet) {}

// AppLimited marks what is in flight: until it is acknowledged, the window was not what bounded the flow.
func (w *windowed) AppLimited(inFlight int64) {
	if inFlight < w.window {
		w.limitedUntil = max(w.limitedUntil, w.delivered+inFlight+1)
	}
}

func (w *windowed) Resize(maxDatagram int) {
	w.mss = int64(max(maxDatagram, 1))
	w.window = max(w.window, w.minWindow())
}

// congested tells whether the event begins a recovery period: one loss or mark among packets sent after the last began.
func (w *windowed) congested(e Event) bool {
	for _, p := range e.Lost {
		if p.Sent > w.recoveryStart {
			return true
		}
	}
	if e.ECNCE > 0 && len(e.Acked) > 0 {
		return lastSent(e.Acked) > w.recoveryStart
	}
	return false
}

// reduce begins a recovery period with that share of the window.
func (w *windowed) reduce(now time.Duration, share float64) {
	w.recovering, w.recoveryStart = true, now
	w.ssthresh = max(int64(float64(w.window)*share), w.minWindow())
	w.window = w.ssthresh
}

// collapse is what persistent congestion leads to (RFC 9002, 7.6.2).
func (w *windowed) collapse() {
	w.window = w.minWindow()
	w.recovering, w.recoveryStart = false, -1
}

// countable is how much of what was acknowledged may widen the window: nothing that was sent before the recovery began, and
// nothing while the flow leaves its window unused (RFC 9002, 7.8). A flow is taken to use it when less than a burst of pacing
// is left, and in slow start when half of it is in flight, since it doubles within the round trip.
func (w *windowed) countable(e Event) int64 {
	const burst = 3 // datagrams
	w.delivered += sum(e.Acked)
	used := e.PriorInFlight + burst*w.mss
	if w.window < w.ssthresh {
		used = max(used, 2*e.PriorInFlight)
	}
	limited := w.delivered < w.limitedUntil && used < w.window
	n := int64(0)
	for _, p := range e.Acked {
		if p.Sent > w.recoveryStart {
			n += int64(p.Bytes)
			w.recovering = false
		}
	}
	if limited {
		return 0
	}
	return n
}

func (w *windowed) widen(by int64) {
	w.window = min(w.window+by, maxWindow)
}

func (w *windowed) State() State {
	s := State{Phase: Avoidance, SSThresh: w.ssthresh}
	switch {
	case w.recovering:
		s.Phase = Recovery
	case w.window < w.ssthresh:
		s.Phase = SlowStart
	}
	return s
}

func lastSent(packets []Packet) time.Duration {
	last := packets[0].Sent
	for _, p := range packets[1:] {
		last = max(last, p.Sent)
	}
	return last
}
