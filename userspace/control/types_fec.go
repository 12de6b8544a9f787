package control

import "net/netip"

// Relay is a UDP relay with forward error correction.
type Relay struct {
	Name   string         `json:"name"`
	Role   string         `json:"role"` // protect or repair
	Listen netip.AddrPort `json:"listen"`
	To     netip.AddrPort `json:"to"`
	// Packets sent on, and parity with them; dropped were neither.
	Packets uint64 `json:"packets"`
	Parity  uint64 `json:"parity"`
	Dropped uint64 `json:"dropped"`
	// Protect: the path as the receiver reports it, the shape of blocks in force, and why.
	Loss     float64 `json:"loss"`
	Burst    float64 `json:"burst"`
	K        int     `json:"k,omitempty"`
	M        int     `json:"m,omitempty"`
	Residual float64 `json:"residual"` // expected share of packets lost in the end; of a repairing relay, measured
	Why      string  `json:"why,omitempty"`
	// Repair: what came, from how many senders, and what became of it.
	Senders    int    `json:"senders,omitempty"`
	Received   uint64 `json:"received,omitempty"`
	Repaired   uint64 `json:"repaired,omitempty"`
	Missing    uint64 `json:"missing,omitempty"` // packets that no repair brought back
	Duplicates uint64 `json:"duplicates,omitempty"`
	Refused    uint64 `json:"refused,omitempty"` // packets whose payload ID cannot be
}

// LiveStream is a stream that goes to subscribers over datagrams of WebTransport, with forward error correction.
type LiveStream struct {
	Name        string         `json:"name"`
	Listen      netip.AddrPort `json:"listen"`
	Host        string         `json:"host"`
	Path        string         `json:"path"`
	Packets     uint64         `json:"packets"` // that came
	Dropped     uint64         `json:"dropped"` // too long, empty, or from elsewhere
	K           int            `json:"k"`       // packets of a block
	M           int            `json:"m"`       // parity for the subscriber that needs most
	Joined      uint64         `json:"joined"`  // subscribers that ever were
	Subscribers []Subscriber   `json:"subscribers"`
}

// Subscriber is one of a stream, and the parity that it gets.
type Subscriber struct {
	Client   netip.AddrPort `json:"client"`
	Seconds  float64        `json:"seconds"` // since it subscribed
	Loss     float64        `json:"loss"`    // before repair, as it reported it in the last seconds
	Burst    float64        `json:"burst"`
	Before   float64        `json:"before"` // loss of its prefix, as it was known before it subscribed
	K        int            `json:"k"`
	M        int            `json:"m"`
	Expected float64        `json:"expected"` // share of packets that stays lost, by the plan
	Why      string         `json:"why"`
	Sent     uint64         `json:"sent"`
	Parity   uint64         `json:"parity"`
	Late     uint64         `json:"late"`    // not sent: its connection was too slow
	Nacks    uint64         `json:"nacks"`   // blocks that it asked more parity of
	Refused  uint64         `json:"refused"` // datagrams of its own that are neither reports nor NACKs
	Missing  uint64         `json:"missing"` // packets that stayed lost, as it reports
	Residual float64        `json:"residual"`
}
