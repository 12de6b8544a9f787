package quiccc

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/bermedge/berm/maps"
)

// Averages move by 1/2^n of the difference, as the kernel half's of TCP do (bpf/include/path.h). So does the least round
// trip, which rises by less: what one client made too small, the others put right.
const (
	rttShift    = 3
	rttvarShift = 2
	minDown     = 3
	minUp       = 6
	rateShift   = 3
)

// A client, which is an IPv4 address or an IPv6 /64, may be heard once in a turn about times, and may count for so many
// packets in it, or for as many as all others of its prefix did.
const (
	turn        = time.Second
	turnPackets = 256
	turnClients = 1 << 16 // as many are told apart in a turn; the reports of more are not taken
)

// reporter writes what connections measured into the table of paths.
type reporter struct {
	paths Paths
	now   func() time.Time

	mu       sync.Mutex
	turn     time.Time // when it began
	clients  map[netip.Prefix]*account
	prefixes map[netip.Prefix]uint64 // packets counted in this turn
	whole    uint64
	bounded  uint64
}

type account struct {
	packets uint64 // counted in this turn
	spoke   bool   // about times
}

func newReporter(paths Paths, now func() time.Time) *reporter {
	return &reporter{paths: paths, now: now, clients: map[netip.Prefix]*account{}, prefixes: map[netip.Prefix]uint64{}}
}

func (r *reporter) counts() (whole, bounded uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.whole, r.bounded
}

// add takes a connection's sample in, as far as its client may be heard.
func (r *reporter) add(client netip.Addr, s sample) error {
	if !client.IsValid() {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.account(client)
	if a == nil {
		r.bounded++
		return nil
	}
	prefix := maps.PathPrefix(client)
	times := !a.spoke
	share := r.share(a, prefix, s.packets())
	if times && share == 1 {
		r.whole++
	} else {
		r.bounded++
	}
	a.spoke = true
	path, err := r.paths.Get(client, maps.ProtocolUDP)
	if err != nil && !errors.Is(err, maps.ErrNotFound) {
		return fmt.Errorf("report on %s: %w", prefix, err)
	}
	path.Prefix, path.Protocol = prefix, maps.ProtocolUDP
	addCounts(&path, s, share)
	if times {
		addTimes(&path, s)
	}
	return r.paths.Put(path)
}

// account is the client's in this turn, or nil when there are too many.
func (r *reporter) account(client netip.Addr) *account {
	if now := r.now(); now.Sub(r.turn) >= turn {
		r.turn = now
		clear(r.clients)
		clear(r.prefixes)
	}
	key := source(client)
	a := r.clients[key]
	if a == nil && len(r.clients) < turnClients {
		a = &account{}
		r.clients[key] = a
	}
	return a
}

// share is the part of n packets that counts.
func (r *reporter) share(a *account, prefix netip.Prefix, n uint64) float64 {
	others := r.prefixes[prefix] - a.packets
	room := max(turnPackets, others) - min(a.packets, max(turnPackets, others))
	got := min(n, room)
	a.packets += got
	r.prefixes[prefix] += got
	if n == 0 {
		return 1
	}
	return float64(got) / float64(n)
}

func addCounts(p *maps.Path, s sample, share float64) {
	part := func(n uint64) uint64 {
		if share == 1 {
			return n
		}
		// Rounded up as often as keeps the sum right: few losses would vanish otherwise.
		x := float64(n) * share
		whole := uint64(x)
		if rand.Float64() < x-float64(whole) {
			whole++
		}
		return whole
	}
	if s.begun {
		p.Connections++
	}
	p.Sent += part(s.sent)
	p.Delivered += part(s.delivered)
	p.Lost += part(s.lost)
	p.Retransmitted += part(s.resent)
	for i, n := range s.bursts {
		p.Bursts[i] += uint32(part(uint64(n)))
	}
}

func addTimes(p *maps.Path, s sample) {
	if s.rtt > 0 {
		if p.RTT == 0 {
			p.RTT, p.RTTVar = s.rtt, s.rtt/2
		} else {
			off := s.rtt - p.RTT
			p.RTT += off >> rttShift
			p.RTTVar += (off.Abs() - p.RTTVar) >> rttvarShift
		}
	}
	switch off := s.minRTT - p.MinRTT; {
	case s.minRTT <= 0:
	case p.MinRTT == 0:
		p.MinRTT = s.minRTT
	case off < 0:
		p.MinRTT += off >> minDown
	default:
		p.MinRTT += off >> minUp
	}
	switch off := int64(s.kbps) - int64(p.RateKbps); {
	case s.kbps == 0:
	case p.RateKbps == 0:
		p.RateKbps = s.kbps
	default: // by an eighth of itself at most, however large a rate is claimed
		p.RateKbps += uint32(min(off>>rateShift, int64(p.RateKbps>>rateShift)+1))
	}
}
