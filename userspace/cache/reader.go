package cache

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/bermedge/berm/userspace/pipeline"
)

// Send sends the body from its beginning. A whole body takes no lock and no memory.
func (b *body) Send(x *pipeline.Exchange) (sent int64, err error) {
	if !b.whole.Load() {
		return b.sendSpan(x, x.W, span{0, -1})
	}
	for _, c := range b.chunks {
		n, err := x.W.Write(c)
		sent += int64(n)
		if err != nil {
			return sent, fmt.Errorf("send to the client: %w", err)
		}
	}
	return sent, b.err
}

// sendSpan sends a part, to its end or to the body's when that is -1, following the writer.
func (b *body) sendSpan(x *pipeline.Exchange, w io.Writer, s span) (sent int64, err error) {
	r := &reader{body: b, pos: s.start, end: s.end}
	defer r.leave()
	for {
		p, err := r.next(x)
		switch {
		case errors.Is(err, io.EOF):
			return sent, nil
		case errors.Is(err, errAlone):
			n, err := r.alone(x, w)
			return sent + n, err
		case err != nil:
			return sent, err
		}
		n, err := w.Write(p)
		sent += int64(n)
		if err != nil {
			return sent, fmt.Errorf("send to the client: %w", err)
		}
	}
}

// reader is a place in a body. It is registered with a body that is being written, so that a window waits for it.
type reader struct {
	body       *body
	pos, end   int64
	registered bool
	waits      bool // for more than has come
	gone       bool // the writer waits for it no more: it goes on with rest, or ends where that is nil
	rest       func(ctx context.Context, from int64) (io.ReadCloser, error)
}

// next returns the bytes at the reader's place and moves it behind them. A window may forget them at once: the slice
// keeps them alive. It flushes the client before it waits, and returns io.EOF at the end.
func (r *reader) next(x *pipeline.Exchange) ([]byte, error) {
	b := r.body
	b.mu.Lock()
	defer b.mu.Unlock()
	if !r.registered {
		r.registered = true
		if b.readers == nil {
			b.readers = map[*reader]struct{}{}
		}
		b.readers[r] = struct{}{}
	}
	if b.window {
		b.trim()
		b.signalLocked()
	}
	for {
		switch {
		case r.gone && r.rest != nil:
			return nil, errAlone
		case r.gone:
			return nil, errTooSlow
		case r.end >= 0 && r.pos >= r.end:
			return nil, io.EOF
		case r.pos < b.size:
			p := b.at(r.pos)
			if r.end >= 0 && int64(len(p)) > r.end-r.pos {
				p = p[:r.end-r.pos]
			}
			r.pos += int64(len(p))
			return p, nil
		case b.whole.Load() && b.err != nil:
			return nil, fmt.Errorf("fetch: %w", b.err)
		case b.whole.Load():
			return nil, io.EOF
		}
		changed, starves := b.changed(), b.starves
		r.waits = true
		b.mu.Unlock()
		select {
		case starves <- struct{}{}: // the writer may wait for another reader
		default: // no window, or it will look anyway
		}
		x.Flush()
		select {
		case <-changed:
		case <-x.R.Context().Done():
		}
		b.mu.Lock()
		r.waits = false
		if err := x.R.Context().Err(); err != nil {
			return nil, fmt.Errorf("client: %w", err)
		}
	}
}

// at returns the bytes from offset pos to the end of their piece. mu is held.
func (b *body) at(pos int64) []byte {
	off := b.base
	for _, c := range b.chunks {
		if pos < off+int64(len(c)) {
			return c[pos-off:]
		}
		off += int64(len(c))
	}
	panic("cache: read behind the end of a body")
}

// leave unregisters the reader.
func (r *reader) leave() {
	b := r.body
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.readers, r)
	if r.gone {
		b.gone--
	}
	b.signalLocked()
}

// alone fetches what is left, and sends it.
func (r *reader) alone(x *pipeline.Exchange, w io.Writer) (sent int64, err error) {
	src, err := r.rest(x.R.Context(), r.pos)
	if err != nil {
		return 0, fmt.Errorf("fetch the rest for a slow client: %w", err)
	}
	defer src.Close() // nothing was written to it
	from := io.Reader(src)
	if r.end >= 0 {
		from = io.LimitReader(src, r.end-r.pos)
	}
	buf := make([]byte, chunkWindow)
	for {
		n, rerr := from.Read(buf)
		m, werr := w.Write(buf[:n])
		sent += int64(m)
		switch {
		case werr != nil:
			return sent, fmt.Errorf("send to the client: %w", werr)
		case errors.Is(rerr, io.EOF):
			return sent, nil
		case rerr != nil:
			return sent, fmt.Errorf("read from the origin: %w", rerr)
		case n < len(buf):
			x.Flush()
		}
	}
}
