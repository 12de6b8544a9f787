package controller

import (
	"math"
	"time"
)

// Constants of RFC 9406, 4.3. L is infinite, since senders pace.
const (
	hystartMinThresh   = 4 * time.Millisecond  // MIN_RTT_THRESH
	hystartMaxThresh   = 16 * time.Millisecond // MAX_RTT_THRESH
	hystartDivisor     = 8                     // MIN_RTT_DIVISOR
	hystartSamples     = 8                     // N_RTT_SAMPLE
	hystartCSSDivisor  = 4                     // CSS_GROWTH_DIVISOR
	hystartCSSRounds   = 5                     // CSS_ROUNDS
	hystartNoRTT       = time.Duration(math.MaxInt64)
	hystartBeforeFirst = time.Duration(-1)
)

// hystart leaves the first slow start when round trips grow, before the queue overflows (RFC 9406). A round ends with the
// acknowledgement of a packet sent since it began: send times serve where the RFC has sequence numbers.
type hystart struct {
	roundBegan   time.Duration
	lastMin      time.Duration // lastRoundMinRTT
	currentMin   time.Duration // currentRoundMinRTT
	samples      int           // rttSampleCount
	conservative bool          // in CSS
	baseline     time.Duration // cssBaselineMinRtt
	cssRounds    int
}

func newHystart() hystart {
	return hystart{roundBegan: hystartBeforeFirst, lastMin: hystartNoRTT, currentMin: hystartNoRTT}
}

// update tells whether slow start is over: because round trips stayed longer for five rounds.
func (h *hystart) update(e Event) bool {
	if len(e.Acked) > 0 && lastSent(e.Acked) > h.roundBegan {
		h.roundBegan = e.Now
		h.lastMin, h.currentMin, h.samples = h.currentMin, hystartNoRTT, 0
		if h.conservative {
			h.cssRounds++
			if h.cssRounds >= hystartCSSRounds {
				return true
			}
		}
	}
	if !e.HasRTT {
		return false
	}
	h.currentMin = min(h.currentMin, e.RTT.Latest)
	h.samples++
	if h.samples < hystartSamples {
		return false
	}
	switch {
	case h.conservative && h.currentMin < h.baseline: // the growth was jitter: slow start again
		h.conservative = false
	case !h.conservative && h.lastMin != hystartNoRTT && h.currentMin >= h.lastMin+h.thresh():
		h.conservative, h.baseline, h.cssRounds = true, h.currentMin, 0
	}
	return false
}

// thresh is RttThresh.
func (h *hystart) thresh() time.Duration {
	return max(hystartMinThresh, min(h.lastMin/hystartDivisor, hystartMaxThresh))
}

// growth is by how much the window widens when that much was acknowledged.
func (h *hystart) growth(acked int64) int64 {
	if h.conservative {
		return acked / hystartCSSDivisor
	}
	return acked
}
