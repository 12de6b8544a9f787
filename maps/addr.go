package maps

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/bermedge/berm/bpf"
)

// NameLen is the longest name of a VIP, policy, class, set or backend, in bytes.
const NameLen = 15 // BERM_NAME less the NUL that tools expect

// SourceOf is what limits and verdicts call one source: an IPv4 address, or the /64 of an IPv6 one.
func SourceOf(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return a
	}
	return netip.PrefixFrom(a, 64).Masked().Addr()
}

// AggregateOf is what limits call the aggregate of a source: its IPv4 /24, or IPv6 /48.
func AggregateOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 48
	if a.Is4() {
		bits = 24
	}
	return netip.PrefixFrom(a, bits).Masked()
}

func toAddr(a netip.Addr) bpf.XDPBermAddr {
	if !a.IsValid() {
		return bpf.XDPBermAddr{}
	}
	return bpf.XDPBermAddr{Octets: a.As16()}
}

// fromAddr gives IPv4 addresses as such, and the zero Addr for the zero address.
func fromAddr(a bpf.XDPBermAddr) netip.Addr {
	if a.Octets == [16]byte{} {
		return netip.Addr{}
	}
	return netip.AddrFrom16(a.Octets).Unmap()
}

func halves(a netip.Addr) (hi, lo uint64) {
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

// swap16 turns a port as the kernel holds it, in network order, into a number and back.
func swap16(v uint16) uint16 { return v<<8 | v>>8 }

func toName(s string) (n [16]int8) {
	for i := range min(len(s), len(n)) {
		n[i] = int8(s[i])
	}
	return n
}

func fromName(n [16]int8) string {
	var b strings.Builder
	for _, c := range n {
		if c == 0 {
			break
		}
		b.WriteByte(byte(c))
	}
	return b.String()
}

// CheckName says what is wrong with the name of a VIP, policy, class, set or backend.
func CheckName(s string) error {
	if s == "" {
		return fmt.Errorf("name is empty")
	}
	if len(s) > NameLen {
		return fmt.Errorf("name %q has %d bytes, at most %d fit", s, len(s), NameLen)
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("._-", c) >= 0) {
			return fmt.Errorf("name %q: only letters, digits, '.', '_' and '-' are allowed", s)
		}
	}
	return nil
}
