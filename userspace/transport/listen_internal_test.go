package transport

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel's socket maps refuse multipath TCP, which is what Go listens with by default.
func TestListenersAreNotMultipath(t *testing.T) {
	l, err := listenTCP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	proto := 0
	if err := raw.Control(func(fd uintptr) { proto, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL) }); err != nil {
		t.Fatal(err)
	}
	if proto != unix.IPPROTO_TCP {
		t.Errorf("protocol %d", proto)
	}
}

func TestFlood(t *testing.T) {
	f := flood{limit: 3}
	now := time.Unix(1000, 0)
	for i, want := range []bool{false, false, false, true, true} {
		if got := f.tooMany(now); got != want {
			t.Errorf("handshake %d: %t", i+1, got)
		}
	}
	if f.tooMany(now.Add(time.Second)) {
		t.Error("the next second starts full")
	}
}

// slowPipe is a connection whose writes wait until they are let.
type slowPipe struct {
	net.Conn
	let  chan struct{}
	mu   sync.Mutex
	got  []byte
	n    int // writes
	fail error
}

func (p *slowPipe) Write(b []byte) (int, error) {
	<-p.let
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n++
	if p.fail != nil {
		return 0, p.fail
	}
	p.got = append(p.got, b...)
	return len(b), nil
}
func (p *slowPipe) SetWriteDeadline(time.Time) error { return nil }
func (p *slowPipe) Close() error                     { return nil }

// Many small writes become few, in order and whole; Close sends what is left.
func TestGather(t *testing.T) {
	p := &slowPipe{let: make(chan struct{})}
	g := newGatherConn(p, nil)
	var want []byte
	for i := range 1000 {
		b := []byte{byte(i), byte(i >> 8)}
		want = append(want, b...)
		if n, err := g.Write(b); n != 2 || err != nil {
			t.Fatal(n, err)
		}
	}
	close(p.let)
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(p.got, want) {
		t.Errorf("%d of %d bytes arrived", len(p.got), len(want))
	}
	if p.n > 4 {
		t.Errorf("%d writes", p.n)
	}
	if _, err := g.Write([]byte("late")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// What may wait is bounded, and an error of the connection reaches the next Write.
func TestGatherIsBounded(t *testing.T) {
	p := &slowPipe{let: make(chan struct{}), fail: errors.New("peer has gone")}
	g := newGatherConn(p, nil)
	wrote := make(chan error, 1)
	var taken atomic.Int64
	go func() {
		for {
			n, err := g.Write(make([]byte, 16<<10))
			if err != nil {
				wrote <- err
				return
			}
			taken.Add(int64(n))
		}
	}()
	last := int64(-1) // it blocks: nothing moves any more
	for deadline := time.Now().Add(10 * time.Second); ; {
		if n := taken.Load(); n == last && n >= gatherLimit {
			break
		} else {
			last = n
		}
		if time.Now().After(deadline) {
			t.Fatal("it takes more and more: ", last)
		}
		<-time.After(50 * time.Millisecond)
	}
	if last > 2*gatherRoom {
		t.Errorf("%d bytes wait", last)
	}
	close(p.let)
	if err := <-wrote; !errors.Is(err, p.fail) {
		t.Error(err)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
}

// What is written while a cork is held leaves in one write, and what is not, at once.
func TestCork(t *testing.T) {
	let := make(chan struct{})
	close(let)
	p := &slowPipe{let: let}
	c := &corkConn{Conn: p}
	write := func(s string) {
		t.Helper()
		if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	write("a")
	if p.n != 1 {
		t.Errorf("%d writes", p.n)
	}
	c.hold()
	write("b")
	write("c")
	if p.n != 1 {
		t.Errorf("%d writes while held", p.n)
	}
	if err := c.release(); err != nil || p.n != 2 || string(p.got) != "abc" {
		t.Errorf("%v, %d writes, %q", err, p.n, p.got)
	}
	c.hold()
	if err := c.release(); err != nil || p.n != 2 {
		t.Errorf("nothing held: %v, %d writes", err, p.n)
	}
	c.hold() // more than there is room for goes out in pieces
	write(strings.Repeat("x", gatherRoom-1))
	write("yy")
	if err := c.release(); err != nil || p.n != 4 || len(p.got) != 3+gatherRoom+1 {
		t.Errorf("%v, %d writes, %d bytes", err, p.n, len(p.got))
	}
	p.fail = errors.New("peer has gone")
	c.hold()
	_, _ = c.Write([]byte("late"))
	if err := c.release(); !errors.Is(err, p.fail) {
		t.Errorf("released: %v", err)
	}
}

// Clients whose handshake crosses with the end of a server are answered: nobody else would, before the next process.
func TestLateClients(t *testing.T) {
	cfg := Default()
	cfg.HTTP, cfg.HTTPS, cfg.Drain = []string{"127.0.0.1:0"}, nil, time.Hour
	s, err := Listen(cfg, Options{
		Log: slog.New(slog.DiscardHandler), Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
		Failed: func(err error) { t.Error(err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.lastCall = time.Minute
	at := s.Addresses()[0].Address
	ask := func(conn net.Conn) *http.Response {
		t.Helper()
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal("refused: ", err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	stands := dial()
	if ask(stands).Close {
		t.Fatal("the server ends already")
	}
	ctx, cancel := context.WithCancel(t.Context())
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_ = s.Drain(ctx) // cut short below
	}()
	for !ask(stands).Close {
	}
	if !ask(dial()).Close {
		t.Error("who came late was not told that the server ends")
	}
	cancel()
	<-drained
}
