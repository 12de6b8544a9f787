package quiccc

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/congestion"
	"github.com/bermedge/berm/userspace/congestion/controller"
)

// table is one of paths, in memory.
type table struct {
	mu   sync.Mutex
	rows map[netip.Prefix]maps.Path
	err  error
}

func newTable() *table { return &table{rows: map[netip.Prefix]maps.Path{}} }

func (t *table) Get(a netip.Addr, _ maps.Protocol) (maps.Path, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return maps.Path{}, t.err
	}
	p, ok := t.rows[maps.PathPrefix(a)]
	if !ok {
		return maps.Path{}, maps.ErrNotFound
	}
	return p, nil
}

func (t *table) Put(p maps.Path) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows[p.Prefix] = p
	return nil
}

func (t *table) of(a string) maps.Path {
	p, _ := t.Get(netip.MustParseAddr(a), maps.ProtocolUDP)
	return p
}

func TestController(t *testing.T) {
	for _, c := range []struct{ name, plain, hooked string }{
		{"", "reno", "cubic"}, {"reno", "reno", "reno"}, {"bbr", "reno !", "bbr"}, {"cubic", "reno !", "cubic"}, {"vegas", "reno !", "cubic !"},
	} {
		want := c.plain
		if Selectable {
			want = c.hooked
		}
		got, err := Controller(c.name)
		if err != nil {
			got += " !"
		}
		if got != want {
			t.Errorf("%q: %s, want %s (%v)", c.name, got, want, err)
		}
		if !Selectable && err != nil && !errors.Is(err, ErrPlain) {
			t.Errorf("%q: %v", c.name, err)
		}
	}
}

func TestTune(t *testing.T) {
	choices := map[netip.Addr]Choice{
		netip.MustParseAddr("192.0.2.1"): {Profile: "p", QUIC: congestion.QUIC{PacketSize: 1350, KeepAlive: 20 * time.Second, StreamWindow: 1 << 16, ConnectionWindow: 1 << 17}},
	}
	var fails error
	c := New(Options{Choose: func(client netip.AddrPort) (Choice, error) { return choices[client.Addr()], fails }})
	var q quic.Config
	c.Tune(&net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 4711}, &q) // v4 in 16 bytes, as sockets of both families have it
	if q.InitialPacketSize != 1350 || q.KeepAlivePeriod != 20*time.Second || q.InitialStreamReceiveWindow != 1<<16 || q.MaxConnectionReceiveWindow != 1<<17 {
		t.Errorf("%+v", q)
	}
	for _, err := range []error{nil, errors.New("no table")} {
		fails = err
		var q quic.Config
		c.Tune(&net.UDPAddr{IP: net.IPv4(192, 0, 2, 9)}, &q)
		if q.InitialPacketSize != 0 || q.KeepAlivePeriod != 0 {
			t.Errorf("%+v", q)
		}
	}
}

// events has a gauge see packets from..to acknowledged or lost.
func packetsOf(numbers ...int64) (list []controller.Packet) {
	for _, n := range numbers {
		list = append(list, controller.Packet{Number: n, Bytes: 1000})
	}
	return list
}

func TestGauge(t *testing.T) {
	var g gauge
	ms := time.Millisecond
	event := func(at time.Duration, acked, lost, spurious []controller.Packet) {
		g.update(&controller.Event{
			Now: at, PriorInFlight: 10000, Acked: acked, Lost: lost, Spurious: spurious,
			HasRTT: true, RTT: controller.RTT{Latest: 20 * ms, Smoothed: 20 * ms, Min: 10 * ms},
		}, 5*ms)
	}
	event(100*ms, packetsOf(1, 2), nil, nil)
	if g.due(100 * ms) {
		t.Error("due at once")
	}
	event(200*ms, packetsOf(3, 4, 5, 6, 10), packetsOf(7, 8, 9, 11), nil)
	event(250*ms, nil, nil, packetsOf(11))
	if !g.due(1100 * ms) {
		t.Error("not due after a second")
	}
	s := g.take(1100 * ms)
	if !s.begun || s.delivered != 8 || s.lost != 3 || s.resent != 4 || s.rtt != 20*ms || s.minRTT != 10*ms || s.deviation != 5*ms {
		t.Errorf("%+v", s)
	}
	if s.bursts != [8]uint32{0: 1, 2: 1} {
		t.Errorf("bursts %v: want one of one, and one of three", s.bursts)
	}
	if s.kbps != 5*1000*8/100 { // five packets in 100 ms
		t.Errorf("%d kbit/s", s.kbps)
	}
	if s = g.take(2 * time.Second); s.begun || s.delivered != 0 || s.rtt != 20*ms {
		t.Errorf("again: %+v", s)
	}
}

func TestBurstClasses(t *testing.T) {
	for n, want := range map[uint64]int{1: 0, 2: 1, 3: 2, 4: 2, 5: 3, 8: 3, 9: 4, 64: 6, 65: 7, 1000: 7} {
		if got := burstClass(n); got != want {
			t.Errorf("%d: class %d, want %d", n, got, want)
		}
	}
}

