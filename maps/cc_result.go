package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// CCParts is how many parts the clients of a prefix are in.
const CCParts = len(bpf.XDPBermCcResult{}.Parts)

const ccResults = 16384 // BERM_CC_RESULTS

// CCResult is what came of the connections of a prefix, by their protocol, that began with a profile: those of TCP count
// themselves in the kernel half, those of QUIC the daemon does.
type CCResult struct {
	Prefix   netip.Prefix
	Protocol Protocol
	Profile  string // "": the host's parameters, also where the kernel refused the profile's
	Updated  time.Time
	Parts    [CCParts]CCPart // of its clients: one client is in one part
}

// CCPart are sums over the connections of a part of a prefix's clients. What counts segments, looks and connections
// wraps at 2^32.
type CCPart struct {
	Bytes       uint64        // acknowledged
	Busy        time.Duration // while there was something to acknowledge
	RTT         time.Duration // round trips, one for each look
	Queue       time.Duration // what they were above their connection's least
	Looks       uint32
	Sent        uint32 // segments with data
	Again       uint32 // of those, sent again
	Connections uint32 // that delivered more than a first window
	RateKbps    uint32 // best delivery rate seen, decaying
}

// CountResult adds what came of a QUIC connection since it was last told of. Callers take turns: the daemon's connections are
// the only writer. profile is the number of the one that it began with, 0 the host's.
func (c *CC) CountResult(client netip.Addr, profile uint32, p CCPart) error {
	client = client.Unmap().WithZone("")
	key := bpf.XDPBermCcResultKey{Prefix: toAddr(PathPrefix(client).Addr()), Proto: uint32(ProtocolUDP), Profile: profile}
	var v bpf.XDPBermCcResult
	if err := c.results.Lookup(&key, &v); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("count what came of a connection of %s: %w", client, err)
	}
	v.UpdatedNs = monotonic()
	us := func(d time.Duration) uint64 { return uint64(d.Microseconds()) }
	to := &v.Parts[ShareHash(c.set.Config.Get().Seed, client)>>32&uint64(CCParts-1)]
	to.Bytes += p.Bytes
	to.BusyUs += us(p.Busy)
	to.RttUs += us(p.RTT)
	to.QueueUs += us(p.Queue)
	to.Looks += p.Looks
	to.Sent += p.Sent
	to.Again += p.Again
	to.Connections += p.Connections
	if p.RateKbps >= to.RateKbps {
		to.RateKbps = p.RateKbps
	} else {
		to.RateKbps -= to.RateKbps >> rateShift
	}
	if err := c.results.Put(&key, &v); err != nil {
		return fmt.Errorf("count what came of a connection of %s: %w", client, err)
	}
	return nil
}

// rateShift is by which the best rate decays: BEST_RATE_SHIFT of bpf/include/result.h.
const rateShift = 7

// Results returns what came of connections, by prefix and profile. Those of profiles that are gone are left out.
func (c *CC) Results() ([]CCResult, error) {
	names, err := c.names()
	if err != nil {
		return nil, err
	}
	names[0] = ""
	const batch = 1024
	keys, values := make([]bpf.XDPBermCcResultKey, batch), make([]bpf.XDPBermCcResult, batch)
	var cursor ebpf.MapBatchCursor
	var list []CCResult
	for {
		n, err := c.results.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			if name, ok := names[keys[i].Profile]; ok {
				list = append(list, decodeCCResult(&keys[i], name, &values[i]))
			}
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return list, nil
		case err != nil:
			return nil, fmt.Errorf("read what came of connections: %w", err)
		}
	}
}

func decodeCCResult(key *bpf.XDPBermCcResultKey, profile string, v *bpf.XDPBermCcResult) CCResult {
	us := func(n uint64) time.Duration { return time.Duration(n) * time.Microsecond }
	r := CCResult{Prefix: PathPrefix(netip.AddrFrom16(key.Prefix.Octets)), Protocol: Protocol(key.Proto), Profile: profile, Updated: wall(v.UpdatedNs)}
	for i, p := range v.Parts {
		r.Parts[i] = CCPart{
			Bytes: p.Bytes, Busy: us(p.BusyUs), RTT: us(p.RttUs), Queue: us(p.QueueUs),
			Looks: p.Looks, Sent: p.Sent, Again: p.Again, Connections: p.Connections, RateKbps: p.RateKbps,
		}
	}
	return r
}

// Learn gives prefixes what was learned about them, and takes away what is in drop. Where somebody has decided about a
// prefix, by a rule of it or of a larger one, that stays, and the prefix is told.
func (c *CC) Learn(put []CCRule, drop []netip.Prefix) (decided []netip.Prefix, err error) {
	err = c.set.lock.hold(func() error {
		rules, err := c.ListRules()
		if err != nil {
			return err
		}
		theirs, mine := map[netip.Prefix]bool{}, map[netip.Prefix]bool{}
		for _, r := range rules {
			if r.Owner == OwnerLearner {
				mine[r.Prefix] = true
			} else {
				theirs[r.Prefix] = true
			}
		}
		var errs []error
		for _, r := range put {
			if within(r.Prefix, theirs) {
				decided = append(decided, r.Prefix)
				continue
			}
			if err := CheckCCPrefix(r.Prefix); err != nil {
				return fmt.Errorf("prefix %w", err)
			}
			r.Owner = OwnerLearner
			errs = append(errs, c.putRule(r))
		}
		for _, p := range drop {
			if mine[p] {
				errs = append(errs, c.removeRule(p))
			}
		}
		return errors.Join(errs...)
	})
	return decided, err
}

// within tells whether a prefix is in a set, or in one of it.
func within(p netip.Prefix, set map[netip.Prefix]bool) bool {
	for bits := p.Bits(); bits >= 0 && len(set) > 0; bits-- {
		if q, err := p.Addr().Prefix(bits); err == nil && set[q] {
			return true
		}
	}
	return false
}
