package steer

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"slices"

	"github.com/bermedge/berm/maps"
)

// Member is a backend's part in a set's table.
type Member struct {
	ID     uint16 // in the table of backends, on this host only
	Name   string // decides which rows it gets, so that all edges of a site agree
	Weight int
	Share  int  // of a canary: basis points of the rows, instead of what its weight gives; 0 = none
	Fit    bool // for rows: it lives and does not drain
}

// whole is all rows, in basis points.
const whole = 10_000

// Place is who gets a row: its owner, and the heir who would if there were no owner. 0 = nobody.
type Place struct{ Owner, Heir uint16 }

// contender is a member as rows see it.
type contender struct {
	Member
	seed uint64
}

// Assign gives each row its owner and its heir, by rendezvous hashing (Thaler, Ravishankar 1998) with
// weights: of all fit members the one whose hash with the row is best, and the second best. So a
// row moves only if its owner goes, or if one comes who is better: adding, losing, draining or
// weighing a member moves no row between two others, and who gets a row is who had it before its
// owner came. The result depends on names, weights and who is fit, and on nothing that came
// before: every edge comes to the same. If none is fit, all are: a broken probe must
// not stop the service.
func Assign(members []Member) []Place {
	regular, canaries := contenders(members)
	rows := make([]Place, maps.RowCount)
	even := !slices.ContainsFunc(regular, func(c contender) bool { return c.Weight != regular[0].Weight })
	for i := range rows {
		p := best(regular, uint64(i), even)
		for _, c := range slices.Backward(canaries) {
			if unit(c.seed, uint64(i)) < float64(c.Share)/whole {
				p = Place{Owner: c.ID, Heir: p.Owner}
			}
		}
		rows[i] = p
	}
	return rows
}

// contenders are those who are fit, in an order that is the same everywhere. Canaries have to have
// somebody to take rows from.
func contenders(members []Member) (regular, canaries []contender) {
	someFit := slices.ContainsFunc(members, func(m Member) bool { return m.Fit })
	sorted := slices.SortedFunc(slices.Values(members), func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	for _, m := range sorted {
		if someFit && !m.Fit {
			continue
		}
		sum := sha256.Sum256([]byte("berm row\x00" + m.Name))
		c := contender{m, binary.BigEndian.Uint64(sum[:8])}
		c.Weight = max(1, m.Weight)
		if m.Share > 0 {
			canaries = append(canaries, c)
		} else {
			regular = append(regular, c)
		}
	}
	if regular == nil {
		return canaries, nil
	}
	return regular, canaries
}

// best finds the two whose -ln(u)/weight is least. With even weights the larger hash says the same.
func best(contenders []contender, row uint64, even bool) (p Place) {
	first, second := math.Inf(1), math.Inf(1)
	for i := range contenders {
		c := &contenders[i]
		score := -float64(hash(c.seed, row) >> 11) // exact in a float
		if !even {
			score = -math.Log(unit(c.seed, row)) / float64(c.Weight)
		}
		switch {
		case score < first:
			p, first, second = Place{c.ID, p.Owner}, score, first
		case score < second:
			p.Heir, second = c.ID, score
		}
	}
	return p
}

// hash is that of a member and a row: SplitMix64's output function (Steele, Lea, Flood 2014).
func hash(seed, row uint64) uint64 {
	z := seed + (row+1)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// unit is the hash in (0, 1].
func unit(seed, row uint64) float64 { return float64(hash(seed, row)>>11+1) / (1 << 53) }

// Past is what is remembered of a set's rows when they change.
type Past struct {
	Self uint16                    // this edge; 0 = none
	May  func(backend uint16) bool // it may have flows: it exists, and its host is not gone
	// Settled is who owned a row before the burst of changes that it is in, and so has most of its
	// flows; 0 = it is in none.
	Settled func(row int) uint16
	Old     func(row int) bool // it moved so long ago that no flow is worth asking for
	// Server says whether a backend runs no Berm, and so gives no second chances: newcomers to its rows
	// are noted, and all other flows are the second's.
	Server func(backend uint16) bool
	Off    bool // second chances are
}

// Succeed makes the rows that follow old ones. Where the owner changes, the old one is the second
// from then on, and may have flows; in a burst of changes that is the owner before the burst,
// who has most of them. Where nobody may have any, the heir is second. Rows that have moved to a server
// keep the second that they then had until no flow is worth asking for.
func Succeed(old []maps.Row, places []Place, past Past) []maps.Row {
	rows := make([]maps.Row, len(places))
	for i, p := range places {
		rows[i] = past.succeed(old[i], p, i)
	}
	return rows
}

func (past *Past) succeed(old maps.Row, p Place, row int) maps.Row {
	heir := maps.Row{Owner: p.Owner, Second: p.Heir}
	if past.Off || p.Owner == 0 {
		return heir
	}
	if old.Newcomers && !past.Old(row) && old.Second != 0 && past.May(old.Second) {
		// Who is not noted began before the first move, wherever the row has been since.
		return maps.Row{Owner: p.Owner, Second: old.Second, Moved: true, Newcomers: true}
	}
	var before []uint16
	switch {
	case old.Owner == 0: // this table is new; those of others may not be
		heir.Moved = p.Owner == past.Self && p.Heir != 0
		return heir
	case old.Owner == p.Owner:
		if !old.Moved || past.Old(row) {
			return heir
		}
		before = []uint16{old.Second}
	case old.Moved:
		before = []uint16{past.Settled(row), old.Owner, old.Second}
	default:
		before = []uint16{old.Owner}
	}
	for _, b := range before {
		if b != 0 && b != p.Owner && past.May(b) {
			return maps.Row{Owner: p.Owner, Second: b, Moved: true, Newcomers: past.Server(p.Owner) && old.Owner != p.Owner}
		}
	}
	// Whom it was taken from is gone. Rows that this edge found moved when it came stay so.
	heir.Moved = old.Owner == p.Owner && p.Heir != 0 && !past.Server(p.Owner)
	return heir
}

// Plan is what a change of rows means.
type Plan struct {
	Moved    int            // rows that change their owner
	Least    int            // that any change to the new numbers of rows must move
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
	for _, g := range p.Backends {
		p.Least += max(0, g.After-g.Before)
	}
	delete(p.Backends, 0)
	return p
}
