package maps

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/bpf"
)

// CC is what TCP connections begin with: profiles, and whose each is. The longest prefix that has a rule decides,
// else the network, else the country, else the host.
type CC struct {
	set                               *Set
	profiles, countries, rules, stats *ebpf.Map
	networks                          *ebpf.Map
	results                           *ebpf.Map
}

// CCProfile is a set of parameters. What is zero is the host's.
type CCProfile struct {
	ID            uint32        `json:"id"` // given by the table
	Name          string        `json:"name"`
	Owner         Owner         `json:"owner"`
	Controller    string        `json:"controller,omitempty"`     // TCP_CONGESTION: bbr, cubic, reno …
	InitialWindow uint32        `json:"initial_window,omitempty"` // segments
	RTOMin        time.Duration `json:"rto_min,omitempty"`
	AckDelay      time.Duration `json:"ack_delay,omitempty"` // of a segment or packet that nothing follows
}

// CCRule gives a prefix's connections a profile; "" is the host's.
type CCRule struct {
	Prefix  netip.Prefix `json:"prefix"`
	Profile string       `json:"profile"`
	Owner   Owner        `json:"owner"`
	HoldOut uint8        `json:"hold_out,omitempty"` // of 256 connections so many begin with one of Others
	Others  [2]string    `json:"others,omitzero"`
}

// CCStats counts a profile's connections.
type CCStats struct {
	Connections uint64 `json:"connections"`
	Refused     uint64 `json:"refused"` // of those the kernel did not take the whole profile
}

// CCCountries gives countries their profiles, by name.
type CCCountries struct {
	Rules    map[Country]string `json:"rules"`
	Fallback string             `json:"fallback"` // countries without a rule, the unknown one included; "" is the host's
}

// Profile is that of a country.
func (c CCCountries) Profile(of Country) string {
	if p, ok := c.Rules[of]; ok {
		return p
	}
	return c.Fallback
}

// CCProfiles is how many profiles fit, with the host's own.
const CCProfiles = 32 // BERM_CC_PROFILES

// CCNetworks is how many networks may have a profile.
const CCNetworks = 4096 // BERM_CC_NETWORKS

// Bounds of what a profile may ask for. RFC 6928 has 10 segments; the kernel has 200 ms, and takes no more.
const (
	maxInitialWindow = 1000
	minRTOMin        = time.Millisecond
	maxRTOMin        = 200 * time.Millisecond
	minAckDelay      = time.Millisecond // in which QUIC tells it
	maxAckDelay      = 200 * time.Millisecond
)

// Validate says what is wrong with a profile.
func (p CCProfile) Validate() error {
	if err := errors.Join(append([]error{CheckName(p.Name)}, p.Mistakes()...)...); err != nil {
		return fmt.Errorf("profile %q: %w", p.Name, err)
	}
	return nil
}

// Mistakes are what is wrong with its parameters, each by its name in the file.
func (p CCProfile) Mistakes() (errs []error) {
	if p.Controller != "" {
		if err := CheckName(p.Controller); err != nil {
			errs = append(errs, fmt.Errorf("controller: %w", err))
		}
	}
	if p.InitialWindow > maxInitialWindow {
		errs = append(errs, fmt.Errorf("initial_window: %d is above %d segments", p.InitialWindow, maxInitialWindow))
	}
	if p.RTOMin != 0 && (p.RTOMin < minRTOMin || p.RTOMin > maxRTOMin) {
		errs = append(errs, fmt.Errorf("rto_min: %s is not between %s and %s", p.RTOMin, minRTOMin, maxRTOMin))
	}
	if p.AckDelay != 0 && (p.AckDelay < minAckDelay || p.AckDelay > maxAckDelay) {
		errs = append(errs, fmt.Errorf("ack_delay: %s is not between %s and %s", p.AckDelay, minAckDelay, maxAckDelay))
	}
	return errs
}

