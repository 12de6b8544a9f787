package fec

import (
	"context"
	"encoding/binary"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// network carries packets in virtual time: to each address with its delay, and but for those that are lost on the way.
type network struct {
	mu      sync.Mutex
	ends    map[netip.AddrPort]*end
	delay   time.Duration
	lossy   func(to netip.AddrPort) bool // where packets may be lost
	coin    *coin
	carried map[netip.AddrPort]*load
}

// load is what was sent to an address.
type load struct{ packets, bytes int }

func newNetwork(delay time.Duration, lossy func(netip.AddrPort) bool) *network {
	return &network{
		ends: map[netip.AddrPort]*end{}, delay: delay, lossy: lossy, coin: newCoin(), carried: map[netip.AddrPort]*load{},
	}
}

// coin says which packets are lost, the same of each flow in each run.
type coin struct {
	mu     sync.Mutex
	loss   float64
	random *rand.Rand
}

func newCoin() *coin { return &coin{random: rand.New(rand.NewPCG(21, 1))} }

func (c *coin) set(loss float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.loss = loss
}

func (c *coin) loses() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.random.Float64() < c.loss
}

func (n *network) sent(to netip.AddrPort) load {
	n.mu.Lock()
	defer n.mu.Unlock()
	return *n.carried[to]
}

type onItsWay struct {
	b    []byte
	from netip.AddrPort
	due  time.Time
}

// end is a socket.
type end struct {
	n        *network
	at       netip.AddrPort
	way      chan onItsWay // to it
	deadline time.Time
	closed   chan struct{}
}

func (n *network) open(at netip.AddrPort) (socket, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if at.Port() == 0 {
		at = netip.AddrPortFrom(loopback, uint16(40000+len(n.ends)))
	}
	e := &end{n: n, at: at, way: make(chan onItsWay, 1<<14), closed: make(chan struct{})}
	n.ends[at] = e
	n.carried[at] = &load{}
	return e, nil
}

func (e *end) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	n := e.n
	n.mu.Lock()
	defer n.mu.Unlock()
	there := n.ends[to]
	if there == nil {
		return 0, os.ErrNotExist
	}
	n.carried[to].packets++
	n.carried[to].bytes += len(b)
	delay := time.Duration(0)
	if n.lossy(to) || n.lossy(e.at) {
		delay = n.delay
	}
	if !n.lossy(to) || !n.coin.loses() {
		there.way <- onItsWay{slices.Clone(b), e.at, time.Now().Add(delay)}
	}
	return len(b), nil
}

func (e *end) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	var late <-chan time.Time
	if !e.deadline.IsZero() {
		timer := time.NewTimer(time.Until(e.deadline))
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-e.closed:
		return 0, netip.AddrPort{}, net.ErrClosed
	case <-late:
		return 0, netip.AddrPort{}, os.ErrDeadlineExceeded
	case p := <-e.way:
		time.Sleep(time.Until(p.due)) // sleep: the path's length, in virtual time
		return copy(b, p.b), p.from, nil
	}
}

func (e *end) SetReadDeadline(t time.Time) error {
	e.deadline = t
	select {
	case <-e.closed:
		return net.ErrClosed
	default:
		return nil
	}
}

func (e *end) Close() error {
	close(e.closed)
	return nil
}

// The flow: packets of a size at a rate, numbered, with the time at which they were sent.
const (
	everyPacket = 619 * time.Microsecond // 32 in a delay of 20 ms
	packetBytes = 1000
)

// arrivals are the ages of the packets that came, by number.
type arrivals struct {
	mu   sync.Mutex
	ages map[uint32]time.Duration
}

func (a *arrivals) take(adu []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ages[binary.BigEndian.Uint32(adu)] = time.Duration(time.Now().UnixNano() - int64(binary.BigEndian.Uint64(adu[4:])))
}

