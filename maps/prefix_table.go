package maps

import (
	"fmt"
	"math/bits"
	"net/netip"
	"unsafe"

	"github.com/bermedge/berm/bpf"
)

// PrefixRecord is what is known and decided about a source's prefix.
type PrefixRecord struct {
	Country   Country `json:"country"`
	ACL       Action  `json:"acl"`
	RateClass uint8   `json:"rate_class"` // number of the class; 0 = the VIP's
	ASN       uint32  `json:"asn"`        // number of the autonomous system; 0 = unknown
	Rule      uint16  `json:"rule"`       // number of the override that decided, from 1; 0 = a database
}

// What a table has room for.
const (
	PrefixRecords  = prefixRecords - 1  // different ones that say something
	PrefixNetworks = prefixNetworks - 1 // autonomous systems
)

const (
	prefix4Cells   = 1 << 19    // BERM_PREFIX4_CELLS
	prefix4Leaves  = 4 << 20    // BERM_PREFIX4_LEAVES cells of four
	prefix4Blocks  = 32767      // BERM_PREFIX4_BLOCKS
	prefix4Block   = 0x8000     // marks a leaf that names a block
	prefix6Root    = 65536      // BERM_PREFIX6_ROOT
	prefix6Nodes   = 3 << 19    // BERM_PREFIX6_NODES
	prefix6Leaves  = 4 << 20    // BERM_PREFIX6_LEAVES cells of four
	prefix6NodeBit = 0x80000000 // BERM_PREFIX6_NODE
	prefixRecords  = 32768      // BERM_RECORDS
	prefixNetworks = 16384      // BERM_NETWORKS
	blockSize      = 256        // leaves of a block
)

// PrefixTable is one copy of the prefix tables in Go memory: DIR-24-8 for IPv4 (Gupta, Lin,
// McKeown 1998) with runs of equal /24s stored once, Poptrie for IPv6 (Asai, Ohara 2015). It is
// filled in ascending order of addresses; equal blocks, nodes and leaves are stored once.
type PrefixTable struct {
	records  []PrefixRecord
	ids      map[PrefixRecord]uint16
	networks []uint32 // numbers of autonomous systems, by what records call them
	asns     map[uint32]uint16

	slash24   []uint16 // leaves by the first 24 bits, until they are packed
	cells4    []uint64
	leaves4   []uint16
	leaves4At consed[uint16]
	blocks    []uint16
	blockAt   consed[uint16]
	open      [blockSize]uint16 // of the /24 being filled
	openAt    uint32
	isOpen    bool
	next4     uint64 // the least address that may come next
	root      []uint64
	nodes     []bpf.XDPBermPrefix6Node
	leaves    []uint16
	nodeAt    consed[bpf.XDPBermPrefix6Node]
	leavesAt  consed[uint16]
	segments6 []segment6
	finished  bool
}

// segment6 is a range of /64s, both ends included.
type segment6 struct {
	first, last uint64
	id          uint16
}

// NewPrefixTable makes a table that knows nothing about any address.
func NewPrefixTable() *PrefixTable {
	return &PrefixTable{
		records:  []PrefixRecord{{}},
		ids:      map[PrefixRecord]uint16{{}: 0},
		networks: []uint32{0},
		asns:     map[uint32]uint16{0: 0},
		slash24:  make([]uint16, 1<<24),
		cells4:   make([]uint64, prefix4Cells),
		root:     make([]uint64, prefix6Root),
	}
}

// intern numbers a record.
func (t *PrefixTable) intern(r PrefixRecord) (uint16, error) {
	if id, ok := t.ids[r]; ok {
		return id, nil
	}
	if len(t.records) == prefixRecords {
		return 0, fmt.Errorf("prefix table: more than %d different records: %w (fewer overrides with settings of their own are needed)", prefixRecords, ErrFull)
	}
	if _, ok := t.asns[r.ASN]; !ok {
		if len(t.networks) == prefixNetworks {
			return 0, fmt.Errorf("prefix table: more than %d different networks: %w (leave the smallest out)", PrefixNetworks, ErrFull)
		}
		t.asns[r.ASN] = uint16(len(t.networks))
		t.networks = append(t.networks, r.ASN)
	}
	id := uint16(len(t.records))
	t.records = append(t.records, r)
	t.ids[r] = id
	return id, nil
}

// Add says what is known about the addresses from first to last, both included. Ranges of each
// family come in ascending order and do not overlap. IPv6 ranges consist of whole /64s.
func (t *PrefixTable) Add(first, last netip.Addr, r PrefixRecord) error {
	if first.Is4() != last.Is4() || last.Less(first) {
		return fmt.Errorf("prefix table: %s to %s is not a range", first, last)
	}
	if first.Is4() {
		return t.Add4(be32(first), be32(last), r)
	}
	firstHi, firstLo := halves(first)
	lastHi, lastLo := halves(last)
	if firstLo != 0 || lastLo != ^uint64(0) {
		return fmt.Errorf("prefix table: %s to %s: not whole /64s", first, last)
	}
	return t.Add6(firstHi, lastHi, r)
}