// What comes of a connection is counted while it waits for its client, and not while it has nothing to send.
func TestOutcome(t *testing.T) {
	const ms = time.Millisecond
	o := outcome{first: 3000}
	send := func(at time.Duration, inFlight int64) { o.sent(inFlight, at) }
	event := func(at time.Duration, prior int64, acked, lost []controller.Packet) {
		o.update(&controller.Event{Now: at, PriorInFlight: prior, Acked: acked, Lost: lost, HasRTT: len(acked) > 0, RTT: controller.RTT{Smoothed: 50 * ms, Min: 40 * ms}})
	}
	send(1000*ms, 0)
	send(1000*ms, 1000)
	event(1050*ms, 2000, packetsOf(1), nil)
	event(1060*ms, 1000, packetsOf(2), nil) // all is there: silence begins
	if _, ok := o.take(true); ok {
		t.Error("it tells of a first window")
	}
	send(9000*ms, 0)
	send(9000*ms, 1000)
	event(9050*ms, 2000, packetsOf(4), packetsOf(3))
	if _, ok := o.take(false); ok {
		t.Error("it tells of less than a second before the end")
	}
	got, ok := o.take(true)
	want := maps.CCPart{Bytes: 3000, Busy: 110 * ms, RTT: 100 * ms, Queue: 20 * ms, Looks: 2, Sent: 4, Again: 1, Connections: 1}
	if !ok || got != want {
		t.Errorf("%+v, %v, want %+v", got, ok, want)
	}
	send(20*time.Second, 0)
	event(90*time.Second, 2000, packetsOf(5), nil)  // who is gone is waited for in vain
	event(100*time.Second, 1000, packetsOf(6), nil) // and again
	if got, ok := o.take(false); !ok || got.Busy != 2*gapMost || got.Connections != 0 {
		t.Errorf("%+v, %v", got, ok)
	}
}

// One client of a prefix that claims what it likes, at any rate, weighs no more than all others together, and its times no
// more than one of them.
func TestHostileClient(t *testing.T) {
	now := time.Unix(1e9, 0)
	paths := newTable()
	r := newReporter(paths, func() time.Time { return now })
	honest := sample{sent: 100, delivered: 100, rtt: 50 * time.Millisecond, minRTT: 40 * time.Millisecond, kbps: 8000}
	hostile := sample{sent: 1e6, delivered: 1e5, lost: 9e5, resent: 9e5, rtt: 5 * time.Second, minRTT: time.Microsecond, kbps: 1 << 31, bursts: [8]uint32{7: 1e4}}
	const clients = 20
	for range 60 {
		for i := range clients {
			must(t, r.add(netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + i)}), honest))
		}
		for range 50 { // as many connections as it likes
			must(t, r.add(netip.MustParseAddr("192.0.2.66"), hostile))
		}
		now = now.Add(turn)
	}
	p := paths.of("192.0.2.1")
	others := uint64(60 * clients * 100)
	if n := p.Delivered + p.Lost; n > 2*others {
		t.Errorf("%d packets, of which others had %d", n, others)
	}
	if p.Delivered < others {
		t.Errorf("%d delivered: honest ones were cut", p.Delivered)
	}
	// Its part of the averages is one of 21 reports, of which the last weighs an eighth: 5 s / 8 after it spoke, and the
	// honest ones bring that down by 7/8 each, to 5 s / 8 × (7/8)^20 = 43 ms before it speaks again.
	for i := range clients {
		must(t, r.add(netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + i)}), honest))
	}
	p = paths.of("192.0.2.1")
	if p.RTT < 40*time.Millisecond || p.RTT > 110*time.Millisecond {
		t.Errorf("round trip %s, honest 50ms", p.RTT)
	}
	if p.MinRTT < 20*time.Millisecond || p.MinRTT > 60*time.Millisecond {
		t.Errorf("least round trip %s, honest 40ms", p.MinRTT)
	}
	if p.RateKbps < 8000 || p.RateKbps > 3*8000 {
		t.Errorf("%d kbit/s, honest 8000", p.RateKbps)
	}
	if _, bounded := r.counts(); bounded == 0 {
		t.Error("nothing was bounded")
	}
}

// What counts only in part keeps its share of losses.
func TestPartsKeepShares(t *testing.T) {
	now := time.Unix(1e9, 0)
	paths := newTable()
	r := newReporter(paths, func() time.Time { return now })
	for range 400 {
		must(t, r.add(netip.MustParseAddr("2001:db8::1"), sample{sent: 10000, delivered: 9900, lost: 100}))
		now = now.Add(turn)
	}
	p := paths.of("2001:db8::2")
	if n := p.Delivered + p.Lost; n < 399*turnPackets || n > 401*turnPackets {
		t.Errorf("%d packets counted, want about %d", n, 400*turnPackets)
	}
	if loss := p.Loss(); loss < 0.008 || loss > 0.012 { // 1024 losses: 20 % is six deviations
		t.Errorf("loss %.4f, want 0.01", loss)
	}
}

func TestManyClients(t *testing.T) {
	now := time.Unix(1e9, 0)
	r := newReporter(newTable(), func() time.Time { return now })
	for i := range turnClients + 10 {
		must(t, r.add(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), sample{delivered: 1, rtt: time.Millisecond}))
	}
	if whole, bounded := r.counts(); whole != turnClients || bounded != 10 {
		t.Errorf("%d and %d", whole, bounded)
	}
}

func TestReportFails(t *testing.T) {
	paths := newTable()
	paths.err = errors.New("gone")
	err := newReporter(paths, time.Now).add(netip.MustParseAddr("192.0.2.1"), sample{delivered: 1})
	if err == nil || !strings.Contains(err.Error(), "report on 192.0.2.0/24: gone") {
		t.Error(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