// between returns how many of the packets first ≤ number < last did not come, and the age that 99 of 100 that came did
// not exceed.
func (a *arrivals) between(first, last uint32) (missing int, p99 time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var ages []time.Duration
	for n := first; n < last; n++ {
		if age, ok := a.ages[n]; ok {
			ages = append(ages, age)
		} else {
			missing++
		}
	}
	slices.Sort(ages)
	return missing, ages[len(ages)*99/100]
}

// flow sends packets, and counts them.
type flow struct {
	from socket
	to   netip.AddrPort
	next uint32
}

// run sends for a while.
func (f *flow) run(d time.Duration) {
	pkt := make([]byte, packetBytes)
	for range int(d / everyPacket) {
		binary.BigEndian.PutUint32(pkt, f.next)
		binary.BigEndian.PutUint64(pkt[4:], uint64(time.Now().UnixNano()))
		_, _ = f.from.WriteToUDPAddrPort(pkt, f.to)
		f.next++
		time.Sleep(everyPacket) // sleep: virtually, until the next one
	}
}

// Between two relays, 40 ms apart, 5 % of packets get lost: parity within the overhead leaves no more of them lost than is asked
// for, nor than 1.5 times what no code of the shape could bring back, and 99 of 100 packets come no more than 25 ms later than without
// losses. When the losses end, parity does.
func TestRelaysInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(loopback, port) }
		n := newNetwork(40*time.Millisecond, func(to netip.AddrPort) bool { return to == at(6000) || to == at(6001) })
		sender, receiver := DefaultRelay(), DefaultRelay()
		sender.Name, sender.Role, sender.Listen, sender.To = "out", RoleProtect, at(5000), at(6000)
		receiver.Name, receiver.Role, receiver.Listen, receiver.To = "in", RoleRepair, at(6000), at(7000)
		p, err := newProtector(sender, n.open)
		if err != nil {
			t.Fatal(err)
		}
		r, err := newRepairer(receiver, n.open)
		if err != nil {
			t.Fatal(err)
		}
		sink, _ := n.open(at(7000))
		source, _ := n.open(at(0))
		came := &arrivals{ages: map[uint32]time.Duration{}}
		var wg sync.WaitGroup
		wg.Go(p.run)
		time.Sleep(7 * time.Millisecond) // sleep: virtually, so that nothing of both happens at the same time
		wg.Go(r.run)
		wg.Go(func() {
			buf := make([]byte, 2048)
			for {
				size, _, err := sink.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				came.take(buf[:size])
			}
		})
		f := &flow{from: source, to: at(5000)}

		f.run(time.Second)
		_, before := came.between(0, f.next-100)
		n.coin.set(0.05)
		f.run(5 * time.Second)
		packets, parity, first := n.sent(at(6000)), n.sent(at(6001)), f.next
		limit, looks := 0.0, 0
		for range 60 {
			f.run(time.Second)
			limit += Path{0.05, 1}.Residual(p.plan.Load().Params)
			looks++
		}
		limit /= float64(looks)
		overhead := float64(n.sent(at(6001)).packets-parity.packets) / float64(n.sent(at(6000)).packets-packets.packets)
		last := f.next
		n.coin.set(0)
		f.run(5 * time.Second)
		missing, after := came.between(first, last)
		share := float64(missing) / float64(last-first)
		t.Logf("%d of %d packets stay lost: %.2g, limit %.2g; overhead %.1f %%; p99 %s, without losses %s", missing, last-first, share, limit, 100*overhead, after, before)
		// A block that fails lacks seven packets or so, and chance alone makes one or two fail in so short a time.
		if most := min(1e-4, 1.5*limit)*float64(last-first) + 14; float64(missing) > most {
			t.Errorf("%d packets stay lost, want at most %.0f: no code could bring back %.2g", missing, most, limit)
		}
		if overhead > 0.35 {
			t.Errorf("overhead of %.3f", overhead)
		}
		if added := after - before; added > 25*time.Millisecond {
			t.Errorf("99 of 100 packets come within %s more than without losses", added)
		}

		sum := func() int { return n.sent(at(6000)).bytes + n.sent(at(6001)).bytes }
		bytes, from := sum(), f.next
		f.run(2 * time.Second)
		clean := float64(sum()-bytes)/float64(packetBytes*(f.next-from)) - 1
		t.Logf("overhead from 5 s after the last loss on: %.2f %% of bytes", 100*clean)
		if clean > 0.02 {
			t.Errorf("overhead of %.3f where nothing is lost", clean)
		}
		for _, c := range []interface{ Close() error }{sink, source} {
			_ = c.Close()
		}
		if err := p.close(); err != nil {
			t.Error(err)
		}
		if err := r.close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
}

