package maps

import (
	"errors"
	"fmt"
	"math"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// Sites is how a service goes on at other sites. Backend sets stand for their edges.
type Sites struct {
	// Carry is the set of the next site's edges, which get the packets of TCP flows that nobody here knows; "" =
	// there is no other site. Hops is how many sites besides this one may be asked.
	Carry string `json:"carry,omitempty"`
	Hops  int    `json:"hops,omitempty"`
	// Spill is the set of the edges of the site where a share of the new flows begins.
	Spill       string `json:"spill,omitempty"`
	SpillPoints int    `json:"spill_basis_points,omitempty"`
	// Region is the number, on this host only, of the region that alone serves it; 0 = every one does. Outside says
	// that this edge is in another one.
	Region  uint8 `json:"region,omitempty"`
	Outside bool  `json:"outside,omitempty"`
}

// Limits of sites.
const (
	MaxSiteHops = 3      // BERM_SITE_HOPS
	AllPoints   = 10_000 // basis points of the whole
	spillAll    = 65536  // BERM_SPILL_ALL
)

// Validate says what is wrong with a service's sites.
func (s Sites) Validate() error {
	var errs []error
	if s.Hops < 0 || s.Hops > MaxSiteHops {
		errs = append(errs, fmt.Errorf("sites: %d others to ask: want at most %d", s.Hops, MaxSiteHops))
	}
	if s.SpillPoints < 0 || s.SpillPoints > AllPoints {
		errs = append(errs, fmt.Errorf("spill: %d basis points: want 0 to %d", s.SpillPoints, AllPoints))
	}
	if s.SpillPoints > 0 && s.Spill == "" {
		errs = append(errs, errors.New("spill: names no site"))
	}
	if s.Outside && s.Region == 0 {
		errs = append(errs, errors.New("region: an edge cannot be outside of none"))
	}
	return errors.Join(errs...)
}

// spill is the share as the kernel has it: of 65536 new flows so many.
func (s Sites) spill() uint32 {
	return uint32(math.Round(float64(s.SpillPoints) * spillAll / AllPoints))
}

// Spills says whether a new flow with this hash begins at another site.
func (s Sites) Spills(flow uint64) bool { return uint32(flow>>48) < s.spill() }

// encode writes into a service's record; set finds the number of a backend set.
func (s Sites) encode(r *bpf.XDPBermVip, set func(name string) uint16) {
	r.CarrySet, r.CarryHops, r.SpillSet = uint8(set(s.Carry)), uint8(s.Hops), uint8(set(s.Spill))
	r.Spill, r.Region = s.spill(), s.Region
	if s.Carry != "" || s.Spill != "" {
		r.Flags |= uint16(bpf.XDPBermVipFlagsBERM_VIP_SITES)
	}
	if s.Region != 0 {
		r.Flags |= uint16(bpf.XDPBermVipFlagsBERM_VIP_REGION)
	}
	if s.Outside {
		r.Flags |= uint16(bpf.XDPBermVipFlagsBERM_VIP_OUTSIDE)
	}
}

func (n nameTables) sites(r *bpf.XDPBermVip) Sites {
	return Sites{
		Carry: n.setNames[uint32(r.CarrySet)], Hops: int(r.CarryHops), Spill: n.setNames[uint32(r.SpillSet)],
		SpillPoints: int(math.Round(float64(r.Spill) * AllPoints / spillAll)), Region: r.Region,
		Outside: r.Flags&uint16(bpf.XDPBermVipFlagsBERM_VIP_OUTSIDE) != 0,
	}
}

// withoutSites is a bare address's entry: what has no service is carried nowhere, but a region's stays its.
func withoutSites(r *bpf.XDPBermVip) {
	r.SpillSet, r.Spill = 0, 0
	if r.Flags&uint16(bpf.XDPBermVipFlagsBERM_VIP_OUTSIDE) == 0 {
		r.CarrySet, r.CarryHops = 0, 0
		r.Flags &^= uint16(bpf.XDPBermVipFlagsBERM_VIP_SITES)
	}
}

// Carries bounds what goes from site to site because nobody here knows its flow.
type Carries struct {
	set *Set
	m   *ebpf.Map
}

// Carry is how many packets a second may be carried to other sites.
type Carry struct {
	Source Limit `json:"source"` // of one source
	All    Limit `json:"all"`    // of all together
}

// carryBurst is the part of a second whose packets may come at once: 25 ticks of 4 ms.
const carryBurst = 10

// CarryLimit is a limit with room for the kernel's coarse clock.
func CarryLimit(perSecond uint64) Limit {
	if perSecond == 0 {
		return Limit{}
	}
	return Limit{PerSecond: perSecond, Burst: max(1, perSecond/carryBurst)}
}

// Get returns the bounds in force.
func (c *Carries) Get() (Carry, error) {
	var e bpf.XDPBermCarry
	if err := c.m.Lookup(uint32(0), &e); err != nil {
		return Carry{}, fmt.Errorf("bounds of what is carried: %w", err)
	}
	return Carry{Source: decodeLimit(e.Source.Cost, e.Source.BurstUnits), All: decodeLimit(e.All.Cost, e.All.BurstUnits)}, nil
}

// Put changes the bounds.
func (c *Carries) Put(v Carry) error {
	var e bpf.XDPBermCarry
	var errs [2]error
	e.Source.Cost, e.Source.BurstUnits, errs[0] = v.Source.encode("source_packets", 1)
	e.All.Cost, e.All.BurstUnits, errs[1] = v.All.encode("packets", 1)
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	return c.set.lock.hold(func() error { return put(c.m, uint32(0), e) })
}
