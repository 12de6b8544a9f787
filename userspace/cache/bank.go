package cache

import "sync/atomic"

// bank holds the cache's memory: whatever is kept or under way has been charged here first, so that the sum never
// passes the limit.
type bank struct {
	limit int64
	used  atomic.Int64
	// evict forgets one object and reports whether there was one. What it held comes back through release, now or
	// when its last reader is done.
	evict func() bool
}

// charge takes n bytes, forgetting objects to make room. It reports false when no more can be forgotten: then what
// is under way fills the memory.
func (b *bank) charge(n int64) bool {
	for {
		used := b.used.Load()
		switch {
		case used+n <= b.limit:
			if b.used.CompareAndSwap(used, used+n) {
				return true
			}
		case !b.evict():
			return false
		}
	}
}

// release gives n bytes back.
func (b *bank) release(n int64) { b.used.Add(-n) }

// force takes n bytes whether or not there is room: for the window of a body that streams through, which is as
// bounded as its connection's own buffers. Stored objects make room as far as they can.
func (b *bank) force(n int64) {
	if !b.charge(n) {
		b.used.Add(n)
	}
}
