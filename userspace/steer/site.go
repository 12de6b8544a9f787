package steer

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	bermmaps "github.com/bermedge/berm/maps"
)

// Site is another site, as this edge knows it: flows that routers have taken from there to here are carried back.
type Site struct {
	Region string `yaml:"region"`
	// Backends are its edges, by the sets that they serve: the same as here, by the same names.
	Backends map[string][]Backend `yaml:"backends"`
}

// Carry bounds what is carried to other sites because nobody here knows its flow, in packets a second; 0 = no bound.
type Carry struct {
	Packets       uint64 `yaml:"packets"`        // of all sources together
	SourcePackets uint64 `yaml:"source_packets"` // of one
}

// DefaultCarry keeps a flood of the smallest packets below 0.7 Gb/s between sites (84 bytes each on the wire). For one
// source it is what a download of 2.4 Gb/s needs, where every second segment of 1500 bytes is acknowledged.
func DefaultCarry() Carry { return Carry{Packets: 1_000_000, SourcePackets: 100_000} }

func (c Carry) limits() bermmaps.Carry {
	return bermmaps.Carry{All: bermmaps.CarryLimit(c.Packets), Source: bermmaps.CarryLimit(c.SourcePackets)}
}

// SiteSet is what the set of another site's edges is called, besides the one of this site's.
func SiteSet(set, site string) string { return set + "." + site }

// farther is by how much edges of other sites are asked less often than those of this one, and may take longer.
const farther = 5

func (p Probe) far() Probe {
	p.Interval, p.Timeout = farther*p.Interval, min(farther*p.Timeout, farther*p.Interval-time.Millisecond)
	return p
}

// siteSet is a set of another site's.
type siteSet struct {
	site, set string
	members   []Backend
}

// siteSets are the sets of all other sites, by what they are called here.
func (c Config) siteSets() map[string]siteSet {
	out := map[string]siteSet{}
	for site, s := range c.Sites {
		for set, members := range s.Backends {
			out[SiteSet(set, site)] = siteSet{site, set, members}
		}
	}
	return out
}

// all are the sets of this site and of all others.
func (c Config) all() map[string][]Backend {
	out := maps.Clone(c.Sets)
	if out == nil {
		out = map[string][]Backend{}
	}
	for name, s := range c.siteSets() {
		out[name] = s.members
	}
	return out
}

// region is the number of a region on this host; 0 = none.
func (c Config) region(name string) uint8 {
	if name == "" {
		return 0
	}
	names := []string{name, c.Node.Region}
	for _, s := range c.Sites {
		names = append(names, s.Region)
	}
	names = append(names, c.Regions...)
	slices.Sort(names)
	names = slices.DeleteFunc(slices.Compact(names), func(s string) bool { return s == "" })
	return uint8(1 + slices.Index(names, name))
}

// around are the sites that serve a set besides this one, in the order in which they are asked: by name, from this
// site's on, so that every site comes once, wherever the way begins.
func (c Config) around(set, region string) []string {
	var after, before []string
	for _, name := range slices.Sorted(maps.Keys(c.Sites)) {
		s := c.Sites[name]
		if len(s.Backends[set]) == 0 || region != "" && s.Region != region {
			continue
		}
		if name > c.Node.Site {
			after = append(after, name)
		} else {
			before = append(before, name)
		}
	}
	return append(after, before...)
}

// Abroad is what a service wants of other sites.
type Abroad struct {
	Set     string // of backends
	Spill   Spill
	Region  string // that alone serves it; empty: every one
	Outside string // what edges of other regions do with it
}

// Spill is a share of the new flows that begins at another site.
type Spill struct {
	To          string `yaml:"to"`           // a site
	BasisPoints int    `yaml:"basis_points"` // of the service's new flows, by their hash
}

// What an edge outside of a service's region does with its packets.
const (
	OutsideDrop  = "drop"
	OutsideCarry = "carry"
)

