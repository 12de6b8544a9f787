//go:build quiccc

package quiccc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/congestion"
)

// policy is one by address, which notes who asked.
type policy struct {
	mu    sync.Mutex
	by    map[netip.Addr]Choice
	asked []netip.Addr
}

func (p *policy) choose(client netip.AddrPort) (Choice, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, client.Addr())
	return p.by[client.Addr()], nil
}

// results are those of the kernel half, in memory.
type results struct {
	mu sync.Mutex
	by map[uint32]maps.CCPart // by profile
}

func (r *results) CountResult(_ netip.Addr, profile uint32, p maps.CCPart) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.by[profile]
	r.by[profile] = maps.CCPart{
		Bytes: was.Bytes + p.Bytes, Busy: was.Busy + p.Busy, RTT: was.RTT + p.RTT, Queue: was.Queue + p.Queue, Looks: was.Looks + p.Looks,
		Sent: was.Sent + p.Sent, Again: was.Again + p.Again, Connections: was.Connections + p.Connections, RateKbps: max(was.RateKbps, p.RateKbps),
	}
	return nil
}

func (r *results) of(profile uint32) maps.CCPart {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.by[profile]
}

func mustCert(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, &tmpl, &tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{cert}, PrivateKey: key}
}

// serve answers each stream with as many bytes as it asks for, over real sockets, until the test ends.
func serve(t testing.TB, c *Chooser) *net.UDPAddr {
	t.Helper()
	qc := &quic.Config{}
	qc.GetConfigForClient = func(info *quic.ClientInfo) (*quic.Config, error) {
		own := qc.Clone()
		c.Tune(info.RemoteAddr, own)
		return own, nil
	}
	l, err := quic.ListenAddr("127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{mustCert(t)}, NextProtos: []string{"t"}}, qc)
	if err != nil {
		t.Fatal(err)
	}
	var streams sync.WaitGroup
	streams.Go(func() {
		for {
			conn, err := l.Accept(context.Background())
			if err != nil {
				return
			}
			streams.Go(func() {
				for {
					s, err := conn.AcceptStream(context.Background())
					if err != nil {
						return
					}
					var n int64
					_, _ = fmt.Fscan(s, &n)
					_, _ = io.CopyN(s, zeros{}, n)
					_ = s.Close()
				}
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); streams.Wait() })
	return l.Addr().(*net.UDPAddr)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// mustOpen makes a transport at a local address.
func mustOpen(t *testing.T, host string) *quic.Transport {
	t.Helper()
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(host)})
	if err != nil {
		t.Fatal(err)
	}
	tr := &quic.Transport{Conn: u}
	t.Cleanup(func() { _ = tr.Close(); _ = u.Close() })
	return tr
}

func mustDial(t testing.TB, tr *quic.Transport, to *net.UDPAddr) *quic.Conn {
	t.Helper()
	conn, err := tr.Dial(t.Context(), to, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"t"}}, &quic.Config{}) //nolint:gosec // the test's own
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func mustGet(t testing.TB, conn *quic.Conn, want int64) {
	t.Helper()
	s, err := conn.OpenStreamSync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = fmt.Fprint(s, want)
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	if got, err := io.Copy(io.Discard, s); err != nil || got != want {
		t.Fatalf("%d of %d bytes: %v", got, want, err)
	}
}

// await polls until ok; what happens after a close is told to nobody.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("not in 20 s: ", what)
		}
		time.Sleep(5 * time.Millisecond) // sleep: a poll with a deadline
	}
}

// Every connection has the controller that the policy has for its client's address, and what it measured is written.
func TestControllerByClient(t *testing.T) {
	const bytes = 1 << 20
	p := &policy{by: map[netip.Addr]Choice{
		netip.MustParseAddr("127.0.0.1"): {Profile: "lossy", ID: 1, Controller: "bbr", InitialWindow: 40},
		netip.MustParseAddr("127.0.1.2"): {Profile: "clean", ID: 2, Controller: "cubic", QUIC: congestion.QUIC{PacketSize: 1400, KeepAlive: time.Minute, InitialRTT: 20 * time.Millisecond}},
		netip.MustParseAddr("127.0.1.3"): {Profile: "old", Controller: "reno"},
		netip.MustParseAddr("127.0.1.4"): {Profile: "odd", ID: 4, Controller: "vegas"},
	}}
	paths, came := newTable(), &results{by: map[uint32]maps.CCPart{}}
	c := New(Options{Choose: p.choose, Paths: paths, Results: came})
	to := serve(t, c)
	for _, from := range []string{"127.0.0.1", "127.0.1.2", "127.0.1.3", "127.0.1.4", "127.0.1.5"} {
		conn := mustDial(t, mustOpen(t, from), to)
		mustGet(t, conn, bytes)
		_ = conn.CloseWithError(0, "")
	}
	little := mustDial(t, mustOpen(t, "127.0.1.6"), to) // a first window tells nothing
	mustGet(t, little, 1000)
	_ = little.CloseWithError(0, "")
	for _, want := range []Count{
		{"bbr", "lossy", false}, {"cubic", "clean", false}, {"reno", "old", false}, {"cubic", "odd", true}, {"cubic", "", false},
	} {
		n := uint64(1)
		if want.Profile == "" {
			n = 2
		}
		if got := c.Counts()[want]; got != n {
			t.Errorf("%+v: %d connections; all: %v", want, got, c.Counts())
		}
	}
	for prefix, connections := range map[string]uint64{"127.0.0.1": 1, "127.0.1.9": 5} {
		await(t, "reports of all connections of "+prefix, func() bool { return paths.of(prefix).Connections == connections })
		path := paths.of(prefix)
		if path.Protocol != maps.ProtocolUDP || path.RTT <= 0 || path.MinRTT <= 0 || path.MinRTT > path.RTT*8+time.Millisecond || path.Delivered == 0 || path.Sent < path.Delivered {
			t.Errorf("%s: %+v", prefix, path)
		}
	}
	// The table's profiles have what came of their connections, and the host's has also that of a profile which was refused. One that is
	// not from the table counts nowhere.
	for id, connections := range map[uint32]uint32{0: 2, 1: 1, 2: 1, 3: 0, 4: 0} {
		await(t, fmt.Sprintf("what came of connections with profile %d", id), func() bool { return came.of(id).Connections == connections })
		got := came.of(id)
		if kbps := float64(got.Bytes) * 8 / 1000 / got.Busy.Seconds(); connections > 0 && (got.Bytes < uint64(connections)*bytes || got.Bytes > uint64(connections)*bytes*5/4 || kbps < 1000 || got.Looks == 0 || got.RTT <= 0 || got.Queue > got.RTT || got.Sent < uint32(got.Bytes/1500)) {
			t.Errorf("profile %d: %+v, %.0f kbit/s", id, got, kbps)
		}
	}
	if whole, bounded := c.Reports(); whole+bounded < 5 {
		t.Errorf("%d and %d reports", whole, bounded)
	}
}