func be32(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// Add4 is Add for IPv4 addresses as numbers.
func (t *PrefixTable) Add4(first, last uint32, r PrefixRecord) error {
	if uint64(first) < t.next4 || last < first {
		return fmt.Errorf("prefix table: IPv4 range %#x to %#x is not above the one before", first, last)
	}
	t.next4 = uint64(last) + 1
	id, err := t.intern(r)
	if err != nil {
		return err
	}
	for a := uint64(first); a <= uint64(last); {
		slot, end := uint32(a>>8), a|0xff
		if a == end-0xff && end <= uint64(last) { // whole /24s
			if err := t.closeBlock(); err != nil {
				return err
			}
			stop := (uint64(last) + 1) >> 8
			fill(t.slash24[slot:stop], id)
			a = stop << 8
			continue
		}
		if !t.isOpen || t.openAt != slot {
			if err := t.closeBlock(); err != nil {
				return err
			}
			t.open, t.openAt, t.isOpen = [blockSize]uint16{}, slot, true
		}
		stop := min(end, uint64(last))
		fill(t.open[a&0xff:stop&0xff+1], id)
		a = stop + 1
	}
	return nil
}

func fill(leaves []uint16, id uint16) {
	if len(leaves) == 0 {
		return
	}
	leaves[0] = id
	for n := 1; n < len(leaves); n *= 2 {
		copy(leaves[n:], leaves[:n])
	}
}

// closeBlock stores the /24 that was being filled.
func (t *PrefixTable) closeBlock() error {
	if !t.isOpen {
		return nil
	}
	t.isOpen = false
	uniform := true
	for _, id := range t.open {
		uniform = uniform && id == t.open[0]
	}
	if uniform {
		t.slash24[t.openAt] = t.open[0]
		return nil
	}
	at, ok := t.blockAt.store(&t.blocks, t.open[:], prefix4Blocks*blockSize)
	if !ok {
		return fmt.Errorf("prefix table: more than %d different IPv4 /24s that are split further: %w (use a database with fewer prefixes longer than /24)",
			prefix4Blocks, ErrFull)
	}
	t.slash24[t.openAt] = prefix4Block | uint16(at/blockSize)
	return nil
}

// Add6 is Add for the first halves of IPv6 addresses as numbers.
func (t *PrefixTable) Add6(first, last uint64, r PrefixRecord) error {
	n := len(t.segments6)
	if last < first || n > 0 && first <= t.segments6[n-1].last {
		return fmt.Errorf("prefix table: IPv6 range %#x to %#x is not above the one before", first, last)
	}
	id, err := t.intern(r)
	if err != nil || id == 0 {
		return err // nothing known is what a gap says
	}
	if n > 0 && t.segments6[n-1].id == id && t.segments6[n-1].last+1 == first {
		t.segments6[n-1].last = last
		return nil
	}
	t.segments6 = append(t.segments6, segment6{first, last, id})
	return nil
}

// Finish builds what must be built at once; nothing can be added afterwards.
func (t *PrefixTable) Finish() error {
	if t.finished {
		return nil
	}
	if err := t.closeBlock(); err != nil {
		return err
	}
	if err := t.pack4(); err != nil {
		return err
	}
	if err := t.buildTrie(); err != nil {
		return err
	}
	t.slash24, t.segments6, t.finished = nil, nil, true
	return nil
}

// pack4 stores the leaves of each /19, equal neighbours once.
func (t *PrefixTable) pack4() error {
	for at := range t.cells4 {
		var run [32]uint16
		var ends uint64 // of runs, but the last
		n := 0
		for i, leaf := range t.slash24[at*32:][:32] {
			if i > 0 && leaf == run[n-1] {
				continue
			}
			if i > 0 {
				ends |= 1 << (i - 1)
			}
			run[n] = leaf
			n++
		}
		base, ok := t.leaves4At.store(&t.leaves4, run[:n], prefix4Leaves)
		if !ok {
			return fmt.Errorf("prefix table: IPv4 needs more than %d leaves: %w (use a database with fewer IPv4 prefixes)", prefix4Leaves, ErrFull)
		}
		t.cells4[at] = uint64(int(base)+n-1)<<32 | ends
	}
	return nil
}

// leaf4 is the number of the leaf of an address in its /19's cell.
func leaf4(cell uint64, a uint32) uint32 {
	return uint32(cell>>32) - uint32(bits.OnesCount32(uint32(cell)>>(a>>8&31)))
}

// PrefixSize says how full a table is.
type PrefixSize struct {
	Records  int `json:"records"`
	Networks int `json:"networks"` // autonomous systems that records name
	Leaves4  int `json:"leaves4"`
	Blocks4  int `json:"blocks4"`
	Nodes6   int `json:"nodes6"`
	Leaves6  int `json:"leaves6"`
}

// Size says how full the table is.
func (t *PrefixTable) Size() PrefixSize {
	return PrefixSize{len(t.records), len(t.networks) - 1, len(t.leaves4), len(t.blocks) / blockSize, len(t.nodes), len(t.leaves)}
}

// bytesOf views elements without padding as bytes.
func bytesOf[T any](s []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), len(s)*int(unsafe.Sizeof(*new(T))))
}
