package fec

import (
	"encoding/binary"
	"fmt"
	"sync"
	"time"
)

// A NACK asks for more parity of blocks that are short, where there is time for it: nackMagic, then of each block its
// number, 24 bits, and how many symbols it lacks, 8 bits.
const nackMagic = "Bfn1"

// reordered is how many symbols of later blocks tell that no more of an earlier one are on their way: as many as QUIC takes
// for a loss (RFC 9002, section 6.1.1).
const reordered = 3

// lack is what a subscriber lacks of a block.
type lack struct {
	sbn     uint32
	symbols int
}

func (l lack) append(b []byte) []byte {
	return binary.BigEndian.AppendUint32(b, l.sbn<<8|uint32(l.symbols))
}

// AppendNack appends what asks for more parity of the blocks that are short now: of each once, and nothing if there are none.
// It is to be called after each packet, by who can wait for a round trip.
func (d *Decoder) AppendNack(b []byte) []byte {
	any := false
	for _, x := range d.order {
		if x.done || x.asked || x.later < reordered {
			continue
		}
		if x.asked = true; !any {
			any, b = true, append(b, nackMagic...)
		}
		b = lack{x.sbn, x.k - x.have}.append(b)
	}
	return b
}

func isNack(b []byte) bool {
	return len(b) >= len(nackMagic) && string(b[:len(nackMagic)]) == nackMagic
}

// parseNack takes no more blocks than are kept, and none twice.
func parseNack(b []byte) (lacks []lack, err error) {
	n := (len(b) - len(nackMagic)) / 4
	if !isNack(b) || len(b) != len(nackMagic)+4*n || n < 1 || n > window {
		return nil, fmt.Errorf("nack of %d bytes: %w", len(b), ErrForeign)
	}
	seen := map[uint32]bool{}
	for b = b[len(nackMagic):]; len(b) > 0; b = b[4:] {
		word := binary.BigEndian.Uint32(b)
		l := lack{word >> 8, int(word & 0xff)}
		if l.symbols == 0 || seen[l.sbn] {
			return nil, fmt.Errorf("nack of %d symbols of block %d: %w", l.symbols, l.sbn, ErrForeign)
		}
		seen[l.sbn] = true
		lacks = append(lacks, l)
	}
	return lacks, nil
}

// keptBlock is one of the last that went out. More parity is made of it when the first subscriber asks, once for all of them.
type keptBlock struct {
	sbn     uint32
	k       int
	packets [][]byte

	once   sync.Once
	parity []frame
}

// more returns parity of a whole block, from row 0 on.
func (b *keptBlock) more(rows, maxADU int) []frame {
	b.once.Do(func() {
		enc, err := NewEncoder(Params{b.k, rows}, maxADU, b.sbn)
		for i := 0; err == nil && i < b.k; i++ {
			err = enc.add(b.packets[i], func(pkt []byte, repair bool) error {
				if repair {
					b.parity = append(b.parity, newFrame(pkt, true))
				}
				return nil
			})
		}
		if err != nil {
			panic(err) // it was a block already
		}
	})
	return b.parity
}

// keep notes a packet of the block under way. The caller holds mu.
func (x *Stream) keep(id payloadID, adu []byte) {
	b := x.kept[id.sbn%window]
	if b == nil || b.sbn != id.sbn {
		b = &keptBlock{sbn: id.sbn, k: id.k, packets: make([][]byte, 0, id.k)}
		x.kept[id.sbn%window] = b
	}
	b.packets = append(b.packets, adu)
}

// sentBlock is what a subscriber was sent of a kept block.
type sentBlock struct {
	sbn    uint32
	rows   int  // of parity, by plan
	mayAsk bool // for more: it has not yet
}

// answer sends a subscriber the parity that it asks for: of each block once, no more than the overhead allows in all, and
// nothing that would not suffice or come too late. It reports whether the NACK was one, and of blocks of the subscriber's.
func (x *Stream) answer(sub *subscriber, nack []byte, rtt time.Duration) bool {
	lacks, err := parseNack(nack)
	if err != nil || sub.plain {
		return false
	}
	c, ok := x.cfg.Load(), true
	for _, l := range lacks {
		block, row := x.ask(sub, l.sbn)
		if block == nil {
			ok = false
			continue
		}
		sub.nacks.Add(1)
		most := mostParity(block.k, c.Overhead)
		if rtt > c.Delay || row+l.symbols > most {
			continue
		}
		parity := block.more(most, c.Packet)
		for _, f := range parity[min(row, len(parity)):min(row+l.symbols+spare, len(parity))] {
			f.at = time.Now()
			sub.push(f)
		}
	}
	return ok
}

// spare symbols are sent beyond those that are missing, since they may be lost too.
const spare = 1

// ask returns a block that a subscriber may ask for, and the first row of parity that it was not sent.
func (x *Stream) ask(sub *subscriber, sbn uint32) (*keptBlock, int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	block, sent := x.kept[sbn%window], &sub.blocks[sbn%window]
	if block == nil || block.sbn != sbn || len(block.packets) < block.k || sent.sbn != sbn || !sent.mayAsk {
		return nil, 0
	}
	sent.mayAsk = false
	return block, sent.rows
}
