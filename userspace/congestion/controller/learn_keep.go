package controller

import (
	"errors"
	"time"
)

// FloorSource is what is known of a client, to be kept beyond the process.
type FloorSource struct {
	Source  uint64 // as Learn was told
	Sent    float64
	Lost    float64 // of those
	Updated time.Duration
}

// Sources returns what is known of the clients that count.
func (l *FloorLearner) Sources(now time.Duration) (all []FloorSource) {
	for _, s := range l.sources[:l.used] {
		if now-s.updated <= floorKept && s.sent > 0 {
			all = append(all, FloorSource{s.key, s.sent, s.lost, s.updated})
		}
	}
	return all
}

// Restore makes a learner that knows nothing know what Sources returned, and refuses what they never do. What is from later than now is
// from now: a clock that was set back would keep it for ever.
func (l *FloorLearner) Restore(now time.Duration, all []FloorSource) error {
	if len(all) > floorSources {
		return errors.New("has more clients than a prefix has places")
	}
	for _, s := range all {
		if !(s.Sent > 0 && s.Sent <= floorMemory && s.Lost >= 0 && s.Lost <= s.Sent) { // not a number is neither
			return errors.New("has losses that no connection meets")
		}
	}
	for i, s := range all {
		l.sources[i] = floorSource{key: s.Source, sent: s.Sent, lost: s.Lost, updated: min(s.Updated, now)}
	}
	l.used = len(all)
	return nil
}
