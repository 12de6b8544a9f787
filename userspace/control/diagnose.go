package control

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
)

// Diagnosis says which segment of the way takes most of the time until answers to a client begin. Times are in
// seconds, averages over its prefix.
type Diagnosis struct {
	IP      netip.Addr   `json:"ip"`
	Prefix  netip.Prefix `json:"prefix"`
	Segment string       `json:"segment"` // network, edge, origin or unknown
	Why     string       `json:"why"`
	Network float64      `json:"network"` // a round trip
	Queues  float64      `json:"queues"`  // of that, what is above the least ever seen
	Loss    float64      `json:"loss"`    // share of the segments
	Edge    float64      `json:"edge"`    // from the request to the head of the answer, without what waits for origins
	Origin  float64      `json:"origin"`  // waiting for the heads of origins' answers; 0 where the cache had them

	Connections uint64 `json:"connections"` // that the path was measured with
	Requests    uint64 `json:"requests"`
	Fetched     uint64 `json:"fetched"` // of those, that waited for an origin
}

// Diagnose asks where a client's time goes.
func (c *Client) Diagnose(ctx context.Context, ip netip.Addr) (out Diagnosis, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/diagnose?ip="+url.QueryEscape(ip.String()), nil, &out)
}
