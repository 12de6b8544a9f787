package cache

import (
	"hash/maphash"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
)

// A store has as many shards as it can give shardBytes each, a power of two of at most maxShards: many keep their locks
// apart, but the queues of one that holds only a few objects choose badly (2 points of hit ratio at 25 objects).
const (
	maxShards  = 64
	shardBytes = 4 << 20
)

// maxVariants is the most variants kept of one resource; the oldest leaves for a new one. It bounds what a response
// that varies by something unbounded (User-Agent) can take, and the length of a lookup.
const maxVariants = 64

// resource is all that is known of one key: its variants, newest first, and the fetches that requests may still join.
// It is in the shard's map while it has any. The shard's lock guards it.
type resource struct {
	key      string
	variants []*object
	flights  []*flight
}

// shard is a part of the store behind one lock.
type shard struct {
	mu        sync.Mutex
	resources map[string]*resource
	fifo      fifo
	_         [32]byte // shards do not share a cache line's lock
}

// store keeps objects by key and forgets them when the bank needs room.
type store struct {
	shards []shard
	seed   maphash.Seed
	turn   atomic.Uint64 // whose turn it is to give
	bank   bank
	stats  *counters
}

func newStore(limit int64, stats *counters) *store {
	n := 1
	for n < maxShards && int64(2*n)*shardBytes <= limit {
		n *= 2
	}
	s := &store{shards: make([]shard, n), seed: maphash.MakeSeed(), stats: stats}
	for i := range s.shards {
		s.shards[i].resources = map[string]*resource{}
	}
	s.bank.limit = limit
	s.bank.evict = s.evict
	return s
}

func (s *store) shard(key []byte) *shard {
	return &s.shards[maphash.Bytes(s.seed, key)&uint64(len(s.shards)-1)]
}

func (s *store) hash(key, varyKey string) uint64 {
	var h maphash.Hash
	h.SetSeed(s.seed)
	h.WriteString(key)
	h.WriteByte(0)
	h.WriteString(varyKey)
	return h.Sum64()
}

// miss says what a lookup lacked.
type miss uint8

const (
	found   miss = iota
	missURI      // nothing under that key
	missVary
)

// lookup returns the object for a request, held for the caller unless it is a mark. scratch is room for a Vary key.
func (s *store) lookup(key []byte, h http.Header, scratch []byte) (*object, miss) {
	sh := s.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	o, why := sh.resources[string(key)].match(h, scratch)
	if o == nil {
		return nil, why
	}
	if o.freq < maxFreq {
		o.freq++
	}
	if o.body != nil {
		o.body.hold(1)
	}
	return o, found
}

// match returns the newest variant that fits a request. r may be nil.
func (r *resource) match(h http.Header, scratch []byte) (*object, miss) {
	if r == nil || len(r.variants) == 0 {
		return nil, missURI
	}
	var names []string
	var key []byte
	for i, o := range r.variants {
		if i == 0 || !slices.Equal(names, o.vary) {
			names = o.vary
			key = appendVaryKey(scratch[:0], names, h)
		}
		if string(key) == o.varyKey {
			return o, found
		}
	}
	return nil, missVary
}

// resourceLocked returns the key's resource, making it. sh.mu is held.
func (sh *shard) resourceLocked(key string) *resource {
	r := sh.resources[key]
	if r == nil {
		r = &resource{key: key}
		sh.resources[key] = r
	}
	return r
}

// drop forgets a resource that has nothing left. sh.mu is held.
func (sh *shard) drop(r *resource) {
	if len(r.variants) == 0 && len(r.flights) == 0 && sh.resources[r.key] == r {
		delete(sh.resources, r.key)
	}
}

