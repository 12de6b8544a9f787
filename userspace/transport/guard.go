package transport

import (
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// stallConn is a TCP connection whose peer has to take bytes: a write that makes no progress for
// the stall timeout fails. (net/http's WriteTimeout bounds a whole response, and so would cut
// large downloads.) Reading is net/http's, but for bodies: stallBody.
type stallConn struct {
	net.Conn
	stall time.Duration
	armed atomic.Int64 // when the deadline was last moved, in Unix nanoseconds; 0: by somebody else
}

// Write sends p. Moving a deadline costs a timer, so it is moved once in an eighth of its span.
func (c *stallConn) Write(p []byte) (int, error) {
	if now := time.Now(); now.UnixNano()-c.armed.Load() > int64(c.stall/8) {
		c.armed.Store(now.UnixNano())
		if err := c.Conn.SetWriteDeadline(now.Add(c.stall)); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(p)
}

// SetWriteDeadline lets crypto/tls bound its closing alert; the next Write sets ours again.
func (c *stallConn) SetWriteDeadline(t time.Time) error {
	c.armed.Store(0)
	return c.Conn.SetWriteDeadline(t)
}

// SetDeadline covers both directions.
func (c *stallConn) SetDeadline(t time.Time) error {
	c.armed.Store(0)
	return c.Conn.SetDeadline(t)
}

// stallListener wraps what it accepts.
type stallListener struct {
	net.Listener
	stall  time.Duration
	secure bool // TLS comes above: see corkConn
}

// Accept returns the next connection.
func (l stallListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	sc := &stallConn{Conn: c, stall: l.stall}
	if l.secure {
		return &corkConn{Conn: sc}, nil
	}
	return sc, nil
}

// Close closes the listener, which may be closed already: a unit that leaves does so first.
func (l stallListener) Close() error {
	if err := l.Listener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// stall cuts one read or write of a stream that takes longer than the stall timeout. A deadline
// left standing would not do: h2 resets a stream at its deadline also while the handler merely
// waits for the origin. And a stream may stall alone, by its window, while its connection lives.
type stall struct {
	after time.Duration
	cut   func() // makes the pending read or write fail

	mu    sync.Mutex
	timer *time.Timer
	over  bool // the handler has returned: nothing may touch the stream
}

func (s *stall) begin() {
	if s.timer == nil {
		s.timer = time.AfterFunc(s.after, s.fire)
		return
	}
	s.timer.Reset(s.after)
}

func (s *stall) end() { s.timer.Stop() }

func (s *stall) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.cut()
	}
}

// close is called when the handler has returned.
func (s *stall) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
}

// stallBody is a request body that has to arrive.
type stallBody struct {
	io.ReadCloser
	stall stall
}

func newStallBody(body io.ReadCloser, w http.ResponseWriter, after time.Duration) *stallBody {
	rc := http.NewResponseController(w)
	cut := func() { _ = rc.SetReadDeadline(time.Unix(1, 0)) } // a stream that is already gone: Read says so
	return &stallBody{ReadCloser: body, stall: stall{after: after, cut: cut}}
}

// Read reads what has arrived.
func (b *stallBody) Read(p []byte) (int, error) {
	b.stall.begin()
	defer b.stall.end()
	return b.ReadCloser.Read(p)
}

// stallWriter is the response of one stream of h2 or h3, whose client has to take bytes.
type stallWriter struct {
	http.ResponseWriter
	rc    *http.ResponseController
	stall stall
	raw   *atomic.Uint64 // bytes of heads before they are compressed
	begun bool           // the head was sent
}

func newStallWriter(w http.ResponseWriter, after time.Duration, raw *atomic.Uint64) *stallWriter {
	sw := &stallWriter{ResponseWriter: w, rc: http.NewResponseController(w), raw: raw}
	sw.stall = stall{after: after, cut: func() { _ = sw.rc.SetWriteDeadline(time.Unix(1, 0)) }}
	return sw
}

// WriteHeader sends the head, and counts what it would take uncompressed.
func (w *stallWriter) WriteHeader(status int) {
	if !w.begun {
		w.begun = status >= 200
		w.raw.Add(uint64(rawHead(status, w.Header())))
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write sends p.
func (w *stallWriter) Write(p []byte) (int, error) {
	if !w.begun {
		w.WriteHeader(http.StatusOK)
	}
	w.stall.begin()
	defer w.stall.end()
	return w.ResponseWriter.Write(p)
}

// Flush sends what is buffered.
func (w *stallWriter) Flush() {
	if !w.begun {
		w.WriteHeader(http.StatusOK)
	}
	w.stall.begin()
	defer w.stall.end()
	_ = w.rc.Flush() // the next Write reports what is wrong with the stream
}

// finish ends the guard. The last bytes leave after the handler: a deadline bounds that.
func (w *stallWriter) finish() {
	w.stall.close()
	_ = w.rc.SetWriteDeadline(time.Now().Add(w.stall.after))
}

// Unwrap lets http.ResponseController reach the stream.
func (w *stallWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// flood tells whether QUIC handshakes come faster than limit a second: then each new address has
// to show that it receives (Retry), which costs honest clients a round trip and spoofers all.
type flood struct {
	limit int64
	slot  atomic.Int64 // second << 32 | handshakes in it
}

func (f *flood) tooMany(now time.Time) bool {
	second := now.Unix()
	for {
		old := f.slot.Load()
		next := old + 1
		if old>>32 != second&0x7fffffff {
			next = second&0x7fffffff<<32 | 1
		}
		if f.slot.CompareAndSwap(old, next) {
			return next&0xffffffff > f.limit
		}
	}
}
