package control

import "net/netip"

// CC is what TCP connections begin with, by prefix, else by network, else by country.
type CC struct {
	Profiles  []CCProfile       `json:"profiles"`
	Prefixes  []CCRule          `json:"prefixes"`
	Countries map[string]string `json:"countries"` // profile by country
	Networks  map[string]string `json:"networks"`  // profile by autonomous system, such as AS64500
	Default   string            `json:"default"`   // of all others; "" is the host's own parameters
	Host      uint64            `json:"host"`      // connections that began with the host's own parameters
}

// CCProfile is a set of parameters. What is zero is the host's.
type CCProfile struct {
	Name          string  `json:"name"`
	Controller    string  `json:"controller,omitempty"`
	InitialWindow uint32  `json:"initial_window,omitempty"` // segments
	RTOMin        float64 `json:"rto_min,omitempty"`        // seconds
	AckDelay      float64 `json:"ack_delay,omitempty"`      // seconds
	Connections   uint64  `json:"connections"`              // that began with it
	Refused       uint64  `json:"refused"`                  // of those the kernel did not take all of it
	Owner         string  `json:"owner,omitempty"`
}

// CCRule gives a prefix's connections a profile; "" is the host's own parameters.
type CCRule struct {
	Prefix  netip.Prefix `json:"prefix"`
	Profile string       `json:"profile"`
	Owner   string       `json:"owner,omitempty"`
}

// CCChoice is what an address's next connection begins with, why, and what is known of its path.
type CCChoice struct {
	IP      netip.Addr `json:"ip"`
	Profile CCProfile  `json:"profile"`          // name "": the host's own parameters
	By      string     `json:"by"`               // prefix, network, country or default
	Prefix  string     `json:"prefix,omitempty"` // whose rule it is
	Owner   string     `json:"owner,omitempty"`  // of that rule
	Country string     `json:"country"`          // "" when unknown
	ASN     uint32     `json:"asn,omitempty"`    // 0 when unknown
	Path    *Path      `json:"path"`             // null: no connection was seen
	QUIC    CCQUIC     `json:"quic"`
}

// CCQUIC is what the address's next QUIC connection begins with.
type CCQUIC struct {
	Controller    string  `json:"controller"`
	Why           string  `json:"why,omitempty"`        // it is not the profile's
	InitialWindow uint32  `json:"initial_window"`       // packets
	LossFloor     float64 `json:"loss_floor,omitempty"` // share of losses that BBR does not take for congestion there
	// What the profile has for QUIC alone; what is left out is the daemon's own.
	InitialRTT       float64 `json:"initial_rtt,omitempty"`       // seconds
	PacketSize       uint16  `json:"packet_size,omitempty"`       // bytes
	KeepAlive        float64 `json:"keep_alive,omitempty"`        // seconds
	StreamWindow     uint64  `json:"stream_window,omitempty"`     // bytes
	ConnectionWindow uint64  `json:"connection_window,omitempty"` // bytes
	Path             *Path   `json:"path"`                        // as QUIC connections measured it; null: none was seen
}

// QUICInfo tells how QUIC connections are controlled.
type QUICInfo struct {
	Selectable  bool              `json:"selectable"`    // by profile; else all run Reno
	Why         string            `json:"why,omitempty"` // not
	Controllers map[string]uint64 `json:"controllers"`   // connections since the start, by what they began with
	Refused     uint64            `json:"refused"`       // of those that did not get all that their profile has
	Datagrams   []uint64          `json:"datagrams"`     // read by each worker since the start
}

// Path is what TCP connections of a prefix measured.
type Path struct {
	Prefix        netip.Prefix `json:"prefix"`
	Connections   uint64       `json:"connections"`
	Delivered     uint64       `json:"delivered"` // segments
	Lost          uint64       `json:"lost"`
	Retransmitted uint64       `json:"retransmitted"`
	Loss          float64      `json:"loss"`    // share of what was sent
	RTT           float64      `json:"rtt"`     // seconds, moving average
	MinRTT        float64      `json:"min_rtt"` // seconds
	RateKbps      uint32       `json:"rate_kbps"`
	Age           float64      `json:"age"` // seconds since the last word
}
