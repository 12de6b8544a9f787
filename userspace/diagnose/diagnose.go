// Package diagnose splits the time until a client's answers begin into what the network, the edge and the origin take.
package diagnose

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/pipeline"
)

// Prefixes are how many networks of clients are remembered, 80 bytes each; of more, any is forgotten.
const Prefixes = 16384

const shards = 16

// weight of a request in its prefix's averages, as RFC 6298 has it for round trips.
const weight = 1.0 / 8

// Recorder keeps what requests spent in the edge and in waiting for origins, by the prefix of the client. It is the
// pipeline's observer; a request costs it a lock that few share, and no memory once its prefix is known.
type Recorder struct {
	shards [shards]shard
}

type shard struct {
	mu sync.Mutex
	of map[netip.Prefix]*Times
}

// Times are averages in which the latest request weighs an eighth.
type Times struct {
	Requests uint64        // answered, ever
	Fetched  uint64        // of those, that waited for an origin
	Edge     time.Duration // from the request to the head of the answer, without what waited for the origin
	Origin   time.Duration // waiting for the origin's head; 0 where the cache had the answer
	Seen     time.Time
}

// NewRecorder returns one that knows nothing.
func NewRecorder() *Recorder {
	r := new(Recorder)
	for i := range r.shards {
		r.shards[i].of = map[netip.Prefix]*Times{}
	}
	return r
}

func (r *Recorder) shard(p netip.Prefix) *shard {
	b := p.Addr().As16()
	return &r.shards[(b[5]^b[14])%shards] // what differs between neighbouring /48s and /24s
}

// Exchange is told about every finished request.
func (r *Recorder) Exchange(x *pipeline.Exchange, out pipeline.Outcome) {
	if !x.Client.IsValid() {
		return
	}
	p := maps.PathPrefix(x.Client.Addr())
	edge := max(out.Head-x.OriginWait, 0)
	s := r.shard(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.of[p]
	if t == nil {
		if len(s.of) >= Prefixes/shards {
			for victim := range s.of {
				delete(s.of, victim)
				break
			}
		}
		t = &Times{Edge: edge, Origin: x.OriginWait}
		s.of[p] = t
	}
	t.Requests++
	if x.OriginWait > 0 {
		t.Fetched++
	}
	t.Edge += time.Duration(weight * float64(edge-t.Edge))
	t.Origin += time.Duration(weight * float64(x.OriginWait-t.Origin))
	t.Seen = x.Start
}

// Get returns what requests of an address's prefix took; false: none was seen.
func (r *Recorder) Get(a netip.Addr) (Times, bool) {
	p := maps.PathPrefix(a)
	s := r.shard(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.of[p]; t != nil {
		return *t, true
	}
	return Times{}, false
}

// Segments of the way that an answer comes.
const (
	Network = "network"
	Edge    = "edge"
	Origin  = "origin"
	Unknown = "unknown"
)

// Diagnosis says which segment takes most of the time until answers begin.
type Diagnosis struct {
	Segment string
	Why     string
	Network time.Duration // a round trip
	Queues  time.Duration // of that, what is above the least ever seen
	Edge    time.Duration
	Origin  time.Duration
	Loss    float64
}

// Of judges by averages: of a prefix's round trips (nil: no connection was seen), and of its requests (nil: none was).
func Of(path *maps.Path, times *Times) Diagnosis {
	d := Diagnosis{Segment: Unknown, Why: "no connection and no request of its prefix was seen"}
	if path != nil {
		d.Network, d.Loss, d.Queues = path.RTT, path.Loss(), max(path.RTT-path.MinRTT, 0)
	}
	if times != nil {
		d.Edge, d.Origin = times.Edge, times.Origin
	}
	all := d.Network + d.Edge + d.Origin
	if all <= 0 {
		return d
	}
	share := func(part time.Duration) float64 { return 100 * float64(part) / float64(all) }
	switch max(d.Network, d.Edge, d.Origin) {
	case d.Network:
		d.Segment = Network
		d.Why = fmt.Sprintf("a round trip is %.0f %% of the time until an answer begins, and %.0f %% of it are queues; %.2f %% of the segments are lost", share(d.Network), 100*float64(d.Queues)/float64(d.Network), 100*d.Loss)
	case d.Edge:
		d.Segment = Edge
		d.Why = fmt.Sprintf("the edge takes %.0f %% of the time until an answer begins, without what it waits for origins", share(d.Edge))
	default:
		d.Segment = Origin
		d.Why = fmt.Sprintf("waiting for origins takes %.0f %% of the time until an answer begins", share(d.Origin))
	}
	return d
}
