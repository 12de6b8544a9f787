package cache

import (
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
		if errors.Is(err, io.EOF) {
			return sent, nil
		}
		if err != nil {
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
	dropped    bool
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
		case r.dropped:
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
		changed := b.changed()
		b.mu.Unlock()
		x.Flush()
		select {
		case <-changed:
		case <-x.R.Context().Done():
		}
		b.mu.Lock()
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
	b.signalLocked()
}
