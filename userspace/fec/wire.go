package fec

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// idLen is the size of a payload ID for m = 8: SBN 24 bits, ESI 8, k 16 (RFC 6865, section 5.2).
const idLen = 6

// headLen is what stands before a packet in its symbol: flow 8 bits, length 16 (RFC 6865, section 4.3).
const headLen = 3

const sbnMask = 1<<24 - 1

// Errors of packets that are not what their ID says. None of them changes what is known of a block.
var (
	ErrShort    = errors.New("packet is shorter than its payload ID")
	ErrForeign  = errors.New("payload ID cannot be")
	ErrConflict = errors.New("payload ID contradicts earlier ones of its block")
	ErrTooLong  = errors.New("packet is too long")
	ErrEmpty    = errors.New("packet is empty")
)

// payloadID is the same for source packets, as a trailer, and repair packets, as a header.
type payloadID struct {
	sbn uint32 // source block number, wraps after 2^24
	esi int    // number of the symbol in the block; parity from k on
	k   int
}

func (id payloadID) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, id.sbn<<8|uint32(id.esi))
	return binary.BigEndian.AppendUint16(b, uint16(id.k))
}

func parseID(b []byte) payloadID {
	word := binary.BigEndian.Uint32(b)
	return payloadID{sbn: word >> 8, esi: int(word & 0xff), k: int(binary.BigEndian.Uint16(b[4:]))}
}

func (id payloadID) check(repair bool) error {
	switch {
	case id.k < 1 || id.k > MaxSymbols, id.esi >= MaxSymbols, repair != (id.esi >= id.k):
		return fmt.Errorf("symbol %d of a block of %d: %w", id.esi, id.k, ErrForeign)
	}
	return nil
}

// parseSource splits a source packet into what was sent and its ID.
func parseSource(pkt []byte) (adu []byte, id payloadID, err error) {
	if len(pkt) < idLen {
		return nil, id, fmt.Errorf("source packet of %d bytes: %w", len(pkt), ErrShort)
	}
	at := len(pkt) - idLen
	id = parseID(pkt[at:])
	return pkt[:at], id, id.check(false)
}

// parseRepair splits a repair packet into parity and its ID.
func parseRepair(pkt []byte) (parity []byte, id payloadID, err error) {
	if len(pkt) < idLen+headLen {
		return nil, id, fmt.Errorf("repair packet of %d bytes: %w", len(pkt), ErrShort)
	}
	id = parseID(pkt)
	return pkt[idLen:], id, id.check(true)
}

// putSymbol writes the symbol of a packet into buf, without padding, and returns it. There is one flow, 0.
func putSymbol(buf, adu []byte) []byte {
	buf = append(buf[:0], 0, byte(len(adu)>>8), byte(len(adu)))
	return append(buf, adu...)
}

// takeSymbol returns the packet of a rebuilt symbol.
func takeSymbol(symbol []byte) (adu []byte, err error) {
	n := headLen + int(binary.BigEndian.Uint16(symbol[1:]))
	if n > len(symbol) {
		return nil, fmt.Errorf("rebuilt packet of %d bytes in a symbol of %d: %w", n-headLen, len(symbol), ErrForeign)
	}
	return symbol[headLen:n], nil
}