// viewer subscribes to a stream over a path that loses in both directions.
type viewer struct {
	ctx       context.Context
	rtt       time.Duration
	coin      *coin
	way, back chan onItsWay
	came      *arrivals
	dec       *Decoder
	parity    int
}

func newViewer(t *testing.T, ctx context.Context, rtt time.Duration) *viewer { //nolint:revive // t comes first
	v := &viewer{ctx: ctx, rtt: rtt, coin: newCoin(), way: make(chan onItsWay, 1<<12), back: make(chan onItsWay, 1<<12), came: &arrivals{ages: map[uint32]time.Duration{}}}
	var err error
	if v.dec, err = NewDecoder(window, packetBytes, func(adu []byte, _ bool) { v.came.take(adu) }); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *viewer) Context() context.Context { return v.ctx }

func (v *viewer) RTT() time.Duration { return v.rtt }

func (v *viewer) SendDatagram(b []byte) error {
	if !v.coin.loses() {
		v.way <- onItsWay{b: b, due: time.Now().Add(v.rtt / 2)}
	}
	return nil
}

func (v *viewer) ReceiveDatagram(ctx context.Context) ([]byte, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case p := <-v.back:
		time.Sleep(time.Until(p.due)) // sleep: the path's length, in virtual time
		return p.b, nil
	}
}

func (v *viewer) tell(b []byte) {
	if len(b) > 0 && !v.coin.loses() {
		v.back <- onItsWay{b: b, due: time.Now().Add(v.rtt / 2)}
	}
}

// watch decodes, reports, and where it nacks asks for more, until the session ends.
func (v *viewer) watch(nacks bool) {
	tick := time.NewTicker(201 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-v.ctx.Done():
			return
		case <-tick.C:
			v.tell(v.dec.Counts().AppendReport(nil))
		case p := <-v.way:
			time.Sleep(time.Until(p.due)) // sleep: the path's length, in virtual time
			if p.b[0] == KindRepair {
				v.parity++
				_ = v.dec.Repair(p.b[1:])
			} else {
				_ = v.dec.Source(p.b[1:])
			}
			if nacks {
				v.tell(v.dec.AppendNack(nil))
			}
		}
	}
}

