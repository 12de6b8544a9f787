package pipeline

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
)

// Count is how often a stage had the last word with one action and reason.
type Count struct {
	Stage  string
	Action Action
	Reason Reason
	Shadow bool // counted, not enforced
	N      uint64
}

// Counts returns all counters that have moved, ordered by stage, action and reason.
func (p *Pipeline) Counts() []Count { return p.counts.list() }

type countKey struct {
	stage  string
	action Action
	reason Reason
	shadow bool
}

// counts is a set of counters that grows to (stages × actions × reasons), which is small and soon complete. Reading
// a counter's place therefore takes no lock.
type counts struct {
	places atomic.Pointer[map[countKey]*atomic.Uint64]
	mu     sync.Mutex // held to add a place
}

func (c *counts) add(k countKey) {
	if m := c.places.Load(); m != nil {
		if n := (*m)[k]; n != nil {
			n.Add(1)
			return
		}
	}
	c.grow(k).Add(1)
}

// grow adds a place by copying the map, so that readers never see it change.
func (c *counts) grow(k countKey) *atomic.Uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.places.Load()
	if old != nil && (*old)[k] != nil {
		return (*old)[k]
	}
	m := map[countKey]*atomic.Uint64{k: new(atomic.Uint64)}
	if old != nil {
		for k, n := range *old {
			m[k] = n
		}
	}
	c.places.Store(&m)
	return m[k]
}

func (c *counts) list() []Count {
	m := c.places.Load()
	if m == nil {
		return nil
	}
	var out []Count
	for k, n := range *m {
		out = append(out, Count{k.stage, k.action, k.reason, k.shadow, n.Load()})
	}
	slices.SortFunc(out, func(a, b Count) int {
		return cmp.Or(cmp.Compare(a.Stage, b.Stage), cmp.Compare(a.Action, b.Action), cmp.Compare(a.Reason, b.Reason))
	})
	return out
}
