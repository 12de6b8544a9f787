package transport

import (
	"errors"
	"net"
	"runtime"
	"sync"
	"time"
)

// gatherConn puts the many small writes of net/http's h2 server, one for each response, together
// into few: Write appends to a buffer, and one goroutine writes out what has come together. It
// yields before it does, so that other streams' handlers that are ready add theirs.
//
// Write thus succeeds before its bytes are sent; an error shows at a later Write. That is what a
// socket's own buffer does too.
type gatherConn struct {
	net.Conn

	mu     sync.Mutex
	moved  sync.Cond // buf, err or closed changed
	buf    *[]byte   // to be written; nil: nothing
	err    error     // of the writer: every later Write has it
	closed bool
	done   chan struct{} // the writer has ended
}

const (
	gatherLimit = 64 << 10        // bytes that may wait; then Write does
	gatherRoom  = 96 << 10        // of a buffer: the limit and one TLS record (RFC 8446, 5.2) more
	lastWrite   = 5 * time.Second // for what is left when the connection is closed
)

// gatherBufs are shared by all connections: one that has nothing to send holds none.
var gatherBufs = sync.Pool{New: func() any { b := make([]byte, 0, gatherRoom); return &b }}

func newGatherConn(c net.Conn) *gatherConn {
	g := &gatherConn{Conn: c, done: make(chan struct{})}
	g.moved.L = &g.mu
	go g.write()
	return g
}

// Write takes p; it waits while too much is still to be sent.
func (g *gatherConn) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.buf != nil && len(*g.buf) > gatherLimit && g.err == nil && !g.closed {
		g.moved.Wait()
	}
	switch {
	case g.err != nil:
		return 0, g.err
	case g.closed:
		return 0, net.ErrClosed
	}
	if g.buf == nil {
		g.buf = gatherBufs.Get().(*[]byte)
		g.moved.Broadcast()
	}
	*g.buf = append(*g.buf, p...)
	return len(p), nil
}

// write sends what comes together, until the connection is closed and empty, or broken.
func (g *gatherConn) write() {
	defer close(g.done)
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		for g.buf == nil && !g.closed {
			g.moved.Wait()
		}
		if g.buf == nil {
			return
		}
		g.mu.Unlock()
		runtime.Gosched()
		g.mu.Lock()
		out := g.buf
		g.buf = nil
		g.moved.Broadcast()
		g.mu.Unlock()
		_, err := g.Conn.Write(*out)
		if cap(*out) == gatherRoom { // one that had to grow is not the pool's
			*out = (*out)[:0]
			gatherBufs.Put(out)
		}
		g.mu.Lock()
		if err != nil {
			g.err, g.buf = err, nil
			g.moved.Broadcast()
			return
		}
	}
}

// Close sends what is left, for as long as that is worth waiting for, and closes.
func (g *gatherConn) Close() error {
	g.mu.Lock()
	first := !g.closed
	g.closed = true
	g.moved.Broadcast()
	g.mu.Unlock()
	if !first {
		return net.ErrClosed
	}
	err := g.SetWriteDeadline(time.Now().Add(lastWrite)) // fails the write in progress in the end
	<-g.done
	return errors.Join(g.Conn.Close(), ignoreClosed(err))
}

// ignoreClosed drops the complaint of a connection that the peer has already ended.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
