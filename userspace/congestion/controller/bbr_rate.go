package controller

import "time"

// rateSampler measures the rate at which the path delivers (draft, 4.1.2).
type rateSampler struct {
	delivered, lost int64         // C.delivered, C.lost: bytes since the connection began
	deliveredTime   time.Duration // C.delivered_time
	firstSendTime   time.Duration // C.first_send_time
	appLimited      int64         // C.app_limited: delivered bytes up to which samples are the application's; 0: none
	minRTT          time.Duration // C.min_rtt: over the connection's life; 0: not measured
	sent            sentPackets
	rs              rateSample // of the event at hand
}

// rateSample is RS, what one event says of the path.
type rateSample struct {
	hasData        bool
	appLimited     bool
	rate           float64 // RS.delivery_rate in bytes a second; 0: no reliable sample
	priorDelivered int64
	delivered      int64
	newlyAcked     int64
	txInFlight     int64
	lost           int64 // declared lost between sending and acknowledging the newest packet
	sendElapsed    time.Duration
	ackElapsed     time.Duration
	rtt            time.Duration // -1: none
	lastNumber     int64
	priorLost      int64
}

// sentPacket is what P. is in the draft: the connection's state as a packet was sent.
type sentPacket struct {
	number          int64
	bytes           int64
	sent            time.Duration
	firstSendTime   time.Duration
	deliveredTime   time.Duration
	delivered, lost int64
	txInFlight      int64 // with this packet
	appLimited      bool
	live            bool
}

// onSent is OnPacketSent (4.1.2.2); inFlight is without the packet.
func (s *rateSampler) onSent(p Packet, inFlight int64) {
	if inFlight <= 0 {
		s.firstSendTime, s.deliveredTime = p.Sent, p.Sent
	}
	s.sent.put(sentPacket{
		number: p.Number, bytes: int64(p.Bytes), sent: p.Sent,
		firstSendTime: s.firstSendTime, deliveredTime: s.deliveredTime,
		delivered: s.delivered, lost: s.lost, txInFlight: max(inFlight, 0) + int64(p.Bytes),
		appLimited: s.appLimited != 0,
	})
}

// onAcked is UpdateRateSample (4.1.2.3). A packet whose sending is not remembered counts as delivered, and gives no sample.
func (s *rateSampler) onAcked(p Packet, now time.Duration) {
	s.delivered += int64(p.Bytes)
	s.rs.newlyAcked += int64(p.Bytes)
	s.deliveredTime = now
	sp, ok := s.sent.take(p)
	if !ok {
		return
	}
	newest := sp.sent > s.firstSendTime || sp.sent == s.firstSendTime && sp.number > s.rs.lastNumber
	if s.rs.hasData && !newest {
		return
	}
	s.rs.hasData = true
	s.rs.priorDelivered = sp.delivered
	s.rs.priorLost = sp.lost
	s.rs.appLimited = sp.appLimited
	s.rs.txInFlight = sp.txInFlight
	s.rs.sendElapsed = sp.sent - sp.firstSendTime
	s.rs.ackElapsed = now - sp.deliveredTime
	s.rs.rtt = max(now-sp.sent, 0)
	s.rs.lastNumber = sp.number
	s.firstSendTime = sp.sent
}

// generate is GenerateRateSample (4.1.2.3).
func (s *rateSampler) generate() {
	if s.appLimited != 0 && s.delivered > s.appLimited {
		s.appLimited = 0
	}
	if !s.rs.hasData {
		return
	}
	if s.minRTT == 0 || s.rs.rtt < s.minRTT {
		s.minRTT = s.rs.rtt
	}
	s.rs.delivered = s.delivered - s.rs.priorDelivered
	s.rs.lost = s.lost - s.rs.priorLost
	interval := max(s.rs.sendElapsed, s.rs.ackElapsed)
	if interval <= 0 || interval < s.minRTT {
		return
	}
	s.rs.rate = float64(s.rs.delivered) / interval.Seconds()
}

// markAppLimited is MarkConnectionAppLimited (4.1.2.4).
func (s *rateSampler) markAppLimited(inFlight int64) {
	s.appLimited = max(s.delivered+max(inFlight, 0), 1)
}

// reset is InitRateSample (4.1.2.3).
func (s *rateSampler) reset() {
	s.rs = rateSample{rtt: -1, lastNumber: -1}
}

// sentPackets remembers packets in flight by their numbers, in a table that grows while more than half of it is in use, and
// else forgets older packets: numbers have gaps, spaces share numbers, and packets may go without a word (a space's keys
// are dropped). Who is forgotten only gives no sample.
type sentPackets struct {
	slots []sentPacket // a power of two
	live  int
}

const (
	minSlots = 64
	maxSlots = 1 << 15 // of 88 bytes each
)

func (t *sentPackets) put(p sentPacket) {
	if t.slots == nil {
		t.slots = make([]sentPacket, minSlots)
	}
	slot := t.slot(p.number)
	for slot.live && slot.number != p.number && 2*t.live > len(t.slots) && len(t.slots) < maxSlots {
		t.grow()
		slot = t.slot(p.number)
	}
	if !slot.live {
		t.live++
	}
	p.live = true
	*slot = p
}

// take returns what is remembered of a packet, and forgets it.
func (t *sentPackets) take(p Packet) (sentPacket, bool) {
	if t.slots == nil {
		return sentPacket{}, false
	}
	slot := t.slot(p.Number)
	if !slot.live || slot.number != p.Number || slot.sent != p.Sent {
		return sentPacket{}, false
	}
	slot.live = false
	t.live--
	return *slot, true
}

func (t *sentPackets) slot(number int64) *sentPacket {
	return &t.slots[uint64(number)&uint64(len(t.slots)-1)]
}

func (t *sentPackets) grow() {
	old := t.slots
	t.slots, t.live = make([]sentPacket, 2*len(old)), 0
	for _, p := range old {
		if p.live {
			*t.slot(p.number) = p
			t.live++
		}
	}
}
