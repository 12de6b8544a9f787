package fec

import (
	"fmt"
	"slices"
)

// Bursts are the classes of loss bursts that are counted, as in the kernel half's paths: 1, 2, 3-4, 5-8 … 65 and more.
const Bursts = 8

// Counts is what a decoder has seen. Lost and Bursts are of the wire, before repair, and are known of a block only when
// it is forgotten.
type Counts struct {
	Received   uint64         `json:"received"`   // packets, with and without parity
	Delivered  uint64         `json:"delivered"`  // packets handed on
	Repaired   uint64         `json:"repaired"`   // of these, rebuilt
	Residual   uint64         `json:"residual"`   // packets that no repair brought back
	Lost       uint64         `json:"lost"`       // symbols that did not arrive
	Expected   uint64         `json:"expected"`   // symbols that should have
	Duplicates uint64         `json:"duplicates"` // that were there already, or of a block that is forgotten
	Refused    uint64         `json:"refused"`    // whose ID cannot be, or contradicts others
	Bursts     [Bursts]uint64 `json:"bursts"`     // of lost symbols, by length
}

// Decoder rebuilds packets. It is not for concurrent use. It remembers a bounded number of blocks, the newest to arrive,
// and of each at most k symbols: window × 255 × maxADU bytes at the very worst, and what is in use in practice.
type Decoder struct {
	maxADU  int
	deliver func(adu []byte, repaired bool)
	codes   codes
	blocks  map[uint32]*block
	order   []*block // oldest first
	window  int
	past    [pastBlocks]uint32 // numbers of blocks that are forgotten, plus one; a ring
	pasts   int
	spare   [][]byte // buffers for symbols
	idle    []*block
	shards  [][]byte // scratch
	counts  Counts
}

// pastBlocks is how many forgotten blocks are known for such: what comes late of one was handed on before or counted as
// lost, and would else push out a block that still fills.
const pastBlocks = 64

// block is what has arrived of one. Symbols are kept until all k are known.
type block struct {
	sbn     uint32
	k       int
	seen    [MaxSymbols]bool // symbols that arrived
	have    int              // different ones
	done    bool             // every packet has been handed on; symbols are gone
	repair  int              // symbols of parity that were sent, as far as known
	longest int              // of symbols, by parity: all of it has the block's size
	later   int              // symbols of later blocks that arrived
	asked   bool             // for more parity
	symbols [MaxSymbols][]byte
}

// NewDecoder makes a decoder that remembers window blocks, for packets of up to maxADU bytes. It gives each packet to
// deliver, which must not keep it: those that arrive at once, and those that it rebuilds when it can.
func NewDecoder(window, maxADU int, deliver func(adu []byte, repaired bool)) (*Decoder, error) {
	if window < 1 {
		return nil, fmt.Errorf("window of %d blocks: want at least 1", window)
	}
	if maxADU < 1 || maxADU > 1<<16-1 {
		return nil, fmt.Errorf("packets of up to %d bytes: want 1 to 65535", maxADU)
	}
	return &Decoder{
		maxADU: maxADU, deliver: deliver, window: window, blocks: map[uint32]*block{}, shards: make([][]byte, 0, MaxSymbols),
	}, nil
}

// Counts returns what was counted until now.
func (d *Decoder) Counts() Counts { return d.counts }

// Source takes a packet with a trailer.
func (d *Decoder) Source(pkt []byte) error {
	adu, id, err := parseSource(pkt)
	if err == nil && len(adu) > d.maxADU {
		err = fmt.Errorf("source packet of %d bytes, with room for %d: %w", len(adu), d.maxADU, ErrTooLong)
	}
	b, fresh, err := d.arrive(id, err)
	if err != nil || !fresh {
		return err
	}
	if len(adu) > 0 { // else it fills up a block that was closed
		d.hand(adu, false)
	}
	if !b.done {
		b.symbols[id.esi] = putSymbol(d.buffer(), adu)
	}
	return d.rebuild(b)
}

// Repair takes a packet of parity.
func (d *Decoder) Repair(pkt []byte) error {
	parity, id, err := parseRepair(pkt)
	if err == nil && len(parity) > d.maxADU+headLen {
		err = fmt.Errorf("repair packet with %d bytes of parity, with room for %d: %w", len(parity), d.maxADU+headLen, ErrTooLong)
	}
	if err == nil {
		// All parity of a block is as long as its longest symbol.
		if b := d.blocks[id.sbn]; b != nil && b.longest > 0 && b.longest != len(parity) {
			err = fmt.Errorf("block %d: parity of %d bytes after one of %d: %w", id.sbn, len(parity), b.longest, ErrConflict)
		}
	}
	b, fresh, err := d.arrive(id, err)
	if err != nil || !fresh {
		return err
	}
	b.repair = max(b.repair, id.esi-id.k+1)
	b.longest = len(parity)
	if !b.done {
		b.symbols[id.esi] = append(d.buffer(), parity...)
	}
	return d.rebuild(b)
}

