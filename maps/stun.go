package maps

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// UfragLen is the length of the ICE username fragments that an edge gives out.
const UfragLen = 16

// ErrUfrag says that an ICE username fragment is not one of this site's.
var ErrUfrag = errors.New("not an ICE username fragment of this site")

// Ufrag is an ICE username fragment (RFC 8839, section 5.4) that names a server: packets of WebRTC whose
// connectivity checks show it are steered there. The nonce tells sessions apart; secret is the site's key
// of flows. In base64 are the server ID, the nonce, and 48 bits of their keyed hash.
func Ufrag(secret [2]uint64, server uint16, nonce uint32) string {
	named := uint64(server)<<32 | uint64(nonce)
	b := binary.BigEndian.AppendUint64(nil, named<<16)[:6]
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint64(b, ufragCheck(secret, named)<<16)[:12])
}

// ReadUfrag returns the server that a fragment names, or ErrUfrag.
func ReadUfrag(secret [2]uint64, ufrag string) (server uint16, err error) {
	var b [UfragLen]byte
	n, err := base64.StdEncoding.Decode(b[:], []byte(ufrag))
	if err != nil || n != 12 || len(ufrag) != UfragLen {
		return 0, fmt.Errorf("%q: %w (want %d characters of base64)", ufrag, ErrUfrag, UfragLen)
	}
	named := binary.BigEndian.Uint64(b[:]) >> 16
	if binary.BigEndian.Uint64(b[6:])>>16 != ufragCheck(secret, named) {
		return 0, fmt.Errorf("%q: %w (made with another secret, or made up)", ufrag, ErrUfrag)
	}
	return uint16(named >> 32), nil
}

// ufragCheck is ufrag_check() of bpf/include/hash.h.
func ufragCheck(secret [2]uint64, named uint64) uint64 { return sipHash(secret, named|6<<56) >> 16 }

// STUN remembers whose the flows are that have shown an ICE username fragment.
type STUN struct{ m *ebpf.Map }

// Named returns the backend whose fragment a flow has shown; 0 if none is remembered. The kernel half forgets
// after 30 s without a check, and does not write that down.
func (s *STUN) Named(flow uint64) (backend uint32, err error) {
	var set bpf.XDPBermStunSet
	if err := s.m.Lookup(uint32(flow>>32)&(stunSets-1), &set); err != nil {
		return 0, fmt.Errorf("flows that have shown ICE username fragments: %w", err)
	}
	for _, c := range set.Cells {
		if c != 0 && c>>32 == flow&0xffffffff {
			return uint32(c >> 16 & 0xffff), nil
		}
	}
	return 0, nil
}

const stunSets = 8192 // BERM_STUN_SETS
