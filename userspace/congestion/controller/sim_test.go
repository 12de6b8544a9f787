package controller

import (
	"math/rand/v2"
	"testing"
	"time"
)

// sim is a network in virtual time: flows of bulk or paced data through one bottleneck. Packets wait in its queue or are dropped
// there, and may be lost at random before it; acknowledgements come back undisturbed.
type sim struct {
	now    time.Duration
	seq    uint64
	events events
	link   link
	flows  []*flow
	stop   bool
}

// link is the bottleneck.
type link struct {
	rate    float64       // bytes a second
	rtt     time.Duration // of propagation
	queue   int64         // bytes
	loss    float64
	slot    time.Duration                             // acknowledgements arrive at multiples of it; 0: at once
	extra   func(f *flow, number int64) time.Duration // what delays a packet behind others; nil: nothing does
	drop    func(f *flow, number int64) bool          // nil: only chance and the queue do
	mark    int64                                     // bytes queued from where on packets are CE-marked; 0: never
	policer float64                                   // a bucket of that many bytes that fills at rate, instead of a queue
	tokens  float64
	filled  time.Duration
	rng     *rand.Rand

	waiting  []queued // from head on; the first is being sent
	head     int
	queued   int64 // bytes
	maxQueue int64 // the fullest it was since it was last reset
	dropped  int   // by the queue or the policer
}

type queued struct {
	flow          *flow
	number, bytes int64
	marked        bool
}

type eventKind uint8

const (
	depart eventKind = iota
	arrive
	acks
	ackTimer
	send
	lossTimer
	probeTimer
	call
)

type event struct {
	at     time.Duration
	seq    uint64
	kind   eventKind
	marked bool
	flow   *flow
	number int64 // of the packet; of acks: how many
	call   func()
}

// events is a heap by time, and then by order; container/heap would allocate for each.
type events []event

func (e events) before(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}

func (e *events) push(v event) {
	*e = append(*e, v)
	q := *e
	for i := len(q) - 1; i > 0 && q.before(i, (i-1)/2); i = (i - 1) / 2 {
		q[i], q[(i-1)/2] = q[(i-1)/2], q[i]
	}
}

func (e *events) pop() event {
	q := *e
	first, n := q[0], len(q)-1
	q[0] = q[n]
	q = q[:n]
	for i := 0; ; {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < n; child++ {
			if q.before(child, least) {
				least = child
			}
		}
		if least == i {
			break
		}
		q[i], q[least] = q[least], q[i]
		i = least
	}
	*e = q
	return first
}

// megabit is in bytes a second.
const megabit = 1e6 / 8

// newSim is 50 Mbit/s over 50 ms, with a queue of one bandwidth-delay product.
func newSim(seed uint64, loss float64) *sim {
	return &sim{link: link{
		rate: 50 * megabit, rtt: 50 * ms, queue: 312_500, loss: loss,
		rng: rand.New(rand.NewPCG(seed, 1)),
	}}
}

func (s *sim) at(t time.Duration, e event) {
	s.seq++
	e.at, e.seq = max(t, s.now), s.seq
	s.events.push(e)
}

func (s *sim) run(until time.Duration) {
	for !s.stop && len(s.events) > 0 && s.events[0].at <= until {
		e := s.events.pop()
		s.now = e.at
		switch e.kind {
		case depart:
			s.departed()
		case arrive:
			e.flow.received(e.number, e.marked)
		case acks:
			e.flow.acknowledged(int(e.number))
		case ackTimer:
			e.flow.acknowledgeNow()
		case send:
			if e.at == e.flow.wakeAt {
				e.flow.wakeAt = 0
				e.flow.trySend()
			}
		case lossTimer:
			e.flow.detectLoss(nil, nil, false, 0)
		case probeTimer:
			e.flow.probe()
		case call:
			e.call()
		}
	}
	if !s.stop {
		s.now = until
	}
}

