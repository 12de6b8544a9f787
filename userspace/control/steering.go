package control

import "net/netip"

// Flow names a connection for `berm steer explain`.
type Flow struct {
	Protocol    string         `json:"protocol"` // tcp or udp
	Source      netip.AddrPort `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	// CID is the QUIC connection ID that a packet is for, in hex. Without addresses it alone is explained.
	CID  string `json:"cid,omitempty"`
	Long bool   `json:"long,omitempty"` // it stands in a long header, which tells its length
	// Ufrag is the server's ICE username fragment in a connectivity check. Without addresses it alone is explained.
	Ufrag string `json:"ufrag,omitempty"`
}

// Steering explains where a flow's packets go.
type Steering struct {
	Flow     Flow   `json:"flow"`
	VIP      string `json:"vip,omitempty"`
	Set      string `json:"set,omitempty"`
	Hash     uint64 `json:"hash"`
	Row      int    `json:"row"`
	Owner    string `json:"owner,omitempty"`
	Previous string `json:"previous,omitempty"` // owned the row before: gets what the owner has no socket for
	Heir     string `json:"heir,omitempty"`     // where nobody did: gets the packets when the owner cannot
	// At other sites: who gets what nobody here has a socket for, and with whom the flow begins, if there.
	Carry string `json:"carry,omitempty"`
	Spill string `json:"spill,omitempty"`
	// CID is what the connection ID says; nil where it names nobody.
	CID *NamedServer `json:"cid,omitempty"`
	// Ufrag is what the ICE username fragment says; nil where it is none of this site's.
	Ufrag    *Ufrag   `json:"ufrag,omitempty"`
	Delivery string   `json:"delivery"` // foreign, local, forward, carry, drop or fail_open; by row where a connection ID alone does not say
	Steps    []string `json:"steps"`    // the reasoning, a sentence each
}