// arrive finds the block of a packet, and says whether the symbol is new to it.
func (d *Decoder) arrive(id payloadID, err error) (b *block, fresh bool, _ error) {
	if err == nil {
		if b = d.blocks[id.sbn]; b == nil {
			if slices.Contains(d.past[:], id.sbn+1) {
				d.counts.Duplicates++
				return nil, false, nil
			}
			b = d.open(id)
		} else if b.k != id.k {
			err = fmt.Errorf("block %d of %d packets, earlier of %d: %w", id.sbn, id.k, b.k, ErrConflict)
		}
	}
	if err != nil {
		d.counts.Refused++
		return nil, false, err
	}
	if b.seen[id.esi] {
		d.counts.Duplicates++
		return b, false, nil
	}
	d.counts.Received++
	for _, x := range d.order {
		if x == b {
			break
		}
		x.later++
	}
	b.seen[id.esi] = true
	b.have++
	if b.done && id.esi < b.k { // it was rebuilt already
		return b, false, nil
	}
	return b, true, nil
}

func (d *Decoder) open(id payloadID) *block {
	if len(d.order) >= d.window {
		d.forget(d.order[0])
		d.order = slices.Delete(d.order, 0, 1)
	}
	b := new(block)
	if n := len(d.idle); n > 0 {
		b, d.idle = d.idle[n-1], d.idle[:n-1]
	}
	*b = block{sbn: id.sbn, k: id.k}
	d.blocks[id.sbn] = b
	d.order = append(d.order, b)
	return b
}

// Flush forgets all blocks, so that what is missing of them is counted.
func (d *Decoder) Flush() {
	for _, b := range d.order {
		d.forget(b)
	}
	d.order = d.order[:0]
}

// forget counts what a block has lost, and takes its buffers back.
func (d *Decoder) forget(b *block) {
	delete(d.blocks, b.sbn)
	d.past[d.pasts%pastBlocks] = b.sbn + 1
	d.pasts++
	run := 0
	for i := range b.k + b.repair {
		d.counts.Expected++
		if b.seen[i] {
			d.burst(run)
			run = 0
			continue
		}
		d.counts.Lost++
		run++
		if i < b.k && !b.done {
			d.counts.Residual++
		}
	}
	d.burst(run)
	d.release(b)
	d.idle = append(d.idle, b)
}

func (d *Decoder) burst(n int) {
	if n == 0 {
		return
	}
	class := 0
	for n > 1 && class < Bursts-1 {
		n, class = (n+1)/2, class+1
	}
	d.counts.Bursts[class]++
}

// rebuild hands on what is missing of a block, if enough of it is there.
func (d *Decoder) rebuild(b *block) error {
	if b.done || b.have < b.k {
		return nil
	}
	whole := true
	for _, seen := range b.seen[:b.k] {
		whole = whole && seen
	}
	b.done = true
	defer d.release(b)
	if whole {
		return nil
	}
	shards, err := d.pad(b)
	if err != nil {
		return err
	}
	rs, err := d.codes.get(Params{b.k, len(shards) - b.k})
	if err != nil {
		return err
	}
	if err := rs.ReconstructData(shards); err != nil {
		return fmt.Errorf("rebuild block %d: %w", b.sbn, err)
	}
	for i := range b.k {
		if b.seen[i] {
			continue
		}
		b.symbols[i] = shards[i]
		adu, err := takeSymbol(shards[i])
		if err != nil {
			d.counts.Refused++
			return fmt.Errorf("block %d: %w", b.sbn, err)
		}
		if len(adu) > 0 {
			d.hand(adu, true)
		}
	}
	return nil
}

// pad makes all symbols of a block as long as its parity. Missing ones have no length and the room to be rebuilt in.
func (d *Decoder) pad(b *block) ([][]byte, error) {
	shards := d.shards[:0]
	for i := range b.k + b.repair {
		s := b.symbols[i]
		switch {
		case s == nil && i < b.k:
			s = d.buffer()
		case s == nil:
		case len(s) > b.longest:
			d.counts.Refused++
			return nil, fmt.Errorf("block %d: packet of %d bytes and parity for %d: %w", b.sbn, len(s), b.longest, ErrConflict)
		default:
			n := len(s)
			s = s[:b.longest]
			clear(s[n:])
		}
		shards = append(shards, s)
	}
	return shards, nil
}

func (d *Decoder) hand(adu []byte, repaired bool) {
	d.counts.Delivered++
	if repaired {
		d.counts.Repaired++
	}
	d.deliver(adu, repaired)
}

// buffer returns an empty one with room for any symbol.
func (d *Decoder) buffer() []byte {
	if n := len(d.spare); n > 0 {
		s := d.spare[n-1]
		d.spare = d.spare[:n-1]
		return s
	}
	return make([]byte, 0, headLen+d.maxADU)
}

func (d *Decoder) release(b *block) {
	for i, s := range b.symbols {
		if s != nil {
			d.spare = append(d.spare, s[:0])
			b.symbols[i] = nil
		}
	}
}
