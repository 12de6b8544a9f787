package transport

import (
	"errors"
	"net"
	"runtime"
	"sync"
	"time"
)

// gatherConn puts the many small writes of an h2 server, one for each frame, together into few:
// Write appends to a buffer, and one goroutine writes out what has come together. It yields before
// it does, so that other streams' handlers that are ready add theirs.
//
// It lies above TLS, so that what comes together is also one record and not one for each response;
// and so that the h2 server's goroutines, of which it starts two for each response, only copy: each
// had to grow its stack for TLS, which was 12 % of a small response's cost.
//
// Write thus succeeds before its bytes are sent; an error shows at a later Write. That is what a
// socket's own buffer does too.
type gatherConn struct {
	net.Conn
	cork *corkConn // below TLS, or nil

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

func newGatherConn(c net.Conn, cork *corkConn) *gatherConn {
	g := &gatherConn{Conn: c, cork: cork, done: make(chan struct{})}
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
		err := g.send(*out)
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

// send writes p as one write of the socket, in however many records.
func (g *gatherConn) send(p []byte) error {
	if g.cork == nil {
		_, err := g.Conn.Write(p)
		return err
	}
	g.cork.hold()
	_, err := g.Conn.Write(p)
	return errors.Join(err, g.cork.release())
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

// corkConn lies between TLS and the socket: while it is held, records come together into one write.
type corkConn struct {
	net.Conn

	mu   sync.Mutex
	buf  *[]byte // what is held back; nil: not held
	fail error   // of a write while it was held
}

// Write sends p, or keeps it until release.
func (c *corkConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.buf == nil {
		return c.Conn.Write(p)
	}
	if len(*c.buf)+len(p) > gatherRoom {
		c.flush()
	}
	*c.buf = append(*c.buf, p...)
	return len(p), c.fail
}

func (c *corkConn) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf = gatherBufs.Get().(*[]byte)
}

// release sends what was held back.
func (c *corkConn) release() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flush()
	if cap(*c.buf) == gatherRoom {
		gatherBufs.Put(c.buf)
	}
	c.buf = nil
	return c.fail
}

func (c *corkConn) flush() {
	if c.fail == nil && len(*c.buf) > 0 {
		_, c.fail = c.Conn.Write(*c.buf)
	}
	*c.buf = (*c.buf)[:0]
}
