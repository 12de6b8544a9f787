package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// chunkFirst and chunkMost bound the pieces that a body is stored in. A known length up to chunkMost takes one
	// piece; an unknown one grows by doubling.
	chunkFirst = 8 << 10
	chunkMost  = 256 << 10
	// windowBytes is how far the origin may run ahead of the slowest reader of a body that is not kept.
	windowBytes = 256 << 10
	// chunkWindow is the size of its pieces.
	chunkWindow = 32 << 10
	// stallLimit is how long one reader may hold up the others of such a body by standing still.
	stallLimit = 30 * time.Second
	// lagLimit is how long, all in all, one that reads more slowly may make the others wait, where it can go on alone.
	lagLimit = 250 * time.Millisecond
)

var (
	errNobody  = errors.New("nobody reads the body any more")
	errTooSlow = errors.New("the client held up the others for more than " + stallLimit.String())
	errNoRoom  = errors.New("no memory left for the body")
	errAlone   = errors.New("the reader goes on alone")
)

// body is the bytes of an object. One fetch writes it while any number of readers follow; once whole it does not
// change. It is charged to the bank until its last holder (the store, the fetch, each reader) has released it.
type body struct {
	bank  *bank
	refs  atomic.Int64
	whole atomic.Bool // then the fields below may be read without mu

	mu      sync.Mutex
	wake    chan struct{} // closed when something changes; nil while nobody waits
	chunks  [][]byte
	base    int64 // offset of chunks[0]: above 0 only in a window
	size    int64 // bytes received
	total   int64 // bytes announced, -1 when unknown
	charged int64
	err     error // why it ended early
	window  bool  // not for keeping: what all readers have passed is forgotten
	readers map[*reader]struct{}
	gone    int64         // readers that hold the body, and that the writer waits for no more
	starves chan struct{} // of a window: a reader has all that has come
	// rest fetches what follows an offset, for a reader that goes on alone; nil where nobody can vouch that it is of
	// the same body.
	rest func(ctx context.Context, from int64) (io.ReadCloser, error)
	lag  time.Duration // the writer's: how long readers have waited for a slower one, since they were last close together
}

// newBody returns a body held once, by the fetch that fills it.
func newBody(b *bank, total int64) *body {
	body := &body{bank: b, total: total}
	body.refs.Store(1)
	return body
}

// hold adds n holders; the caller holds the body or the store's lock while it does.
func (b *body) hold(n int) { b.refs.Add(int64(n)) }

// Close lets go of the body; the last holder's frees its memory.
func (b *body) Close() {
	if b.refs.Add(-1) == 0 {
		b.mu.Lock()
		b.bank.release(b.charged)
		b.charged = 0
		b.mu.Unlock()
		return
	}
	if !b.whole.Load() {
		b.signal() // a writer may wait for this reader
	}
}

// signal wakes whoever waits.
func (b *body) signal() {
	b.mu.Lock()
	b.signalLocked()
	b.mu.Unlock()
}

func (b *body) signalLocked() {
	if b.wake != nil {
		close(b.wake)
		b.wake = nil
	}
}

// changed returns a channel that is closed at the next change. mu is held.
func (b *body) changed() <-chan struct{} {
	if b.wake == nil {
		b.wake = make(chan struct{})
	}
	return b.wake
}

// room returns memory for the next bytes and charges it; nil when all that was announced has come. Only the writer
// calls it. mu is not held while objects are evicted.
func (b *body) room() ([]byte, error) {
	b.mu.Lock()
	if n := len(b.chunks); n > 0 && len(b.chunks[n-1]) < cap(b.chunks[n-1]) {
		last := b.chunks[n-1]
		b.mu.Unlock()
		return last[len(last):cap(last)], nil
	}
	window := b.window
	b.mu.Unlock()
	want := int64(chunkMost)
	if window {
		want = chunkWindow
	}
	if b.total >= 0 {
		want = min(want, b.total-b.size)
	} else if b.size < want {
		want = max(b.size, chunkFirst)
	}
	if want <= 0 {
		return nil, nil
	}
	chunk := slices.Grow([]byte(nil), int(want)) // its capacity is what the allocator really takes
	if window {
		b.bank.force(int64(cap(chunk)))
	} else if !b.bank.charge(int64(cap(chunk))) {
		return nil, errNoRoom
	}
	b.mu.Lock()
	b.charged += int64(cap(chunk))
	b.chunks = append(b.chunks, chunk)
	b.mu.Unlock()
	return chunk[:cap(chunk)], nil
}

// commit says that n bytes have been written into what room returned.
func (b *body) commit(n int) {
	if n == 0 {
		return
	}
	b.mu.Lock()
	last := &b.chunks[len(b.chunks)-1]
	*last = (*last)[:len(*last)+n]
	b.size += int64(n)
	b.signalLocked()
	b.mu.Unlock()
}

