package control

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
	"time"
)

// Learning is what the learner of controllers is about.
type Learning struct {
	Mode     string         `json:"mode"` // off, shadow or on
	Said     bool           `json:"said"` // by an operator, until the file is loaded again
	Trouble  string         `json:"trouble,omitempty"`
	Arms     []string       `json:"arms"` // profiles that it chooses among
	HoldOut  float64        `json:"hold_out"`
	Prefixes int            `json:"prefixes"` // that something is known of
	Chosen   map[string]int `json:"chosen"`   // prefixes by profile
	Held     int            `json:"held"`     // prefixes that an operator or the file has decided about
	Changes  uint64         `json:"changes"`  // of a prefix's choice, since the daemon started
	Evicted  uint64         `json:"evicted"`  // prefixes forgotten for room
}

// LearnOrder changes the learner's mode until the file is loaded again.
type LearnOrder struct {
	Mode string `json:"mode"`
}

// Learned is what was learned of a prefix.
type Learned struct {
	Prefix  netip.Prefix   `json:"prefix"`
	Mode    string         `json:"mode"`
	Profile string         `json:"profile"` // what is chosen, in shadow would be; "": nothing yet
	Learned bool           `json:"learned"` // by results of more than one profile, not by the rule for a start
	Why     string         `json:"why"`
	Since   time.Time      `json:"since"`
	Held    bool           `json:"held"` // an operator or the file has decided about it
	HoldOut float64        `json:"hold_out"`
	Scores  []LearnedScore `json:"scores"`
}

// LearnedScore is what a profile reached towards a prefix. Rates are medians over parts of the prefix's clients.
type LearnedScore struct {
	Profile       string  `json:"profile"`
	Connections   float64 `json:"connections"` // that count; older ones count less
	QUIC          float64 `json:"quic"`        // of those
	Parts         int     `json:"parts"`       // of the prefix's clients that they are of
	GoodputKbps   float64 `json:"goodput_kbps"`
	Queueing      float64 `json:"queueing"`      // share of the round trip
	Retransmitted float64 `json:"retransmitted"` // share of the segments
	RewardKbps    float64 `json:"reward_kbps"`   // goodput less what queues and retransmissions cost
	Gain          float64 `json:"gain"`          // against what is chosen, part by part; 0.1: a tenth better
	Paired        int     `json:"paired"`        // parts that have seen both
}

// Learning asks what the learner of controllers is about.
func (c *Client) Learning(ctx context.Context) (out Learning, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/cc/learn", nil, &out)
}

// SetLearning changes the learner's mode.
func (c *Client) SetLearning(ctx context.Context, o LearnOrder) (out Changes, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/cc/learn", o, &out)
}

// Learned asks what was learned of an address's prefix; nil: nothing.
func (c *Client) Learned(ctx context.Context, ip netip.Addr) (out *Learned, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/cc/learned?ip="+url.QueryEscape(ip.String()), nil, &out)
}
