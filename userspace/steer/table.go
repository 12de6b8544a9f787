package steer

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/bermedge/berm/maps"
)

// Member is a backend's part in a set's table.
type Member struct {
	ID     uint16 // in the table of backends, on this host only
	Name   string // decides which rows it gets, so that all edges of a site agree
	Weight int
	Alive  bool
}

// nobody marks a row that has no owner yet.
const nobody = -1

// Owners gives each row its owner, by Maglev's method (Eisenbud et al., NSDI '16, section 3.4) in
// two steps: first as if all members lived, then the rows of the dead are given to the living by
// the same method. So rows of the living never move when another dies or returns, and the result
// depends on nothing but names, weights and who lives: every edge comes to the same. If all are
// dead, all count as living: a broken probe must not stop the service.
func Owners(members []Member) []uint16 {
	sorted := slices.Clone(members)
	slices.SortFunc(sorted, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	rows := make([]int32, maps.RowCount)
	for i := range rows {
		rows[i] = nobody
	}
	populate(rows, sorted, func(Member) bool { return true })
	if slices.ContainsFunc(sorted, func(m Member) bool { return m.Alive }) {
		for i, owner := range rows {
			if owner != nobody && !sorted[owner].Alive {
				rows[i] = nobody
			}
		}
		populate(rows, sorted, func(m Member) bool { return m.Alive })
	}
	owners := make([]uint16, len(rows))
	for i, owner := range rows {
		if owner != nobody {
			owners[i] = sorted[owner].ID
		}
	}
	return owners
}

// preference is a member's order of rows: a permutation, since the number of rows is prime.
type preference struct {
	at, skip uint32
	index    int32
	weight   int
}

func newPreference(m Member, index int) preference {
	sum := sha256.Sum256([]byte("berm row preference\x00" + m.Name))
	const n = maps.RowCount
	return preference{
		at:     uint32(binary.BigEndian.Uint64(sum[:8]) % n),
		skip:   uint32(binary.BigEndian.Uint64(sum[8:16])%(n-1)) + 1,
		index:  int32(index),
		weight: max(1, m.Weight),
	}
}

// populate gives the rows that nobody has to those who may have them: in turns, each takes the row
// it likes best of those left, as many in a turn as its weight says.
func populate(rows []int32, members []Member, may func(Member) bool) {
	left := 0
	for _, owner := range rows {
		if owner == nobody {
			left++
		}
	}
	var turns []preference
	divisor := 0
	for i, m := range members {
		if may(m) {
			p := newPreference(m, i)
			turns = append(turns, p)
			divisor = gcd(divisor, p.weight)
		}
	}
	if len(turns) == 0 {
		return
	}
	for i := range turns {
		turns[i].weight /= divisor
	}
	for {
		for i := range turns {
			p := &turns[i]
			for range p.weight {
				if left == 0 {
					return
				}
				for rows[p.at] != nobody {
					p.at = (p.at + p.skip) % maps.RowCount
				}
				rows[p.at] = p.index
				left--
			}
		}
	}
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// Succeed makes the rows that follow old ones: where the owner changes, the old one becomes the
// previous owner; where it stays, so does the previous one. gone says which backends are no more.
func Succeed(old []maps.Row, owners []uint16, gone func(uint16) bool) []maps.Row {
	rows := make([]maps.Row, len(owners))
	for i, owner := range owners {
		previous := old[i].Previous
		if old[i].Owner != owner {
			previous = old[i].Owner
		}
		if previous == owner || gone(previous) {
			previous = 0
		}
		rows[i] = maps.Row{Owner: owner, Previous: previous}
	}
	return rows
}

// Plan is what a change of rows means.
type Plan struct {
	Moved    int            // rows that change their owner
	Backends map[uint16]Gap // by id
}

// Gap is what a change means for a backend.
type Gap struct{ Before, After int } // rows

// Compare says what it would mean to replace old rows.
func Compare(old, fresh []maps.Row) Plan {
	p := Plan{Backends: map[uint16]Gap{}}
	for i := range fresh {
		if old[i].Owner != fresh[i].Owner {
			p.Moved++
		}
		before := p.Backends[old[i].Owner]
		before.Before++
		p.Backends[old[i].Owner] = before
		after := p.Backends[fresh[i].Owner]
		after.After++
		p.Backends[fresh[i].Owner] = after
	}
	delete(p.Backends, 0)
	return p
}
