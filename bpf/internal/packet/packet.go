// Package packet builds frames for tests: right in every length and checksum unless told otherwise,
// so that a test changes one thing and knows what it changed.
package packet

import (
	"encoding/binary"
	"net/netip"
)

// IP protocol numbers.
const (
	HopByHop = 0
	ICMP     = 1
	IPIP     = 4
	ProtoTCP = 6
	ProtoUDP = 17
	IPv6In   = 41
	Routing  = 43
	Fragment = 44
	AH       = 51
	ICMPv6   = 58
	NoNext   = 59
	DestOpts = 60
	ProtoGRE = 47
)

// TCP flags.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
)

// EtherTypes.
const (
	TypeIPv4 = 0x0800
	TypeARP  = 0x0806
	TypeVLAN = 0x8100
	TypeIPv6 = 0x86dd
	TypeQinQ = 0x88a8
)

// MACs of the frames that Ethernet makes where it is not told others.
var (
	HostMAC   = [6]byte{2, 0, 0, 0, 0, 1}
	RouterMAC = [6]byte{2, 0, 0, 0, 0, 2}
)

// Tag is a VLAN tag: the EtherType that announces it, and its TCI.
type Tag struct{ Type, TCI uint16 }

// Ethernet is a frame's header. A zero address is HostMAC or RouterMAC.
type Ethernet struct {
	Dst, Src [6]byte
	Tags     []Tag
	Type     uint16 // 0: by the version of the IP packet
}

// With returns the frame.
func (e Ethernet) With(payload []byte) []byte {
	if e.Dst == ([6]byte{}) {
		e.Dst = HostMAC
	}
	if e.Src == ([6]byte{}) {
		e.Src = RouterMAC
	}
	if e.Type == 0 {
		e.Type = TypeIPv4
		if payload[0]>>4 == 6 {
			e.Type = TypeIPv6
		}
	}
	b := append(append([]byte{}, e.Dst[:]...), e.Src[:]...)
	for _, t := range e.Tags {
		b = binary.BigEndian.AppendUint16(b, t.Type)
		b = binary.BigEndian.AppendUint16(b, t.TCI)
	}
	b = binary.BigEndian.AppendUint16(b, e.Type)
	return append(b, payload...)
}

// IPv4 is a header. Frag holds the flags and the offset.
type IPv4 struct {
	Src, Dst netip.Addr
	Proto    byte
	TOS, TTL byte
	ID, Frag uint16
	Options  []byte // a multiple of four
}

// DF and MF are flags in IPv4.Frag.
const (
	DF = 0x4000
	MF = 0x2000
)

// With returns the packet.
func (h IPv4) With(payload []byte) []byte {
	b := make([]byte, 20, 20+len(h.Options)+len(payload))
	b[0], b[1], b[8], b[9] = 0x45+byte(len(h.Options)/4), h.TOS, h.TTL, h.Proto
	if h.TTL == 0 {
		b[8] = 64
	}
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(h.Options)+len(payload)))
	binary.BigEndian.PutUint16(b[4:], h.ID)
	binary.BigEndian.PutUint16(b[6:], h.Frag)
	src, dst := h.Src.As4(), h.Dst.As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	b = append(b, h.Options...)
	Sum4(b)
	return append(b, payload...)
}

// Sum4 puts the right checksum into the IPv4 header at the start of b.
func Sum4(b []byte) {
	header := int(b[0]&15) * 4
	b[10], b[11] = 0, 0
	var sum uint32
	for i := 0; i+1 < header && i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
}

// IPv6 is a header.
type IPv6 struct {
	Src, Dst    netip.Addr
	Next        byte
	Class, Hops byte
	Label       uint32
}

// With returns the packet.
func (h IPv6) With(payload []byte) []byte {
	b := make([]byte, 40, 40+len(payload))
	binary.BigEndian.PutUint32(b, 6<<28|uint32(h.Class)<<20|h.Label)
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	b[6], b[7] = h.Next, h.Hops
	if h.Hops == 0 {
		b[7] = 64
	}
	src, dst := h.Src.As16(), h.Dst.As16()
	copy(b[8:], src[:])
	copy(b[24:], dst[:])
	return append(b, payload...)
}

// Extension is an IPv6 extension header of 8*(1+words) bytes, other than AH and fragment.
func Extension(next byte, words int, payload []byte) []byte {
	b := make([]byte, 8*(1+words), 8*(1+words)+len(payload))
	b[0], b[1] = next, byte(words)
	return append(b, payload...)
}

// Auth is an authentication header of 24 bytes.
func Auth(next byte, payload []byte) []byte {
	b := make([]byte, 24, 24+len(payload))
	b[0], b[1] = next, 4
	return append(b, payload...)
}

// Fragment6 is an IPv6 fragment header; offset is in bytes.
func Fragment6(next byte, offset uint16, more bool, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	b[0] = next
	if more {
		offset |= 1
	}
	binary.BigEndian.PutUint16(b[2:], offset)
	binary.BigEndian.PutUint32(b[4:], 0xfeed)
	return append(b, payload...)
}

// TCP is a segment's header, without a checksum: nothing here looks at it.
type TCP struct {
	Src, Dst uint16
	Seq      uint32
	Flags    byte
	Options  []byte // a multiple of four
}

// With returns the segment.
func (h TCP) With(payload []byte) []byte {
	b := make([]byte, 20, 20+len(h.Options)+len(payload))
	binary.BigEndian.PutUint16(b, h.Src)
	binary.BigEndian.PutUint16(b[2:], h.Dst)
	binary.BigEndian.PutUint32(b[4:], h.Seq)
	b[12], b[13] = byte(5+len(h.Options)/4)<<4, h.Flags
	return append(append(b, h.Options...), payload...)
}

// UDP is a datagram's header.
type UDP struct{ Src, Dst uint16 }

// With returns the datagram.
func (h UDP) With(payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b, h.Src)
	binary.BigEndian.PutUint16(b[2:], h.Dst)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	return append(b, payload...)
}

// ICMPMessage is an ICMP or ICMPv6 message about quote.
func ICMPMessage(kind, code byte, quote []byte) []byte {
	return append([]byte{kind, code, 0, 0, 0, 0, 0, 0}, quote...)
}
