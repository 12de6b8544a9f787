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

// Config is the section cc. The longest prefix that has a profile decides, else the network, else the country, else the default.
type Config struct {
	// Profiles are sets of parameters that connections begin with. mobile, fixed and datacentre are there without the file; one that it has replaces its namesake.
	Profiles map[string]Profile `yaml:"profiles"`
	// Default is the profile of all that nothing else decides about; empty: the host's own parameters.
	Default string `yaml:"default"`
	// Countries give clients a profile by country: "IN: mobile".
	Countries map[string]string `yaml:"countries"`
	// Networks give clients a profile by the number of their autonomous system, where geo.networks tells it: "AS64500: mobile".
	Networks map[string]string `yaml:"networks"`
	Prefixes []Prefix          `yaml:"prefixes"`
	Learn    Learn             `yaml:"learn"`
}

// Profile is a set of parameters of connections. What is left out is the host's.
type Profile struct {
	// Controller is an algorithm that this host's kernel has: bbr, cubic, reno … QUIC has these three.
	Controller string `yaml:"controller"`
	// InitialWindow is what may be sent before the first acknowledgement, in segments or packets.
	InitialWindow uint32 `yaml:"initial_window"`
	// RTOMin is the floor of TCP's retransmission timeout: 1 ms to 200 ms, the kernel's own.
	RTOMin time.Duration `yaml:"rto_min"`
	// AckDelay is how long the acknowledgement of a segment or packet that nothing follows is held back at most: 1 ms to 200 ms. QUIC has 25 ms, TCP what the kernel measures.
	AckDelay time.Duration `yaml:"ack_delay"`
	// QUIC are parameters that only QUIC connections have.
	QUIC QUIC `yaml:"quic"`
}

// QUIC are parameters of QUIC connections. What is left out is the transport's.
type QUIC struct {
	// InitialRTT is taken for the round trip before one was measured: 1 ms to 2 s.
	InitialRTT time.Duration `yaml:"initial_rtt"`
	// PacketSize is that of packets before the path's largest is found, and at least: 1200 to 1452 bytes.
	PacketSize uint16 `yaml:"packet_size"`
	// KeepAlive is how often an idle connection is kept open, as NATs may need: 1 s to 1 h.
	KeepAlive time.Duration `yaml:"keep_alive"`
	// StreamWindow is what a client may send on a stream before it is read, in bytes: 16 KiB to 64 MiB.
	StreamWindow uint64 `yaml:"stream_window"`
	// ConnectionWindow is the same for all streams of a connection.
	ConnectionWindow uint64 `yaml:"connection_window"`
}

// mistakes are what is wrong with the parameters, each by its name in the file.
func (q QUIC) mistakes() (errs []error) {
	within := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	within(q.InitialRTT == 0 || q.InitialRTT >= time.Millisecond && q.InitialRTT <= 2*time.Second, "initial_rtt: %s is not between 1ms and 2s", q.InitialRTT)
	within(q.PacketSize == 0 || q.PacketSize >= 1200 && q.PacketSize <= 1452, "packet_size: %d is not between 1200 and 1452 bytes", q.PacketSize)
	within(q.KeepAlive == 0 || q.KeepAlive >= time.Second && q.KeepAlive <= time.Hour, "keep_alive: %s is not between 1s and 1h", q.KeepAlive)
	window := func(n uint64) bool { return n == 0 || n >= 16<<10 && n <= 64<<20 }
	within(window(q.StreamWindow), "stream_window: %d is not between 16384 and 67108864 bytes", q.StreamWindow)
	within(window(q.ConnectionWindow), "connection_window: %d is not between 16384 and 67108864 bytes", q.ConnectionWindow)
	within(q.ConnectionWindow == 0 || q.ConnectionWindow >= q.StreamWindow, "connection_window: %d is below stream_window", q.ConnectionWindow)
	return errs
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
		if _, ok := c.Profile(name); !ok && name != "" {
			fail("%s: there is no profile %q", at, name)
		}
	}
	for name, p := range c.Profiles {
		if err := maps.CheckName(name); err != nil {
			fail("profiles.%s: %w", name, err)
		}
		for _, err := range p.profile(name).Mistakes() {
			fail("profiles.%s.%w", name, err)
		}
		for _, err := range p.QUIC.mistakes() {
			fail("profiles.%s.quic.%w", name, err)
		}
	}
	if all, most := c.all(), maps.CCProfiles-1; len(all) > most {
		fail("profiles: %d with those that are there without the file, %d fit", len(all), most)
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
	if n := len(c.Networks); n > maps.CCNetworks {
		fail("networks: %d, and %d fit", n, maps.CCNetworks)
	}
	numbers := map[uint32]string{}
	for network, name := range c.Networks {
		asn, err := maps.ParseASN(network)
		switch same, twice := numbers[asn]; {
		case err != nil:
			fail("networks.%s: %w", network, err)
		case asn == 0:
			fail("networks.%s: networks that are not known have their country's", network)
		case twice:
			fail("networks.%s: is the same network as %s", network, same)
		}
		numbers[asn] = network
		known("networks."+network, name)
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
	errs = append(errs, c.Learn.validate(c.all()))
	return errors.Join(errs...)
}

// Choose decides for a client by the file alone, as far as that can: which country or network an address is of, it does not say.
func (c Config) Choose(client netip.Addr) maps.CCProfile {
	name, bits := c.Default, -1
	for _, p := range c.Prefixes {
		if p.Prefix.Contains(client) && p.Prefix.Bits() > bits {
			name, bits = p.Profile, p.Prefix.Bits()
		}
	}
	if name == "" {
		return maps.CCProfile{}
	}
	p, _ := c.Profile(name)
	return p.profile(name)
}

func (p Profile) profile(name string) maps.CCProfile {
	return maps.CCProfile{Name: name, Owner: maps.OwnerFile, Controller: p.Controller, InitialWindow: p.InitialWindow, RTOMin: p.RTOMin, AckDelay: p.AckDelay}
}

// Apply writes the section into the kernel half: profiles before those that name them. What operators wrote stays.
func (c Config) Apply(table *maps.CC) error {
	old, err := table.ListProfiles()
	if err != nil {
		return err
	}
	for name, p := range c.all() {
		i := slices.IndexFunc(old, func(o maps.CCProfile) bool { return o.Name == name })
		if i >= 0 && old[i].Owner != maps.OwnerFile {
			if _, written := c.Profiles[name]; !written {
				continue // an operator has made one of his own
			}
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
	networks := make(map[uint32]string, len(c.Networks))
	for network, name := range c.Networks {
		asn, err := maps.ParseASN(network)
		if err != nil {
			return fmt.Errorf("cc.networks.%s: %w", network, err)
		}
		networks[asn] = name
	}
	if err := table.SetNetworks(networks); err != nil {
		return fmt.Errorf("cc.networks: %w", err)
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
		if _, wanted := c.Profile(p.Name); wanted || p.Owner != maps.OwnerFile {
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