// finish ends the body: whole when err is nil and as long as announced.
func (b *body) finish(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil && b.total >= 0 && b.size != b.total {
		err = fmt.Errorf("%w: %d bytes of %d", io.ErrUnexpectedEOF, b.size, b.total)
	}
	b.err, b.rest = err, nil
	if err == nil {
		b.total = b.size
		b.compact()
	}
	b.whole.Store(true)
	b.signalLocked()
	return err
}

// broken reports whether the fetch has ended before the body did.
func (b *body) broken() bool { return b.whole.Load() && b.err != nil }

// compact gives back the unused end of a body of unknown length, where it is worth a copy.
func (b *body) compact() {
	n := len(b.chunks)
	if n == 0 {
		return
	}
	last := b.chunks[n-1]
	if spare := cap(last) - len(last); spare < 1<<10 || spare < cap(last)/8 {
		return
	}
	exact := append([]byte(nil), last...)
	b.chunks[n-1] = exact // readers that hold the old piece keep it until they come back
	b.charged += int64(cap(exact)) - int64(cap(last))
	b.bank.release(int64(cap(last)) - int64(cap(exact)))
}

// discard turns the body into a window: nobody will keep it, so what its readers have passed is forgotten.
func (b *body) discard() {
	b.mu.Lock()
	b.window = true
	b.starves = make(chan struct{}, 1)
	b.trim()
	b.mu.Unlock()
}

// throttle waits, in a window, until the slowest reader is near enough; one that makes others wait goes on alone.
func (b *body) throttle(ctx context.Context) error {
	var stalled *time.Timer
	for {
		b.mu.Lock()
		apart := b.size - b.trim()
		if apart < windowBytes/2 {
			b.lag = 0
		}
		nobody := b.following() == 0
		made := b.makesWait()
		left := lagLimit - b.lag
		changed := b.changed()
		b.mu.Unlock()
		switch {
		case nobody:
			return errNobody
		case apart < windowBytes:
			return nil
		}
		if stalled == nil {
			stalled = time.NewTimer(stallLimit)
			defer stalled.Stop()
		}
		var lagged <-chan time.Time
		if made {
			lagged = time.After(left)
		}
		began := time.Now()
		select {
		case <-changed:
		case <-b.starves:
		case <-lagged:
			b.part()
			continue
		case <-stalled.C:
			b.dropSlowest()
			stalled.Reset(stallLimit)
		case <-ctx.Done():
			return ctx.Err()
		}
		if made {
			b.lag += time.Since(began)
		}
	}
}

// following returns how many follow the writer: holders, without itself and those that do no more. mu is held.
func (b *body) following() int64 { return b.refs.Load() - 1 - b.gone }

// makesWait reports whether a reader waits for one that could go on alone. mu is held.
func (b *body) makesWait() bool {
	if b.rest == nil || int64(len(b.readers)) < b.following() {
		return false
	}
	for r := range b.readers {
		if r.waits {
			return true
		}
	}
	return false
}

// part has the reader that is furthest behind go on alone.
func (b *body) part() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lag = 0
	if r := b.slowest(); r != nil && b.makesWait() && b.size-r.pos >= windowBytes {
		r.rest = b.rest
		b.leaveBehind(r)
	}
}

// leaveBehind has the writer wait for a reader no more. mu is held.
func (b *body) leaveBehind(r *reader) {
	delete(b.readers, r)
	r.gone = true
	b.gone++
	b.signalLocked()
}

// trim forgets the pieces of a window that every holder has read, and returns how far all have read. Holders that have
// not begun count as being at the beginning. mu is held.
func (b *body) trim() (low int64) {
	if !b.window || int64(len(b.readers)) < b.following() {
		return b.base
	}
	low = b.size
	for r := range b.readers {
		low = min(low, r.pos)
	}
	for len(b.chunks) > 1 && b.base+int64(len(b.chunks[0])) <= low {
		b.base += int64(len(b.chunks[0]))
		b.charged -= int64(cap(b.chunks[0]))
		b.bank.release(int64(cap(b.chunks[0])))
		b.chunks[0] = nil
		b.chunks = b.chunks[1:]
	}
	return low
}

// dropSlowest ends the reader that is furthest behind, if it is not the only one.
func (b *body) dropSlowest() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.readers) < 2 {
		return
	}
	b.leaveBehind(b.slowest())
}

// slowest returns the reader that is furthest behind. mu is held.
func (b *body) slowest() (slow *reader) {
	for r := range b.readers {
		if slow == nil || r.pos < slow.pos {
			slow = r
		}
	}
	return slow
}
