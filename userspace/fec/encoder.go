package fec

import (
	"fmt"
	"slices"
)

// Encoder makes blocks of a flow's packets. It is not for concurrent use, and allocates nothing once its
// buffers are made, but for shapes that it has not used before.
type Encoder struct {
	maxADU int
	next   Params // of the blocks to come
	codes  codes

	now     Params // of the block under way
	sbn     uint32
	symbols [MaxSymbols][]byte // filled of now.K; with capacity for the longest
	filled  int
	longest int
	out     []byte
}

// NewEncoder makes an encoder for packets of up to maxADU bytes. sbn is the number of the first block:
// random, so that a receiver does not take a new sender's blocks for an old one's.
func NewEncoder(p Params, maxADU int, sbn uint32) (*Encoder, error) {
	if maxADU < 1 || maxADU > 1<<16-1 {
		return nil, fmt.Errorf("packets of up to %d bytes: want 1 to 65535", maxADU)
	}
	e := &Encoder{maxADU: maxADU, sbn: sbn & sbnMask}
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
		e.now, e.longest = e.next, 0
	}
	at := &e.symbols[e.filled]
	if *at == nil {
		*at = make([]byte, 0, headLen+e.maxADU)
	}
	*at = putSymbol(*at, adu)
	e.longest = max(e.longest, len(*at))
	e.out = payloadID{e.sbn, e.filled, e.now.K}.append(append(e.out[:0], adu...))
	e.filled++
	if err := emit(e.out, false); err != nil {
		return err
	}
	if e.filled < e.now.K {
		return nil
	}
	return e.finish(emit)
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
	p, sbn := e.now, e.sbn
	e.filled, e.sbn = 0, (e.sbn+1)&sbnMask
	if p.M == 0 {
		return nil
	}
	rs, err := e.codes.get(p)
	if err != nil {
		return err
	}
	shards := e.symbols[:p.K+p.M]
	for i := range shards {
		if shards[i] == nil {
			shards[i] = make([]byte, 0, headLen+e.maxADU)
		}
		n := len(shards[i])
		shards[i] = shards[i][:e.longest]
		if i < p.K { // what is behind them is written over
			clear(shards[i][n:])
		}
	}
	if err := rs.Encode(shards); err != nil {
		return fmt.Errorf("parity of block %d (%s): %w", sbn, p, err)
	}
	for i, parity := range shards[p.K:] {
		e.out = append(payloadID{sbn, p.K + i, p.K}.append(slices.Grow(e.out[:0], idLen+e.longest)), parity...)
		if err := emit(e.out, true); err != nil {
			return err
		}
	}
	return nil
}
