package maps

import (
	"bytes"
	"hash/maphash"
)

// consed stores runs of elements in a growing array, equal runs once. It is an open-addressed hash
// table of where each run starts, since a Go map took much of the time that a database has from
// file to effect: a trie of 500,000 prefixes can have 1.4 million nodes.
type consed[T any] struct {
	seed  maphash.Seed
	slots []place // a power of two
	used  int
}

// place is where a run starts; length 0 is a free slot.
type place struct {
	hash       uint64
	at, length uint32
}

// store returns where a run starts in all, which grows when the run is new, up to a limit.
func (c *consed[T]) store(all *[]T, run []T, limit int) (at uint32, ok bool) {
	if len(run) == 0 {
		return 0, true
	}
	if c.used*4 >= len(c.slots)*3 {
		c.grow()
	}
	raw := bytesOf(run)
	hash := maphash.Bytes(c.seed, raw)
	i := c.free(hash, func(p place) bool {
		return p.hash == hash && int(p.length) == len(run) && bytes.Equal(bytesOf((*all)[p.at:][:p.length]), raw)
	})
	if c.slots[i].length != 0 {
		return c.slots[i].at, true
	}
	if len(*all)+len(run) > limit {
		return 0, false
	}
	at = uint32(len(*all))
	c.slots[i] = place{hash, at, uint32(len(run))}
	c.used++
	*all = append(*all, run...)
	return at, true
}

// free finds the slot that fits, or the free one where it would be.
func (c *consed[T]) free(hash uint64, fits func(place) bool) int {
	mask := len(c.slots) - 1
	for i := int(hash) & mask; ; i = (i + 1) & mask {
		if c.slots[i].length == 0 || fits(c.slots[i]) {
			return i
		}
	}
}

func (c *consed[T]) grow() {
	old := c.slots
	if old == nil {
		c.seed = maphash.MakeSeed()
	}
	c.slots = make([]place, max(1024, 4*len(old)))
	for _, p := range old {
		if p.length != 0 {
			c.slots[c.free(p.hash, func(place) bool { return false })] = p
		}
	}
}