// until runs until a BBR has heard something that makes cond true, and fails the test if that takes longer than limit.
func (f *flow) until(t testing.TB, limit time.Duration, what string, cond func(b *bbr) bool) {
	t.Helper()
	f.watch = func(b *bbr) { f.s.stop = f.s.stop || cond(b) }
	f.s.run(f.s.now + limit)
	f.watch = nil
	if !f.s.stop {
		t.Fatalf("not within %s: %s (in %s, window %d, %.2f Mbit/s)", limit, what, f.watched.state, f.watched.cwnd, f.watched.maxBW/megabit)
	}
	f.s.stop = false
}

// in is a condition for until.
func in(phase Phase) func(b *bbr) bool {
	return func(b *bbr) bool { return b.state == phase }
}

// leaves is true once a phase was left.
func leaves(phase Phase) func(b *bbr) bool {
	return func(b *bbr) bool { return b.state != phase }
}

// transmit takes a packet to the receiver, or loses it.
func (s *sim) transmit(f *flow, number, bytes int64) {
	l := &s.link
	if l.loss > 0 && l.rng.Float64() < l.loss || l.drop != nil && l.drop(f, number) {
		return
	}
	if l.policer > 0 {
		l.tokens = min(l.policer, l.tokens+l.rate*(s.now-l.filled).Seconds())
		l.filled = s.now
		if l.tokens < float64(bytes) {
			l.dropped++
			return
		}
		l.tokens -= float64(bytes)
		s.at(s.now+l.rtt/2, event{kind: arrive, flow: f, number: number})
		return
	}
	if l.queued+bytes > l.queue {
		l.dropped++
		return
	}
	l.waiting = append(l.waiting, queued{flow: f, number: number, bytes: bytes, marked: l.mark > 0 && l.queued > l.mark})
	l.queued += bytes
	l.maxQueue = max(l.maxQueue, l.queued)
	if len(l.waiting) == l.head+1 {
		s.serve()
	}
}

// serve sends the first packet of the queue.
func (s *sim) serve() {
	s.at(s.now+time.Duration(float64(s.link.waiting[s.link.head].bytes)/s.link.rate*1e9), event{kind: depart})
}

func (s *sim) departed() {
	l := &s.link
	p := l.waiting[l.head]
	if l.head++; l.head > 1024 && 2*l.head > len(l.waiting) {
		l.waiting, l.head = append(l.waiting[:0], l.waiting[l.head:]...), 0
	}
	l.queued -= p.bytes
	at := s.now + l.rtt/2
	if l.extra != nil {
		at += l.extra(p.flow, p.number)
	}
	s.at(at, event{kind: arrive, flow: p.flow, number: p.number, marked: p.marked})
	if len(l.waiting) > l.head {
		s.serve()
	}
}

// flow is a sender with QUIC's loss detection (RFC 9002, 6), and a receiver that acknowledges every other packet.
type flow struct {
	s       *sim
	cc      Controller
	appRate float64 // bytes a second that the application writes; 0: as many as can be sent
	paused  bool
	written float64
	wrote   time.Duration

	packets    []simPacket // by number
	oldest     int         // of those in flight
	largest    int64       // acknowledged
	inFlight   int64
	nextSend   time.Duration
	wakeAt     time.Duration
	rtt        RTT
	rttvar     time.Duration
	lastAck    time.Duration
	probes     int
	probeSet   bool
	delivered  int64
	lost       int
	persistent int

	toAck, acked []int64 // numbers that were received, and of those, what acknowledgements under way carry
	ackTimerSet  bool
	expected     int64
	marks        []int // of each acknowledgement under way
	newMarks     int

	meter      *LossMeter
	watch      func(b *bbr) // after every event that a BBR hears of
	watched    *bbr
	event      Event
	scratch    []Packet
	lostBuffer []Packet
}

type simPacket struct {
	Packet
	acked, lost bool
}

const simMSS = 1200

