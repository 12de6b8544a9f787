package bench

import (
	"fmt"
	"math/rand/v2"

	"github.com/bermedge/berm/maps"
)

// prefixCount is how many IPv4 prefixes the table holds; of IPv6 there are 499,000.
const prefixCount = 500_000

// lengths4 are the lengths of IPv4 prefixes per thousand, about those of geo databases: half are
// /24s, one in twenty is longer.
var lengths4 = []struct{ bits, share int }{
	{12, 1},
	{14, 3},
	{16, 20},
	{18, 20},
	{19, 30},
	{20, 60},
	{21, 70},
	{22, 130},
	{23, 110},
	{24, 506},
	{26, 15},
	{28, 20},
	{30, 10},
	{32, 5},
}

// fill makes the table: half a million prefixes of each family, in 250 countries and 1,000 records.
func fill(t *maps.PrefixTable) error {
	r := rand.New(rand.NewPCG(1, 2)) // the same table every time
	if err := fill4(t, r); err != nil {
		return err
	}
	return fill6(t, r)
}

func record(r *rand.Rand) maps.PrefixRecord {
	return maps.PrefixRecord{Country: maps.Country(1 + r.IntN(250)), ASN: 64496 + uint32(r.IntN(4))}
}

func length4(r *rand.Rand) int {
	n := r.IntN(1000)
	for _, l := range lengths4 {
		if n < l.share {
			return l.bits
		}
		n -= l.share
	}
	return 24
}

// fill4 spreads the prefixes evenly over the unicast addresses.
func fill4(t *maps.PrefixTable, r *rand.Rand) error {
	const first, end = uint64(1) << 24, uint64(224) << 24
	lengths := make([]int, prefixCount)
	free := end - first
	for i := range lengths {
		lengths[i] = length4(r)
		free -= 1 << (32 - lengths[i])
	}
	at, gap := first, free/prefixCount/6 // the rest of the free space goes into alignment
	for _, bits := range lengths {
		size := uint64(1) << (32 - bits)
		at = (at + size - 1) &^ (size - 1)
		if at+size > end {
			return fmt.Errorf("%d prefixes do not fit above %#x", prefixCount, first)
		}
		if err := t.Add4(uint32(at), uint32(at+size-1), record(r)); err != nil {
			return err
		}
		at += size + gap
	}
	return nil
}

// fill6 gives out one in six /32s of 2a00::/12's first sixteen /16s: most of them whole, a
// quarter as four /36s, the rest as eight /48s.
func fill6(t *maps.PrefixTable, r *rand.Rand) error {
	for n := range uint64(16 << 16) {
		if r.IntN(1000) >= 170 {
			continue
		}
		base := (0x2a00<<16 + n) << 32
		kind, parts, bits := r.IntN(100), 1, 32
		switch {
		case kind >= 85:
			parts, bits = 8, 48
		case kind >= 60:
			parts, bits = 4, 36
		}
		size := uint64(1) << (64 - bits)
		step := uint64(1) << 32 / uint64(parts)
		for i := range parts {
			at := base + uint64(i)*step + uint64(r.IntN(int(step/size)))*size
			if err := t.Add6(at, at+size-1, record(r)); err != nil {
				return err
			}
		}
	}
	return nil
}
