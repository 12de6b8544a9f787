package observe

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/clock"
)

const (
	// historySeconds is how far back rates can be asked for.
	historySeconds = 60
	// busySources bounds the sources of one second: 60 × 1,024 × 120 B are 7 MiB.
	busySources = 1024
)

// Busy knows which sources sent the sampled packets of the last minute. When a second has more
// sources than it may hold, a new one takes the place of a small one and inherits its count (Space-Saving,
// Metwally et al., ICDT '05), so that a heavy source is never missing, at most overrated.
type Busy struct {
	clock clock.Clock

	mu    sync.Mutex
	slots [historySeconds + 1]busySlot // by second, modulo
	total uint64
}

type busySlot struct {
	second  int64
	sources map[netip.Addr]*tally
}

// tally is what one source did in one second.
type tally struct {
	packets, bytes, dropped uint64
	reasons                 [32]uint64 // dropped packets by reason; there are fewer reasons
}

// BusySource is one source's packets per second.
type BusySource struct {
	Source                  netip.Addr // IPv6: its /64
	Packets, Bytes, Dropped float64
	Reason                  maps.Drop // of most of its drops
}

// NewBusy returns an empty view.
func NewBusy(c clock.Clock) *Busy { return &Busy{clock: c} }

// Add counts a sampled packet for all that it stands for.
func (b *Busy) Add(e maps.Event) {
	second := b.clock.Now().Unix()
	source := maps.SourceOf(e.Source.Addr())
	weight := uint64(max(e.Weight, 1))
	b.mu.Lock()
	defer b.mu.Unlock()
	b.total++
	slot := &b.slots[second%int64(len(b.slots))]
	if slot.second != second || slot.sources == nil {
		*slot = busySlot{second, map[netip.Addr]*tally{}}
	}
	t := slot.sources[source]
	if t == nil {
		t = slot.admit(source)
	}
	t.packets += weight
	t.bytes += weight * uint64(e.Length)
	why := e.Reason
	if why == maps.DropNone {
		why = e.Shadow
	}
	if e.Reason != maps.DropNone {
		t.dropped += weight
	}
	if int(why) < len(t.reasons) {
		t.reasons[why] += weight
	}
}

// admit makes room for a source. The smallest of a few stands in for the smallest of all: finding
// that would cost a scan or a heap at every event of a flood of spoofed sources.
func (s *busySlot) admit(source netip.Addr) *tally {
	t := &tally{}
	if len(s.sources) >= busySources {
		var victim netip.Addr
		seen := 0
		for a, x := range s.sources { // starts at a random place
			if seen == 0 || x.packets < s.sources[victim].packets {
				victim = a
			}
			if seen++; seen == 8 {
				break
			}
		}
		t.packets = s.sources[victim].packets
		delete(s.sources, victim)
	}
	s.sources[source] = t
	return t
}

// Total returns how many events were ever added.
func (b *Busy) Total() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.total
}

// Top returns the n busiest sources of the last seconds, the current one left out: it is not over.
func (b *Busy) Top(seconds, n int) []BusySource {
	seconds = min(max(seconds, 1), historySeconds)
	now := b.clock.Now().Unix()
	sum := map[netip.Addr]*tally{}
	b.mu.Lock()
	for _, slot := range b.slots {
		if slot.second >= now || slot.second < now-int64(seconds) {
			continue
		}
		for a, t := range slot.sources {
			s := sum[a]
			if s == nil {
				s = &tally{}
				sum[a] = s
			}
			s.packets += t.packets
			s.bytes += t.bytes
			s.dropped += t.dropped
			for i, r := range t.reasons {
				s.reasons[i] += r
			}
		}
	}
	b.mu.Unlock()
	out := make([]BusySource, 0, len(sum))
	per := 1 / float64(seconds)
	for a, t := range sum {
		out = append(out, BusySource{a, float64(t.packets) * per, float64(t.bytes) * per, float64(t.dropped) * per, t.mostly()})
	}
	slices.SortFunc(out, func(x, y BusySource) int {
		return cmp.Or(cmp.Compare(y.Packets, x.Packets), x.Source.Compare(y.Source))
	})
	return out[:min(n, len(out))]
}

// mostly returns the reason of most drops, shadow ones included.
func (t *tally) mostly() maps.Drop {
	best := maps.DropNone
	for d := range maps.AllDrops() {
		if n := t.reasons[d]; n > 0 && (best == maps.DropNone || n > t.reasons[best]) {
			best = d
		}
	}
	return best
}

// Snapshot is the counters of one moment.
type Snapshot struct {
	Time           time.Time
	Drops, Shadows map[maps.Drop]maps.Counter
	VIPs           []maps.VIPStats
	Requests       uint64
	Hits, Lookups  uint64 // of the cache
}

// History keeps a minute of snapshots, so that rates can be told at once.
type History struct {
	mu   sync.Mutex
	ring []Snapshot // oldest first
}

// Add keeps a snapshot.
func (h *History) Add(s Snapshot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.ring) > historySeconds {
		h.ring = append(h.ring[:0], h.ring[1:]...)
	}
	h.ring = append(h.ring, s)
}

// Over returns the newest snapshot, and the one that is seconds older or the oldest there is.
// ok is false until there are two.
func (h *History) Over(seconds int) (from, to Snapshot, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := len(h.ring)
	if n < 2 {
		return Snapshot{}, Snapshot{}, false
	}
	return h.ring[max(0, n-1-max(seconds, 1))], h.ring[n-1], true
}

// Series returns the snapshots of the last minute, oldest first.
func (h *History) Series() []Snapshot {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]Snapshot(nil), h.ring...)
}
