package maps_test

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

// segment is the most that a client of this test takes in one, so that some KiB are many.
const segment = 536

// flow is a connection, of which the test has both ends.
type flow struct{ server, client *net.TCPConn }

func mustFlow(t *testing.T, ln net.Listener, from string) flow {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, segment) }), err)
	}}
	d.SetMultipathTCP(false)
	client, err := d.DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	f := flow{server.(*net.TCPConn), client.(*net.TCPConn)}
	t.Cleanup(func() { f.server.Close(); f.client.Close() }) //nolint:errcheck // where the test failed before
	return f
}

// await polls what the server's end says of itself until it is as it should be.
func (f flow) await(t *testing.T, what string, is func(*unix.TCPInfo) bool) *unix.TCPInfo {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		var info *unix.TCPInfo
		control(t, f.server, func(fd int) (err error) {
			info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			return err
		})
		if is(info) {
			return info
		}
		time.Sleep(time.Millisecond) // sleep: a poll with a deadline; the kernel tells nobody
	}
	t.Fatalf("a connection of %s never %s", f.client.LocalAddr(), what)
	return nil
}

func control(t *testing.T, c *net.TCPConn, do func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var did error
	if err := errors.Join(raw.Control(func(fd uintptr) { did = do(int(fd)) }), did); err != nil {
		t.Fatal(err)
	}
}

// end closes the connection, and returns when it has told what it had to.
func (f flow) end(t *testing.T) {
	t.Helper()
	_, err := io.Copy(io.Discard, f.server) // until the client has closed
	if err := errors.Join(err, f.server.CloseWrite()); err != nil {
		t.Fatal(err)
	}
	f.await(t, "ended", func(i *unix.TCPInfo) bool { return i.State == unix.BPF_TCP_CLOSE })
	if err := f.server.Close(); err != nil {
		t.Fatal(err)
	}
}

