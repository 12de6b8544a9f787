package fec

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Kinds of datagrams to a subscriber: their first byte. What follows is a packet as RFC 6865 has it. Datagrams from a
// subscriber are reports and NACKs.
const (
	KindSource = 0
	KindRepair = 1
)

// Session is a way for datagrams to a subscriber and back.
type Session interface {
	SendDatagram(b []byte) error // may wait; must not keep b
	ReceiveDatagram(ctx context.Context) ([]byte, error)
	Context() context.Context // ends with the session
	RTT() time.Duration       // of the path, smoothed
}

// Why a subscription is refused, or ends.
var (
	ErrFull  = errors.New("stream has as many subscribers as it may")
	ErrEnded = errors.New("stream has ended")
)

const (
	// queued packets of a subscriber whose connection may not send: of these, parity takes half at most.
	queued = 128
	// fewSymbols: until so many were reported, what is known of the path from elsewhere counts as well.
	fewSymbols = 200
	// leastReport is the least time between reports that count.
	leastReport = 50 * time.Millisecond
)

// frame is a datagram on its way to subscribers, who share it.
type frame struct {
	b      []byte
	repair bool
	at     time.Time
}

func newFrame(pkt []byte, repair bool) frame {
	b := make([]byte, 1, 1+len(pkt))
	if repair {
		b[0] = KindRepair
	}
	return frame{append(b, pkt...), repair, time.Now()}
}

// subscriberCounts are what one was sent, and what it says became of it.
type subscriberCounts struct {
	sent, parity, late  uint64
	delivered, residual uint64
}

func (c *subscriberCounts) add(o subscriberCounts) {
	c.sent += o.sent
	c.parity += o.parity
	c.late += o.late
	c.delivered += o.delivered
	c.residual += o.residual
}

type subscriber struct {
	client netip.AddrPort
	plain  bool // it wants no parity
	since  time.Time
	prior  *Path
	queue  chan frame
	end    context.CancelFunc
	plan   atomic.Pointer[Plan]

	// The stream's mu guards them.
	joined bool
	rows   int // packets of parity that it gets of the block under way
	blocks [window]sentBlock

	estimate           pathEstimate
	sent, parity, late atomic.Uint64
	nacks              atomic.Uint64 // blocks that it asked more parity of
	refused            atomic.Uint64 // datagrams that are neither reports nor NACKs, or came too fast

	mu     sync.Mutex
	told   report // last
	heard  time.Time
	unsent unsent
}

// unsent are symbols that the edge did not send in time: the subscriber reports them as lost, but parity would not help.
type unsent struct {
	late uint64    // until the last report
	grew time.Time // when there were more than before
	owed uint64    // of these, not reported as lost yet
	in   uint64    // of these, in what was reported
}

// lateReports is how long after it was late a symbol may be reported as lost. What is not by then never will be: of a block
// of which nothing came its receiver knows nothing.
const lateReports = time.Second

// take finds those among the symbols that are newly reported as lost, now that so many were late.
func (u *unsent) take(lost, late uint64, now time.Time) {
	switch {
	case late > u.late:
		u.owed += late - u.late
		u.late, u.grew = late, now
	case now.Sub(u.grew) > lateReports:
		u.owed = 0
	}
	n := min(lost, u.owed)
	u.owed -= n
	u.in += n
}

// Subscribe sends the stream over a session until either ends. plain wants no parity. The error says which.
func (x *Stream) Subscribe(session Session, client netip.AddrPort, plain bool) error {
	ctx, end := context.WithCancel(session.Context())
	defer end()
	sub := &subscriber{client: client, plain: plain, since: time.Now(), queue: make(chan frame, queued), end: end}
	if p, known := x.prior(client.Addr()); known {
		sub.prior = &p
	}
	plan := Plan{Params: Params{1, 0}, Why: "nothing is planned yet"}
	if goal := x.goal.Load(); goal != nil { // its first block has what its prefix needs already
		plan = sub.choose(sub.since, new(planner), *goal)
	}
	sub.plan.Store(&plan)
	if err := x.join(sub); err != nil {
		return err
	}
	defer x.leave(sub)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer end()
	wg.Go(func() { x.listen(ctx, session, sub) })
	return x.send(ctx, session, sub)
}

func (x *Stream) join(sub *subscriber) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	switch c := x.cfg.Load(); {
	case x.closed:
		return ErrEnded
	case len(x.subs) >= c.Subscribers:
		return fmt.Errorf("%d subscribers: %w", len(x.subs), ErrFull)
	}
	x.subs[sub] = struct{}{}
	x.joined++
	x.makeRoom(sub)
	return nil
}

// Full reports whether nobody more may subscribe.
func (x *Stream) Full() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.subs) >= x.cfg.Load().Subscribers
}

func (x *Stream) leave(sub *subscriber) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.subs, sub)
	x.past.add(sub.counts())
}

// send takes from the queue what is not too late yet.
func (x *Stream) send(ctx context.Context, session Session, sub *subscriber) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case f := <-sub.queue:
			if time.Since(f.at) > lateAfter(x.cfg.Load().Delay) {
				sub.late.Add(1)
				continue
			}
			if err := session.SendDatagram(f.b); err != nil {
				if ctx.Err() != nil {
					return err
				}
				sub.late.Add(1) // too long for its path, for instance
				continue
			}
			counter := &sub.sent
			if f.repair {
				counter = &sub.parity
			}
			counter.Add(1)
		}
	}
}

