package load

import (
	"math/bits"
	"time"
)

// subBits gives 128 steps for every doubling: a recorded value is at most 0.8 % off.
const subBits = 7

// histogram counts durations in log-linear buckets. It is owned by one worker and merged
// at the end, so that recording needs no lock.
type histogram struct {
	counts [(64 - subBits + 1) << subBits]uint32
	n      uint64
	sum    time.Duration
	max    time.Duration
}

// bucket is v's place: linear below 2^(subBits+1), then 2^subBits steps a doubling.
func bucket(v uint64) int {
	shift := max(bits.Len64(v)-subBits-1, 0)
	return shift<<subBits + int(v>>shift)
}

// upper is the largest value that falls into bucket i.
func upper(i int) uint64 {
	if i < 2<<subBits {
		return uint64(i)
	}
	shift := i>>subBits - 1
	return (uint64(i-shift<<subBits)+1)<<shift - 1
}

func (h *histogram) add(d time.Duration) {
	d = max(d, 0)
	h.counts[bucket(uint64(d))]++
	h.n++
	h.sum += d
	h.max = max(h.max, d)
}

func (h *histogram) merge(o *histogram) {
	for i, c := range o.counts {
		h.counts[i] += c
	}
	h.n += o.n
	h.sum += o.sum
	h.max = max(h.max, o.max)
}

// quantile is the smallest bucket bound that a share q of the values does not exceed.
func (h *histogram) quantile(q float64) time.Duration {
	if h.n == 0 {
		return 0
	}
	want := uint64(q*float64(h.n) + 0.9999999)
	var seen uint64
	for i, c := range h.counts {
		seen += uint64(c)
		if seen >= max(want, 1) {
			return min(time.Duration(upper(i)), h.max)
		}
	}
	return h.max
}
