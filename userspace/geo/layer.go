package geo

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/bermedge/berm/maps"
)

// entry is a range of addresses and what one source of knowledge says about it. IPv4 addresses
// are numbers below 2^32; of IPv6 addresses it is the first half.
type entry struct {
	first, last uint64
	record      maps.PrefixRecord
	line        uint32 // of the file, or number of the override; for messages
	sets        uint8  // which settings the source has an opinion about
	six         bool
	tooFine     bool // below an IPv6 /64: cannot be told apart
}

const (
	setsCountry = 1 << iota
	setsACL
	setsRate
	setsNetwork
)

// layer is all entries of one source, by family. After flatten they ascend and do not overlap.
type layer struct{ four, six []entry }

func (l *layer) add(e entry) {
	if e.six {
		l.six = append(l.six, e)
		return
	}
	l.four = append(l.four, e)
}

// prefixEntry is the range of a prefix.
func prefixEntry(p netip.Prefix) (entry, error) {
	if a := p.Addr(); a.Is4In6() {
		if p.Bits() < 96 {
			return entry{}, fmt.Errorf("prefix %s: reaches beyond the IPv4-mapped addresses", p)
		}
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	if p != p.Masked() {
		return entry{}, fmt.Errorf("prefix %s: bits are set behind its length (perhaps %s is meant)", p, p.Masked())
	}
	a := p.Addr()
	if a.Is4() {
		b := a.As4()
		first := uint64(binary.BigEndian.Uint32(b[:]))
		return entry{first: first, last: first | (1<<(32-p.Bits()) - 1)}, nil
	}
	b := a.As16()
	first := binary.BigEndian.Uint64(b[:8])
	if p.Bits() > 64 {
		return entry{six: true, tooFine: true}, nil
	}
	return entry{first: first, last: first | (1<<(64-p.Bits()) - 1), six: true}, nil
}

// rangeEntry is the range from one address to another, both included.
func rangeEntry(from, to netip.Addr) (entry, error) {
	from, to = from.Unmap(), to.Unmap()
	if from.Is4() != to.Is4() || to.Less(from) {
		return entry{}, fmt.Errorf("%s to %s is not a range: want a first and a last address of one family", from, to)
	}
	if from.Is4() {
		f, t := from.As4(), to.As4()
		return entry{first: uint64(binary.BigEndian.Uint32(f[:])), last: uint64(binary.BigEndian.Uint32(t[:]))}, nil
	}
	f, t := from.As16(), to.As16()
	first, last := binary.BigEndian.Uint64(f[:8]), binary.BigEndian.Uint64(t[:8])
	// Only whole /64s can be told apart: a part at either end is left out.
	wholeFirst, wholeLast := binary.BigEndian.Uint64(f[8:]) == 0, binary.BigEndian.Uint64(t[8:]) == ^uint64(0)
	if (!wholeFirst || !wholeLast) && first == last || !wholeFirst && !wholeLast && last-first == 1 {
		return entry{six: true, tooFine: true}, nil
	}
	if !wholeFirst {
		first++
	}
	if !wholeLast {
		last--
	}
	return entry{first: first, last: last, six: true}, nil
}

// combine decides what holds where an entry lies within or above another.
type combine func(below, e entry) entry

// replace lets the entry on top decide everything.
func replace(_, e entry) entry { return e }

// inherit lets the entry on top decide what it sets, and leaves the rest.
func inherit(below, e entry) entry {
	if e.sets&setsCountry == 0 {
		e.record.Country = below.record.Country
	}
	if e.sets&setsACL == 0 {
		e.record.ACL = below.record.ACL
	}
	if e.sets&setsRate == 0 {
		e.record.RateClass = below.record.RateClass
	}
	if e.sets&setsNetwork == 0 {
		e.record.ASN = below.record.ASN
	}
	e.sets |= below.sets
	return e
}

// flatten turns entries that lie within each other into ascending ones that do not overlap:
// the innermost one decides. Entries that overlap in part, or contradict each other, are errors.
func flatten(entries []entry, c combine) ([]entry, error) {
	byStart := func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(b.last, a.last), cmp.Compare(a.line, b.line))
	}
	if !slices.IsSortedFunc(entries, byStart) {
		slices.SortFunc(entries, byStart)
	}
	f := flattener{out: make([]entry, 0, len(entries))}
	for _, e := range entries {
		f.closeBefore(e.first)
		if len(f.open) > 0 {
			around := f.open[len(f.open)-1]
			if err := fits(around, e); err != nil {
				return nil, err
			}
			if e.first > f.pos {
				f.emit(e.first - 1)
			}
			e = c(around, e)
		}
		f.open, f.pos = append(f.open, e), e.first
	}
	for len(f.open) > 0 {
		f.pop()
	}
	return f.out, nil
}

// fits says what is wrong with an entry that starts inside another.
func fits(around, e entry) error {
	if e.last > around.last {
		return fmt.Errorf("lines %d and %d overlap in part: ranges may only contain each other", around.line, e.line)
	}
	if e.first == around.first && e.last == around.last && e.record != around.record {
		return fmt.Errorf("lines %d and %d contradict each other about the same addresses: %s and %s",
			around.line, e.line, around.tells(), e.tells())
	}
	return nil
}

// tells is what a database's entry is about, for messages.
func (e entry) tells() string {
	if e.sets&setsNetwork != 0 {
		return fmt.Sprintf("AS%d", e.record.ASN)
	}
	return e.record.Country.String()
}

// flattener walks along the addresses.
type flattener struct {
	out  []entry
	open []entry // those around the position, outermost first
	pos  uint64  // up to here all is emitted
	end  bool    // even the last address is
}

// emit writes what the innermost open entry says up to an address.
func (f *flattener) emit(to uint64) {
	if f.end || to < f.pos {
		return
	}
	e := f.open[len(f.open)-1]
	e.first, e.last = f.pos, to
	f.out = append(f.out, e)
	f.pos, f.end = to+1, to == math.MaxUint64
}

func (f *flattener) pop() {
	f.emit(f.open[len(f.open)-1].last)
	f.open = f.open[:len(f.open)-1]
}

func (f *flattener) closeBefore(first uint64) {
	for len(f.open) > 0 && f.open[len(f.open)-1].last < first {
		f.pop()
	}
}

// overlay lays ascending entries over others.
func overlay(below, top []entry, c combine) []entry {
	if len(below) == 0 {
		return top
	}
	if len(top) == 0 {
		return below
	}
	out := make([]entry, 0, len(below)+2*len(top))
	i := 0
	for _, t := range top {
		for ; i < len(below) && below[i].last < t.first; i++ {
			out = append(out, below[i])
		}
		pos, done := t.first, false
		for !done && i < len(below) && below[i].first <= t.last {
			b := below[i]
			if b.first < pos { // the part in front of the top entry
				front := b
				front.last = pos - 1
				out = append(out, front)
				b.first = pos
			}
			if b.first > pos { // a hole below it
				hole := t
				hole.first, hole.last = pos, b.first-1
				out = append(out, hole)
			}
			both := c(b, t)
			both.first, both.last = b.first, min(b.last, t.last)
			out = append(out, both)
			done = both.last == t.last
			pos = both.last + 1
			if b.last > t.last {
				below[i].first = pos
				break
			}
			i++
		}
		if !done {
			t.first = pos
			out = append(out, t)
		}
	}
	return append(out, below[i:]...)
}