// carry sends so many full segments over connections of these clients. Deaf ones lose the first window.
func carry(t *testing.T, ln net.Listener, segments int64, from []string, deaf bool) {
	t.Helper()
	flows := make([]flow, len(from))
	for i := range from {
		flows[i] = mustFlow(t, ln, from[i])
		if deaf {
			flows[i].deafen(t, true)
		}
	}
	var both sync.WaitGroup
	for _, f := range flows {
		both.Go(func() {
			if _, err := io.CopyN(f.server, zeros{}, segments*segment); err != nil {
				t.Error(err)
			}
		})
		both.Go(func() {
			_, err := io.CopyN(io.Discard, f.client, segments*segment)
			if err := errors.Join(err, f.client.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	if deaf {
		for _, f := range flows {
			f.await(t, "sent again", func(i *unix.TCPInfo) bool { return i.Total_retrans > 0 })
			f.deafen(t, false)
		}
	}
	both.Wait()
	for _, f := range flows {
		f.end(t)
	}
}

// dawdle makes connections of one client that acknowledges as late as it may, and returns the longest round trip that
// any had.
func dawdle(t *testing.T, ln net.Listener, from []string) (most time.Duration) {
	t.Helper()
	flows := make([]flow, len(from))
	for i := range from {
		flows[i] = mustFlow(t, ln, from[i])
	}
	for range 6 { // the average takes in an eighth of each
		for _, f := range flows {
			control(t, f.client, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0) })
			if _, err := f.server.Write([]byte{0}); err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range flows {
			info := f.await(t, "acknowledged", func(i *unix.TCPInfo) bool { return i.Unacked == 0 })
			most = max(most, time.Duration(info.Rtt)*time.Microsecond)
			if _, err := io.ReadFull(f.client, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, f := range flows {
		if err := f.client.Close(); err != nil {
			t.Fatal(err)
		}
		f.end(t)
	}
	return most
}

// deafen makes a client's kernel forget what comes before TCP sees it, or no more.
func (f flow) deafen(t *testing.T, deaf bool) {
	t.Helper()
	nothing := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	control(t, f.client, func(fd int) error {
		if deaf {
			return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing})
		}
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	})
}

// hostility is a kernel half that sees this test's connections, and who makes them.
type hostility struct {
	k               *mapstest.Kernel
	ln              net.Listener
	honest, hostile []string
	start           time.Time
}

func mustHostility(t *testing.T) *hostility {
	t.Helper()
	h := &hostility{k: mapstest.New(t), hostile: slices.Repeat([]string{"127.0.0.66"}, 24), start: time.Now()}
	mapstest.ObserveTCP(t, h.k)
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() }) //nolint:errcheck // the test is over
	h.ln = ln
	for i := range 24 {
		h.honest = append(h.honest, fmt.Sprintf("127.0.0.%d", 100+i))
	}
	return h
}

func (h *hostility) known(t *testing.T) maps.Path {
	t.Helper()
	p, err := h.k.Paths.Get(netip.MustParseAddr("127.0.0.1"), maps.ProtocolTCP)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// turns is in how many seconds a client was heard at most: the first and the last may have been short.
func (h *hostility) turns() float64 { return math.Floor(time.Since(h.start).Seconds()) + 2 }

// One client of a prefix that opens as many connections as it likes, answers late and loses what it is sent, moves what is
// known of its prefix no further in a second than the bounds; the others still do.
func TestHostileTCPClient(t *testing.T) {
	h := mustHostility(t)
	var others []string // who were not heard in the same second
	for i := range h.honest {
		others = append(others, fmt.Sprintf("127.0.0.%d", 200+i))
	}
	carry(t, h.ln, 50, h.honest, false)
	h.start = time.Now()
	before := h.known(t)
	if before.Delivered < uint64(50*len(h.honest)) {
		t.Errorf("honest clients were cut: %+v", before)
	}
	late := dawdle(t, h.ln, h.hostile)
	if late < 4*before.RTT {
		t.Fatalf("the hostile client was no slower than %s, the others %s", late, before.RTT)
	}
	after, left := h.known(t), math.Pow(7./8, h.turns())
	if most := before.RTT + time.Duration(float64(late-before.RTT)*(1-left)) + time.Millisecond; after.RTT > most || after.RTT <= before.RTT {
		t.Errorf("round trip %s after %s of one client: it was %s, and may be %s", after.RTT, late, before.RTT, most)
	}
	if least := float64(before.RateKbps)*left - h.turns(); float64(after.RateKbps) < least {
		t.Errorf("rate %d, which was %d, and may be %.0f", after.RateKbps, before.RateKbps, least)
	}

	carry(t, h.ln, 250, h.hostile, true)
	packets := func(p maps.Path) float64 { return float64(p.Delivered + p.Lost) }
	after = h.known(t)
	if most := (h.turns()-1)*256 + max(256, packets(before)); packets(after)-packets(before) > most || after.Lost == before.Lost {
		t.Errorf("%.0f packets of one client, of which it may have %.0f: %+v, %+v", packets(after)-packets(before), most, before, after)
	}
	carry(t, h.ln, 50, others, false)
	if end := h.known(t); end.RTT > after.RTT/2 || packets(end)-packets(after) < float64(50*len(others)) || end.Loss() >= after.Loss() {
		t.Errorf("honest clients moved nothing: %+v, %+v", after, end)
	}
}

// One client that is nearer than its prefix, or pretends to be, makes it no faster than the bounds; many do.
func TestHostileFastTCPClient(t *testing.T) {
	h := mustHostility(t)
	before := maps.Path{
		Prefix: netip.MustParsePrefix("127.0.0.0/24"), Protocol: maps.ProtocolTCP,
		Sent: 1000, Delivered: 1000, RTT: 100 * time.Millisecond, MinRTT: 90 * time.Millisecond, RateKbps: 8000,
	}
	if err := h.k.Paths.Put(before); err != nil {
		t.Fatal(err)
	}
	carry(t, h.ln, 50, h.hostile, false)
	after, left := h.known(t), math.Pow(7./8, h.turns())
	slack := h.turns() // what is rounded, a microsecond or kbit/s each time
	least := func(d time.Duration) time.Duration {
		return time.Duration(float64(d)*left - slack*float64(time.Microsecond))
	}
	if after.RTT < least(before.RTT) || after.MinRTT < least(before.MinRTT) || float64(after.RateKbps) > float64(before.RateKbps)*math.Pow(9./8, h.turns())+slack {
		t.Errorf("one client made %+v of %+v in %.0f seconds", after, before, h.turns())
	}
	carry(t, h.ln, 50, h.honest, false)
	if end := h.known(t); end.RTT > before.RTT/2 || end.MinRTT > before.MinRTT/2 || end.RateKbps < 2*before.RateKbps {
		t.Errorf("many clients made %+v of %+v", end, after)
	}
}