// add begins a flow with a controller at a time.
func (s *sim) add(t testing.TB, name string, o Options, start time.Duration) *flow {
	t.Helper()
	f := &flow{s: s, cc: mustNew(t, name, o), largest: -1}
	f.watched, _ = f.cc.(*bbr)
	s.flows = append(s.flows, f)
	s.at(start, event{kind: call, call: func() {
		f.lastAck, f.wrote = s.now, s.now
		f.trySend()
	}})
	return f
}

func (f *flow) trySend() {
	for f.inFlight < f.cc.Window() {
		if wait := f.nextSend - f.s.now; wait > 0 {
			f.wake(f.nextSend)
			return
		}
		if !f.hasData() {
			f.cc.AppLimited(f.inFlight)
			f.wake(f.s.now + ms)
			return
		}
		f.send()
	}
}

func (f *flow) wake(at time.Duration) {
	if f.wakeAt == 0 || at < f.wakeAt {
		f.wakeAt = at
		f.s.at(at, event{kind: send, flow: f})
	}
}

func (f *flow) hasData() bool {
	if f.paused {
		f.wrote = f.s.now
		return false
	}
	if f.appRate == 0 {
		return true
	}
	f.written = min(f.written+f.appRate*(f.s.now-f.wrote).Seconds(), 64<<10)
	f.wrote = f.s.now
	if f.written < simMSS {
		return false
	}
	f.written -= simMSS
	return true
}

func (f *flow) send() {
	now := f.s.now
	p := Packet{Number: int64(len(f.packets)), Bytes: simMSS, Sent: now}
	f.cc.Sent(now, f.inFlight, p)
	f.packets = append(f.packets, simPacket{Packet: p})
	f.inFlight += simMSS
	rate := f.cc.PacingRate()
	if rate == 0 && f.rtt.Smoothed > 0 {
		rate = 1.25 * float64(f.cc.Window()) / f.rtt.Smoothed.Seconds()
	}
	if rate > 0 {
		f.nextSend = max(f.nextSend, now) + time.Duration(simMSS/rate*1e9)
	}
	f.s.transmit(f, p.Number, simMSS)
	if !f.probeSet {
		f.probeSet = true
		f.s.at(now+f.pto(), event{kind: probeTimer, flow: f})
	}
}

func (f *flow) pto() time.Duration {
	if f.rtt.Smoothed == 0 {
		return 999 * ms
	}
	return (f.rtt.Smoothed + max(4*f.rttvar, ms) + 25*ms) << min(f.probes, 6)
}

// probe sends a packet whatever the window, when nothing was heard for a probe timeout.
func (f *flow) probe() {
	f.probeSet = false
	if f.inFlight == 0 {
		return
	}
	since := f.packets[len(f.packets)-1].Sent
	if due := max(since, f.lastAck) + f.pto(); due > f.s.now {
		f.probeSet = true
		f.s.at(due, event{kind: probeTimer, flow: f})
		return
	}
	f.probes++
	f.send()
}

// received is at the receiver.
func (f *flow) received(number int64, marked bool) {
	f.toAck = append(f.toAck, number)
	f.delivered += simMSS
	if marked {
		f.newMarks++
	}
	inOrder := number == f.expected
	f.expected = max(f.expected, number+1)
	if len(f.toAck) >= 2 || !inOrder {
		f.acknowledgeNow()
	} else if !f.ackTimerSet {
		f.ackTimerSet = true
		f.s.at(f.s.now+25*ms, event{kind: ackTimer, flow: f})
	}
}

func (f *flow) acknowledgeNow() {
	f.ackTimerSet = false
	if len(f.toAck) == 0 {
		return
	}
	at := f.s.now + f.s.link.rtt/2
	if slot := f.s.link.slot; slot > 0 {
		at = (at/slot + 1) * slot
	}
	f.s.at(at, event{kind: acks, flow: f, number: int64(len(f.toAck))})
	f.acked = append(f.acked, f.toAck...)
	f.marks = append(f.marks, f.newMarks)
	f.toAck, f.newMarks = f.toAck[:0], 0
}

