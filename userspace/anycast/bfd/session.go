package bfd

import (
	"time"
)

// slow is the least interval between packets while a session is not up (RFC 5880, section 6.8.3).
const slow = time.Second

// Timing is what one side asks for.
type Timing struct {
	Interval   time.Duration // between packets, either way
	Multiplier uint8         // of the interval: without a packet for so long the neighbour is down
}

// session is the state machine of RFC 5880, section 6.8: no sockets, no clock. It is not safe for
// concurrent use.
type session struct {
	want Timing
	mine uint32 // discriminator

	state  State
	diag   Diag
	since  time.Time // of the state
	yours  uint32
	remote Packet    // the last valid one
	heard  time.Time // when it came; zero: nothing since the detection time passed
	poll   bool      // our interval changed, and the neighbour has not confirmed it yet
}

func newSession(want Timing, discriminator uint32, now time.Time) *session {
	return &session{want: want, mine: discriminator, state: Down, since: now}
}

// receive takes a packet and returns whether it is to be answered at once. What is not for this
// session is ignored.
func (s *session) receive(p Packet, now time.Time) (answer bool) {
	if p.Yours != 0 && p.Yours != s.mine {
		return false
	}
	s.yours, s.remote, s.heard = p.Mine, p, now
	if p.Final {
		s.poll = false
	}
	switch {
	case s.state == AdminDown:
		return false
	case p.State == AdminDown || p.State == Down && s.state == Up:
		if s.state != Down {
			s.enter(Down, DiagNeighborDown, now)
		}
	case s.state == Down && p.State == Down:
		s.enter(Init, s.diag, now)
	case s.state == Down && p.State == Init, s.state == Init && p.State >= Init:
		s.enter(Up, DiagNone, now)
		s.poll = true // from the slow interval to ours
	}
	return p.Poll
}

// expire takes the session down when nothing came for the detection time.
func (s *session) expire(now time.Time) {
	if s.heard.IsZero() || now.Before(s.deadline()) {
		return
	}
	s.heard, s.yours = time.Time{}, 0
	if s.state == Init || s.state == Up {
		s.enter(Down, DiagExpired, now)
	}
}

// deadline is when the neighbour counts as down, unless a packet comes before; zero: never.
func (s *session) deadline() time.Time {
	if s.heard.IsZero() {
		return time.Time{}
	}
	return s.heard.Add(time.Duration(s.remote.Multiplier) * max(s.want.Interval, s.remote.DesiredTx))
}

func (s *session) enter(state State, diag Diag, now time.Time) {
	if state != Up {
		s.poll = false
	}
	s.state, s.diag, s.since = state, diag, now
}

// desiredTx is what we ask to send at.
func (s *session) desiredTx() time.Duration {
	if s.state != Up {
		return max(slow, s.want.Interval)
	}
	return s.want.Interval
}

// interval is the time between two packets of ours, before jitter; 0: the neighbour wants none.
func (s *session) interval() time.Duration {
	if s.heard.IsZero() {
		return s.desiredTx()
	}
	if s.remote.RequiredRx == 0 {
		return 0
	}
	return max(s.desiredTx(), s.remote.RequiredRx)
}

// jittered shortens an interval by up to a quarter, as section 6.8.7 wants; r is in [0, 1). With a
// multiplier of 1 at least a tenth is left out, or the first late packet would end the session.
func (s *session) jittered(r float64) time.Duration {
	low, high := 0.75, 1.0
	if s.want.Multiplier == 1 {
		high = 0.9
	}
	return time.Duration(float64(s.interval()) * (low + (high-low)*r))
}

// packet is what to send now.
func (s *session) packet(final bool) Packet {
	return Packet{
		State: s.state, Diag: s.diag, Poll: s.poll && !final, Final: final, Multiplier: s.want.Multiplier,
		Mine: s.mine, Yours: s.yours, DesiredTx: s.desiredTx(), RequiredRx: s.want.Interval,
	}
}
