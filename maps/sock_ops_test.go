package maps_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

// transfer makes a connection, moves n bytes over it, and waits until both ends are closed. It returns what the
// server's end looked like then.
func transfer(t testing.TB, listen, host string, n int64) (end tcpEnd) {
	t.Helper()
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(t.Context(), "tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() //nolint:errcheck // the test is over
	served := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			served <- err
			return
		}
		tcp := c.(*net.TCPConn)
		_, err = io.CopyN(tcp, zeros{}, n)
		err = errors.Join(err, tcp.CloseWrite())
		_, rerr := io.Copy(io.Discard, tcp) // until the client has everything
		served <- errors.Join(err, rerr, end.read(tcp), tcp.Close())
	}()
	c, err := net.Dial("tcp", net.JoinHostPort(host, fmt.Sprint(ln.Addr().(*net.TCPAddr).Port)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.Copy(io.Discard, c)
	if err := errors.Join(err, c.Close(), <-served); err != nil || got != n {
		t.Fatalf("%d of %d bytes: %v", got, n, err)
	}
	return end
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// tcpDelackMaxUs is TCP_DELACK_MAX_US, which kernels have from 6.15 on.
const tcpDelackMaxUs = 46

// tcpEnd is what a socket says of itself.
type tcpEnd struct {
	controller string
	rto        time.Duration
	window     uint32        // segments
	ackDelay   time.Duration // 0: the kernel does not say
}

func (e *tcpEnd) read(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var errs []error
	err = raw.Control(func(fd uintptr) {
		var err error
		e.controller, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		info, err2 := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if errs = append(errs, err, err2); err2 == nil {
			e.rto, e.window = time.Duration(info.Rto)*time.Microsecond, info.Snd_cwnd
		}
		us, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, tcpDelackMaxUs)
		if e.ackDelay = time.Duration(us) * time.Microsecond; !errors.Is(err, unix.ENOPROTOOPT) {
			errs = append(errs, err)
		}
	})
	return errors.Join(append(errs, err)...)
}

// Connections write what they learn under their far end's prefix: a /24, a /48, and the /24 of an
// IPv4 client of an IPv6 socket.
func TestPaths(t *testing.T) {
	k := mapstest.New(t)
	mapstest.ObserveTCP(t, k)

	const bytes = 4 << 20
	transfer(t, "127.0.0.1:0", "127.0.0.1", bytes)
	transfer(t, "[::1]:0", "::1", bytes)
	four := awaitPath(t, k, "127.0.0.1", 1)
	awaitPath(t, k, "::1", 1)
	if four.Sent < bytes/65536 || four.RTT == 0 || four.RTT > time.Second || four.MinRTT > four.RTT*8+time.Millisecond || time.Since(four.Updated) > time.Minute {
		t.Errorf("path %+v", four)
	}
	if four.Lost != 0 && four.Bursts == [8]uint32{} {
		t.Errorf("losses without bursts: %+v", four)
	}
	transfer(t, "[::]:0", "127.0.0.1", bytes) // a socket of both families
	awaitPath(t, k, "127.0.0.1", 2)
}

// awaitPath polls for an entry until it knows of so many connections and of delivery.
func awaitPath(t testing.TB, k *mapstest.Kernel, of string, connections uint64) (p maps.Path) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond) // sleep: a poll with a deadline; the kernel tells nobody
		p, err := k.Paths.Get(netip.MustParseAddr(of), maps.ProtocolTCP)
		switch {
		case errors.Is(err, maps.ErrNotFound):
		case err != nil:
			t.Fatal(err)
		case p.Connections >= connections && p.Delivered > 0:
			return p
		}
	}
	t.Fatalf("no entry of %s with %d connections: %+v", of, connections, p)
	return p
}

// BenchmarkSockOps measures the program on real connections of 64 KiB each, with 60,000 prefixes that have a
// profile. Budget: 1 µs a callback.
func BenchmarkSockOps(b *testing.B) {
	k := mapstest.New(b)
	prog := mapstest.ObserveTCP(b, k)
	if err := k.CC.PutProfile(maps.CCProfile{Name: "p", Controller: "cubic", InitialWindow: 32}); err != nil {
		b.Fatal(err)
	}
	rules := []maps.CCRule{{Prefix: netip.MustParsePrefix("127.0.0.0/24"), Profile: "p"}}
	for i := range 60000 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0})
		rules = append(rules, maps.CCRule{Prefix: netip.PrefixFrom(a, 24), Profile: "p"})
	}
	if err := k.CC.Replace(maps.OwnerFile, rules); err != nil {
		b.Fatal(err)
	}
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close() //nolint:errcheck // only a descriptor
	before, err := prog.Stats()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		transfer(b, "127.0.0.1:0", "127.0.0.1", 64<<10)
	}
	after, err := prog.Stats()
	if err != nil {
		b.Fatal(err)
	}
	runs := after.RunCount - before.RunCount
	b.ReportMetric(float64((after.Runtime-before.Runtime).Nanoseconds())/float64(runs), "ns/callback")
	b.ReportMetric(float64(runs)/float64(b.N), "callbacks/op")
}
