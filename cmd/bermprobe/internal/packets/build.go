package packets

import (
	"encoding/binary"
	"net/netip"
)

const (
	protoTCP = 6
	protoUDP = 17
)

// build writes one whole IP packet into buf and returns its part of it.
func (o *Options) build(buf []byte, src netip.Addr, sport uint16, seq uint32) []byte {
	v4 := src.Is4()
	head := 40
	if v4 {
		head = 20
	}
	l4 := buf[head:]
	proto, length := uint8(protoUDP), 8+o.Size
	if o.Kind == "initial" {
		length = 8 + initialSize
	} else if o.Kind != "udp" {
		proto, length = protoTCP, 20
	}
	clear(buf[:head+length])
	binary.BigEndian.PutUint16(l4[0:], sport)
	binary.BigEndian.PutUint16(l4[2:], o.Dst.Port())
	check := l4[6:8]
	if proto == protoUDP {
		binary.BigEndian.PutUint16(l4[4:], uint16(length))
		if o.Kind == "initial" {
			initial(l4[8:length], seq)
		}
	} else {
		check = l4[16:18]
		binary.BigEndian.PutUint32(l4[4:], seq)
		l4[12] = 5 << 4
		l4[13] = 0x02 // SYN
		if o.Kind == "ack" {
			l4[13] = 0x10
		}
		binary.BigEndian.PutUint16(l4[14:], 65535)
	}
	sum := checksum(proto, src, o.Dst.Addr(), l4[:length])
	if sum == 0 && proto == protoUDP {
		sum = 0xffff // zero means "none" in UDP
	}
	binary.BigEndian.PutUint16(check, sum)
	if v4 {
		ipv4Header(buf, src, o.Dst.Addr(), proto, head+length)
	} else {
		ipv6Header(buf, src, o.Dst.Addr(), proto, length)
	}
	return buf[:head+length]
}

// initialSize is the least that servers take (RFC 9000, section 14.1).
const initialSize = 1200

// initial fills b with an Initial of QUIC version 1 whose content nobody can decrypt. Servers learn
// that only after they have made keys, or never when they answer with Retry.
func initial(b []byte, seq uint32) {
	const idLen, header = 8, 18
	b[0] = 0xc3 // long header, fixed bit, Initial, packet number of four bytes
	binary.BigEndian.PutUint32(b[1:], 1)
	b[5] = idLen
	binary.BigEndian.PutUint64(b[6:], uint64(seq)*0x9e3779b97f4a7c15|1) // destination connection ID
	b[14], b[15] = 0, 0                                                 // no source connection ID, no token
	binary.BigEndian.PutUint16(b[16:], 0x4000|uint16(len(b)-header))    // length of the rest
	binary.BigEndian.PutUint32(b[header:], seq*2654435761)
}

// ipv4Header leaves the ID and the checksum to the kernel, which fills them for raw sockets.
func ipv4Header(b []byte, src, dst netip.Addr, proto uint8, total int) {
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], uint16(total))
	b[6] = 0x40 // don't fragment
	b[8], b[9] = 64, proto
	s, d := src.As4(), dst.As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
}

func ipv6Header(b []byte, src, dst netip.Addr, proto uint8, payload int) {
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(payload))
	b[6], b[7] = proto, 64
	s, d := src.As16(), dst.As16()
	copy(b[8:], s[:])
	copy(b[24:], d[:])
}

// checksum is the Internet checksum of l4 behind its pseudo-header (RFC 1071, RFC 8200 8.1).
func checksum(proto uint8, src, dst netip.Addr, l4 []byte) uint16 {
	sum := uint64(proto) + uint64(len(l4))
	for _, b := range [][]byte{src.AsSlice(), dst.AsSlice(), l4} {
		for ; len(b) >= 2; b = b[2:] {
			sum += uint64(b[0])<<8 | uint64(b[1])
		}
		if len(b) == 1 {
			sum += uint64(b[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
