package maps

import (
	"cmp"
	"fmt"
	"slices"
)

// MaxVIPs is how many services fit, and entries for their addresses, of which each takes one.
const MaxVIPs = vips - 1

const (
	vips       = 4096  // BERM_VIPS; the first says that there is none
	vipBuckets = 4096  // BERM_VIP_BUCKETS
	vipSlots   = 16384 // BERM_VIP_SLOTS
	// At a quarter full even the last bucket finds room within a few tries; a bucket that has not
	// after this many holds two keys whose slots coincide at every displacement.
	maxDisplacement = 1 << 16
)

// vipIndex is a perfect hash by displacement (Belazzougui, Botelho, Dietzfelbinger 2009): the
// bucket of a key gives the displacement under which all keys have slots of their own.
type vipIndex struct {
	seeds [vipBuckets]uint64
	slots [vipSlots]uint64
}

func vipSlot(h, d uint64) uint64 { return (h>>12 + d*(h>>40|1)) & (vipSlots - 1) }

// buildIndex finds the displacement of each bucket, fullest bucket first.
func buildIndex(seed [2]uint64, ids map[serviceKey]uint32) (*vipIndex, error) {
	type entry struct {
		hash uint64
		id   uint32
	}
	buckets := make([][]entry, vipBuckets)
	for key, id := range ids {
		h := VIPHash(seed, key.addr, key.port, key.proto)
		buckets[h%vipBuckets] = append(buckets[h%vipBuckets], entry{h, id})
	}
	order := make([]int, 0, vipBuckets)
	for b := range buckets {
		if len(buckets[b]) > 0 {
			slices.SortFunc(buckets[b], func(x, y entry) int { return cmp.Compare(x.id, y.id) })
			order = append(order, b)
		}
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(len(buckets[b]), len(buckets[a])), cmp.Compare(a, b))
	})

	index := new(vipIndex)
	place := func(bucket []entry, d uint64) bool {
		for i, e := range bucket {
			if slot := vipSlot(e.hash, d); index.slots[slot] == 0 {
				index.slots[slot] = uint64(e.id)
				continue
			}
			for _, placed := range bucket[:i] {
				index.slots[vipSlot(placed.hash, d)] = 0
			}
			return false
		}
		return true
	}
	for _, b := range order {
		d := uint64(0)
		for !place(buckets[b], d) {
			if d++; d == maxDisplacement {
				return nil, fmt.Errorf("VIP index: no displacement fits bucket %d of %d services (two of them collide under this host's seed; berm kernel down and up draws another)",
					b, len(buckets[b]))
			}
		}
		index.seeds[b] = d
	}
	return index, nil
}
