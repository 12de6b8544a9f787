package fec

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// fakeSession is a session whose client is the test.
type fakeSession struct {
	ctx  context.Context
	back chan []byte
	slow chan struct{} // nil: sends at once; else one datagram for each
	rtt  time.Duration

	mu  sync.Mutex
	got [][]byte
}

func newSession(t *testing.T) *fakeSession {
	return &fakeSession{ctx: t.Context(), back: make(chan []byte, 100)}
}

func (s *fakeSession) RTT() time.Duration { return s.rtt }

func (s *fakeSession) Context() context.Context { return s.ctx }

func (s *fakeSession) SendDatagram(b []byte) error {
	if s.slow != nil {
		select {
		case <-s.slow:
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, b)
	return nil
}

func (s *fakeSession) ReceiveDatagram(ctx context.Context) ([]byte, error) {
	select {
	case b := <-s.back:
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func mustStream(t *testing.T, prior func(netip.Addr) (Path, bool), change func(*StreamConfig)) (*Streams, *Stream) {
	t.Helper()
	s := NewStreams(slog.New(slog.DiscardHandler), prior)
	c := DefaultStream()
	c.Name, c.Path, c.Listen = "stage", "/live", freePort(t)
	if change != nil {
		change(&c)
	}
	cfg := Config{Streams: []StreamConfig{c}}
	if err := errors.Join(cfg.Validate(), s.Apply(cfg)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	x, _ := s.Find("any.example", c.Path)
	if x == nil {
		t.Fatal("the stream is not found")
	}
	return s, x
}

// subscribe returns the subscriber once it is one, and where Subscribe's error will be.
func subscribe(t *testing.T, x *Stream, s *fakeSession, client string, plain bool) (*subscriber, chan error) {
	t.Helper()
	ended, who := make(chan error, 1), netip.MustParseAddrPort(client)
	go func() { ended <- x.Subscribe(s, who, plain) }()
	var found *subscriber
	eventually(t, "it subscribes", func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		for sub := range x.subs {
			if sub.client == who {
				found = sub
			}
		}
		return found != nil
	})
	return found, ended
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for start := time.Now(); !done(); time.Sleep(2 * time.Millisecond) { // poll
		if time.Since(start) > 10*time.Second {
			t.Fatal("not within 10 s:", what)
		}
	}
}

// Each subscriber gets whole blocks and, of their parity, as much as its own path needs: the first rows.
func TestParityForEach(t *testing.T) {
	_, x := mustStream(t, nil, nil)
	sessions := map[string]*fakeSession{"192.0.2.1:1": newSession(t), "192.0.2.2:2": newSession(t), "192.0.2.3:3": newSession(t)}
	for client, s := range sessions {
		sub, _ := subscribe(t, x, s, client, client == "192.0.2.3:3")
		if client == "192.0.2.1:1" {
			sub.report(report{expected: 10000, lost: 500, bursts: 480}, time.Now())
		}
		if client == "192.0.2.2:2" {
			sub.report(report{expected: 10000, lost: 20, bursts: 20}, time.Now())
		}
		if client == "192.0.2.3:3" {
			sub.report(report{expected: 10000, lost: 900, bursts: 900}, time.Now())
		}
	}
	var plans planner
	x.plan(time.Now(), &plans, Goal{Residual: 1e-4, Overhead: 0.35, Packets: 20})
	shape := *x.shape.Load()
	emit := func(pkt []byte, repair bool) error { return x.emit(pkt, repair) }
	e := mustEncoder(t, Params{1, 0}, 100, 9)
	if err := e.SetParams(x.beginBlock(9)); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if err := e.Add([]byte{byte(i + 1)}, emit); err != nil {
			t.Fatal(err)
		}
	}
	rows := map[string]int{}
	for client, s := range sessions {
		eventually(t, "20 packets arrive", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			rows[client] = len(s.got) - 20
			return len(s.got) >= 20
		})
	}
	x.mu.Lock()
	for sub := range x.subs {
		eventually(t, "its queue is empty", func() bool { return len(sub.queue) == 0 })
	}
	x.mu.Unlock()
	eventually(t, "all parity arrives", func() bool {
		for client, s := range sessions {
			s.mu.Lock()
			rows[client] = len(s.got) - 20
			s.mu.Unlock()
		}
		return rows["192.0.2.1:1"] == shape.M
	})
	if shape.K != 20 || shape.M < 5 || rows["192.0.2.2:2"] < 1 || rows["192.0.2.2:2"] >= shape.M || rows["192.0.2.3:3"] != 0 {
		t.Errorf("shape %s, parity %v", shape, rows)
	}
	got := sessions["192.0.2.2:2"].got
	for i, b := range got[20:] {
		if id := parseID(b[1:]); b[0] != KindRepair || id.esi != 20+i {
			t.Errorf("parity %d is symbol %d of kind %d", i, id.esi, b[0])
		}
	}
}

// What others measured of a prefix decides until the subscriber has reported enough, and no longer.
func TestPrior(t *testing.T) {
	known := func(a netip.Addr) (Path, bool) { return Path{0.05, 1.5}, a == netip.MustParseAddr("192.0.2.1") }
	_, x := mustStream(t, known, nil)
	lossy, _ := subscribe(t, x, newSession(t), "192.0.2.1:1", false)
	unknown, _ := subscribe(t, x, newSession(t), "192.0.2.2:1", false)
	var plans planner
	goal := Goal{Residual: 1e-4, Overhead: 0.35, Packets: 32}
	if p := lossy.choose(time.Now(), &plans, goal); p.M < 5 || !strings.Contains(p.Why, "known of its prefix") {
		t.Errorf("from a lossy prefix: %+v", p)
	}
	if p := unknown.choose(time.Now(), &plans, goal); p.M != 0 {
		t.Errorf("from an unknown one: %+v", p)
	}
	lossy.report(report{expected: 2 * fewSymbols}, time.Now())
	if p := lossy.choose(time.Now(), &plans, goal); p.M != 0 {
		t.Errorf("after clean reports: %+v", p)
	}
}

// A hostile subscriber gets no more than the overhead allows, and nobody else anything.
func TestHostileReports(t *testing.T) {
	_, x := mustStream(t, nil, nil)
	s := newSession(t)
	sub, _ := subscribe(t, x, s, "192.0.2.1:1", false)
	other, _ := subscribe(t, x, newSession(t), "192.0.2.2:1", false)
	for _, b := range [][]byte{nil, {1}, []byte("Bfr1"), report{expected: 1 << 60, lost: 1 << 59}.append(nil), make([]byte, 60000), report{expected: 1, lost: 2}.append(nil)} {
		s.back <- b
	}
	for range 50 {
		s.back <- report{expected: 1 << 40, lost: 1 << 40, bursts: 1}.append(nil)
	}
	eventually(t, "all were looked at", func() bool { return sub.refused.Load() >= 6+49-2 && len(s.back) == 0 })
	var plans planner
	goal := Goal{Residual: 1e-4, Overhead: 0.35, Packets: 20}
	if p := sub.choose(time.Now(), &plans, goal); p.Overhead() > 0.35 {
		t.Errorf("%+v", p)
	}
	if p := other.choose(time.Now(), &plans, goal); p.M != 0 {
		t.Errorf("the other one: %+v", p)
	}
	if n := len(sub.estimate.seen); n > 3 {
		t.Errorf("%d reports are kept of 50 at once", n)
	}
	// A path that changes all the time has a bounded number of plans.
	for i := range 5000 {
		plans.choose(Path{float64(i) / 5000, 1 + float64(i%100)}, Goal{Residual: 1e-4, Overhead: 1, Packets: 2})
	}
	if n := len(plans.plans); n > maxPlans {
		t.Errorf("%d plans", n)
	}
}

// A connection that sends slowly loses what is too late, parity first; others notice nothing, and what the edge itself
// did not send asks for no parity.
func TestSlowSubscriber(t *testing.T) {
	_, x := mustStream(t, nil, nil)
	s := newSession(t)
	s.slow = make(chan struct{})
	sub, _ := subscribe(t, x, s, "192.0.2.1:1", false)
	x.mu.Lock()
	sub.joined, sub.rows = true, 10
	x.mu.Unlock()
	pkt := payloadID{1, 0, 20}.append([]byte("content"))
	for range queued / 2 {
		_ = x.emit(pkt, false)
	}
	eventually(t, "one is being sent", func() bool { return len(sub.queue) == queued/2-1 })
	_ = x.emit(pkt, false)
	parity := append(payloadID{1, 20, 20}.append(nil), pkt...)
	_ = x.emit(parity, true)
	if n := len(sub.queue); n != queued/2 {
		t.Errorf("%d packets wait: parity should not", n)
	}
	for range queued {
		_ = x.emit(pkt, false)
	}
	if n := sub.late.Load(); n != queued/2 {
		t.Errorf("%d packets are late, want %d", n, queued/2)
	}
	sub.report(report{expected: 1000, lost: queued / 2, bursts: 1}, time.Now())
	var plans planner
	if p := sub.choose(time.Now(), &plans, Goal{Residual: 1e-4, Overhead: 0.35, Packets: 20}); p.M != 0 {
		t.Errorf("parity for what the edge did not send: %+v", p)
	}
}

// What the edge did not send, and nobody reports as lost, hides no losses that come later.
func TestUnsentIsForgotten(t *testing.T) {
	sub, now := new(subscriber), time.Now()
	sub.late.Store(5000) // most of it whole blocks, of which the receiver knows nothing
	sub.report(report{expected: 1000, lost: 100, bursts: 1}, now)
	if n := sub.estimate.last.lost; n != 0 {
		t.Errorf("%d losses of what was not sent", n)
	}
	sub.report(report{expected: 1200, lost: 110, bursts: 11}, now.Add(lateReports/2))
	if n := sub.estimate.last.lost; n != 0 {
		t.Errorf("%d losses while more of it may be reported", n)
	}
	sub.report(report{expected: 2000, lost: 150, bursts: 51}, now.Add(2*lateReports))
	if n := sub.estimate.last.lost; n != 40 {
		t.Errorf("%d losses afterwards, want 40", n)
	}
	sub.late.Add(10)
	sub.report(report{expected: 3000, lost: 180, bursts: 70}, now.Add(3*lateReports))
	if n := sub.estimate.last.lost; n != 60 {
		t.Errorf("%d losses, want 20 more and not 10 that were late again", n)
	}
	sub.report(report{expected: 100, lost: 5, bursts: 5}, now.Add(4*lateReports))
	if n := sub.estimate.last.lost; n != 5 {
		t.Errorf("%d losses of a new receiver, want 5", n)
	}
}

// A stream keeps its subscribers over a change of its settings, and ends with them; addresses in use change nothing.
func TestStreamsApply(t *testing.T) {
	s, x := mustStream(t, nil, func(c *StreamConfig) { c.Subscribers = 1 })
	_, ended := subscribe(t, x, newSession(t), "192.0.2.1:1", false)
	if err := x.Subscribe(newSession(t), netip.MustParseAddrPort("192.0.2.2:1"), false); !errors.Is(err, ErrFull) || !x.Full() {
		t.Errorf("%v, want %v", err, ErrFull)
	}
	c := x.Config()
	c.Subscribers, c.Path = 2, "/other"
	if err := s.Apply(Config{Streams: []StreamConfig{c}}); err != nil {
		t.Fatal(err)
	}
	if found, _ := s.Find("x", "/live"); found != nil {
		t.Error("found at its old path")
	}
	for path, want := range map[string]string{"/other": "", "/other/fec.js": "/fec.js"} {
		if found, below := s.Find("x", path); found != x || below != want {
			t.Errorf("%s: %p %q", path, found, below)
		}
	}
	if found, _ := s.Find("x", "/others"); found != nil {
		t.Error("found at a path that only begins like its own")
	}
	own := c
	own.Name, own.Host, own.Listen = "own", "a.example", freePort(t)
	taken := c
	taken.Name, taken.Path, taken.Listen = "b", "/b", addrOf(mustListen(t))
	if err := s.Apply(Config{Streams: []StreamConfig{c, own, taken}}); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "stream b: listen on "+taken.Listen.String()) {
		t.Errorf("%v, want %v", err, syscall.EADDRINUSE)
	}
	if err := s.Apply(Config{Streams: []StreamConfig{c, own}}); err != nil {
		t.Fatal(err)
	}
	if found, _ := s.Find("A.example", "/other"); found == x || found == nil {
		t.Error("the stream of any host goes before that of this one")
	}
	if n := len(s.Status()); n != 2 {
		t.Errorf("%d streams", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the subscription ended with %v", err)
	}
	if err := x.Subscribe(newSession(t), netip.MustParseAddrPort("192.0.2.2:1"), false); !errors.Is(err, ErrEnded) {
		t.Errorf("%v, want %v", err, ErrEnded)
	}
}

func TestValidateStreams(t *testing.T) {
	ok := DefaultStream()
	ok.Name, ok.Path, ok.Listen = "a", "/live", netip.MustParseAddrPort("127.0.0.1:5000")
	for want, change := range map[string]func(*StreamConfig){
		"":                            func(*StreamConfig) {},
		"fec.streams[0].name":         func(c *StreamConfig) { c.Name = "" },
		"fec.streams[0].listen: ":     func(c *StreamConfig) { c.Listen = netip.AddrPort{} },
		"fec.streams[0].host: ":       func(c *StreamConfig) { c.Host = "a.example:443" },
		"fec.streams[0].path: ":       func(c *StreamConfig) { c.Path = "/.berm/live" },
		"fec.streams[0].path: \"/\"":  func(c *StreamConfig) { c.Path = "/" },
		"fec.streams[0].origins[1]: ": func(c *StreamConfig) { c.Origins = []string{"*", "www.example.com"} },
		"fec.streams[0].delay: ":      func(c *StreamConfig) { c.Delay = 2 * time.Second },
		"fec.streams[0].residual":     func(c *StreamConfig) { c.Residual = 0 },
		"fec.streams[0].overhead:":    func(c *StreamConfig) { c.Overhead = 3 },
		"fec.streams[0].packet: ":     func(c *StreamConfig) { c.Packet = 1400 },
		"fec.streams[0].subscribers:": func(c *StreamConfig) { c.Subscribers = 0 },
	} {
		c := ok
		change(&c)
		err := Config{Streams: []StreamConfig{c}}.Validate()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	relay := DefaultRelay()
	relay.Name, relay.Role, relay.Listen, relay.To = "r", RoleProtect, ok.Listen, netip.MustParseAddrPort("192.0.2.1:6000")
	err := Config{Relays: []RelayConfig{relay}, Streams: []StreamConfig{ok, ok}}.Validate()
	for _, want := range []string{
		`fec.streams[0].listen: 127.0.0.1:5000 is taken by relay "r"`, `fec.streams[1].name: "a" is another stream's name too`, `fec.streams[1].path: /live of host * is stream "a"'s`,
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
