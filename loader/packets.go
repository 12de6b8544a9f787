package loader

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// packet builds a valid Ethernet frame for the self-test: addresses of RFC 5737 and 3849, so that
// it is nobody's.
type packet struct {
	src, dst netip.AddrPort
	proto    byte // IPPROTO_TCP (a SYN) or IPPROTO_UDP
}

const (
	etherLen  = 14
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherARP  = 0x0806
)

func ether(kind uint16, payload []byte) []byte {
	b := []byte{0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2}
	b = binary.BigEndian.AppendUint16(b, kind)
	return append(b, payload...)
}

func (p packet) frame() []byte {
	l4 := p.transport()
	if p.dst.Addr().Is4() {
		ip := []byte{0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, p.proto, 0, 0}
		ip = append(ip, p.src.Addr().AsSlice()...)
		ip = append(ip, p.dst.Addr().AsSlice()...)
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(l4)))
		binary.BigEndian.PutUint16(ip[10:], ^fold(0, ip))
		return ether(etherIPv4, append(ip, l4...))
	}
	ip := []byte{0x60, 0, 0, 0, 0, 0, p.proto, 64}
	binary.BigEndian.PutUint16(ip[4:], uint16(len(l4)))
	ip = append(ip, p.src.Addr().AsSlice()...)
	ip = append(ip, p.dst.Addr().AsSlice()...)
	return ether(etherIPv6, append(ip, l4...))
}

func (p packet) transport() []byte {
	var b []byte
	b = binary.BigEndian.AppendUint16(b, p.src.Port())
	b = binary.BigEndian.AppendUint16(b, p.dst.Port())
	at := 6 // of the checksum
	if p.proto == unix.IPPROTO_TCP {
		b = append(b, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, 0x02, 0xff, 0xff, 0, 0, 0, 0)
		at = 16
	} else {
		b = append(b, 0, 16, 0, 0, 'b', 'e', 'r', 'm', 't', 'e', 's', 't')
	}
	pseudo := append(p.src.Addr().AsSlice(), p.dst.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, p.proto, 0, byte(len(b)))
	binary.BigEndian.PutUint16(b[at:], ^fold(uint32(fold(0, pseudo)), b))
	return b
}

// fold is the sum of RFC 1071 over an even number of bytes.
func fold(sum uint32, b []byte) uint16 {
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
