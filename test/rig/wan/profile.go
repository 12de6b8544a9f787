// Package wan makes links of a lab slow, far and lossy: a process in a node between two others takes frames from
// one veth pair and puts them into the next one later, or not at all. It needs no queueing discipline of the kernel.
package wan

import (
	"errors"
	"fmt"
	"time"
)

// Profile describes one direction of a link. Its zero value passes everything on at once.
type Profile struct {
	Rate  int64 `json:"rate"`  // bits of frames a second; 0: any
	Queue int64 `json:"queue"` // bytes that may wait for the rate; what comes then is dropped at the tail
	// Delay is one way. Up to Jitter more is added to it, evenly spread; frames stay in order.
	Delay  time.Duration `json:"delay_ns"`
	Jitter time.Duration `json:"jitter_ns"`
	Loss   float64       `json:"loss"` // share of frames, each on its own
	// Burst is the share of frames that are lost in bursts (Gilbert and Elliott's model, where the bad state loses
	// all), and BurstLength how many frames a burst takes on average.
	Burst       float64 `json:"burst"`
	BurstLength float64 `json:"burst_length"`
}

// minQueue holds a frame of the largest MTU that labs use, else a link with a rate would pass nothing.
const minQueue = 2048

// Bounds keep sums of times and products of bytes and nanoseconds within 63 bits.
const (
	maxRate  = 10_000_000_000
	maxQueue = 64 << 20
	maxDelay = 10 * time.Second
)

// Validate reports every mistake at once.
func (p Profile) Validate() error {
	var errs []error
	if p.Rate < 0 || p.Rate > maxRate {
		errs = append(errs, fmt.Errorf("rate: %d is not within 0 and %d", p.Rate, int64(maxRate)))
	}
	if p.Rate > 0 && (p.Queue < minQueue || p.Queue > maxQueue) {
		errs = append(errs, fmt.Errorf("queue: %d is not within %d and %d, and a rate needs one", p.Queue, minQueue, maxQueue))
	}
	if p.Delay < 0 || p.Jitter < 0 || p.Delay+p.Jitter > maxDelay {
		errs = append(errs, fmt.Errorf("delay and jitter: %s and %s are not within 0 and %s", p.Delay, p.Jitter, maxDelay))
	}
	if !share(p.Loss) || !share(p.Burst) {
		errs = append(errs, fmt.Errorf("loss and burst: %v and %v are no shares (0 to 1)", p.Loss, p.Burst))
	}
	if p.Burst > 0 && !(p.BurstLength >= 1) {
		errs = append(errs, fmt.Errorf("burst_length: %v is below 1", p.BurstLength))
	}
	// Above, the good state would have to be left more often than every frame.
	if p.Burst < 1 && p.enter() > 1 {
		errs = append(errs, fmt.Errorf("burst: %v of the frames cannot be in bursts of only %v", p.Burst, p.BurstLength))
	}
	return errors.Join(errs...)
}

// share is false for what is not a number, too.
func share(v float64) bool { return v >= 0 && v <= 1 }

// leave is the probability that a burst ends before the next frame.
func (p Profile) leave() float64 {
	if p.Burst == 1 {
		return 0
	}
	return 1 / p.BurstLength
}

// enter is the probability that one begins with the next frame.
func (p Profile) enter() float64 {
	switch p.Burst {
	case 0:
		return 0
	case 1:
		return 1
	}
	return p.leave() * p.Burst / (1 - p.Burst)
}

// Counters are what became of one direction's frames: In = Sent + Lost + Dropped + Failed + Waiting.
type Counters struct {
	In      uint64 `json:"in"`      // taken from the first device
	Sent    uint64 `json:"sent"`    // put into the second
	Bytes   uint64 `json:"bytes"`   // of those sent
	Lost    uint64 `json:"lost"`    // as the profile asked
	Dropped uint64 `json:"dropped"` // found the queue full
	Failed  uint64 `json:"failed"`  // the second device took them not
	Waiting uint64 `json:"waiting"` // in the queue, or on their way
	Missed  uint64 `json:"missed"`  // never seen: this process was too slow
	// How long after their time frames were sent.
	LateMean time.Duration `json:"late_mean_ns"`
	LateMax  time.Duration `json:"late_max_ns"`
}
