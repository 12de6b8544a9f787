package wan

import (
	"math/rand/v2"
	"time"
)

// frame waits for its time.
type frame struct {
	due   int64 // ns, CLOCK_MONOTONIC
	bytes []byte
}

// path is one direction. What happens to the n-th frame that gets through its queue depends on the seed and on n alone.
// It is not for concurrent use; time is an argument.
type path struct {
	profile Profile
	random  *rand.Rand
	bad     bool  // within a burst of losses
	free    int64 // when the last frame that was taken has left the queue
	last    int64 // when the last frame on its way is due
	waiting []frame
	head    int // of waiting: what is before has gone
	n       Counters
	late    time.Duration // of all frames
}

func newPath(p Profile, seed, stream uint64) *path {
	return &path{profile: p, random: rand.New(rand.NewPCG(seed, stream))}
}

// take decides about a frame that came now, and keeps its bytes unless it returns false.
func (p *path) take(now int64, bytes []byte) bool {
	p.n.In++
	free := now
	if p.profile.Rate > 0 {
		const bitTime = 8 * int64(time.Second)
		free = max(p.free, now) + int64(len(bytes))*bitTime/p.profile.Rate
		if free-now > p.profile.Queue*bitTime/p.profile.Rate {
			p.n.Dropped++
			return false
		}
	}
	p.free = free
	// A link that loses a frame has been busy with it all the same.
	if p.loses(bytes) {
		p.n.Lost++
		return false
	}
	due := free + int64(p.profile.Delay) + p.jitter()
	p.last = max(due, p.last)
	p.waiting = append(p.waiting, frame{p.last, bytes})
	return true
}

// loses draws the same number of random values for every frame, so that one setting does not change what others do.
func (p *path) loses(bytes []byte) bool {
	change, single := p.random.Float64(), p.random.Float64()
	if p.bad {
		p.bad = change >= p.profile.leave()
	} else {
		p.bad = change < p.profile.enter()
	}
	p.bad = p.bad && p.profile.Burst > 0
	return (p.bad || single < p.profile.Loss) && !findsNeighbours(bytes)
}

func (p *path) jitter() int64 {
	return int64(p.random.Float64() * float64(p.profile.Jitter))
}

// next is when the first waiting frame is due.
func (p *path) next() (int64, bool) {
	if p.head == len(p.waiting) {
		return 0, false
	}
	return p.waiting[p.head].due, true
}

// give returns a frame that is due by now, or nil.
func (p *path) give(now int64) []byte {
	due, ok := p.next()
	if !ok || due > now {
		return nil
	}
	late := time.Duration(now - due)
	p.late += late
	p.n.LateMax = max(p.n.LateMax, late)
	f := p.waiting[p.head]
	p.waiting[p.head] = frame{}
	p.head++
	// Half of the room is free: moving each frame once more is the price of a slice that does not grow.
	if p.head*2 >= len(p.waiting) {
		p.waiting = p.waiting[:copy(p.waiting, p.waiting[p.head:])]
		p.head = 0
	}
	return f.bytes
}

// counters returns what became of the frames so far.
func (p *path) counters() Counters {
	n := p.n
	n.Waiting = uint64(len(p.waiting) - p.head)
	if left := n.Sent + n.Failed; left > 0 {
		n.LateMean = p.late / time.Duration(left)
	}
	return n
}

const (
	etherLen    = 14 // destination, source, type
	typeARP     = 0x0806
	typeIPv6    = 0x86dd
	protoICMPv6 = 58
	// Router solicitation to redirect (RFC 4861).
	firstNDP, lastNDP = 133, 137
)

// findsNeighbours tells of ARP and neighbour discovery, which are not lost: on a real path they stay on the first link,
// and a lost one would hold up everything for a second.
func findsNeighbours(b []byte) bool {
	const fixed = etherLen + 40 // up to what follows IPv6's header
	if len(b) < etherLen {
		return false
	}
	switch int(b[12])<<8 | int(b[13]) {
	case typeARP:
		return true
	case typeIPv6:
		return len(b) > fixed && b[etherLen+6] == protoICMPv6 && b[fixed] >= firstNDP && b[fixed] <= lastNDP
	}
	return false
}
