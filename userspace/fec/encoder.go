package fec

import (
	"errors"
	"fmt"
)

// Encoder makes blocks of a flow's packets. It is not for concurrent use, and allocates nothing once its
// buffers are made, but for another shape. Parity grows with the packets: that of the last few at most is left to do when a block
// ends.
type Encoder struct {
	maxADU    int
	next      Params // of the blocks to come
	factors   [][]byte
	factorsOf Params

	now     Params // of the block under way
	sbn     uint32
	filled  int
	longest int
	symbols [ways][]byte       // of packets that parity does not have yet
	lengths [ways]int          // of these, without padding
	parity  [MaxSymbols][]byte // repair packets: of now.M
}

// NewEncoder makes an encoder for packets of up to maxADU bytes. sbn is the number of the first block:
// random, so that a receiver does not take a new sender's blocks for an old one's.
func NewEncoder(p Params, maxADU int, sbn uint32) (*Encoder, error) {
	if maxADU < 1 || maxADU > 1<<16-1 {
		return nil, fmt.Errorf("packets of up to %d bytes: want 1 to 65535", maxADU)
	}
	e := &Encoder{maxADU: maxADU, sbn: sbn & sbnMask}
	for i := range e.symbols {
		e.symbols[i] = make([]byte, e.room())
	}
	return e, e.SetParams(p)
}

// SetParams gives the next block, and those after it, another shape.
func (e *Encoder) SetParams(p Params) error {
	if err := p.validate(); err != nil {
		return err
	}
	e.next = p
	return nil
}

// Params returns the shape of the block under way, or of the next one.
func (e *Encoder) Params() Params {
	if e.filled > 0 {
		return e.now
	}
	return e.next
}

// Filled is how many packets the block under way has; 0 means that none is.
func (e *Encoder) Filled() int { return e.filled }

// Add puts a packet into the block and gives what to send for it to emit, which must not keep it. With the last
// packet of a block come its repair packets.
func (e *Encoder) Add(adu []byte, emit func(pkt []byte, repair bool) error) error {
	switch {
	case len(adu) > e.maxADU:
		return fmt.Errorf("packet of %d bytes, with room for %d: %w", len(adu), e.maxADU, ErrTooLong)
	case len(adu) == 0: // it would look like what Close fills up with
		return ErrEmpty
	}
	return e.add(adu, emit)
}

func (e *Encoder) add(adu []byte, emit func(pkt []byte, repair bool) error) error {
	if e.filled == 0 {
		e.begin()
	}
	i := e.filled % ways
	symbol := putSymbol(e.symbols[i], adu)
	e.lengths[i] = len(symbol)
	pkt := payloadID{e.sbn, e.filled, e.now.K}.append(symbol)[headLen:]
	e.filled++
	err := emit(pkt, false)
	if i == ways-1 || e.filled == e.now.K {
		e.code(i + 1)
	}
	if e.filled < e.now.K {
		return err
	}
	return errors.Join(err, e.finish(emit))
}

// room is what a symbol takes, with its padding or the ID behind it.
func (e *Encoder) room() int { return (headLen+e.maxADU+idLen)/lane*lane + lane }

// code adds the last n symbols to all parity.
func (e *Encoder) code(n int) {
	longest := 0
	for _, l := range e.lengths[:n] {
		longest = max(longest, l)
	}
	e.longest = max(e.longest, longest)
	padded := (longest + lane - 1) / lane * lane
	for i, s := range e.symbols[:n] {
		clear(s[e.lengths[i]:padded])
	}
	for r, row := range e.parity[:e.now.M] {
		mulAdd(e.factors[r][e.filled-n:e.filled], &e.symbols, row[idLen:], padded)
	}
}

// begin fixes the shape of a block, whose parity is that of nothing yet.
func (e *Encoder) begin() {
	e.now, e.longest = e.next, 0
	if e.now != e.factorsOf {
		e.factors, e.factorsOf = matrix(e.now), e.now
	}
	for r := range e.now.M {
		if e.parity[r] == nil {
			// Parity begins where a line of the cache does: half of all accesses would touch two.
			e.parity[r] = make([]byte, lane+e.room())[lane-idLen:]
		}
		clear(e.parity[r])
	}
}

// Close ends the block under way, if there is one: its packets shall not wait any longer for parity. All packets of a
// block name the same k, so it is filled up with packets of no content (6 bytes each).
func (e *Encoder) Close(emit func(pkt []byte, repair bool) error) error {
	for e.filled > 0 {
		if err := e.add(nil, emit); err != nil {
			return err
		}
	}
	return nil
}

// finish emits the repair packets and begins the next block, whatever becomes of them.
func (e *Encoder) finish(emit func(pkt []byte, repair bool) error) error {
	k, sbn := e.now.K, e.sbn
	e.filled, e.sbn = 0, (e.sbn+1)&sbnMask
	for r, pkt := range e.parity[:e.now.M] {
		payloadID{sbn, k + r, k}.append(pkt[:0])
		if err := emit(pkt[:idLen+e.longest], true); err != nil {
			return err
		}
	}
	return nil
}