// acknowledged is at the sender again: n packets.
func (f *flow) acknowledged(n int) {
	now := f.s.now
	f.lastAck, f.probes = now, 0
	f.event = Event{Now: now, PriorInFlight: f.inFlight}
	newly, spurious := f.scratch[:0], []Packet(nil)
	hasRTT := false
	for _, number := range f.acked[:n] {
		p := &f.packets[number]
		if p.lost {
			spurious = append(spurious, p.Packet)
			continue
		}
		p.acked = true
		f.inFlight -= simMSS
		newly = append(newly, p.Packet)
		if number > f.largest {
			f.largest, hasRTT = number, true
			f.measure(now - p.Sent)
		}
	}
	f.scratch = newly
	f.acked = append(f.acked[:0], f.acked[n:]...)
	marks := f.marks[0]
	f.marks = append(f.marks[:0], f.marks[1:]...)
	f.detectLoss(newly, spurious, hasRTT, marks)
}

func (f *flow) measure(rtt time.Duration) {
	f.rtt.Latest = rtt
	if f.rtt.Smoothed == 0 {
		f.rtt.Smoothed, f.rtt.Min, f.rttvar = rtt, rtt, rtt/2
		return
	}
	f.rtt.Min = min(f.rtt.Min, rtt)
	f.rttvar = (3*f.rttvar + (f.rtt.Smoothed - rtt).Abs()) / 4
	f.rtt.Smoothed = (7*f.rtt.Smoothed + rtt) / 8
}

// detectLoss declares lost what is three packets or 9/8 round trips behind, and tells the controller.
func (f *flow) detectLoss(newly, spurious []Packet, hasRTT bool, marks int) {
	now := f.s.now
	e := Event{
		Now: now, PriorInFlight: f.inFlight + int64(len(newly))*simMSS, Acked: newly, Spurious: spurious,
		RTT: f.rtt, HasRTT: hasRTT, ECNCE: marks,
	}
	delay := max(f.rtt.Smoothed, f.rtt.Latest) * 9 / 8
	persistent := 3 * (f.rtt.Smoothed + max(4*f.rttvar, ms) + 25*ms)
	lost := f.lostBuffer[:0]
	runBegan := time.Duration(-1)
	for i := f.oldest; int64(i) < f.largest; i++ {
		p := &f.packets[i]
		switch {
		case p.acked || p.lost:
			if p.acked {
				runBegan = -1
			}
			if i == f.oldest {
				f.oldest++
			}
			continue
		case f.largest-p.Number >= 3 || p.Sent <= now-delay:
			p.lost = true
			f.inFlight -= simMSS
			f.lost++
			lost = append(lost, p.Packet)
			if runBegan < 0 {
				runBegan = p.Sent
			}
			e.Persistent = e.Persistent || p.Sent-runBegan > persistent
		default:
			f.s.at(p.Sent+delay, event{kind: lossTimer, flow: f})
			i = int(f.largest)
		}
	}
	f.lostBuffer, e.Lost = lost, lost
	if e.Persistent {
		f.persistent++
	}
	if len(newly)+len(lost)+len(spurious)+marks == 0 {
		return
	}
	f.cc.Update(e)
	if f.meter != nil {
		f.meter.Observe(e)
	}
	if f.watched != nil && f.watch != nil {
		f.watch(f.watched)
	}
	f.trySend()
}

// goodput is what a flow delivers in a span that begins after a warm-up, as a share of the link.
func (s *sim) goodput(f *flow, warmUp, span time.Duration) float64 {
	s.run(warmUp)
	before := f.delivered
	s.link.maxQueue = 0
	s.run(warmUp + span)
	return float64(f.delivered-before) / span.Seconds() / s.link.rate
}
