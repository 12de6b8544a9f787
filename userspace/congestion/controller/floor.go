package controller

import "math"

// lossFloor is the share of packets that a path loses without congestion.
type lossFloor float64

// allowance is how much loss of that many bytes the floor explains: its share, and two standard deviations of the packets' number,
// since the losses of one round scatter around it. Nothing without a floor.
func (f lossFloor) allowance(bytes, datagram int64) float64 {
	mean := float64(f) * float64(bytes) / float64(datagram) // packets
	return (mean + 2*math.Sqrt(mean)) * float64(datagram)
}

// explains tells whether the losses of a round are no more than the floor's.
func (f lossFloor) explains(lost, sent, datagram int64) bool {
	return f > 0 && float64(lost) <= f.allowance(sent, datagram)
}
