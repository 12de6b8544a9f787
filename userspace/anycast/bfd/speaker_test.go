package bfd

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"github.com/bermedge/berm/userspace/clock"
)

// Two ends on one host: each has a port and an address of its own.
var (
	loopback1 = netip.MustParseAddr("127.0.0.1")
	loopback2 = netip.MustParseAddr("127.0.0.2")
	quick     = Timing{20 * time.Millisecond, 10}
)

func mustSpeak(t *testing.T, n Neighbor, opts Options) *Speaker {
	t.Helper()
	opts.Clock, opts.Log = clock.System{}, slog.New(slog.DiscardHandler)
	sp, err := Start([]Neighbor{n}, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sp.Close() }) // some tests close it first
	return sp
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) { // poll
		if time.Now().After(deadline) {
			t.Fatal("timed out:", what)
		}
	}
}

func state(sp *Speaker) State { return sp.Status()[0].State }

func freePort(t *testing.T) int {
	t.Helper()
	c, err := net.ListenPacket("udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).Port
}

// A daemon that no longer works is down for its neighbour, and up again once it does.
func TestSpeakerHoldsBackWhileNotAlive(t *testing.T) {
	p1, p2 := freePort(t), freePort(t)
	var alive atomic.Bool
	alive.Store(true)
	var changes atomic.Int32
	a := mustSpeak(t, Neighbor{loopback2, loopback1, quick}, Options{
		Alive: alive.Load, Changed: func(netip.Addr, State, State, Diag) { changes.Add(1) }, port: p1, peerPort: p2,
	})
	b := mustSpeak(t, Neighbor{loopback1, loopback2, quick}, Options{Alive: func() bool { return true }, port: p2, peerPort: p1})
	await(t, "both up", func() bool { return state(a) == Up && state(b) == Up })
	await(t, "our interval", func() bool { return b.Status()[0].Detection == 200*time.Millisecond })
	if changes.Load() == 0 {
		t.Error("nobody was told")
	}
	alive.Store(false)
	await(t, "the neighbour noticed", func() bool { return state(b) == Down && b.Status()[0].Diag == DiagExpired })
	if a.Status()[0].Held == 0 {
		t.Error("nothing was held back")
	}
	alive.Store(true)
	// Another neighbour comes and goes; this session does not begin anew.
	sent, same, other := a.Status()[0].Sent, Neighbor{loopback2, loopback1, quick}, Neighbor{netip.MustParseAddr("127.0.0.9"), loopback1, quick}
	if err := a.Set([]Neighbor{other, same}); err != nil || len(a.Status()) != 2 {
		t.Error(err, a.Status())
	}
	if err := a.Set([]Neighbor{same}); err != nil || len(a.Status()) != 1 || sent < 2 || a.Status()[0].Sent < sent {
		t.Error(err, sent, a.Status())
	}
	await(t, "both up again", func() bool { return state(a) == Up && state(b) == Up })
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	await(t, "the neighbour was told", func() bool { return state(b) == Down && b.Status()[0].Diag == DiagNeighborDown })
}

// Only what comes from a neighbour, with the TTL of one, is looked at.
func TestSpeakerIgnores(t *testing.T) {
	port := freePort(t)
	sp := mustSpeak(t, Neighbor{loopback2, loopback1, quick}, Options{Alive: func() bool { return true }, port: port, peerPort: freePort(t)})
	send := func(from netip.Addr, hops int, b []byte) {
		t.Helper()
		c, err := net.DialUDP("udp4", &net.UDPAddr{IP: from.AsSlice()}, &net.UDPAddr{IP: loopback1.AsSlice(), Port: port})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := ipv4.NewConn(c).SetTTL(hops); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	hello := Packet{State: Down, Multiplier: 3, Mine: 5, DesiredTx: slow, RequiredRx: slow}
	other := hello
	other.Yours = 1 // nobody's: ours is random
	send(loopback2, 254, hello.Append(nil))
	send(netip.MustParseAddr("127.0.0.3"), ttl, hello.Append(nil))
	send(loopback2, ttl, []byte("not BFD"))
	send(loopback2, ttl, other.Append(nil))
	await(t, "all four ignored", func() bool { return sp.Ignored() == 4 })
	if st := sp.Status()[0]; st.State != Down || st.Received != 0 {
		t.Errorf("%+v", st)
	}
	send(loopback2, ttl, hello.Append(nil))
	await(t, "the real one is taken", func() bool { return state(sp) == Init && sp.Status()[0].Received == 1 })
}

func TestPortInUse(t *testing.T) {
	port := freePort(t)
	opts := Options{Alive: func() bool { return true }, port: port, peerPort: freePort(t)}
	mustSpeak(t, Neighbor{loopback2, loopback1, quick}, opts)
	opts.Clock = clock.System{}
	if _, err := Start([]Neighbor{{loopback2, loopback1, quick}}, opts); !errors.Is(err, ErrPortInUse) {
		t.Error(err)
	}
}
