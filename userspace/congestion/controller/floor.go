package controller

import "math"

// lossFloor is the share of packets that a path loses without congestion.
type lossFloor float64

// floorMatters is from where on a floor makes a difference: well below bbrLossThresh, losses are hardly ever too many.
const floorMatters = bbrLossThresh / 10

// allowance is how much loss of that many bytes the floor explains: its share, and that many standard deviations of the packets'
// number, since the losses of one round scatter around it. Nothing without a floor.
func (f lossFloor) allowance(bytes, datagram int64, deviations float64) float64 {
	mean := float64(f) * float64(bytes) / float64(datagram) // packets
	return (mean + deviations*math.Sqrt(mean)) * float64(datagram)
}

// explains tells whether the losses of a round are no more than the floor's.
func (f lossFloor) explains(lost, sent, datagram int64) bool {
	return f > 0 && float64(lost) <= f.allowance(sent, datagram, 3)
}

// learnFloor puts what the connection has met in the place of what it was given. What was lost before is no congestion any more
// where the floor has grown by a half: what that led to is taken back, and the bandwidth probed for at once.
func (b *bbr) learnFloor() {
	if b.losses == nil {
		return
	}
	f, known := b.losses.floor()
	if !known {
		return
	}
	b.floor = f
	if f < floorMatters || f < 1.5*b.forgiven {
		return
	}
	b.forgiven = f
	b.resetShortTermModel()
	b.inflightLongterm = unbounded
	if b.isInAProbeBWState() {
		b.startProbeBWRefill()
	}
}

// doubtLosses has losses that came without a queue looked at with half as much in flight, as ProbeRTT has it: if they go on, it
// is not the flow that causes them. The model's own steps down are so small that telling would take seconds.
func (b *bbr) doubtLosses() {
	if b.losses == nil || b.marked || b.isQueueFull() || b.doubtedStamp != 0 && b.now < b.doubtedStamp+bbrMinRTTLen {
		return
	}
	if _, known := b.losses.floor(); !known {
		b.doubtful, b.doubtedStamp = true, b.now
	}
}