// SitesOf is what a service's packets do at other sites.
func (c Config) SitesOf(a Abroad) bermmaps.Sites {
	around := c.around(a.Set, a.Region)
	out := bermmaps.Sites{Region: c.region(a.Region), Outside: a.Region != "" && a.Region != c.Node.Region}
	if out.Outside && a.Outside != OutsideCarry {
		return out
	}
	if len(around) > 0 {
		out.Carry, out.Hops = SiteSet(a.Set, around[0]), len(around)
	}
	if !out.Outside && a.Spill.BasisPoints > 0 && slices.Contains(around, a.Spill.To) {
		out.Spill, out.SpillPoints = SiteSet(a.Set, a.Spill.To), a.Spill.BasisPoints
	}
	return out
}

// ValidateAbroad reports everything that is wrong with what a service wants, by the service's keys.
func (c Config) ValidateAbroad(a Abroad) error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	around := c.around(a.Set, a.Region)
	site, known := c.Sites[a.Spill.To]
	switch {
	case a.Spill == Spill{}:
	case a.Spill.To == "":
		fail("spill.to: names no site")
	case !known:
		fail("spill.to: no site is called %q (sites: %v)", a.Spill.To, slices.Sorted(maps.Keys(c.Sites)))
	case len(site.Backends[a.Set]) == 0:
		fail("spill.to: site %q has no backends of the set %q", a.Spill.To, a.Set)
	case a.Region != "" && site.Region != a.Region:
		fail("spill.to: site %q is of region %q, and the service is of %q alone", a.Spill.To, site.Region, a.Region)
	}
	if p := a.Spill.BasisPoints; p < 0 || p > bermmaps.AllPoints {
		fail("spill.basis_points: %d: want 0 to %d", p, bermmaps.AllPoints)
	}
	switch a.Outside {
	case "", OutsideDrop, OutsideCarry:
	default:
		fail("outside: %q: want %s or %s", a.Outside, OutsideDrop, OutsideCarry)
	}
	switch {
	case a.Region == "" && a.Outside != "":
		fail("outside: is %s, but the service has no region", a.Outside)
	case a.Region != "" && c.Node.Region == "":
		fail("region: is %q, but node.region does not say where this edge is", a.Region)
	case a.Outside == OutsideCarry && a.Region != c.Node.Region && len(around) == 0:
		fail("outside: is carry, but no site of region %q has backends of the set %q", a.Region, a.Set)
	}
	return errors.Join(errs...)
}

// validateSites: every edge names the other sites alike, and nobody twice.
func (c Config) validateSites(addresses map[string]netip.Addr) (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Sites) == 0 {
		return nil
	}
	if c.Node.Site == "" {
		fail("node.site: is needed, because sites lists others")
	}
	if len(c.Sites) > bermmaps.MaxSiteHops {
		fail("sites: has %d, want at most %d besides this one", len(c.Sites), bermmaps.MaxSiteHops)
	}
	if c.SecretFile == "" {
		fail("steer.secret_file: is needed, because the edges of all sites must share a secret (make one with: openssl rand -hex 32)")
	}
	here := map[string]bool{}
	for _, members := range c.Sets {
		for _, b := range members {
			here[b.Name] = true
		}
	}
	at := map[string]string{}
	for _, site := range slices.Sorted(maps.Keys(c.Sites)) {
		key := "sites." + site
		if site == c.Node.Site {
			fail("%s: is this edge's own site: list the others", key)
		}
		for _, set := range slices.Sorted(maps.Keys(c.Sites[site].Backends)) {
			members := c.Sites[site].Backends[set]
			key := key + ".backends." + set
			name := SiteSet(set, site)
			if _, ok := c.Sets[set]; !ok {
				fail("%s: no backend set of this site is called so", key)
			}
			if _, ok := c.Sets[name]; ok {
				fail("%s: is called %s here, as a set of this site is: rename that", key, name)
			}
			if err := bermmaps.CheckName(name); err != nil {
				fail("%s: set and site: %w", key, err)
			}
			errs = append(errs, c.validateMembers(key, members, addresses)...)
			for i, b := range members {
				if here[b.Name] {
					fail("%s[%d].name: %q is a backend of this site", key, i, b.Name)
				} else if other := at[b.Name]; other != "" && other != site {
					fail("%s[%d].name: %q is a backend of site %q", key, i, b.Name, other)
				}
				at[b.Name] = site
			}
		}
	}
	return errs
}