func (c *CC) table() named[bpf.XDPBermCcProfile] {
	return named[bpf.XDPBermCcProfile]{c.profiles, "profile", func(p *bpf.XDPBermCcProfile) string {
		if p.Used == 0 {
			return ""
		}
		return fromName(p.Name)
	}}
}

// ListProfiles returns all profiles, by id.
func (c *CC) ListProfiles() ([]CCProfile, error) {
	entries, err := c.table().entries()
	if err != nil {
		return nil, err
	}
	var list []CCProfile
	for id := 1; id < len(entries); id++ {
		if entries[id].Used != 0 {
			list = append(list, decodeCCProfile(uint32(id), &entries[id]))
		}
	}
	return list, nil
}

func decodeCCProfile(id uint32, e *bpf.XDPBermCcProfile) CCProfile {
	return CCProfile{
		ID: id, Name: fromName(e.Name), Owner: Owner(e.Owner), Controller: fromName(e.Controller),
		InitialWindow: e.InitialWindow, RTOMin: time.Duration(e.RtoMinUs) * time.Microsecond, AckDelay: time.Duration(e.AckDelayUs) * time.Microsecond,
	}
}

// PutProfile adds a profile, or changes the one of this name.
func (c *CC) PutProfile(p CCProfile) error {
	if err := p.Validate(); err != nil {
		return err
	}
	return c.set.lock.hold(func() error {
		id, _, _, err := c.table().place(p.Name)
		if err != nil {
			return err
		}
		return put(c.profiles, id, bpf.XDPBermCcProfile{
			Name: toName(p.Name), Owner: uint8(p.Owner), Used: 1, Controller: toName(p.Controller),
			InitialWindow: p.InitialWindow, RtoMinUs: uint32(p.RTOMin.Microseconds()), AckDelayUs: uint32(p.AckDelay.Microseconds()),
		})
	})
}

// RemoveProfile takes a profile away that no prefix, network or country has.
func (c *CC) RemoveProfile(name string) error {
	return c.set.lock.hold(func() error {
		id, _, err := c.table().find(name)
		if err != nil {
			return err
		}
		rules, err := c.ListRules()
		if err != nil {
			return err
		}
		uses := func(r CCRule) bool { return r.Profile == name || r.HoldOut > 0 && slices.Contains(r.Others[:], name) }
		if i := slices.IndexFunc(rules, uses); i >= 0 {
			return fmt.Errorf("profile %q: %w by prefix %s", name, ErrInUse, rules[i].Prefix)
		}
		countries, err := all[uint32](c.countries)
		if err != nil {
			return err
		}
		if i := slices.Index(countries, id); i >= 0 {
			return fmt.Errorf("profile %q: %w by country %s", name, ErrInUse, Country(i))
		}
		networks, err := c.networkIDs()
		if err != nil {
			return err
		}
		for asn, has := range networks {
			if has == id {
				return fmt.Errorf("profile %q: %w by network AS%d", name, ErrInUse, asn)
			}
		}
		return put(c.profiles, id, bpf.XDPBermCcProfile{})
	})
}

// names are the profiles' names by id; that of 0 is "".
func (c *CC) names() (map[uint32]string, error) {
	ids, err := c.table().ids()
	if err != nil {
		return nil, err
	}
	names := make(map[uint32]string, len(ids)+1)
	for name, id := range ids {
		names[id] = name
	}
	return names, nil
}

func (c *CC) id(name string) (uint32, error) {
	if name == "" {
		return 0, nil
	}
	id, _, err := c.table().find(name)
	return id, err
}

