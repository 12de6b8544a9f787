package pcap

import "encoding/binary"

const (
	etherLen  = 14
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherVLAN = 0x8100
	etherQinQ = 0x88a8

	protoICMP   = 1
	protoIPIP   = 4
	protoTCP    = 6
	protoUDP    = 17
	protoIPv6   = 41
	protoICMPv6 = 58
)

// Redact takes away what tells of a person: payload, and the low bits of the client's address (IPv4
// to /24, IPv6 to /48). It changes frame and returns what may be kept of it. Of packets in a tunnel
// the inner one is the client's. What cannot be understood is cut before it.
func Redact(frame []byte) []byte {
	if len(frame) < etherLen {
		return nil
	}
	at, kind := etherLen, binary.BigEndian.Uint16(frame[12:])
	for range 2 {
		if (kind != etherVLAN && kind != etherQinQ) || len(frame) < at+4 {
			break
		}
		kind = binary.BigEndian.Uint16(frame[at+2:])
		at += 4
	}
	for range 2 { // an outer and an inner packet
		var proto byte
		var next int
		switch kind {
		case etherIPv4:
			proto, next = ipv4(frame, at)
		case etherIPv6:
			proto, next = ipv6(frame, at)
		default:
			return frame[:at]
		}
		if next == 0 {
			return frame[:at]
		}
		switch proto {
		case protoIPIP:
			at, kind = next, etherIPv4
			continue
		case protoIPv6:
			at, kind = next, etherIPv6
			continue
		}
		hide(frame[at:next], kind)
		return frame[:transport(frame, next, proto)]
	}
	return frame[:at] // a tunnel in a tunnel
}

// noProtocol: what follows belongs to no header that is kept.
const noProtocol = 255

// ipv4 returns the protocol of the payload and where it begins; 0 when there is no header.
func ipv4(b []byte, at int) (proto byte, next int) {
	if len(b) < at+20 || b[at]>>4 != 4 {
		return 0, 0
	}
	length := int(b[at]&15) * 4
	if length < 20 || len(b) < at+length {
		return noProtocol, at + 20
	}
	if binary.BigEndian.Uint16(b[at+6:])&0x1fff != 0 { // not the first fragment
		return noProtocol, at + length
	}
	return b[at+9], at + length
}

func ipv6(b []byte, at int) (proto byte, next int) {
	if len(b) < at+40 || b[at]>>4 != 6 {
		return 0, 0
	}
	return b[at+6], at + 40
}

// hide cuts the source address of an IP header. A checksum that was right stays right; one that was
// wrong stays wrong, since that may be what the capture is about.
func hide(ip []byte, kind uint16) {
	if kind == etherIPv6 {
		clear(ip[8+6 : 8+16])
		return
	}
	right := sum(ip) == 0xffff
	ip[15] = 0
	if right {
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], ^sum(ip))
	}
}

func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// transport returns where the payload begins.
func transport(b []byte, at int, proto byte) int {
	length := 0
	switch proto {
	case protoTCP:
		length = 20
		if len(b) >= at+13 {
			length = max(20, int(b[at+12]>>4)*4)
		}
	case protoUDP, protoICMP, protoICMPv6: // what ICMP quotes is somebody's packet
		length = 8
	}
	return min(len(b), at+length)
}
