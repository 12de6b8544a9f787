package cache

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"sync"
	"testing"

	"github.com/bermedge/berm/userspace/clock"
	"github.com/bermedge/berm/userspace/pipeline"
)

// heap returns the live heap after a collection.
func heap() int64 {
	runtime.GC()
	runtime.GC() // the first one leaves what finalizers and pools still hold
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Ten times the capacity, in objects of all sizes and from many clients at once, some of which leave early: what is
// charged never passes the limit, and the heap agrees with what is charged.
func TestMemoryBoundHolds(t *testing.T) {
	for _, c := range []struct {
		name    string
		limit   Bytes
		size    func(n int) int
		perByte float64 // heap for each byte charged, at most
	}{
		{"small objects", 4 << 20, func(n int) int { return n % 700 }, 1.05},
		{"all sizes", 16 << 20, func(n int) int { return 1 << (n % 20) }, 1.05},
		{"large objects", 32 << 20, func(n int) int { return 2<<20 + n%4096 }, 1.05},
	} {
		if raceEnabled && c.limit < 32<<20 { // ten times slower: the same in small
			c.limit /= 4
		}
		t.Run(c.name, func(t *testing.T) { memoryBound(t, c.limit, c.size, c.perByte) })
	}
}

func memoryBound(t *testing.T, limit Bytes, size func(int) int, perByte float64) {
	data := pattern(4 << 20)
	f := fetcherFunc(func(n int, w *http.Response) { w.ContentLength = -1; setBody(w, data[:size(n)], n) })
	cfg := testConfig()
	cfg.Memory, cfg.MaxObject = limit, limit/4
	before := heap()
	cache, err := New(cfg, f, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := pipeline.New([]pipeline.Stage{pipeline.Identify{}, cache})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var sent, most int64
	const clients = 16
	next := 0
	for range clients {
		wg.Go(func() {
			for {
				mu.Lock()
				n := next
				next++
				done := sent > 10*int64(limit)
				most = max(most, cache.Stats().Bytes)
				mu.Unlock()
				if done {
					return
				}
				w := &discard{h: http.Header{}}
				if n%7 == 0 {
					w.limit = int64(size(n) / 2) // this client leaves half-way
				}
				q, _ := http.NewRequest("GET", fmt.Sprintf("http://example.com/object/%d", n), nil)
				for range 2 { // the second one is a hit: its head stays with the object
					func() {
						defer func() { _ = recover() }() // http.ErrAbortHandler, of those that leave
						p.ServeHTTP(w, q)
					}()
				}
				mu.Lock()
				// Heads cost as much as bodies here: count what filling means in charged bytes.
				sent += int64(size(n)) + objectCost
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	eventually(t, "all fetches are over", func() bool { return cache.Stats().InFlight == 0 })
	s := cache.Stats()
	used := heap() - before
	t.Logf("limit %s: charged at most %.2f, now %.2f; heap %.2f of the charged; %d objects kept of %d, %d evicted",
		limit, float64(most)/float64(limit), float64(s.Bytes)/float64(limit), float64(used)/float64(s.Bytes), s.Objects, next, s.Evicted)
	if most > int64(limit) || s.Bytes > int64(limit) {
		t.Errorf("charged %d at most, %d now, above the limit of %d", most, s.Bytes, limit)
	}
	// Clients that left half-way at the end took their objects with them: each may have been a sixteenth of the whole.
	if s.Bytes < int64(limit)*4/10 {
		t.Errorf("only %d bytes of %d are used after ten times as much", s.Bytes, limit)
	}
	if float64(used) > perByte*float64(s.Bytes)+1<<20 {
		t.Errorf("the heap grew by %d for %d charged bytes", used, s.Bytes)
	}
	cache.PurgeTenant(0)
	if s := cache.Stats(); s.Bytes != 0 || s.Objects != 0 {
		t.Errorf("after forgetting everything %d bytes and %d objects are left", s.Bytes, s.Objects)
	}
	runtime.KeepAlive(data)
	runtime.KeepAlive(cache)
}

// Readers that stand still pin what they read: it stays charged after its eviction, so that the bound still holds.
func TestPinnedBodiesStayCharged(t *testing.T) {
	const limit = 8 << 20
	data := pattern(1 << 20)
	f := fetcherFunc(func(n int, w *http.Response) { setBody(w, data, n) })
	cfg := testConfig()
	cfg.Memory, cfg.MaxObject = limit, 2<<20
	cache, err := New(cfg, f, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := pipeline.New([]pipeline.Stage{pipeline.Identify{}, cache})
	if err != nil {
		t.Fatal(err)
	}
	get := func(w http.ResponseWriter, n int) {
		q, _ := http.NewRequest("GET", fmt.Sprintf("http://example.com/object/%d", n), nil)
		p.ServeHTTP(w, q)
	}
	release := make(chan struct{})
	var wg sync.WaitGroup
	blocked := make(chan struct{}, 3)
	for n := range 3 {
		get(&discard{h: http.Header{}}, n)
		eventually(t, "it is whole", func() bool { return cache.Stats().InFlight == 0 })
		wg.Go(func() { get(&stuck{discard{h: http.Header{}}, blocked, release}, n) })
	}
	for range 3 {
		<-blocked
	}
	for n := 100; n < 200; n++ {
		get(&discard{h: http.Header{}}, n)
		if s := cache.Stats(); s.Bytes > limit {
			t.Fatalf("%d bytes are charged, above the limit", s.Bytes)
		}
	}
	eventually(t, "all fetches are over", func() bool { return cache.Stats().InFlight == 0 })
	cache.PurgeTenant(0)
	if s := cache.Stats(); s.Bytes != 3<<20 {
		t.Errorf("%d bytes are charged for three pinned bodies of 1 MiB", s.Bytes)
	}
	close(release)
	wg.Wait()
	if s := cache.Stats(); s.Bytes != 0 {
		t.Errorf("%d bytes are charged when the readers are gone", s.Bytes)
	}
}

// stuck is a client that stands still at its first byte.
type stuck struct {
	discard
	at, release chan struct{}
}

func (s *stuck) Write(p []byte) (int, error) {
	select {
	case s.at <- struct{}{}:
	default: // not its first byte
	}
	<-s.release
	return len(p), nil
}

// A cache full of fetches under way still serves: what finds no room streams through.
func TestFullOfFetches(t *testing.T) {
	const limit = 1 << 20
	data := pattern(400 << 10)
	f := fetcherFunc(func(n int, w *http.Response) { setBody(w, data, n) })
	cfg := testConfig()
	cfg.Memory, cfg.MaxObject = limit, limit/2
	cache, err := New(cfg, f, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := pipeline.New([]pipeline.Stage{pipeline.Identify{}, cache})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for n := range 64 {
		wg.Go(func() {
			w := &discard{h: http.Header{}}
			q, _ := http.NewRequest("GET", fmt.Sprintf("http://example.com/object/%d", n), nil)
			p.ServeHTTP(w, q)
			if w.n != int64(len(data)) {
				t.Errorf("object %d: %d bytes of %d", n, w.n, len(data))
			}
		})
	}
	wg.Wait()
	eventually(t, "all fetches are over", func() bool { return cache.Stats().InFlight == 0 })
	if s := cache.Stats(); s.Bytes > limit {
		t.Errorf("%d bytes are charged of %d", s.Bytes, limit)
	}
}

// The store under random use keeps its books: nothing is charged that is not there.
func TestStoreKeepsItsBooks(t *testing.T) {
	s := newStore(1<<20, &counters{})
	r := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		key := fmt.Sprint("key", r.IntN(500))
		switch r.IntN(4) {
		case 0:
			s.purge(key)
		case 1:
			if o, _ := s.lookup([]byte(key), nil, nil); o != nil {
				o.body.Close()
			}
		default:
			putObject(s, key, r.IntN(20000))
		}
	}
	var charged, weight, n int64
	for i := range s.shards {
		sh := &s.shards[i]
		for _, res := range sh.resources {
			for _, o := range res.variants {
				charged += o.meta + o.body.charged
				n++
			}
		}
		weight += sh.fifo.small.weight + sh.fifo.main.weight
		if got := int64(sh.fifo.small.n + sh.fifo.main.n); got != int64(len(sh.resources)) {
			t.Errorf("shard %d: %d queued, %d resources", i, got, len(sh.resources))
		}
	}
	if used := s.bank.used.Load(); used != charged || used > s.bank.limit || n != s.stats.objects.Load() {
		t.Errorf("%d charged, %d kept in %d objects (counted %d), limit %d", used, charged, n, s.stats.objects.Load(), s.bank.limit)
	}
	if weight > charged || weight < charged*8/10 {
		t.Errorf("the queues weigh %d for %d charged", weight, charged)
	}
}

// putObject stores an object of size bytes the way a flight does.
func putObject(s *store, key string, size int) bool {
	o := &object{status: 200}
	o.meta = o.cost(key)
	o.body = newBody(&s.bank, int64(size))
	defer o.body.Close()
	if !s.bank.charge(int64(size)) {
		return false
	}
	o.body.charged, o.body.size = int64(size), int64(size)
	o.body.whole.Store(true)
	if !s.bank.charge(o.meta) {
		return false
	}
	sh := s.shard([]byte(key))
	sh.mu.Lock()
	gone := s.put(sh, sh.resourceLocked(key), o)
	sh.mu.Unlock()
	s.letGo(gone)
	return true
}