// ListRules returns the prefixes' rules, in order.
func (c *CC) ListRules() ([]CCRule, error) {
	names, err := c.names()
	if err != nil {
		return nil, err
	}
	var list []CCRule
	var key bpf.XDPBermCcKey
	var v bpf.XDPBermCcRule
	it := c.rules.Iterate()
	for it.Next(&key, &v) {
		r := CCRule{Prefix: fromCCKey(key), Profile: names[v.Profile], Owner: Owner(v.Owner), HoldOut: v.Holdout}
		if r.HoldOut > 0 {
			r.Others = [2]string{names[uint32(v.Others[0])], names[uint32(v.Others[1])]}
		}
		list = append(list, r)
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("list prefixes' profiles: %w", err)
	}
	slices.SortFunc(list, func(a, b CCRule) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	return list, nil
}

func toCCKey(p netip.Prefix) bpf.XDPBermCcKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return bpf.XDPBermCcKey{Bits: uint32(bits), Prefix: p.Addr().As16()}
}

func fromCCKey(k bpf.XDPBermCcKey) netip.Prefix {
	a := netip.AddrFrom16(k.Prefix)
	if a.Is4In6() && k.Bits >= 96 {
		return netip.PrefixFrom(a.Unmap(), int(k.Bits)-96)
	}
	return netip.PrefixFrom(a, int(k.Bits))
}

// CheckCCPrefix says what is wrong with a rule's prefix. IPv4 is written as such, since it is held v4-mapped.
func CheckCCPrefix(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return errors.New("is no prefix: want such as 192.0.2.0/24 or 2001:db8::/32")
	case p != p.Masked():
		return fmt.Errorf("%s has bits behind its length: is %s meant?", p, p.Masked())
	case p.Addr().Is4In6():
		return fmt.Errorf("%s is a v4-mapped address: write it as IPv4", p)
	case p.Addr().Is6() && p.Bits() < 96 && p.Contains(netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff})):
		return fmt.Errorf("%s would be IPv4's prefix too: write 2000::/3 for all of IPv6's", p)
	}
	return nil
}

// PutRule gives a prefix a profile, or changes the one it has.
func (c *CC) PutRule(r CCRule) error {
	if err := CheckCCPrefix(r.Prefix); err != nil {
		return fmt.Errorf("prefix %w", err)
	}
	return c.set.lock.hold(func() error {
		if err := c.putRule(r); err != nil || r.Owner == OwnerLearner {
			return err
		}
		old, err := c.ListRules()
		if err != nil {
			return err
		}
		return c.displace(r.Prefix, old)
	})
}

// displace removes what was learned about parts of a prefix that somebody has decided about.
func (c *CC) displace(p netip.Prefix, old []CCRule) error {
	for _, r := range old {
		if r.Owner == OwnerLearner && r.Prefix != p && covers(p, r.Prefix) {
			if err := c.removeRule(r.Prefix); err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
		}
	}
	return nil
}

func covers(p, q netip.Prefix) bool { return p.Bits() <= q.Bits() && p.Contains(q.Addr()) }

func (c *CC) putRule(r CCRule) error {
	id, err := c.id(r.Profile)
	if err != nil {
		return fmt.Errorf("prefix %s: %w", r.Prefix, err)
	}
	v := bpf.XDPBermCcRule{Profile: id, Owner: uint8(r.Owner), Holdout: r.HoldOut}
	for i, name := range r.Others {
		other, err := c.id(name)
		if err != nil {
			return fmt.Errorf("prefix %s: %w", r.Prefix, err)
		}
		v.Others[i] = uint8(other) // CCProfiles fit
	}
	key := toCCKey(r.Prefix)
	switch err := c.rules.Put(&key, &v); {
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("prefix %s: %d have a profile: %w", r.Prefix, c.rules.MaxEntries(), ErrFull)
	case err != nil:
		return fmt.Errorf("prefix %s: %w", r.Prefix, err)
	}
	return nil
}

// RemoveRule takes a prefix's profile away.
func (c *CC) RemoveRule(p netip.Prefix) error {
	return c.set.lock.hold(func() error { return c.removeRule(p) })
}

func (c *CC) removeRule(p netip.Prefix) error {
	key := toCCKey(p)
	switch err := c.rules.Delete(&key); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return fmt.Errorf("prefix %s: %w", p, ErrNotFound)
	case err != nil:
		return fmt.Errorf("prefix %s: %w", p, err)
	}
	return nil
}

