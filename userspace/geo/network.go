package geo

import (
	"cmp"
	"slices"
	"sort"
	"strings"

	"github.com/bermedge/berm/maps"
)

// subject is what a database tells about addresses.
type subject string

const (
	countries subject = "country"
	networks  subject = "asn"
)

// column is what a heading calls it.
func (s subject) column() string {
	if s == networks {
		return "asn (or autonomous_system_number)"
	}
	return "country (or geoname_id)"
}

// lacks says what no entry of a database has that is of another kind.
func (s subject) lacks() (what, use string) {
	if s == networks {
		return "the number of an autonomous system", "an ASN database"
	}
	return "a country", "a country or city database"
}

// parseASN reads the number of an autonomous system, with or without AS before it. Empty and 0 are unknown.
func parseASN(s string) (uint32, error) {
	s = strings.TrimSpace(s)
	if s == "" || s == "-" {
		return 0, nil
	}
	return maps.ParseASN(s)
}

// number keeps the networks that the prefix table has room for, and makes the others unknown: the largest ones
// stay, by IPv4 addresses and IPv6 /48s. It returns how many networks there are.
func (l *layer) number(room, records int) int {
	size, seen := map[uint32]uint64{}, map[maps.PrefixRecord]bool{}
	for unit, family := range map[uint64][]entry{1: l.four, 1 << 16: l.six} {
		for _, e := range family {
			seen[e.record] = true
			if e.record.ASN != 0 {
				size[e.record.ASN] += (e.last-e.first)/unit + 1
			}
		}
	}
	if len(size) == 0 {
		return 0
	}
	order := make([]uint32, 0, len(size))
	for asn := range size {
		order = append(order, asn)
	}
	slices.SortFunc(order, func(a, b uint32) int { return cmp.Or(cmp.Compare(size[b], size[a]), cmp.Compare(a, b)) })
	rank := make(map[uint32]int, len(order))
	for i, asn := range order {
		rank[asn] = i
	}
	// The more networks stay, the more records there are.
	kept := sort.Search(min(room, len(order)), func(n int) bool { return distinct(seen, rank, n+1) > records })
	for _, family := range [][]entry{l.four, l.six} {
		for i := range family {
			if r := &family[i].record; r.ASN != 0 && rank[r.ASN] >= kept {
				r.ASN = 0
			}
		}
	}
	return len(order)
}

// distinct is how many records say something when the first networks stay.
func distinct(records map[maps.PrefixRecord]bool, rank map[uint32]int, kept int) int {
	n, without := 0, map[maps.PrefixRecord]bool{{}: true}
	for r := range records {
		if r.ASN != 0 && rank[r.ASN] < kept {
			n++
			continue
		}
		r.ASN = 0
		without[r] = true
	}
	return n + len(without) - 1
}
