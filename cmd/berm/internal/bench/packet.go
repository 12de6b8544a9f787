package bench

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/bermedge/berm/maps"
)

const (
	tcpSYN = 0x02
	tcpACK = 0x10
)

// Ports of the services on the measured addresses.
const (
	portService = 443
	portGeo     = 444 // refuses all countries
	portRate    = 445 // refuses all but the first packet of a source
	portVerdict = 446
	portMoved   = 447
	portQUIC    = 448
	portCookie  = 449 // delivered here, where SYNs are answered with cookies
	portShared  = 450 // limits aggregates too
)

var (
	vip4     = netip.MustParseAddr("192.0.2.10")
	vip6     = netip.MustParseAddr("2001:db8::10")
	foreign4 = netip.MustParseAddr("192.0.2.99")
	foreign6 = netip.MustParseAddr("2001:db8::99")
)

// hostMAC is whom frames are for.
var hostMAC = maps.MAC{2, 0, 0, 0, 0, 1}

// kind is what a measured packet is, but for the flow, which the harness fills in.
type kind struct {
	foreign bool // to an address without services
	port    uint16
	proto   maps.Protocol
	flags   byte
	quote   bool            // an ICMP error about a packet that the service sent over TCP
	cid     *maps.CIDFormat // of a QUIC packet with a short header; nil = none
	tail    bool            // its answer is shorter; to restore that costs the harness a call, which is not taken off
}

// payloadLen makes every frame longer than what the harness restores.
const payloadLen = 64

// frame is an Ethernet frame with the packet, its source left zero.
func (k kind) frame(family int) []byte {
	segment, proto := k.segment(), byte(k.proto)
	if k.quote {
		proto, segment = k.icmp(family)
	}
	eth := append(hostMAC[:], 2, 0, 0, 0, 0, 2, 0x08, 0x00)
	if family == 4 {
		ip := make([]byte, 20)
		ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, 64, proto
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(segment)))
		dst := vip4.As4()
		if k.foreign {
			dst = foreign4.As4()
		}
		copy(ip[16:], dst[:])
		return append(append(eth, ip...), segment...)
	}
	eth[12], eth[13] = 0x86, 0xdd
	ip := make([]byte, 40)
	ip[0], ip[6], ip[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(ip[4:], uint16(len(segment)))
	dst := vip6.As16()
	if k.foreign {
		dst = foreign6.As16()
	}
	copy(ip[24:], dst[:])
	return append(append(eth, ip...), segment...)
}

// icmp is "fragmentation needed", or "packet too big", about a packet from the service to a client whose
// address and port are left zero.
func (k kind) icmp(family int) (proto byte, message []byte) {
	segment := k.segment()
	copy(segment, []byte{segment[2], segment[3], 0, 0}) // from the service, to no port
	if family == 4 {
		ip := make([]byte, 20)
		ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, 64, byte(k.proto)
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(segment)))
		copy(ip[12:], vip4.AsSlice())
		return 1, slices.Concat([]byte{3, 4, 0, 0, 0, 0, 5, 0}, ip, segment)
	}
	ip := make([]byte, 40)
	ip[0], ip[6], ip[7] = 0x60, byte(k.proto), 64
	binary.BigEndian.PutUint16(ip[4:], uint16(len(segment)))
	copy(ip[8:], vip6.AsSlice())
	return 58, slices.Concat([]byte{2, 0, 0, 0, 0, 0, 5, 0}, ip, segment)
}

func (k kind) segment() []byte {
	if k.proto == maps.ProtocolUDP {
		udp := make([]byte, 8+payloadLen)
		binary.BigEndian.PutUint16(udp[2:], k.port)
		binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
		if k.cid != nil {
			udp[8], udp[9] = 0x40, k.cid.ID<<5
		}
		return udp
	}
	tcp := make([]byte, 20+payloadLen)
	binary.BigEndian.PutUint16(tcp[2:], k.port)
	tcp[12], tcp[13] = 5<<4, k.flags
	return tcp
}

// noise says which bits of a frame's words behind the Ethernet header vary with the flow: a connection
// ID's, but for its first byte, or the client's address that an ICMP error quotes. All server IDs are somebody's, so each such ID is a valid one.
func (k kind) noise(family int) (words [10]uint64) {
	if k.quote { // the client's address, as far as the harness reaches
		at := 20 + 8 + 16
		if family == 6 {
			at = 40 + 8 + 24
		}
		for i := range 4 {
			words[(at+i)/8] |= 0xff << ((at + i) % 8 * 8)
		}
		return words
	}
	if k.cid == nil {
		return words
	}
	at := 20 + 8 + 2 // IP, UDP, and the first bytes of header and ID
	if family == 6 {
		at += 20
	}
	for i := range k.cid.ServerIDLen + k.cid.NonceLen {
		words[(at+i)/8] |= 0xff << ((at + i) % 8 * 8)
	}
	return words
}

// headerSum is the checksum's sum over an IPv4 header without its source, in the harness's words.
func headerSum(frame []byte, family int) uint64 {
	if family != 4 {
		return 0
	}
	var sum uint64
	for i := 14; i < 34; i += 4 {
		sum += uint64(binary.LittleEndian.Uint32(frame[i:]))
	}
	return sum
}

// source4 and source6 are the sources that the harness gives flow n: the same arithmetic.
func source4(n uint32) netip.Addr {
	x := n * 2654435761
	first := 1 + (x>>24)*222>>8
	if first >= 127 {
		first++
	}
	return netip.AddrFrom4([4]byte{byte(first), byte(x >> 16), byte(x >> 8), byte(x)})
}

func source6(n uint32) netip.Addr {
	x := n * 2654435761
	var a [16]byte
	binary.BigEndian.PutUint64(a[:], 0x2a00<<48|uint64(x&15)<<48|uint64(x>>4)<<20)
	return netip.AddrFrom16(a)
}
