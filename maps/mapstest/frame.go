package mapstest

import (
	"encoding/binary"
	"net/netip"

	"github.com/bermedge/berm/maps"
)

// Flags of TCP segments.
const (
	FIN = 0x01
	SYN = 0x02
	ACK = 0x10
)

// TCP is an Ethernet frame with a TCP segment.
func TCP(src, dst netip.AddrPort, flags byte) []byte {
	seg := make([]byte, 20+16)
	binary.BigEndian.PutUint16(seg, src.Port())
	binary.BigEndian.PutUint16(seg[2:], dst.Port())
	seg[12], seg[13] = 5<<4, flags
	return Frame(src.Addr(), dst.Addr(), maps.ProtocolTCP, seg)
}

// UDP is an Ethernet frame with a UDP datagram.
func UDP(src, dst netip.AddrPort, payload int) []byte {
	seg := make([]byte, 8+payload)
	binary.BigEndian.PutUint16(seg, src.Port())
	binary.BigEndian.PutUint16(seg[2:], dst.Port())
	binary.BigEndian.PutUint16(seg[4:], uint16(len(seg)))
	return Frame(src.Addr(), dst.Addr(), maps.ProtocolUDP, seg)
}

// Frame is an Ethernet frame with an IP packet of either family.
func Frame(src, dst netip.Addr, proto maps.Protocol, payload []byte) []byte {
	eth := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00}
	if !src.Is4() {
		eth[12], eth[13] = 0x86, 0xdd
		ip := make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, byte(proto), 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(payload)))
		s, d := src.As16(), dst.As16()
		copy(ip[8:], s[:])
		copy(ip[24:], d[:])
		return append(append(eth, ip...), payload...)
	}
	ip := make([]byte, 20)
	ip[0], ip[8], ip[9] = 0x45, 64, byte(proto)
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(payload)))
	s, d := src.As4(), dst.As4()
	copy(ip[12:], s[:])
	copy(ip[16:], d[:])
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	return append(append(eth, ip...), payload...)
}
