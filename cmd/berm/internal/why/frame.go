package why

import (
	"encoding/binary"
	"net/netip"

	"github.com/bermedge/berm/maps"
)

// Packet describes a packet to be made up.
type Packet struct {
	Source, Destination netip.AddrPort
	Protocol            maps.Protocol
	Flags               byte // of TCP
	Payload             int  // bytes behind the transport's header
	QUIC                QUIC // what UDP carries
}

// QUIC is what a made-up UDP payload looks like.
type QUIC int

// What it may look like: zeros, or a packet of QUIC that a client sends.
const (
	NoQUIC  QUIC = iota
	Initial      // begins a connection
	Short        // belongs to one, which nobody knows
)

// Flags of TCP segments.
const (
	FlagSYN = 0x02
	FlagACK = 0x10
)

// Frame is the packet as it comes over Ethernet, with right lengths and checksums.
func (p Packet) Frame() []byte {
	l4 := p.transport()
	src, dst := p.Source.Addr().Unmap(), p.Destination.Addr().Unmap()
	eth := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00}
	if !src.Is4() {
		eth[12], eth[13] = 0x86, 0xdd
		ip := append([]byte{0x60, 0, 0, 0, 0, 0, byte(p.Protocol), 64}, src.AsSlice()...)
		binary.BigEndian.PutUint16(ip[4:], uint16(len(l4)))
		return append(append(eth, append(ip, dst.AsSlice()...)...), l4...)
	}
	ip := append([]byte{0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, byte(p.Protocol), 0, 0}, src.AsSlice()...)
	ip = append(ip, dst.AsSlice()...)
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(l4)))
	binary.BigEndian.PutUint16(ip[10:], ^checksum(0, ip))
	return append(append(eth, ip...), l4...)
}

func (p Packet) transport() []byte {
	b := binary.BigEndian.AppendUint16(nil, p.Source.Port())
	b = binary.BigEndian.AppendUint16(b, p.Destination.Port())
	at := 6 // of the checksum
	switch p.Protocol {
	case maps.ProtocolTCP:
		b = append(b, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, p.Flags, 0xff, 0xff, 0, 0, 0, 0)
		at = 16
	default:
		b = binary.BigEndian.AppendUint16(b, uint16(8+len(p.payload())))
		b = append(b, 0, 0)
	}
	b = append(b, p.payload()...)
	pseudo := append(p.Source.Addr().Unmap().AsSlice(), p.Destination.Addr().Unmap().AsSlice()...)
	pseudo = append(pseudo, 0, byte(p.Protocol))
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(b)))
	binary.BigEndian.PutUint16(b[at:], ^checksum(checksum(0, pseudo), b))
	return b
}

// payload is zeros, but for the head of a QUIC packet (RFC 9000, section 17), whose connection ID is of no edge.
func (p Packet) payload() []byte {
	const unroutable = 0xff // the first byte of such an ID
	switch {
	case p.Protocol != maps.ProtocolUDP:
	case p.QUIC == Initial: // QUIC 1, an ID of eight bytes, and 1200 bytes in all, as the first of a client must have
		return append([]byte{0xc0, 0, 0, 0, 1, 8, unroutable}, make([]byte, max(p.Payload, 1200)-7)...)
	case p.QUIC == Short:
		return append([]byte{0x40, unroutable}, make([]byte, max(p.Payload, 32)-2)...)
	}
	return make([]byte, p.Payload)
}

// checksum is the sum of RFC 1071, going on from another.
func checksum(from uint16, b []byte) uint16 {
	sum := uint32(from)
	for len(b) >= 2 {
		sum += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