// lateAfter is how long a packet may wait for a subscriber's connection: where late is worse than lost, not long.
func lateAfter(delay time.Duration) time.Duration { return max(5*delay, 200*time.Millisecond) }

// begin is called as a block begins.
func (s *subscriber) begin(sbn uint32, shape Params) {
	s.joined = true
	s.rows = 0
	if plan := s.plan.Load(); plan.K == shape.K {
		s.rows = min(plan.M, shape.M)
	}
	s.blocks[sbn%window] = sentBlock{sbn, s.rows, true}
}

// offer queues a packet, a row of parity or, with -1, none, if it is for the subscriber.
func (s *subscriber) offer(f frame, row int) {
	if s.joined && row < s.rows {
		s.push(f)
	}
}

// push queues a packet. Parity goes first where the connection is slow: it would only make it slower.
func (s *subscriber) push(f frame) {
	if f.repair && len(s.queue) >= queued/2 {
		return
	}
	select {
	case s.queue <- f:
	default:
		s.late.Add(1)
	}
}

// listen takes a subscriber's reports and NACKs.
func (x *Stream) listen(ctx context.Context, session Session, s *subscriber) {
	defer s.end()
	for {
		b, err := session.ReceiveDatagram(ctx)
		if err != nil {
			return
		}
		if isNack(b) {
			if !x.answer(s, b, session.RTT()) {
				s.refused.Add(1)
			}
			continue
		}
		now := time.Now()
		r, err := parseReport(b)
		if err != nil || now.Sub(s.heard) < leastReport {
			s.refused.Add(1)
			continue
		}
		s.report(r, now)
	}
}

func (s *subscriber) report(r report, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.lost < s.told.lost { // a new receiver's
		s.told, s.unsent.in = report{}, 0
	}
	s.unsent.take(r.lost-s.told.lost, s.late.Load(), now)
	s.told, s.heard = r, now
	r.lost -= s.unsent.in
	r.bursts = min(max(r.bursts, s.estimate.bursts()), r.lost)
	s.estimate.add(r, now)
}

// choose plans for the path as the subscriber reports it, or as it is known from elsewhere at first.
func (s *subscriber) choose(now time.Time, plans *planner, goal Goal) Plan {
	if s.plain {
		plan := plans.choose(Path{Burst: 1}, goal)
		plan.Why = "the subscriber wants no parity"
		return plan
	}
	seen, path := s.estimate.path(now)
	s.mu.Lock()
	few := s.told.expected < fewSymbols
	s.mu.Unlock()
	if few && s.prior != nil && s.prior.Loss > seen.Loss {
		plan := plans.choose(*s.prior, goal)
		plan.Why = "before it has reported much, by what is known of its prefix: " + plan.Why
		return plan
	}
	return plans.choose(path, goal)
}

// rounded returns a path that is the same or a little worse, so that there are few different ones: 24 for each tenfold
// of loss, eighths of a packet of burst.
func (p Path) rounded() Path {
	if p.Loss <= 0 || p.Loss >= 1 {
		return Path{min(max(p.Loss, 0), 1), max(math.Ceil(p.Burst*8)/8, 1)}
	}
	return Path{min(math.Pow(10, math.Ceil(math.Log10(p.Loss)*24)/24), 1), max(math.Ceil(p.Burst*8)/8, 1)}
}

func (s *subscriber) counts() subscriberCounts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return subscriberCounts{s.sent.Load(), s.parity.Load(), s.late.Load(), s.told.delivered, s.told.residual}
}

// SubscriberStatus is how a subscriber is served.
type SubscriberStatus struct {
	Client    netip.AddrPort `json:"client"`
	Seconds   float64        `json:"seconds"` // since it subscribed
	Path      Path           `json:"path"`    // as it reported it in the last seconds
	Prior     *Path          `json:"prior,omitempty"`
	Plan      Plan           `json:"plan"`
	Sent      uint64         `json:"sent"`
	Parity    uint64         `json:"parity"`
	Late      uint64         `json:"late"`
	Nacks     uint64         `json:"nacks"`   // blocks that it asked more parity of
	Refused   uint64         `json:"refused"` // datagrams that are neither reports nor NACKs, or came too fast
	Lost      uint64         `json:"lost"`    // before repair, as it reports
	Delivered uint64         `json:"delivered"`
	Residual  uint64         `json:"residual"` // packets that stayed lost

	counts subscriberCounts
}

func (s *subscriber) status() SubscriberStatus {
	now := time.Now()
	path, _ := s.estimate.path(now)
	c := s.counts()
	s.mu.Lock()
	defer s.mu.Unlock()
	return SubscriberStatus{
		Client: s.client, Seconds: now.Sub(s.since).Seconds(), Path: path, Prior: s.prior, Plan: *s.plan.Load(), Sent: c.sent, Parity: c.parity,
		Late: c.late, Nacks: s.nacks.Load(), Refused: s.refused.Load(), Lost: s.told.lost, Delivered: c.delivered, Residual: c.residual, counts: c,
	}
}
