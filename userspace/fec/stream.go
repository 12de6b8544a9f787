package fec

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Stream is a live flow: packets that come in at a UDP address go to everyone who subscribes, over datagrams of
// WebTransport, with as much parity as each one's path needs. All have blocks of the same length, which the delay sets,
// and parity of a block is made once, for the subscriber that needs most: the others get the first of it.
type Stream struct {
	in    socket
	enc   *Encoder // run's
	prior func(netip.Addr) (Path, bool)
	log   *slog.Logger
	cfg   atomic.Pointer[StreamConfig]
	shape atomic.Pointer[Params] // of blocks to come: with the most parity that any subscriber needs
	goal  atomic.Pointer[Goal]   // of the last plans

	arrived, dropped, parity atomic.Uint64

	mu     sync.Mutex
	subs   map[*subscriber]struct{}
	past   subscriberCounts // of those that left
	kept   [window]*keptBlock
	joined uint64
	closed bool

	stop chan struct{}
	once sync.Once
	done chan struct{}
}

// Streams are those of a configuration.
type Streams struct {
	log    *slog.Logger
	prior  func(netip.Addr) (Path, bool)
	listen opener

	change sync.Mutex // held by Apply
	open   atomic.Pointer[map[streamKey]*Stream]
}

// streamKey is what a stream cannot change without another socket.
type streamKey struct {
	name   string
	listen netip.AddrPort
	packet int
}

// NewStreams makes a set without streams. prior tells how the path to an address loses, as far as it is known
// before a subscriber there has reported anything; nil: nobody knows.
func NewStreams(log *slog.Logger, prior func(netip.Addr) (Path, bool)) *Streams {
	if prior == nil {
		prior = func(netip.Addr) (Path, bool) { return Path{}, false }
	}
	s := &Streams{log: log, prior: prior, listen: listen}
	s.open.Store(&map[streamKey]*Stream{})
	return s
}

// Apply makes the configuration's streams those that run. What keeps its name and address keeps its subscribers. On an
// error all stays as it was.
func (s *Streams) Apply(cfg Config) error {
	s.change.Lock()
	defer s.change.Unlock()
	old, next := *s.open.Load(), map[streamKey]*Stream{}
	var fresh []*Stream
	for _, c := range cfg.Streams {
		key := streamKey{c.Name, c.Listen, c.Packet}
		if x := old[key]; x != nil {
			next[key] = x
			continue
		}
		x, err := s.newStream(c)
		if err != nil {
			for _, x := range fresh {
				err = errors.Join(err, x.in.Close())
			}
			return fmt.Errorf("stream %s: %w", c.Name, err)
		}
		next[key] = x
		fresh = append(fresh, x)
	}
	for _, c := range cfg.Streams {
		next[streamKey{c.Name, c.Listen, c.Packet}].cfg.Store(&c)
	}
	s.open.Store(&next)
	var errs []error
	for key, x := range old {
		if next[key] != x {
			errs = append(errs, x.close())
		}
	}
	for _, x := range fresh {
		go x.run()
		s.log.Info("stream", "name", x.cfg.Load().Name, "listen", x.cfg.Load().Listen)
	}
	return errors.Join(errs...)
}

// Close ends all streams, and with them their subscribers' sessions.
func (s *Streams) Close() error { return s.Apply(Config{}) }

// Find returns the stream of a host (without port) and a path, and what of the path lies below it; nil if there is none.
// An exact host goes before "*".
func (s *Streams) Find(host, path string) (found *Stream, below string) {
	for _, x := range *s.open.Load() {
		c := x.cfg.Load()
		rest, ok := strings.CutPrefix(path, c.Path)
		if !ok || rest != "" && rest[0] != '/' || c.Host != "*" && !strings.EqualFold(c.Host, host) {
			continue
		}
		if found == nil || found.cfg.Load().Host == "*" && c.Host != "*" || len(rest) < len(below) {
			found, below = x, rest
		}
	}
	return found, below
}

func (s *Streams) newStream(c StreamConfig) (*Stream, error) {
	enc, err := NewEncoder(Params{1, 0}, c.Packet, rand.Uint32())
	if err != nil {
		return nil, err
	}
	x := &Stream{enc: enc, prior: s.prior, log: s.log, subs: map[*subscriber]struct{}{}, stop: make(chan struct{}), done: make(chan struct{})}
	x.cfg.Store(&c)
	x.shape.Store(&Params{1, 0})
	x.in, err = s.listen(c.Listen)
	return x, err
}

// Config returns the settings in force.
func (x *Stream) Config() StreamConfig { return *x.cfg.Load() }

func (x *Stream) close() error {
	x.once.Do(func() { close(x.stop) })
	x.mu.Lock()
	x.closed = true
	for sub := range x.subs {
		sub.end()
	}
	x.mu.Unlock()
	err := x.in.Close()
	<-x.done
	return err
}

func (x *Stream) run() {
	defer close(x.done)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(x.planOn)
	feed{
		in: x.in, enc: x.enc, emit: x.emit, arrived: &x.arrived, dropped: &x.dropped,
		delay: func() time.Duration { return x.cfg.Load().Delay }, begin: x.beginBlock,
		welcome: func(a netip.Addr) bool {
			from := x.cfg.Load().From
			return len(from) == 0 || slices.ContainsFunc(from, func(p netip.Prefix) bool { return p.Contains(a) })
		},
	}.run()
}

