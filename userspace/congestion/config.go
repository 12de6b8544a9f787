// Package congestion says which congestion controller connections of a client's prefix begin with: what the file
// and operators decided, and what a rule makes of the losses and round trips that were measured.
package congestion

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/bermedge/berm/maps"
)

// Config is the section cc. The longest prefix that has a profile decides, else the country, else the default.
type Config struct {
	// Profiles are sets of parameters that connections begin with.
	Profiles map[string]Profile `yaml:"profiles"`
	// Default is the profile of all that nothing else decides about; empty: the host's own parameters.
	Default string `yaml:"default"`
	// Countries give clients a profile by country: "IN: mobile".
	Countries map[string]string `yaml:"countries"`
	Prefixes  []Prefix          `yaml:"prefixes"`
	Learn     Learn             `yaml:"learn"`
}

// Profile is a set of parameters of TCP connections. What is left out is the host's.
type Profile struct {
	// Controller is an algorithm that this host's kernel has: bbr, cubic, reno …
	Controller string `yaml:"controller"`
	// InitialWindow is what may be sent before the first acknowledgement, in segments.
	InitialWindow uint32 `yaml:"initial_window"`
	// RTOMin is the floor of the retransmission timeout: 1 ms to 200 ms, the kernel's own.
	RTOMin time.Duration `yaml:"rto_min"`
}

// Prefix gives clients of a prefix a profile.
type Prefix struct {
	Prefix  netip.Prefix `yaml:"prefix"`
	Profile string       `yaml:"profile"` // empty: the host's own parameters
}

// Validate reports everything that is wrong, by the file's keys.
func (c Config) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf("cc."+format, args...)) }
	known := func(at, name string) {
		if _, ok := c.Profiles[name]; !ok && name != "" {
			fail("%s: there is no profile %q", at, name)
		}
	}
	for name, p := range c.Profiles {
		if err := p.profile(name).Validate(); err != nil {
			fail("profiles.%s: %w", name, err)
		}
	}
	if most := maps.CCProfiles - 1; len(c.Profiles) > most {
		fail("profiles: %d, %d fit", len(c.Profiles), most)
	}
	known("default", c.Default)
	for code, name := range c.Countries {
		of, err := maps.ParseCountry(code)
		switch {
		case err != nil:
			fail("countries.%s: %w", code, err)
		case of == 0:
			fail("countries.%s: countries that are not known have the default", code)
		}
		known("countries."+code, name)
	}
	seen := map[netip.Prefix]int{}
	for i, p := range c.Prefixes {
		at := fmt.Sprintf("prefixes[%d]", i)
		if err := maps.CheckCCPrefix(p.Prefix); err != nil {
			fail("%s.prefix: %w", at, err)
		} else if first, twice := seen[p.Prefix]; twice {
			fail("%s.prefix: %s is also that of prefixes[%d]", at, p.Prefix, first)
		}
		seen[p.Prefix] = i
		known(at+".profile", p.Profile)
	}
	errs = append(errs, c.Learn.validate(c.Profiles))
	return errors.Join(errs...)
}

func (p Profile) profile(name string) maps.CCProfile {
	return maps.CCProfile{Name: name, Owner: maps.OwnerFile, Controller: p.Controller, InitialWindow: p.InitialWindow, RTOMin: p.RTOMin}
}

// Apply writes the section into the kernel half: profiles before those that name them. What operators wrote stays.
func (c Config) Apply(table *maps.CC) error {
	old, err := table.ListProfiles()
	if err != nil {
		return err
	}
	for name, p := range c.Profiles {
		i := slices.IndexFunc(old, func(o maps.CCProfile) bool { return o.Name == name })
		if i >= 0 && old[i].Owner != maps.OwnerFile {
			return fmt.Errorf("cc.profiles.%s: name %w by a profile of the %s: choose another name", name, maps.ErrOverlap, old[i].Owner)
		}
		if err := table.PutProfile(p.profile(name)); err != nil {
			return fmt.Errorf("cc.profiles.%s: %w", name, err)
		}
	}
	rules := make([]maps.CCRule, 0, len(c.Prefixes))
	for _, p := range c.Prefixes {
		rules = append(rules, maps.CCRule{Prefix: p.Prefix, Profile: p.Profile})
	}
	if err := table.Replace(maps.OwnerFile, rules); err != nil {
		return fmt.Errorf("cc.prefixes: %w", err)
	}
	by := maps.CCCountries{Rules: map[maps.Country]string{}, Fallback: c.Default}
	for code, name := range c.Countries {
		of, err := maps.ParseCountry(code)
		if err != nil {
			return fmt.Errorf("cc.countries.%s: %w", code, err)
		}
		by.Rules[of] = name
	}
	if err := table.SetCountries(by); err != nil {
		return fmt.Errorf("cc.countries: %w", err)
	}
	return nil
}

// Tidy removes profiles that a file wrote and c no longer has. One that an operator's prefix still names stays, and is told.
func (c Config) Tidy(table *maps.CC) (kept []string, err error) {
	profiles, err := table.ListProfiles()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, p := range profiles {
		if _, wanted := c.Profiles[p.Name]; wanted || p.Owner != maps.OwnerFile {
			continue
		}
		switch err := table.RemoveProfile(p.Name); {
		case errors.Is(err, maps.ErrInUse):
			kept = append(kept, fmt.Sprintf("profile %s is no longer in the file and stays: %v", p.Name, err))
		case err != nil:
			errs = append(errs, err)
		}
	}
	return kept, errors.Join(errs...)
}