// Three subscribers lose the same 5 % from one moment on. Who NACKs over a short path has hardly a packet missing even
// before a report has told of the losses; over a path longer than the delay it gets what it would get without.
func TestNackInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(0, func(netip.AddrPort) bool { return false })
		s := NewStreams(slog.New(slog.DiscardHandler), nil)
		s.listen = n.open
		c := DefaultStream()
		c.Name, c.Path, c.Listen = "stage", "/live", netip.AddrPortFrom(loopback, 5000)
		if err := s.Apply(Config{Streams: []StreamConfig{c}}); err != nil {
			t.Fatal(err)
		}
		x, _ := s.Find("any.example", "/live")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		subscribe := func(port uint16, rtt time.Duration, nacks bool) *viewer {
			v := newViewer(t, ctx, rtt)
			wg.Go(func() { v.watch(nacks) })
			wg.Go(func() { _ = x.Subscribe(v, netip.AddrPortFrom(loopback, port), false) })
			time.Sleep(3 * time.Millisecond) // sleep: virtually, so that they do nothing at the same time
			return v
		}
		near, plain, far := subscribe(1, 10*time.Millisecond, true), subscribe(2, 10*time.Millisecond, false), subscribe(3, 40*time.Millisecond, true)
		source, _ := n.open(netip.AddrPortFrom(loopback, 0))
		f := &flow{from: source, to: c.Listen}
		f.run(2 * time.Second)
		viewers := []*viewer{near, plain, far}
		for _, v := range viewers {
			v.coin.set(0.05)
		}
		begin := f.next
		f.run(300 * time.Millisecond)
		surprised := f.next
		f.run(5 * time.Second)
		last := f.next
		f.run(500 * time.Millisecond)
		var early, all [3]int
		var p99 time.Duration
		for i, v := range slices.Backward(viewers) {
			early[i], p99 = v.came.between(begin, surprised)
			all[i], _ = v.came.between(begin, last)
			t.Logf("round trip %s: %d of the first %d packets missing, %d of %d in all; 99 of 100 of the first came within %s", v.rtt, early[i], surprised-begin, all[i], last-begin, p99)
		}
		if early[0] > early[1]/3 || all[0] > all[1]/2 || early[2] < early[1]/2 {
			t.Errorf("%v packets missing at first, %v in all", early, all)
		}
		// Half a round trip, a block, what tells that it is over, and a round trip.
		if most := near.rtt/2 + c.Delay + reordered*everyPacket + near.rtt; p99 > most {
			t.Errorf("packets came within %s, want %s", p99, most)
		}
		for _, sub := range s.Status()[0].Subscribers {
			if nacked := sub.Client.Port() != 2; nacked != (sub.Nacks > 0) || sub.Refused > 0 || float64(sub.Parity) > c.Overhead*float64(sub.Sent) {
				t.Errorf("%+v", sub)
			}
		}
		cancel()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
}

// Two visitors come from far away and lose 5 %, which is known of the prefix of one: it has hardly a packet missing in its first
// second, and the other most of those that were lost.
func TestKnownPrefixInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		visited := netip.MustParseAddr("192.0.2.1")
		n := newNetwork(0, func(netip.AddrPort) bool { return false })
		s := NewStreams(slog.New(slog.DiscardHandler), func(a netip.Addr) (Path, bool) { return Path{0.05, 1.05}, a == visited })
		s.listen = n.open
		c := DefaultStream()
		c.Name, c.Path, c.Listen = "stage", "/live", netip.AddrPortFrom(loopback, 5000)
		if err := s.Apply(Config{Streams: []StreamConfig{c}}); err != nil {
			t.Fatal(err)
		}
		x, _ := s.Find("any.example", "/live")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		source, _ := n.open(netip.AddrPortFrom(loopback, 0))
		f := &flow{from: source, to: c.Listen}
		f.run(time.Second) // how many packets a block has is known of the stream, whoever watches
		missing, sent := map[netip.Addr]int{}, 0
		const visits = 8 // one after the other, since losses are chance
		for i := range visits {
			visit, leave := context.WithCancel(ctx)
			viewers := map[netip.Addr]*viewer{}
			for _, from := range []netip.Addr{visited, visited.Next()} {
				v := newViewer(t, visit, 80*time.Millisecond) // too far for more parity on NACK
				v.coin.random = rand.New(rand.NewPCG(21, uint64(i)))
				v.coin.set(0.05)
				viewers[from] = v
				wg.Go(func() { v.watch(true) })
				wg.Go(func() { _ = x.Subscribe(v, netip.AddrPortFrom(from, uint16(i+1)), false) })
				time.Sleep(3 * time.Millisecond) // sleep: virtually, so that they do nothing at the same time
			}
			f.run(time.Second)
			end := f.next
			f.run(500 * time.Millisecond)
			leave()
			synctest.Wait()
			for from, v := range viewers {
				first := slices.Min(slices.Collect(maps.Keys(v.came.ages))) // it begins with a whole block
				m, _ := v.came.between(first, end)
				missing[from] += m
				sent += int(end - first)
			}
		}
		known, unknown := missing[visited], missing[visited.Next()]
		t.Logf("of %d packets in first seconds, %d are missing where the prefix is known, %d where it is not", sent/2, known, unknown)
		if unknown < visits || known > unknown/10 {
			t.Errorf("packets missing in first seconds: %v", missing)
		}
		cancel()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
}
