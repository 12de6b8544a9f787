package maps

import "github.com/bermedge/berm/bpf"

// Via is how packets get to a backend.
type Via uint8

// Ways to a backend. All but the first are for servers that run no Berm.
const (
	ViaEdge = Via(bpf.XDPBermViaBERM_VIA_EDGE) // another edge: IPIP or IP6IP6 with the flow's keyed tag
	ViaIPIP = Via(bpf.XDPBermViaBERM_VIA_IPIP) // a server: IPIP, or IP6IP6 to an IPv6 address
	ViaGUE  = Via(bpf.XDPBermViaBERM_VIA_GUE)  // the packet in UDP (GUE, variant 1)
	ViaL2   = Via(bpf.XDPBermViaBERM_VIA_L2)   // as it came, to the server's Ethernet address

	viaMax = Via(bpf.XDPBermViaBERM_VIA_MAX)
)

var viaNames = [...]string{ViaEdge: "edge", ViaIPIP: "ipip", ViaGUE: "gue", ViaL2: "l2"}

// String is the way's name.
func (v Via) String() string { return nameOf("via", viaNames[:], v) }

// MarshalText gives the way's name.
func (v Via) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads a way's name; the empty text is ViaEdge.
func (v *Via) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*v = ViaEdge
		return nil
	}
	for w := range upTo(0, viaMax) {
		if w.String() == string(b) {
			*v = w
			return nil
		}
	}
	return unknown("via", string(b), upTo(0, viaMax))
}
