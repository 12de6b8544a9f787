package control

import (
	"context"
	"net/http"
	"net/netip"
	"time"
)

// Anycast is what this edge tells routers, and whom.
type Anycast struct {
	AS      uint32         `json:"as"`
	Phase   string         `json:"phase"` // announced, prepended or withdrawn
	Why     string         `json:"why"`
	Since   time.Time      `json:"since"`
	Command string         `json:"command,omitempty"` // an operator's that overrides health: drain or withdraw
	Routes  []AnycastRoute `json:"routes"`
	Peers   []AnycastPeer  `json:"peers"`
	Changed []string       `json:"changed,omitempty"` // by the command that this answers
}

// AnycastRoute is a prefix that is announced, with its attributes.
type AnycastRoute struct {
	Prefix      netip.Prefix `json:"prefix"`
	NextHop     string       `json:"next_hop"` // "self": this end of each session
	Communities []string     `json:"communities"`
	MED         uint32       `json:"med"`
	Prepend     int          `json:"prepend"` // times the AS stands in the path beside the once that is due
}

// AnycastPeer is a router.
type AnycastPeer struct {
	Address  netip.Addr  `json:"address"`
	AS       uint32      `json:"as"`
	State    string      `json:"state"` // of the BGP session: idle … established
	Up       bool        `json:"up"`
	Since    time.Time   `json:"since"`    // of up, or not up
	Sessions uint64      `json:"sessions"` // that came up since the daemon started
	Error    string      `json:"error,omitempty"`
	HoldTime float64     `json:"hold_time_seconds"`
	Received uint64      `json:"received"` // prefixes, none of which is used
	BFD      *AnycastBFD `json:"bfd,omitempty"`
}

// AnycastBFD is how a router watches this edge.
type AnycastBFD struct {
	State     string    `json:"state"` // admin_down, down, init or up
	Since     time.Time `json:"since"`
	Interval  float64   `json:"interval_ms"`
	Detection float64   `json:"detection_ms"` // the router is down without a packet for so long; 0: not heard yet
	Sent      uint64    `json:"sent"`
	Received  uint64    `json:"received"`
	Held      uint64    `json:"held"` // not sent, because requests did not get through the daemon
}

// AnycastOrder is an operator's command: announce (follow health), drain or withdraw.
type AnycastOrder struct {
	Command string `json:"command"`
}

// Anycast asks what routers are told.
func (c *Client) Anycast(ctx context.Context) (out Anycast, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/anycast", nil, &out)
}

// OrderAnycast makes an operator's command override health, or ends that.
func (c *Client) OrderAnycast(ctx context.Context, o AnycastOrder) (out Anycast, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/anycast", o, &out)
}
