package maps

import (
	"errors"
	"fmt"
	"iter"
	"math"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// Rates is the table of rate classes.
type Rates struct {
	set   *Set
	m     *ebpf.Map
	cells *ebpf.Map
}

// Limit is a rate and how much may come at once. A zero PerSecond is no limit.
type Limit struct {
	PerSecond uint64 `json:"per_second"`
	Burst     uint64 `json:"burst"`
}

// RateClass is a set of limits for each source. With several edges behind one router a source's
// flows spread over them, so that each edge sees, and enforces against, only its share.
type RateClass struct {
	ID      uint32 `json:"id"` // given by the table
	Name    string `json:"name"`
	Owner   Owner  `json:"owner"`
	Packets Limit  `json:"packets"`
	Bytes   Limit  `json:"bytes"` // of IP packets
	SYNs    Limit  `json:"syns"`  // TCP SYN without ACK
	// Initials are QUIC's attempts to connect, at VIPs that speak it. A client sends one to three for one
	// connection.
	Initials Limit `json:"initials"`
	// Aggregate is for all sources of an IPv4 /24, or an IPv6 /48, together. Where one of its limits is
	// exceeded, each address, or /56, may still send its share, 1/256 of the limit.
	Aggregate Limits `json:"aggregate"`
	// Network is for all sources of a network (ASN) together, where the prefix table knows it. Where one of its
	// limits is exceeded, each of 256 parts, into which a hash puts its /24s and /48s, may still send its share.
	Network Limits `json:"network"`
	Shadow  bool   `json:"shadow,omitempty"`
	// FineClock says that the kernel half reads the precise clock for this class, since a
	// burst is below two ticks of the cheap one. Decided here, from the limits.
	FineClock bool `json:"fine_clock,omitempty"`
}

// AggregateShares is how many parts an aggregate, or a network, has that each keep a share of its limits.
const AggregateShares = 256

// Limits are one limit for each thing that is counted.
type Limits struct {
	Packets  Limit `json:"packets"`
	Bytes    Limit `json:"bytes"`
	SYNs     Limit `json:"syns"`
	Initials Limit `json:"initials"`
}

// Limits are the class's for one source.
func (c RateClass) Limits() Limits {
	return Limits{Packets: c.Packets, Bytes: c.Bytes, SYNs: c.SYNs, Initials: c.Initials}
}

// All gives each limit by the name of what it counts.
func (l Limits) All() iter.Seq2[string, Limit] {
	return func(yield func(string, Limit) bool) {
		_ = yield("packets", l.Packets) && yield("bytes", l.Bytes) && yield("SYNs", l.SYNs) && yield("Initials", l.Initials)
	}
}

const (
	unitsPerSecond = 1e9 / 64 // rate units of 64 ns
	costScale      = 1 << 16  // cost is held in 1/65536 of a unit
	// At this rate one packet or byte costs 64/65536 of a unit; above, rounding errs by over 1 %.
	maxPerSecond = unitsPerSecond * costScale / 64
	// The kernel half keeps at most 2^32 units of debt: 274 s.
	maxBurstUnits = 1 << 32
	// Below one full-sized packet a byte limit would refuse that packet for ever.
	minByteBurst = 1500
	// Where the loader has not measured the tick: 4 ms, the longest that kernels use commonly.
	assumedTickUnits = 4e6 / 64
)

// encode turns a limit into the kernel's form, or says why it cannot be.
func (l Limit) encode(what string, minBurst uint64) (cost, burst uint64, err error) {
	switch {
	case l.PerSecond == 0 && l.Burst == 0:
		return 0, 0, nil
	case l.PerSecond == 0:
		return 0, 0, fmt.Errorf("%s: a burst of %d without a rate: give the rate per second too", what, l.Burst)
	case l.PerSecond > maxPerSecond:
		return 0, 0, fmt.Errorf("%s: %d per second is above %.0f, the most that can be counted exactly; 0 is no limit", what, l.PerSecond, float64(maxPerSecond))
	case l.Burst < minBurst:
		return 0, 0, fmt.Errorf("%s: a burst of %d is below %d, so that nothing would pass", what, l.Burst, minBurst)
	}
	cost = uint64(math.Round(unitsPerSecond * costScale / float64(l.PerSecond)))
	// Half a packet or byte more, since the kernel half rounds each charge up or down to a unit.
	units := math.Ceil(float64(cost) * (float64(l.Burst) + 0.5) / costScale)
	if units > maxBurstUnits {
		return 0, 0, fmt.Errorf("%s: a burst of %d takes %.0f s at %d per second, at most 274 s can be held: lower the burst or raise the rate",
			what, l.Burst, float64(l.Burst)/float64(l.PerSecond), l.PerSecond)
	}
	return cost, uint64(units), nil
}

func decodeLimit(cost, burst uint64) Limit {
	if cost == 0 {
		return Limit{}
	}
	return Limit{
		PerSecond: uint64(math.Round(unitsPerSecond * costScale / float64(cost))),
		Burst:     uint64(float64(burst) * costScale / float64(cost)),
	}
}

// Validate says what is wrong with a class.
func (c RateClass) Validate() error {
	_, err := c.encode(assumedTickUnits)
	return err
}

func (c RateClass) encode(tickUnits uint64) (r bpf.XDPBermRateClass, err error) {
	r.Name, r.Owner, r.Flags = toName(c.Name), uint8(c.Owner), uint16(bpf.XDPBermRateFlagsBERM_RATE_USED)
	errs := []error{CheckName(c.Name)}
	const initials, aggregate, network = bpf.XDPBermRateFlagsBERM_RATE_INITIALS, bpf.XDPBermRateFlagsBERM_RATE_AGGREGATE, bpf.XDPBermRateFlagsBERM_RATE_NETWORK
	for _, l := range []struct {
		what  string
		limit Limit
		least uint64 // of a burst
		to    *bpf.XDPBermLimit
		flags bpf.XDPBermRateFlags // of a class that has it
		own   uint64               // of an aggregate's, or a network's: what a part of it may send
		of    string               // that part
	}{
		{"packets", c.Packets, 1, &r.Packets, 0, 0, ""},
		{"bytes", c.Bytes, minByteBurst, &r.Bytes, 0, 0, ""},
		{"syns", c.SYNs, 1, &r.Syns, 0, 0, ""},
		{"initials", c.Initials, 1, &r.Initials, initials, 0, ""},
		{"aggregate.packets", c.Aggregate.Packets, 1, &r.Aggregate.Packets, aggregate, c.Packets.PerSecond, "one source"},
		{"aggregate.bytes", c.Aggregate.Bytes, minByteBurst, &r.Aggregate.Bytes, aggregate, c.Bytes.PerSecond, "one source"},
		{"aggregate.syns", c.Aggregate.SYNs, 1, &r.Aggregate.Syns, aggregate, c.SYNs.PerSecond, "one source"},
		{"aggregate.initials", c.Aggregate.Initials, 1, &r.Aggregate.Initials, aggregate | initials, c.Initials.PerSecond, "one source"},
		{"network.packets", c.Network.Packets, 1, &r.Network.Packets, network, max(c.Packets.PerSecond, c.Aggregate.Packets.PerSecond), "a part of it"},
		{"network.bytes", c.Network.Bytes, minByteBurst, &r.Network.Bytes, network, max(c.Bytes.PerSecond, c.Aggregate.Bytes.PerSecond), "a part of it"},
		{"network.syns", c.Network.SYNs, 1, &r.Network.Syns, network, max(c.SYNs.PerSecond, c.Aggregate.SYNs.PerSecond), "a part of it"},
		{"network.initials", c.Network.Initials, 1, &r.Network.Initials, network | initials, max(c.Initials.PerSecond, c.Aggregate.Initials.PerSecond), "a part of it"},
	} {
		var err error
		if l.to.Cost, l.to.BurstUnits, err = l.limit.encode(l.what, l.least); err != nil {
			errs = append(errs, err)
		} else if l.limit.PerSecond != 0 && l.limit.PerSecond < l.own {
			errs = append(errs, fmt.Errorf("%s: %d per second is below the %d of %s, which none could reach", l.what, l.limit.PerSecond, l.own, l.of))
		}
		if l.to.Cost == 0 {
			continue
		}
		r.Flags |= uint16(l.flags)
		if l.to.BurstUnits < 2*tickUnits {
			r.Flags |= uint16(bpf.XDPBermRateFlagsBERM_RATE_FINE_CLOCK)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return r, fmt.Errorf("rate class %q: %w", c.Name, err)
	}
	if c.Shadow {
		r.Flags |= uint16(bpf.XDPBermRateFlagsBERM_RATE_SHADOW)
	}
	return r, nil
}

func (r *Rates) table() named[bpf.XDPBermRateClass] {
	return named[bpf.XDPBermRateClass]{r.m, "rate class", func(c *bpf.XDPBermRateClass) string {
		if c.Flags&uint16(bpf.XDPBermRateFlagsBERM_RATE_USED) == 0 {
			return ""
		}
		return fromName(c.Name)
	}}
}

func (r *Rates) ids() (map[string]uint32, error) { return r.table().ids() }

// IDs returns the number of each class, by name.
func (r *Rates) IDs() (map[string]uint32, error) { return r.ids() }

// ListClasses returns all classes, by id. Rates above a million a second come back rounded to
// what the kernel half counts with.
func (r *Rates) ListClasses() ([]RateClass, error) {
	entries, err := r.table().entries()
	if err != nil {
		return nil, err
	}
	var list []RateClass
	for id := 1; id < len(entries); id++ {
		if e := &entries[id]; e.Flags&uint16(bpf.XDPBermRateFlagsBERM_RATE_USED) != 0 {
			list = append(list, decodeClass(uint32(id), e))
		}
	}
	return list, nil
}

func decodeClass(id uint32, e *bpf.XDPBermRateClass) RateClass {
	of := func(l bpf.XDPBermLimit) Limit { return decodeLimit(l.Cost, l.BurstUnits) }
	a, n := e.Aggregate, e.Network
	return RateClass{
		ID: id, Name: fromName(e.Name), Owner: Owner(e.Owner),
		Packets: of(e.Packets), Bytes: of(e.Bytes), SYNs: of(e.Syns), Initials: of(e.Initials),
		Aggregate: Limits{Packets: of(a.Packets), Bytes: of(a.Bytes), SYNs: of(a.Syns), Initials: of(a.Initials)},
		Network:   Limits{Packets: of(n.Packets), Bytes: of(n.Bytes), SYNs: of(n.Syns), Initials: of(n.Initials)},
		Shadow:    e.Flags&uint16(bpf.XDPBermRateFlagsBERM_RATE_SHADOW) != 0,
		FineClock: e.Flags&uint16(bpf.XDPBermRateFlagsBERM_RATE_FINE_CLOCK) != 0,
	}
}

// GetClass returns the class of this name.
func (r *Rates) GetClass(name string) (RateClass, error) {
	id, e, err := r.table().find(name)
	if err != nil {
		return RateClass{}, err
	}
	return decodeClass(id, &e), nil
}

// PutClass adds a class, or changes the one of this name.
func (r *Rates) PutClass(c RateClass) (uint32, error) {
	tick := uint64(r.set.Config.Get().TickUnits)
	if tick == 0 {
		tick = assumedTickUnits
	}
	v, err := c.encode(tick)
	if err != nil {
		return 0, err
	}
	var id uint32
	err = r.set.lock.hold(func() (err error) {
		if id, _, _, err = r.table().place(c.Name); err != nil {
			return err
		}
		return put(r.m, id, v)
	})
	return id, err
}

// RemoveClass takes a class away that neither a VIP nor a prefix names.
func (r *Rates) RemoveClass(name string) error {
	return r.set.lock.hold(func() error {
		id, _, err := r.table().find(name)
		if err != nil {
			return err
		}
		users, err := r.set.VIPs.users(func(v *bpf.XDPBermVip) bool { return uint32(v.RateClass) == id })
		if err != nil {
			return err
		}
		if users != "" {
			return fmt.Errorf("rate class %q: %w by VIP %s", name, ErrInUse, users)
		}
		records, err := r.set.Prefixes.Records()
		if err != nil {
			return err
		}
		for _, rec := range records {
			if uint32(rec.RateClass) == id {
				return fmt.Errorf("rate class %q: %w by prefix override %d", name, ErrInUse, rec.Rule)
			}
		}
		return put(r.m, id, bpf.XDPBermRateClass{})
	})
}
