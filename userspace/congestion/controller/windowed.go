package controller

import (
	"math"
	"time"
)

// windowed is what Reno and CUBIC share: a window that losses reduce once a round trip, and that grows only while it is used.
type windowed struct {
	mss              int64
	window, ssthresh int64
	recovery         episode
	undo             struct{ window, ssthresh int64 } // before the last reduction
	delivered        int64
	limitedUntil     int64 // delivered bytes up to which the application, not the window, held the flow back
}

func newWindowed(o Options) windowed {
	return windowed{mss: int64(o.MaxDatagram), window: o.InitialWindow, ssthresh: math.MaxInt64, recovery: newEpisode()}
}

func (w *windowed) Window() int64       { return w.window }
func (w *windowed) PacingRate() float64 { return 0 }
func (w *windowed) minWindow() int64    { return 2 * w.mss } // kMinimumWindow

func (w *windowed) Sent(time.Duration, int64, Packet) {}

// AppLimited marks what is in flight: until it is acknowledged, the window was not what bounded the flow.
func (w *windowed) AppLimited(inFlight int64) {
	if inFlight < w.window {
		w.limitedUntil = max(w.limitedUntil, w.delivered+max(inFlight, 0)+1)
	}
}

func (w *windowed) Resize(maxDatagram int) {
	w.mss = int64(max(maxDatagram, 1))
	w.window = max(w.window, w.minWindow())
}

// congested tells whether the event begins a recovery period: with one loss or mark among packets sent since the last began.
func (w *windowed) congested(e Event) bool {
	begins := false
	for _, p := range e.Lost {
		begins = w.recovery.lose(e.Now, p) || begins
	}
	if e.ECNCE > 0 && len(e.Acked) > 0 {
		begins = w.recovery.begin(e.Now, lastSent(e.Acked)) || begins
	}
	return begins
}

// reduce leaves that share of the window.
func (w *windowed) reduce(share float64) {
	w.undo.window, w.undo.ssthresh = w.window, w.ssthresh
	w.ssthresh = max(int64(float64(w.window)*share), w.minWindow())
	w.window = w.ssthresh
}

// undone takes the last reduction back when none of the losses behind it was one, and tells whether it did.
func (w *windowed) undone(e Event) bool {
	w.delivered += sum(e.Spurious)
	if !w.recovery.undo(e.Spurious) {
		return false
	}
	w.window = max(w.window, w.undo.window)
	w.ssthresh = max(w.ssthresh, w.undo.ssthresh)
	return true
}

// collapse is what persistent congestion leads to (RFC 9002, 7.6.2). The episode remains, since it may prove spurious.
func (w *windowed) collapse() {
	w.window = w.minWindow()
	w.recovery.active = false
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
		if w.recovery.acknowledge(p) {
			n += int64(p.Bytes)
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
	case w.recovery.active:
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
