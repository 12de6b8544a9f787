package pcap

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// maxBlock bounds what one packet or block may take: a jumbo frame with its options.
const maxBlock = 1 << 20

// Reader reads captures of Ethernet in the formats pcap and pcapng.
type Reader struct {
	r      *bufio.Reader
	offset int64
	order  binary.ByteOrder
	ng     bool
	nano   bool     // of pcap: nanoseconds, else microseconds
	ifaces []uint64 // of pcapng: units of time in a second, of each interface
}

// NewReader looks at the head of a capture.
func NewReader(r io.Reader) (*Reader, error) {
	rd := &Reader{r: bufio.NewReaderSize(r, 1<<16)}
	magic, err := rd.r.Peek(4)
	if err != nil {
		return nil, rd.bad("no pcap or pcapng file: it has %d bytes", len(magic))
	}
	switch le, be := binary.LittleEndian.Uint32(magic), binary.BigEndian.Uint32(magic); {
	case le == blockSection:
		rd.ng = true
		return rd, nil
	case le == 0xa1b2c3d4 || le == 0xa1b23c4d:
		rd.order, rd.nano = binary.LittleEndian, le == 0xa1b23c4d
	case be == 0xa1b2c3d4 || be == 0xa1b23c4d:
		rd.order, rd.nano = binary.BigEndian, be == 0xa1b23c4d
	default:
		return nil, rd.bad("no pcap or pcapng file: it begins with %x", magic)
	}
	head, err := rd.take(24)
	if err != nil {
		return nil, err
	}
	if link := rd.order.Uint32(head[20:]) & 0xffff; link != linkEthernet {
		return nil, rd.bad("link type %d: want Ethernet (1)", link)
	}
	return rd, nil
}

// bad is an error with the place of it in the file.
func (r *Reader) bad(format string, args ...any) error {
	return fmt.Errorf("offset %d: %s", r.offset, fmt.Sprintf(format, args...))
}

func (r *Reader) take(n int) ([]byte, error) {
	b := make([]byte, n)
	got, err := io.ReadFull(r.r, b)
	switch {
	case errors.Is(err, io.EOF):
		return nil, io.EOF
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, r.bad("the file ends after %d of %d bytes", got, n)
	case err != nil:
		return nil, r.bad("%v", err)
	}
	r.offset += int64(n)
	return b, nil
}

// Next returns the next packet, or io.EOF.
func (r *Reader) Next() (at time.Time, frame []byte, err error) {
	if r.ng {
		return r.nextNG()
	}
	head, err := r.take(16)
	if err != nil {
		return at, nil, err
	}
	length := r.order.Uint32(head[8:])
	if length > maxBlock {
		return at, nil, r.bad("a packet of %d bytes", length)
	}
	if frame, err = r.body(int(length)); err != nil {
		return at, nil, err
	}
	fraction := int64(r.order.Uint32(head[4:]))
	if !r.nano {
		fraction *= 1000
	}
	return time.Unix(int64(r.order.Uint32(head)), fraction), frame, nil
}

// body takes what a head has promised: its end is no end of the file.
func (r *Reader) body(n int) ([]byte, error) {
	b, err := r.take(n)
	if errors.Is(err, io.EOF) {
		return nil, r.bad("the file ends after 0 of %d bytes", n)
	}
	return b, err
}

func (r *Reader) nextNG() (at time.Time, frame []byte, err error) {
	for {
		kind, body, err := r.blockNG()
		if err != nil {
			return at, nil, err
		}
		switch kind {
		case blockInterface:
			err = r.interfaceNG(body)
		case blockPacket:
			return r.packetNG(body)
		}
		if err != nil {
			return at, nil, err
		}
	}
}

func (r *Reader) blockNG() (kind uint32, body []byte, err error) {
	head, err := r.take(8)
	if err != nil {
		return 0, nil, err
	}
	if binary.LittleEndian.Uint32(head) == blockSection { // the same in both orders
		magic, err := r.body(4)
		if err != nil {
			return 0, nil, err
		}
		switch {
		case binary.LittleEndian.Uint32(magic) == byteOrderMagic:
			r.order = binary.LittleEndian
		case binary.BigEndian.Uint32(magic) == byteOrderMagic:
			r.order = binary.BigEndian
		default:
			return 0, nil, r.bad("byte order %x: want 1a2b3c4d", magic)
		}
		r.ifaces = nil
		return r.rest(blockSection, r.order.Uint32(head[4:]), 12)
	}
	return r.rest(r.order.Uint32(head), r.order.Uint32(head[4:]), 8)
}

// rest takes a block's body and its closing length.
func (r *Reader) rest(kind, length uint32, taken int) (uint32, []byte, error) {
	if length%4 != 0 || length > maxBlock || int(length) < taken+4 {
		return 0, nil, r.bad("a block of %d bytes", length)
	}
	b, err := r.body(int(length) - taken)
	if err != nil {
		return 0, nil, err
	}
	if again := r.order.Uint32(b[len(b)-4:]); again != length {
		return 0, nil, r.bad("a block of %d bytes ends with length %d", length, again)
	}
	return kind, b[:len(b)-4], nil
}

func (r *Reader) interfaceNG(b []byte) error {
	if len(b) < 8 {
		return r.bad("an interface of %d bytes", len(b))
	}
	if link := r.order.Uint16(b); link != linkEthernet {
		return r.bad("link type %d: want Ethernet (1)", link)
	}
	units := uint64(1e6)
	for o := b[8:]; len(o) >= 4; {
		code, n := r.order.Uint16(o), int(r.order.Uint16(o[2:]))
		if code == optEnd || len(o) < 4+n {
			break
		}
		if code == optResolution && n == 1 {
			units = resolution(o[4])
		}
		o = o[min(len(o), 4+(n+3)&^3):]
	}
	if units == 0 {
		return r.bad("an interface's resolution of time is finer than what 64 bits hold")
	}
	r.ifaces = append(r.ifaces, units)
	return nil
}

// resolution is a negative power of 10, or of 2 with the highest bit set.
func resolution(b byte) uint64 {
	base, n := uint64(10), int(b&0x7f)
	if b&0x80 != 0 {
		base = 2
	}
	units := uint64(1)
	for range n {
		if units > 1<<59 {
			return 0
		}
		units *= base
	}
	return units
}

func (r *Reader) packetNG(b []byte) (at time.Time, frame []byte, err error) {
	if len(b) < 20 {
		return at, nil, r.bad("a packet block of %d bytes", len(b))
	}
	id, length := r.order.Uint32(b), r.order.Uint32(b[12:])
	if int64(id) >= int64(len(r.ifaces)) {
		return at, nil, r.bad("a packet of interface %d, of which there are %d", id, len(r.ifaces))
	}
	if int64(length) > int64(len(b)-20) {
		return at, nil, r.bad("a packet of %d bytes in a block that holds %d", length, len(b)-20)
	}
	stamp, units := uint64(r.order.Uint32(b[4:]))<<32|uint64(r.order.Uint32(b[8:])), r.ifaces[id]
	seconds, part := stamp/units, stamp%units
	return time.Unix(int64(seconds), int64(float64(part)/float64(units)*1e9)), b[20 : 20+length], nil
}
