package cache

import (
	"sync"
	"sync/atomic"

	"github.com/bermedge/berm/userspace/pipeline"
)

// Stats is a snapshot of what the cache has done and holds. Requests are counted once each; reasons beside them are
// in Pipeline.Counts.
type Stats struct {
	Hits        uint64 // answered from memory without asking the origin, 304s and parts included
	StaleHits   uint64 // of those, while stale
	Misses      uint64 // led a fetch
	Collapsed   uint64 // were answered by the fetch of another request
	Revalidated uint64 // fetches that the origin answered with 304
	StaleErrors uint64 // answered with a stale object because the origin failed
	Failed      uint64 // got an error because the fetch failed
	Passed      uint64 // went to the origin side by side: unsafe methods, uncacheable objects

	Fetches    uint64 // sent for the cache, validations included
	Stored     uint64 // objects stored
	Evicted    uint64 // objects forgotten for room
	Purged     uint64 // objects forgotten on demand or through an unsafe request
	Incomplete uint64 // bodies that broke off and were forgotten
	HitBytes   uint64 // body bytes that hits were entitled to
	NotStored  map[pipeline.Reason]uint64

	Objects  int64 // kept now
	InFlight int64 // fetches under way
	Bytes    int64 // charged now, see Config.Memory
	Limit    int64 // of Bytes
}

// counters are the live form of Stats.
type counters struct {
	hits, staleHits, misses, collapsed, revalidated, staleErrors, failed, passed atomic.Uint64
	fetches, stored, evicted, purged, incomplete, hitBytes                       atomic.Uint64
	objects, inFlight                                                            atomic.Int64

	mu        sync.Mutex
	notStored map[pipeline.Reason]uint64
}

func (c *counters) reject(why pipeline.Reason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.notStored == nil {
		c.notStored = map[pipeline.Reason]uint64{}
	}
	c.notStored[why]++
}

// Stats returns a snapshot.
func (c *Cache) Stats() Stats {
	n := c.stats
	s := Stats{
		Hits: n.hits.Load(), StaleHits: n.staleHits.Load(), Misses: n.misses.Load(), Collapsed: n.collapsed.Load(),
		Revalidated: n.revalidated.Load(), StaleErrors: n.staleErrors.Load(), Failed: n.failed.Load(),
		Passed:  n.passed.Load(),
		Fetches: n.fetches.Load(), Stored: n.stored.Load(), Evicted: n.evicted.Load(), Purged: n.purged.Load(),
		Incomplete: n.incomplete.Load(), HitBytes: n.hitBytes.Load(), Objects: n.objects.Load(),
		InFlight: n.inFlight.Load(), Bytes: c.store.bank.used.Load(), Limit: c.store.bank.limit,
		NotStored: map[pipeline.Reason]uint64{},
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for why, v := range n.notStored {
		s.NotStored[why] = v
	}
	return s
}