// A client that moves to another network has that one's controller from then on, and loses no byte.
func TestMigration(t *testing.T) {
	const bytes = 1 << 20
	p := &policy{by: map[netip.Addr]Choice{
		netip.MustParseAddr("127.0.0.1"): {Profile: "home", Controller: "cubic"},
		netip.MustParseAddr("127.0.1.1"): {Profile: "away", Controller: "bbr"},
	}}
	paths := newTable()
	c := New(Options{Choose: p.choose, Paths: paths})
	to := serve(t, c)
	conn := mustDial(t, mustOpen(t, "127.0.0.1"), to)
	mustGet(t, conn, bytes)
	path, err := conn.AddPath(mustOpen(t, "127.0.1.1"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := path.Probe(ctx); err != nil {
		t.Fatal(err)
	}
	if err := path.Switch(); err != nil {
		t.Fatal(err)
	}
	mustGet(t, conn, bytes)
	mustGet(t, conn, bytes)
	_ = conn.CloseWithError(0, "")
	counts := c.Counts()
	if counts[Count{"cubic", "home", false}] != 1 || counts[Count{"bbr", "away", false}] != 1 {
		t.Errorf("%v", counts)
	}
	await(t, "reports of both paths", func() bool { return paths.of("127.0.0.9").Connections == 1 && paths.of("127.0.1.9").Connections == 1 })
}

// A connection that goes on tells its prefix what the path loses.
func TestFloorOfRunningConnection(t *testing.T) {
	const size, share = 1200, 25 // one packet of so many is lost
	c := New(Options{Choose: (&policy{}).choose})
	client := netip.MustParseAddr("192.0.2.1")
	f := c.flow(Choice{Controller: "bbr"}, quic.CongestionPath{RemoteAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(client, 1)), MaxDatagramSize: size})
	defer f.Closed()
	now, rtt := time.Hour, 50*time.Millisecond
	e := quic.CongestionEvent{HasRTT: true, LatestRTT: rtt, SmoothedRTT: rtt, MinRTT: rtt}
	pn := int64(0)
	for round := range int64(60) {
		packets := 100 - 10*(round%6) // in flight
		e.Acked, e.Lost, e.PriorInFlight = nil, nil, packets*size
		for i := range packets {
			p := quic.CongestionPacket{Number: pn, Bytes: size, Sent: now + time.Millisecond}
			f.Sent(i*size, p)
			if pn++; pn%share == 0 {
				e.Lost = append(e.Lost, p)
			} else {
				e.Acked = append(e.Acked, p)
			}
		}
		now += time.Millisecond + rtt
		e.Now = now
		f.Update(&e)
	}
	if own := f.State().LossFloor; own < 0.03 || own > 1./share {
		t.Errorf("the connection's floor is %g, its path loses %g", own, 1./share)
	}
	if got := c.Floor(client); got < 0.015 || got > 0.5/share {
		t.Errorf("the prefix's floor is %g, want nearly half of what one client loses, %g", got, 1./share)
	}
}

// A flow allocates nothing for an acknowledgement.
func TestFlowAllocates(t *testing.T) {
	c := New(Options{Choose: (&policy{}).choose})
	f := c.flow(Choice{Controller: "cubic"}, quic.CongestionPath{RemoteAddr: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1)}, MaxDatagramSize: 1200})
	defer f.Closed()
	now, pn := time.Hour, int64(0)
	ack := []quic.CongestionPacket{{Bytes: 1200}, {Bytes: 1200}}
	e := &quic.CongestionEvent{HasRTT: true, LatestRTT: 20 * time.Millisecond, SmoothedRTT: 20 * time.Millisecond, MinRTT: 20 * time.Millisecond}
	n := testing.AllocsPerRun(2000, func() {
		for i := range ack {
			pn++
			ack[i].Number, ack[i].Sent = pn, now
			f.Sent(int64(i)*1200, ack[i])
		}
		now += 20 * time.Millisecond
		e.Now, e.PriorInFlight, e.Acked = now, 2400, ack
		f.Update(e)
	})
	if n > 0 {
		t.Errorf("%v allocations an acknowledgement", n)
	}
}
