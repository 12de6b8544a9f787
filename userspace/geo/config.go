// Package geo compiles databases of countries and networks, and operator rules, into the kernel half's prefix table.
package geo

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/bermedge/berm/maps"
)

// Config is the section geo of the configuration file. Empty, nothing is known about anybody.
type Config struct {
	// Databases are files: MaxMind format, or CSV of prefix,country, of start,end,country, or
	// MaxMind's blocks beside their locations. Where several know an address, the last one decides.
	Databases []string `yaml:"databases"`
	// Networks are files: MaxMind format with the numbers of autonomous systems, as GeoLite2-ASN has, or CSV of
	// prefix,asn or start,end,asn. Rate classes may limit networks. Where several know an address, the last one decides.
	Networks []string `yaml:"networks"`
	// Policies say, by name, what VIPs that name them do with each country.
	Policies map[string]Policy `yaml:"policies"`
	// Overrides decide about prefixes, whatever databases say. Where prefixes contain each other,
	// the longest decides each setting that it has, and leaves the others to those around it.
	Overrides []Override `yaml:"overrides"`
}

// Policy is what a VIP does with packets by the country of their source.
type Policy struct {
	Fallback string   `yaml:"fallback"` // for all other countries and unknown ones; default allow
	Allow    []string `yaml:"allow"`
	Drop     []string `yaml:"drop"`
	Shadow   []string `yaml:"shadow"` // count as if dropped, and let through
	Mark     []string `yaml:"mark"`   // let through; the daemon decides
}

// Override is an operator's rule about a prefix. At least one setting must be given.
type Override struct {
	Prefix  string `yaml:"prefix"`
	Country string `yaml:"country"`
	ACL     string `yaml:"acl"`  // allow, drop or shadow
	Rate    string `yaml:"rate"` // a rate class
}

// Validate reports everything that is wrong with the section, by the file's keys.
func (c Config) Validate() error {
	var errs []error
	for key, paths := range map[string][]string{"databases": c.Databases, "networks": c.Networks} {
		for i, path := range paths {
			if path == "" {
				errs = append(errs, fmt.Errorf("geo.%s[%d]: path is empty", key, i))
			}
		}
	}
	if _, err := c.policies(); err != nil {
		errs = append(errs, err)
	}
	seen := map[netip.Prefix]int{}
	for i, o := range c.Overrides {
		if _, wrong := o.parse(); len(wrong) > 0 {
			errs = append(errs, inOverride(i, wrong)...)
			continue
		}
		prefix := netip.MustParsePrefix(o.Prefix)
		if j, twice := seen[prefix]; twice {
			errs = append(errs, fmt.Errorf("geo.overrides[%d]: prefix %s is also that of overrides[%d]: put their settings together", i, prefix, j))
		}
		seen[prefix] = i
	}
	if len(c.Overrides) > maxRules {
		errs = append(errs, fmt.Errorf("geo.overrides: %d rules, at most %d can be told apart", len(c.Overrides), maxRules))
	}
	return errors.Join(errs...)
}

// maxRules is what fits the record's 16-bit number of the rule that decided.
const maxRules = 1<<16 - 1

// RateClasses are the classes that overrides name: they must exist before Apply.
func (c Config) RateClasses() []string {
	var names []string
	for _, o := range c.Overrides {
		if o.Rate != "" && !slices.Contains(names, o.Rate) {
			names = append(names, o.Rate)
		}
	}
	return names
}

// policies turns the section's policies into those of the maps.
func (c Config) policies() ([]maps.GeoPolicy, error) {
	var out []maps.GeoPolicy
	var errs []error
	for name, p := range c.Policies {
		policy, err := p.build(name)
		if err != nil {
			errs = append(errs, err)
		}
		out = append(out, policy)
	}
	return out, errors.Join(errs...)
}

func (p Policy) build(name string) (maps.GeoPolicy, error) {
	key := "geo.policies." + name
	out := maps.GeoPolicy{Name: name, Owner: maps.OwnerFile, Fallback: maps.ActionAllow, Rules: map[maps.Country]maps.Action{}}
	var errs []error
	if err := maps.CheckName(name); err != nil {
		errs = append(errs, fmt.Errorf("%s: %w", key, err))
	}
	if p.Fallback != "" {
		a, err := maps.ParseAction(p.Fallback)
		if err != nil || a == maps.ActionNone {
			errs = append(errs, fmt.Errorf("%s.fallback: %q: want allow, drop, shadow or mark", key, p.Fallback))
		}
		out.Fallback = a
	}
	for _, list := range []struct {
		codes  []string
		action maps.Action
	}{{p.Allow, maps.ActionAllow}, {p.Drop, maps.ActionDrop}, {p.Shadow, maps.ActionShadow}, {p.Mark, maps.ActionMark}} {
		for _, code := range list.codes {
			c, err := maps.ParseCountry(code)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s.%s: %w", key, list.action, err))
				continue
			}
			if a, twice := out.Rules[c]; twice && a != list.action {
				errs = append(errs, fmt.Errorf("%s.%s: country %s is also in %s", key, list.action, c, a))
			}
			out.Rules[c] = list.action
		}
	}
	return out, errors.Join(errs...)
}

// parse turns an override into an entry, or reports everything wrong with it; the class is resolved when it is
// compiled.
func (o Override) parse() (entry, []error) {
	var wrong []error
	e, err := o.entry()
	if err != nil {
		wrong = append(wrong, err)
	}
	if o.Country != "" {
		if e.record.Country, err = maps.ParseCountry(o.Country); err != nil {
			wrong = append(wrong, err)
		}
		e.sets |= setsCountry
	}
	if o.ACL != "" {
		if e.record.ACL, err = maps.ParseAction(o.ACL); err != nil || e.record.ACL == maps.ActionNone || e.record.ACL == maps.ActionMark {
			wrong = append(wrong, fmt.Errorf("acl %q: want allow, drop or shadow", o.ACL))
		}
		e.sets |= setsACL
	}
	if o.Rate != "" {
		e.sets |= setsRate
	}
	if e.sets == 0 {
		wrong = append(wrong, fmt.Errorf("prefix %s: nothing is set: want country, acl or rate", o.Prefix))
	}
	return e, wrong
}

// entry is the override's prefix with nothing set.
func (o Override) entry() (entry, error) {
	prefix, err := netip.ParsePrefix(o.Prefix)
	if err != nil {
		return entry{}, fmt.Errorf("prefix %q: want an address and a length, such as 198.51.100.0/24", o.Prefix)
	}
	e, err := prefixEntry(prefix)
	if err == nil && e.tooFine {
		err = fmt.Errorf("prefix %s: IPv6 sources are told apart by /64, so at most /64 can be decided about", prefix)
	}
	return e, err
}

// inOverride says which override errors are about: one line for each, as the file's mistakes are listed.
func inOverride(i int, wrong []error) []error {
	out := make([]error, len(wrong))
	for n, err := range wrong {
		out[n] = fmt.Errorf("geo.overrides[%d]: %w", i, err)
	}
	return out
}