// beginBlock fixes for each subscriber how much of the block's parity it gets. New ones get whole blocks alone.
func (x *Stream) beginBlock(sbn uint32) Params {
	x.mu.Lock()
	defer x.mu.Unlock()
	shape := *x.shape.Load()
	for sub := range x.subs {
		sub.begin(sbn, shape)
	}
	return shape
}

// emit gives a packet to whom it is for.
func (x *Stream) emit(pkt []byte, repair bool) error {
	f := newFrame(pkt, repair)
	x.mu.Lock()
	defer x.mu.Unlock()
	row := -1 // of the parity
	if repair {
		id := parseID(pkt)
		row = id.esi - id.k
		x.parity.Add(1)
	} else {
		adu, id, _ := parseSource(f.b[1:])
		x.keep(id, adu)
	}
	for sub := range x.subs {
		sub.offer(f, row)
	}
	return nil
}

// planOn keeps the shapes in line with each subscriber's path, and with how many packets come within the delay.
func (x *Stream) planOn() {
	tick := time.NewTicker(planEvery)
	defer tick.Stop()
	flow, plans := newMeter(), planner{}
	for {
		select {
		case <-x.stop:
			return
		case now := <-tick.C:
			c := x.cfg.Load()
			goal := Goal{c.Residual, c.Overhead, flow.within(x.arrived.Load(), now, c.Delay)}
			x.plan(now, &plans, goal)
		}
	}
}

func (x *Stream) plan(now time.Time, plans *planner, goal Goal) {
	x.mu.Lock()
	subs := make([]*subscriber, 0, len(x.subs))
	for sub := range x.subs {
		subs = append(subs, sub)
	}
	x.mu.Unlock()
	k := plans.choose(Path{Burst: 1}, goal).K
	for _, sub := range subs {
		plan := sub.choose(now, plans, goal)
		sub.plan.Store(&plan)
	}
	x.goal.Store(&goal)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.shape.Store(&Params{k, 0})
	for sub := range x.subs { // others have come meanwhile
		x.makeRoom(sub)
	}
}

// makeRoom lets blocks to come have the parity that a subscriber needs. The caller holds mu.
func (x *Stream) makeRoom(sub *subscriber) {
	shape, plan := *x.shape.Load(), sub.plan.Load()
	if plan.K == shape.K && plan.M > shape.M {
		x.shape.Store(&plan.Params)
	}
}

// planner remembers plans: many paths are alike, and a plan for long blocks takes milliseconds.
type planner struct {
	goal  Goal
	plans map[Path]Plan
}

// maxPlans are remembered at once.
const maxPlans = 1024

func (p *planner) choose(path Path, goal Goal) Plan {
	if p.goal != goal || len(p.plans) >= maxPlans {
		p.goal, p.plans = goal, map[Path]Plan{}
	}
	path = path.rounded()
	plan, ok := p.plans[path]
	if !ok {
		plan = Choose(path, goal)
		p.plans[path] = plan
	}
	return plan
}

// StreamStatus is what a stream does and has done.
type StreamStatus struct {
	Name        string             `json:"name"`
	Listen      netip.AddrPort     `json:"listen"`
	Host        string             `json:"host"`
	Path        string             `json:"path"`
	Packets     uint64             `json:"packets"` // that came
	Parity      uint64             `json:"parity"`  // that was made of them
	Dropped     uint64             `json:"dropped"` // did not go into the stream: too long, empty, or from elsewhere
	Shape       Params             `json:"shape"`   // of its blocks: with the most parity that anyone needs
	Joined      uint64             `json:"joined"`  // subscribers that ever were
	Sent        uint64             `json:"sent"`    // packets to all subscribers
	SentParity  uint64             `json:"sent_parity"`
	Late        uint64             `json:"late"` // packets for a subscriber that its connection could not send in time
	Delivered   uint64             `json:"delivered"`
	Residual    uint64             `json:"residual"` // packets that stayed lost, as subscribers report
	Subscribers []SubscriberStatus `json:"subscribers"`
}

// Status lists the streams by name.
func (s *Streams) Status() []StreamStatus {
	out := []StreamStatus{}
	for _, x := range *s.open.Load() {
		out = append(out, x.status())
	}
	slices.SortFunc(out, func(a, b StreamStatus) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (x *Stream) status() StreamStatus {
	c := x.cfg.Load()
	x.mu.Lock()
	defer x.mu.Unlock()
	st := StreamStatus{
		Name: c.Name, Listen: c.Listen, Host: c.Host, Path: c.Path, Packets: x.arrived.Load(), Parity: x.parity.Load(),
		Dropped: x.dropped.Load(), Shape: *x.shape.Load(), Joined: x.joined, Subscribers: []SubscriberStatus{},
	}
	sum := x.past
	for sub := range x.subs {
		one := sub.status()
		sum.add(one.counts)
		st.Subscribers = append(st.Subscribers, one)
	}
	st.Sent, st.SentParity, st.Late, st.Delivered, st.Residual = sum.sent, sum.parity, sum.late, sum.delivered, sum.residual
	slices.SortFunc(st.Subscribers, func(a, b SubscriberStatus) int { return a.Client.Compare(b.Client) })
	return st
}