// Replace makes an owner's rules what list says: new ones first. A prefix that another has a rule for is refused; what
// was learned about one gives way.
func (c *CC) Replace(owner Owner, list []CCRule) error {
	return c.set.lock.hold(func() error {
		old, err := c.ListRules()
		if err != nil {
			return err
		}
		has := map[netip.Prefix]CCRule{}
		for _, r := range old {
			has[r.Prefix] = r
		}
		want := map[netip.Prefix]bool{}
		for _, r := range list {
			if err := CheckCCPrefix(r.Prefix); err != nil {
				return fmt.Errorf("prefix %w", err)
			}
			if o, ok := has[r.Prefix]; ok && o.Owner != owner && o.Owner != OwnerLearner {
				return fmt.Errorf("prefix %s: %w by a rule of the %s", r.Prefix, ErrOverlap, o.Owner)
			}
			want[r.Prefix] = true
		}
		for _, r := range list {
			r.Owner = owner
			if has[r.Prefix] == r {
				continue
			}
			if err := errors.Join(c.putRule(r), c.displace(r.Prefix, old)); err != nil {
				return err
			}
		}
		for _, r := range old {
			if r.Owner == owner && !want[r.Prefix] {
				if err := c.removeRule(r.Prefix); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// Countries returns the countries' profiles. A rule that equals the fallback is not told apart from it.
func (c *CC) Countries() (CCCountries, error) {
	names, err := c.names()
	if err != nil {
		return CCCountries{}, err
	}
	ids, err := all[uint32](c.countries)
	if err != nil {
		return CCCountries{}, err
	}
	out := CCCountries{Rules: map[Country]string{}, Fallback: names[ids[0]]} // the unknown country has no rule
	for of, id := range ids {
		if id != ids[0] {
			out.Rules[Country(of)] = names[id]
		}
	}
	return out, nil
}

// SetCountries makes the countries' profiles what w says, country by country.
func (c *CC) SetCountries(w CCCountries) error {
	return c.set.lock.hold(func() error {
		ids, err := c.table().ids()
		if err != nil {
			return err
		}
		ids[""] = 0
		was, err := all[uint32](c.countries)
		if err != nil {
			return err
		}
		for of := range Country(countries) {
			name := w.Profile(of)
			id, ok := ids[name]
			if !ok {
				return fmt.Errorf("country %s: profile %q: %w", of, name, ErrNotFound)
			}
			if was[of] == id {
				continue
			}
			if err := put(c.countries, uint32(of), id); err != nil {
				return err
			}
		}
		return nil
	})
}

// Stats counts connections by profile; those of "" had the host's parameters.
func (c *CC) Stats() (map[string]CCStats, error) {
	names, err := c.names()
	if err != nil {
		return nil, err
	}
	names[0] = ""
	out := make(map[string]CCStats, len(names))
	var perCPU []bpf.XDPBermCcStats
	for id, name := range names {
		if err := c.stats.Lookup(id, &perCPU); err != nil {
			return nil, fmt.Errorf("count connections of profile %q: %w", name, err)
		}
		var sum CCStats
		for _, v := range perCPU {
			sum.Connections += v.Connections
			sum.Refused += v.Refused
		}
		out[name] = sum
	}
	return out, nil
}

// HostControllers are the congestion controllers that this host's kernel has at hand. It may load others as modules.
func HostControllers() ([]string, error) {
	const path = "/proc/sys/net/ipv4/tcp_available_congestion_control"
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("controllers of this host: %w", err)
	}
	return strings.Fields(string(b)), nil
}

// CheckController says that this host's kernel does not have a controller. BPF cannot have it load one.
func CheckController(name string) error {
	have, err := HostControllers()
	if name == "" || err != nil || slices.Contains(have, name) {
		return err
	}
	return fmt.Errorf("controller %q: %w: this host has %s (load it first: modprobe tcp_%s)", name, ErrNotFound, strings.Join(have, ", "), name)
}
