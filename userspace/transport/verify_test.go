package transport_test

import (
	"net"
	"net/http"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/userspace/transport"
)

// While VerifyClients says so, each new QUIC client gets a Retry, and is served nevertheless.
func TestVerifyClients(t *testing.T) {
	var must atomic.Bool
	o := options(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	o.VerifyClients = must.Load
	s, err := transport.Listen(testConfig(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Drain(t.Context()) }()
	get := func() {
		t.Helper()
		resp, err := client(t, "h3").Get("https://" + where(t, s, "h3", true))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
	get()
	if n := s.Stats().Retries.Load(); n != 0 {
		t.Errorf("%d Retries before", n)
	}
	must.Store(true)
	get()
	n := s.Stats().Retries.Load() // a client's first flight may be two datagrams
	if n == 0 {
		t.Error("no Retry while clients have to show their address")
	}
	must.Store(false)
	get()
	if now := s.Stats().Retries.Load(); now != n {
		t.Errorf("%d Retries afterwards", now-n)
	}
}

// Connections accepted after BoundSegments announce no larger segments; so do those of listeners
// that are opened later.
func TestBoundSegments(t *testing.T) {
	cfg := testConfig()
	cfg.HTTP, cfg.HTTPS = []string{"127.0.0.1:0"}, nil
	s := mustListen(t, cfg, http.NotFoundHandler())
	segment := func(address string) int {
		t.Helper()
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		mss := 0
		var serr error
		err = raw.Control(func(fd uintptr) { mss, serr = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) })
		if err != nil || serr != nil {
			t.Fatal(err, serr)
		}
		return mss
	}
	address := where(t, s, "h1", false)
	if got := segment(address); got <= 1400 {
		t.Errorf("segments of %d bytes without a bound", got)
	}
	s.BoundSegments(1300, 1280)
	// Timestamps take 12 bytes of each.
	if got := segment(address); got != 1300 && got != 1300-12 {
		t.Errorf("segments of %d bytes, the bound is 1300", got)
	}
	cfg.HTTP = append(cfg.HTTP, "[::]:0")
	if err := s.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	for _, a := range s.Addresses() {
		if a.Address == address {
			continue
		}
		if got := segment(a.Address); got != 1280 && got != 1280-12 {
			t.Errorf("segments of %d bytes at %s, the bound is 1280", got, a.Address)
		}
	}
	s.BoundSegments(0, 0)
	if got := segment(address); got <= 1400 {
		t.Errorf("segments of %d bytes after the bound was lifted", got)
	}
}