// put stores o, whose meta has been charged, in place of the variant with the same Vary key. It holds the body for
// the store. sh.mu is held. It returns what has to be let go once the lock is released.
func (s *store) put(sh *shard, r *resource, o *object) (gone []*object) {
	o.res, o.hash = r, s.hash(r.key, o.varyKey)
	o.weight = o.meta
	if o.body != nil {
		o.body.hold(1)
		o.weight += max(o.length(), 0)
	}
	for i, old := range r.variants {
		if old.varyKey == o.varyKey && slices.Equal(old.vary, o.vary) {
			o.freq, o.queue = old.freq, old.queue
			sh.fifo.of(old).replace(old, o)
			old.queue = queueNone
			variants := slices.Delete(slices.Clone(r.variants), i, i+1)
			r.variants = slices.Insert(variants, 0, o)
			return []*object{old}
		}
	}
	if len(r.variants) >= maxVariants {
		old := r.variants[len(r.variants)-1]
		s.unlink(sh, old)
		gone = []*object{old}
	}
	r.variants = slices.Insert(slices.Clone(r.variants), 0, o)
	sh.fifo.add(o)
	s.stats.objects.Add(1)
	return gone
}

// unlink takes an object out of its resource and its queue. sh.mu is held; let it go after the lock.
func (s *store) unlink(sh *shard, o *object) {
	if o.queue != queueNone {
		sh.fifo.remove(o)
	}
	i := slices.Index(o.res.variants, o)
	if i < 0 {
		return
	}
	o.res.variants = slices.Delete(slices.Clone(o.res.variants), i, i+1)
	sh.drop(o.res)
	s.stats.objects.Add(-1)
}

// letGo gives back what stored objects held. No lock is held.
func (s *store) letGo(gone []*object) {
	for _, o := range gone {
		s.bank.release(o.meta)
		if o.body != nil {
			o.body.Close()
		}
	}
}

// evict forgets one object, taking turns among the shards.
func (s *store) evict() bool {
	for range s.shards {
		sh := &s.shards[s.turn.Add(1)%uint64(len(s.shards))]
		sh.mu.Lock()
		o := sh.fifo.victim()
		if o != nil {
			s.unlink(sh, o)
		}
		sh.mu.Unlock()
		if o != nil {
			s.letGo([]*object{o})
			s.stats.evicted.Add(1)
			return true
		}
	}
	return false
}

// settle corrects an object's weight when its body is whole.
func (s *store) settle(o *object) {
	sh := s.shard([]byte(o.res.key))
	sh.mu.Lock()
	if o.queue != queueNone {
		sh.fifo.reweigh(o, o.meta+o.body.size)
	}
	sh.mu.Unlock()
}

// removeBody forgets every variant around a body. It reports whether there was one.
func (s *store) removeBody(r *resource, b *body) bool {
	sh := s.shard([]byte(r.key))
	sh.mu.Lock()
	var gone []*object
	for _, o := range r.variants {
		if o.body == b {
			gone = append(gone, o)
		}
	}
	for _, o := range gone {
		s.unlink(sh, o)
	}
	sh.mu.Unlock()
	s.letGo(gone)
	return len(gone) > 0
}

// purge forgets all variants of a key, and has the fetches under way for it not stored.
func (s *store) purge(key string) int {
	sh := s.shard([]byte(key))
	sh.mu.Lock()
	r := sh.resources[key]
	if r == nil {
		sh.mu.Unlock()
		return 0
	}
	gone, n := r.variants, 0
	for _, o := range gone {
		if !o.pass {
			n++
		}
		s.unlink(sh, o)
	}
	for _, f := range r.flights {
		f.doomed = true
	}
	r.flights = nil
	sh.drop(r)
	sh.mu.Unlock()
	s.letGo(gone)
	return n
}

// purgeIf forgets all resources whose key the filter takes.
func (s *store) purgeIf(take func(key string) bool) int {
	n := 0
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		var keys []string
		for key := range sh.resources {
			if take(key) {
				keys = append(keys, key)
			}
		}
		sh.mu.Unlock()
		for _, key := range keys {
			n += s.purge(key)
		}
	}
	return n
}
