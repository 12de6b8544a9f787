package fec

import (
	"fmt"

	"github.com/klauspost/reedsolomon"
)

// Encoder makes blocks of a flow's packets. It is not for concurrent use, and allocates nothing once its
// buffers are made, but for another shape. Parity grows with each packet: none of it is left to do when a block ends.
type Encoder struct {
	maxADU int
	next   Params // of the blocks to come
	code   [][]byte
	codeOf Params
	vector reedsolomon.LowLevel

	now     Params // of the block under way
	sbn     uint32
	filled  int
	longest int
	out     []byte             // a source packet, behind its symbol's head
	parity  [MaxSymbols][]byte // repair packets: of now.M
}

// lane is how many bytes the code takes at once. What is left over goes byte by byte, and would cost as much as all before
// it: so symbols are padded.
const lane = 32

// NewEncoder makes an encoder for packets of up to maxADU bytes. sbn is the number of the first block:
// random, so that a receiver does not take a new sender's blocks for an old one's.
func NewEncoder(p Params, maxADU int, sbn uint32) (*Encoder, error) {
	if maxADU < 1 || maxADU > 1<<16-1 {
		return nil, fmt.Errorf("packets of up to %d bytes: want 1 to 65535", maxADU)
	}
	e := &Encoder{maxADU: maxADU, sbn: sbn & sbnMask, out: make([]byte, headLen+maxADU+lane)}
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
	symbol := putSymbol(e.out, adu)
	e.longest = max(e.longest, len(symbol))
	padded := e.out[:(len(symbol)+lane-1)/lane*lane]
	clear(padded[len(symbol):])
	for r := range e.now.M {
		e.vector.GalMulSliceXor(e.code[r][e.filled], padded, e.parity[r][idLen:])
	}
	pkt := payloadID{e.sbn, e.filled, e.now.K}.append(symbol)[headLen:]
	e.filled++
	if err := emit(pkt, false); err != nil {
		return err
	}
	if e.filled < e.now.K {
		return nil
	}
	return e.finish(emit)
}

// begin fixes the shape of a block, whose parity is that of nothing yet.
func (e *Encoder) begin() {
	e.now, e.longest = e.next, 0
	if e.now != e.codeOf {
		e.code, e.codeOf = matrix(e.now), e.now
	}
	for r := range e.now.M {
		if e.parity[r] == nil {
			e.parity[r] = make([]byte, idLen+len(e.out))
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
