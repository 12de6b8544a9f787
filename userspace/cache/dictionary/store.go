package dictionary

import (
	"container/list"
	"slices"
	"sync"
)

// Sizes that are charged beside content: entries in maps and lists, keys.
const (
	dictionaryCost = 2 << 10
	variantCost    = 512
	// maxPerOrigin bounds the dictionaries of one origin: each is looked at for every answer of it.
	maxPerOrigin = 64
)

// dict is a dictionary of one origin.
type dict struct {
	use
	origin  string // tenant, scheme and host
	sum     [32]byte
	content []byte
	source  string // of which answer it was made, while that is told by its head
}

// itemKey names what is kept: a dictionary, or with another content an answer encoded with it.
type itemKey struct {
	origin       string
	sum, content [32]byte
}

type item struct {
	key  itemKey
	size int64
	dict *dict
	data []byte // an encoded answer; nil: it is not worth it
}

// store keeps dictionaries and encoded answers, and forgets what was not used for longest.
type store struct {
	limit int64

	mu      sync.Mutex
	used    int64 // kept and reserved
	items   map[itemKey]*list.Element
	order   list.List // of *item, the last used first
	origins map[string][]*dict
	sources map[string]*dict

	stats *counters
}

func newStore(limit int64, stats *counters) *store {
	return &store{limit: limit, items: map[itemKey]*list.Element{}, origins: map[string][]*dict{}, sources: map[string]*dict{}, stats: stats}
}

// reserve takes memory, forgetting what is kept for it. It reports false where answers under way have it all.
func (s *store) reserve(n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reserveLocked(n)
}

func (s *store) reserveLocked(n int64) bool {
	for s.used+n > s.limit && s.order.Len() > 0 {
		s.forget(s.order.Back())
		s.stats.evicted.Add(1)
	}
	if s.used+n > s.limit {
		return false
	}
	s.used += n
	return true
}

func (s *store) release(n int64) {
	s.mu.Lock()
	s.used -= n
	s.mu.Unlock()
}

// forget drops an item. mu is held.
func (s *store) forget(e *list.Element) {
	it := s.order.Remove(e).(*item)
	delete(s.items, it.key)
	s.used -= it.size
	d := it.dict
	if it.key.content != ([32]byte{}) {
		return
	}
	if s.sources[d.source] == d {
		delete(s.sources, d.source)
	}
	s.origins[d.origin] = slices.DeleteFunc(s.origins[d.origin], func(o *dict) bool { return o == d })
	if len(s.origins[d.origin]) == 0 {
		delete(s.origins, d.origin)
	}
}

// find returns a dictionary of an origin, or nil.
func (s *store) find(origin string, sum [32]byte) *dict {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.items[itemKey{origin: origin, sum: sum}]
	if e == nil {
		return nil
	}
	s.order.MoveToFront(e)
	return e.Value.(*item).dict
}

// any reports whether some dictionary of the origin passes a test.
func (s *store) any(origin string, test func(*dict) bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.origins[origin], test)
}

// knows reports whether an answer that is told by source has become a dictionary with this use.
func (s *store) knows(source string, u use) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.sources[source]
	if d == nil || d.match.text != u.match.text || !slices.Equal(d.destinations, u.destinations) {
		return false
	}
	s.order.MoveToFront(s.items[itemKey{origin: d.origin, sum: d.sum}])
	return true
}

// learn keeps a dictionary, in place of one with the same content. It reports false where there is no room.
func (s *store) learn(d *dict) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := itemKey{origin: d.origin, sum: d.sum}
	if e := s.items[key]; e != nil {
		s.forget(e)
	}
	if of := s.origins[d.origin]; len(of) >= maxPerOrigin {
		s.forget(s.items[itemKey{origin: d.origin, sum: of[0].sum}])
		s.stats.evicted.Add(1)
	}
	it := &item{key: key, size: int64(cap(d.content)) + dictionaryCost + int64(2*len(d.source)), dict: d}
	if !s.reserveLocked(it.size) {
		return false
	}
	s.items[key] = s.order.PushFront(it)
	s.origins[d.origin] = append(s.origins[d.origin], d)
	if d.source != "" {
		s.sources[d.source] = d
	}
	return true
}

// variant returns a body as it was encoded with d, nil where that is not worth it, and whether it is known.
func (s *store) variant(d *dict, content [32]byte) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.items[itemKey{d.origin, d.sum, content}]
	if e == nil {
		return nil, false
	}
	s.order.MoveToFront(e)
	return e.Value.(*item).data, true
}

// keep keeps an encoded body while there is room for it.
func (s *store) keep(d *dict, content [32]byte, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	it := &item{key: itemKey{d.origin, d.sum, content}, size: int64(cap(data)) + variantCost, dict: d, data: data}
	if s.items[it.key] != nil || !s.reserveLocked(it.size) {
		return
	}
	s.items[it.key] = s.order.PushFront(it)
}
