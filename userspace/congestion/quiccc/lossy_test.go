//go:build quiccc

package quiccc

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
)

// lossy is a client's socket at the end of a path that loses a share of what comes, and delivers the rest later. A link of its
// own rate lies on it, with a queue that is as long as the path.
type lossy struct {
	*net.UDPConn
	came chan datagram
	buf  [2048]byte
}

type datagram struct {
	data []byte
	from *net.UDPAddr
	at   time.Time
}

func newLossy(u *net.UDPConn, share float64, delay time.Duration, bytesPerSecond float64) *lossy {
	l := &lossy{UDPConn: u, came: make(chan datagram, 1<<16)}
	go l.carry(rand.New(rand.NewPCG(1, 2)), share, delay, bytesPerSecond) //nolint:gosec // losses, the same ones in each run
	return l
}

// carry ends when the socket is closed.
func (l *lossy) carry(random *rand.Rand, share float64, delay time.Duration, rate float64) {
	defer close(l.came)
	var free time.Time // when the link has sent what it has
	for {
		n, from, err := l.ReadFromUDP(l.buf[:])
		if err != nil {
			return
		}
		now := time.Now()
		if free.Before(now) {
			free = now
		}
		if random.Float64() < share || free.Sub(now) > delay {
			continue
		}
		free = free.Add(time.Duration(float64(n) / rate * float64(time.Second)))
		l.came <- datagram{append([]byte(nil), l.buf[:n]...), from, free.Add(delay)}
	}
}

// ReadFrom delivers the next datagram when its time has come.
func (l *lossy) ReadFrom(p []byte) (int, net.Addr, error) {
	d, ok := <-l.came
	if !ok {
		return 0, nil, net.ErrClosed
	}
	time.Sleep(time.Until(d.at)) // sleep: it is the path's delay
	return copy(p, d.data), d.from, nil
}

// SetReadDeadline ends reading, which is all that a transport uses it for.
func (l *lossy) SetReadDeadline(time.Time) error { return l.Close() }

// over makes a connection to a server over a lossy path, fetches objects of these sizes, and returns how long that took.
func over(t testing.TB, share float64, to *net.UDPAddr, sizes ...int64) time.Duration {
	t.Helper()
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	tr := &quic.Transport{Conn: struct{ net.PacketConn }{newLossy(u, share, 40*time.Millisecond, 50e6/8)}}
	defer func() { _ = tr.Close(); _ = u.Close() }()
	conn := mustDial(t, tr, to)
	began := time.Now()
	for _, bytes := range sizes {
		mustGet(t, conn, bytes)
	}
	took := time.Since(began)
	_ = conn.CloseWithError(0, "")
	return took
}

// The losses of a path that are not congestion become the floor of its prefix: a BBR connection that comes after another one
// has it from its first packet on.
func TestFloorOfPath(t *testing.T) {
	client := netip.MustParseAddr("127.0.0.1")
	p := &policy{by: map[netip.Addr]Choice{client: {Profile: "lossy", Controller: "bbr"}}}
	c := New(Options{Choose: p.choose})
	to := serve(t, c)
	if f := c.Floor(client); f != 0 {
		t.Fatalf("floor %g of nothing", f)
	}
	sizes := []int64{1 << 20}
	for range 25 { // with little in flight
		sizes = append(sizes, 20_000)
	}
	// On a busy machine a connection's round trips may all be too long to tell.
	for deadline := time.Now().Add(time.Minute); c.Floor(client) == 0 && time.Now().Before(deadline); {
		over(t, 0.04, to, sizes...)
		for closed := time.Now().Add(time.Second); c.Floor(client) == 0 && time.Now().Before(closed); {
			time.Sleep(5 * time.Millisecond) // sleep: a poll with a deadline
		}
	}
	if f := c.Floor(client); f <= 0 || f > 0.04 {
		t.Errorf("floor %g of a path that loses 0.04", f)
	}
	f := c.flow(p.by[client], quic.CongestionPath{RemoteAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(client, 1)), MaxDatagramSize: 1200})
	defer f.Closed()
	if got := f.State().LossFloor; got != c.Floor(client) {
		t.Errorf("a connection begins with a floor of %g, not %g", got, c.Floor(client))
	}
}

// BenchmarkLossyPath fetches 4 MB over 50 Mbit/s and 40 ms, through real sockets.
func BenchmarkLossyPath(b *testing.B) {
	const bytes = 4 << 20
	client := netip.MustParseAddr("127.0.0.1")
	for _, share := range []float64{0, 0.02} {
		for _, name := range []string{"reno", "cubic", "bbr"} {
			b.Run(fmt.Sprintf("loss=%g/%s", share, name), func(b *testing.B) {
				p := &policy{by: map[netip.Addr]Choice{client: {Profile: "p", Controller: name}}}
				c := New(Options{Choose: p.choose})
				to := serve(b, c)
				over(b, share, to, bytes) // of which a floor is learned
				took := time.Duration(0)
				for b.Loop() {
					took += over(b, share, to, bytes)
				}
				b.ReportMetric(float64(b.N)*bytes*8/1e6/took.Seconds(), "Mbit/s")
				b.ReportMetric(100*c.Floor(client), "%floor")
			})
		}
	}
}
