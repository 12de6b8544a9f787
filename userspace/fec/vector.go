package fec

import (
	"sync"

	"github.com/klauspost/reedsolomon"
)

const (
	// lane is how many bytes the code takes at once. What is left over would go byte by byte, and cost as much as all before it: so
	// symbols are padded.
	lane = 64
	// ways is how many symbols are added to a row of parity at once. Rows of a long block do not fit into the first cache, and
	// fetching and storing them would take longer than the arithmetic.
	ways = 8
)

// bits has for each factor the matrix of bits that multiplies by it, as the processor's GF2P8AFFINEQB takes it: byte 7-i, bit j is bit
// i of the factor times 2^j.
var bits = sync.OnceValue(func() *[256]uint64 {
	all := new([256]uint64)
	for c := range all {
		for j := range 8 {
			product := gf().mul(byte(c), 1<<j)
			for i := range 8 {
				all[c] |= uint64(product>>i&1) << (8*(7-i) + j)
			}
		}
	}
	return all
})

// mulAddPortable adds n bytes of up to ways symbols, a factor for each, to a row of parity. n is a multiple of lane.
func mulAddPortable(factors []byte, symbols *[ways][]byte, row []byte, n int) {
	var vector reedsolomon.LowLevel
	for i, c := range factors {
		vector.GalMulSliceXor(c, symbols[i][:n], row)
	}
}
