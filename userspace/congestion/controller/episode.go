package controller

import "time"

// episode is a recovery period: from a loss or a mark to the acknowledgement of what was sent afterwards (RFC 9002, 7.3.2).
type episode struct {
	active       bool
	since        time.Duration // packets sent up to then belong to it, or to an earlier one
	before       time.Duration // since, of the episode before
	lost, undone int           // packets declared lost in it; and of those, how many were not
}

func newEpisode() episode {
	return episode{since: -1, before: -1}
}

// begin starts an episode for packets sent after the last one began, and tells whether it did.
func (e *episode) begin(now, sent time.Duration) bool {
	if sent <= e.since {
		return false
	}
	*e = episode{active: true, since: now, before: e.since}
	return true
}

// lose counts a lost packet, and tells whether an episode begins with it.
func (e *episode) lose(now time.Duration, p Packet) bool {
	begins := e.begin(now, p.Sent)
	if p.Sent > e.before {
		e.lost++
	}
	return begins
}

// acknowledge tells whether the packet was sent since the episode began, which ends it.
func (e *episode) acknowledge(p Packet) bool {
	after := p.Sent > e.since
	if after {
		e.active = false
	}
	return after
}

// undo counts packets that were not lost after all, and tells whether that leaves none of the episode's losses.
func (e *episode) undo(spurious []Packet) bool {
	if e.lost == 0 {
		return false
	}
	for _, p := range spurious {
		if p.Sent > e.before && p.Sent <= e.since {
			e.undone++
		}
	}
	if e.undone < e.lost {
		return false
	}
	e.active, e.lost, e.undone = false, 0, 0
	return true
}
