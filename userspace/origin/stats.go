package origin

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"
)

type counters struct{ requests, failed, retried, refused atomic.Uint64 }

// Stats is what is known of one origin.
type Stats struct {
	Name     string
	Requests uint64 // admitted
	Failed   uint64 // that got no answer from any server
	Retried  uint64 // attempts beyond the first
	Refused  uint64 // for max_pending
	Pending  int64  // under way now
	Servers  []ServerStats
}

// ServerStats is what is known of one server.
type ServerStats struct {
	URL     string
	Healthy bool
	Pending int64
	Why     string // the last trouble, also when it is over
}

// Stats returns all origins by name.
func (c *Client) Stats() []Stats {
	now := time.Now()
	var out []Stats
	for _, p := range c.pools {
		st := Stats{
			Name: p.name, Requests: p.stats.requests.Load(), Failed: p.stats.failed.Load(),
			Retried: p.stats.retried.Load(), Refused: p.stats.refused.Load(), Pending: p.pending.Load(),
		}
		for _, s := range p.servers {
			healthy := s.healthy(now)
			s.mu.Lock()
			st.Servers = append(st.Servers, ServerStats{s.url.String(), healthy, s.pending.Load(), s.why})
			s.mu.Unlock()
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b Stats) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
