package controller

import (
	"math"
	"time"
)

// Constants of RFC 9438, 4.1 and 4.3.
const (
	cubicC     = 0.4
	cubicBeta  = 0.7
	cubicAlpha = 3 * (1 - cubicBeta) / (1 + cubicBeta) // of the Reno-friendly region
)

// cubic is the controller of RFC 9438 with HyStart++ (RFC 9406), in bytes where the RFC counts segments.
type cubic struct {
	windowed
	hystart hystart
	curve   curve
	before  curve // the last reduction
	updated time.Duration
}

// curve is where the window grows along (RFC 9438, 4.2 and 4.3).
type curve struct {
	wMax  float64       // 0: no congestion yet, or it collapsed since
	prior float64       // cwnd_prior
	k     time.Duration // K
	epoch time.Duration // t_epoch; negative: avoidance has not begun
	wEst  float64
}

func newCubic(o Options) *cubic {
	return &cubic{windowed: newWindowed(o), hystart: newHystart(), curve: curve{epoch: -1}}
}

func (c *cubic) Name() string { return Cubic }

// Sent stops the curve's time while nothing is in flight (RFC 9438, 5.8).
func (c *cubic) Sent(now time.Duration, inFlight int64, _ Packet) {
	if inFlight <= 0 {
		c.pause(now)
	}
}

func (c *cubic) pause(now time.Duration) {
	if c.curve.epoch >= 0 && now > c.updated {
		c.curve.epoch += now - c.updated
	}
	c.updated = max(c.updated, now)
}

func (c *cubic) Update(e Event) {
	if c.undone(e) { // 4.9
		c.curve = c.before
	}
	if c.congested(e) {
		c.decrease()
	}
	acked := c.countable(e)
	if e.Persistent { // 4.8
		c.collapse()
		c.curve = curve{epoch: -1}
		c.updated = e.Now
		return
	}
	switch {
	case c.window < c.ssthresh:
		c.slowStart(e, acked)
	case acked > 0:
		c.avoid(e, float64(acked))
	case !c.recovery.active: // the application held the flow back
		c.pause(e.Now)
	}
	c.updated = max(c.updated, e.Now)
}

// decrease is the multiplicative decrease with fast convergence (4.6, 4.7).
func (c *cubic) decrease() {
	c.before = c.curve
	w := float64(c.window)
	next := curve{wMax: w, prior: w, epoch: -1}
	if w < c.curve.wMax {
		next.wMax = w * (1 + cubicBeta) / 2
	}
	c.curve = next
	c.reduce(cubicBeta)
}

func (c *cubic) slowStart(e Event, acked int64) {
	if c.ssthresh != math.MaxInt64 { // only the first one knows nothing of the path
		c.widen(acked)
		return
	}
	if c.hystart.update(e) {
		c.ssthresh = c.window // 4.10
		c.curve = curve{prior: float64(c.window), epoch: -1}
		return
	}
	c.widen(c.hystart.growth(acked))
}

// avoid is congestion avoidance (4.2 to 4.5).
func (c *cubic) avoid(e Event, acked float64) {
	w := float64(c.window)
	if c.curve.epoch < 0 {
		c.curve.begin(e.Now, w, float64(c.mss))
	}
	t := e.Now - c.curve.epoch
	target := min(max(c.curve.at(t+e.RTT.Smoothed, float64(c.mss)), w), 1.5*w)
	alpha := cubicAlpha
	if c.curve.wEst >= c.curve.prior {
		alpha = 1
	}
	c.curve.wEst += alpha * acked / w * float64(c.mss)
	if c.curve.at(t, float64(c.mss)) < c.curve.wEst { // Reno-friendly region
		target = c.curve.wEst
		w = max(w, target)
	} else {
		w += (target - w) / w * acked
	}
	c.window = max(min(int64(w), maxWindow), c.minWindow())
}

// begin is the start of avoidance with a window of w bytes.
func (v *curve) begin(now time.Duration, w, mss float64) {
	v.epoch, v.wEst, v.k = now, w, 0
	if v.wMax <= w { // above the plateau already, or none is known
		v.wMax = w
		return
	}
	v.k = time.Duration(math.Cbrt((v.wMax-w)/mss/cubicC) * float64(time.Second))
}

// at is W_cubic(t), of which a day's worth is beyond every window.
func (v *curve) at(t time.Duration, mss float64) float64 {
	d := min(t-v.k, 24*time.Hour).Seconds()
	return cubicC*d*d*d*mss + v.wMax
}

func (c *cubic) State() State {
	s := c.windowed.State()
	if s.Phase == SlowStart && c.hystart.conservative && c.ssthresh == math.MaxInt64 {
		s.Phase = Conservative
	}
	return s
}
