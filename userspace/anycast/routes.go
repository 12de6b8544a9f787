package anycast

import (
	"cmp"
	"net/netip"
	"reflect"
	"slices"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// Route is a prefix with what routers are told about it.
type Route struct {
	Prefix      netip.Prefix
	NextHop     netip.Addr // unspecified: this end of each session
	Communities []Community
	MED         uint32 // 0: none
	Prepend     int    // times our AS stands in the path beside the once that BGP adds
}

// routes are what to announce in a phase. vips are announced where the configuration names nothing.
func (c Config) routes(vips []netip.Addr, dec decision) []Route {
	if dec.phase == Withdrawn {
		return nil
	}
	list := c.Announcements
	if len(list) == 0 {
		for _, a := range vips {
			list = append(list, Announcement{Prefix: netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())})
		}
	}
	out := make([]Route, 0, len(list))
	for _, a := range list {
		r := Route{Prefix: a.Prefix, MED: c.MED, NextHop: cmp.Or(c.NextHop4, netip.IPv4Unspecified())}
		if a.Prefix.Addr().Is6() {
			r.NextHop = cmp.Or(c.NextHop6, netip.IPv6Unspecified())
		}
		if a.MED != nil {
			r.MED = *a.MED
		}
		r.Communities = slices.Concat(c.Communities, a.Communities)
		if dec.phase == Prepended {
			r.Prepend = c.Prepend
		}
		if dec.graceful && !slices.Contains(r.Communities, graceful) {
			r.Communities = append(r.Communities, graceful)
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Route) int { return a.Prefix.Compare(b.Prefix) })
	return slices.CompactFunc(out, func(a, b Route) bool { return a.Prefix == b.Prefix })
}

func (r Route) equal(o Route) bool { return reflect.DeepEqual(r, o) }

// path is the route as GoBGP takes it.
func (r Route) path(as uint32) (*apiutil.Path, error) {
	nlri, err := bgp.NewIPAddrPrefix(r.Prefix)
	if err != nil {
		return nil, err
	}
	p := &apiutil.Path{Family: bgp.RF_IPv4_UC, Nlri: nlri, Attrs: []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP)}}
	if r.Prefix.Addr().Is4() {
		hop, err := bgp.NewPathAttributeNextHop(r.NextHop)
		if err != nil {
			return nil, err
		}
		p.Attrs = append(p.Attrs, hop)
	} else {
		p.Family = bgp.RF_IPv6_UC
		reach, err := bgp.NewPathAttributeMpReachNLRI(p.Family, []bgp.PathNLRI{{NLRI: nlri}}, r.NextHop)
		if err != nil {
			return nil, err
		}
		p.Attrs = append(p.Attrs, reach)
	}
	if r.Prepend > 0 {
		seq := bgp.NewAs4PathParam(bgp.BGP_ASPATH_ATTR_TYPE_SEQ, slices.Repeat([]uint32{as}, r.Prepend))
		p.Attrs = append(p.Attrs, bgp.NewPathAttributeAsPath([]bgp.AsPathParamInterface{seq}))
	}
	if r.MED > 0 {
		p.Attrs = append(p.Attrs, bgp.NewPathAttributeMultiExitDisc(r.MED))
	}
	var plain []uint32
	var large []*bgp.LargeCommunity
	for _, c := range r.Communities {
		if c.Large {
			large = append(large, bgp.NewLargeCommunity(c.Parts[0], c.Parts[1], c.Parts[2]))
		} else {
			plain = append(plain, c.Parts[0]<<16|c.Parts[1])
		}
	}
	if len(plain) > 0 {
		p.Attrs = append(p.Attrs, bgp.NewPathAttributeCommunities(plain))
	}
	if len(large) > 0 {
		p.Attrs = append(p.Attrs, bgp.NewPathAttributeLargeCommunities(large))
	}
	return p, nil
}
