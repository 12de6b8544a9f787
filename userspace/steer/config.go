// Package steer decides which backend owns which flows and keeps the kernel half's rows, backends,
// peers and secrets so: it probes backends, finds their next hops, and moves rows when one
// goes away or returns. What it wrote stays in force when the daemon is gone.
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

// Config is what the configuration file says about steering.
type Config struct {
	Node       Node                 `yaml:"node"`
	Sets       map[string][]Backend `yaml:"backends"`
	Sites      map[string]Site      `yaml:"sites"` // the others, by name
	Regions    []string             `yaml:"-"`     // of services
	Carry      Carry                `yaml:"carry"`
	SecretFile string               `yaml:"secret_file"` // the site's, the same on all its edges; see ReadSecret
	Probe      Probe                `yaml:"probe"`
	// SecondChance is how long after a row has moved its owner asks the one before it about flows
	// that it does not know; 0 = never, and flows break with the row that they began on.
	SecondChance time.Duration `yaml:"second_chance"`
	// Deadman is after what silence of the daemon the kernel half hands new flows to other edges; 0 = never.
	Deadman time.Duration `yaml:"deadman"`
	// CIDs are the formats of QUIC connection IDs that name backends.
	CIDs []bermmaps.CIDFormat `yaml:"-"`
}

// Defaults: most flows that outlive a move are over within hours, and asking costs only rows that
// have moved; a daemon beats five times within half a second.
const (
	DefaultSecondChance = 6 * time.Hour
	DefaultDeadman      = 500 * time.Millisecond
)

// minDeadman is two beats and a tick: less would be fired at a healthy daemon.
const (
	minDeadman = 250 * time.Millisecond
	maxDeadman = time.Minute
)

// Node is this edge. Its name, if it is a backend's, says which one it is.
type Node struct {
	Name     string     `yaml:"name"`
	Site     string     `yaml:"site"`
	Region   string     `yaml:"region"`   // of the site
	Address4 netip.Addr `yaml:"address4"` // tunnels leave from and arrive at it
	Address6 netip.Addr `yaml:"address6"`
}

// Backend is what a VIP's packets are delivered to.
type Backend struct {
	Name    string     `yaml:"name"`
	Address netip.Addr `yaml:"address"`
	Weight  int        `yaml:"weight"` // its share of the rows, relative to the others'; default 1
	// ServerID is its number in QUIC connection IDs; default: made of its name.
	ServerID *uint64 `yaml:"server_id"`
}

// Probe is how a backend's health is found out.
type Probe struct {
	Protocol  string        `yaml:"protocol"` // udp asks another edge's daemon; tcp connects; http wants an answer below 400; default udp
	Port      uint16        `yaml:"port"`
	Path      string        `yaml:"path"` // http only
	Interval  time.Duration `yaml:"interval"`
	Timeout   time.Duration `yaml:"timeout"`
	Failures  int           `yaml:"failures"`  // in a row, until a backend's rows move
	Successes int           `yaml:"successes"` // in a row, until they come back
}

// maxWeight keeps the smallest share of two backends above fifty rows.
const maxWeight = 1000

// DefaultProbe finds a dead edge within 0.65 s: a probe is due at most 200 ms after its death, and
// three of them, one after the other, wait 150 ms each. A closed port shows sooner.
func DefaultProbe() Probe {
	return Probe{Protocol: "udp", Port: 9191, Path: "/", Interval: 200 * time.Millisecond, Timeout: 150 * time.Millisecond, Failures: 3, Successes: 2}
}

// Validate reports everything that is wrong, by the file's keys.
func (c Config) Validate() error {
	var errs []error
	if err := bermmaps.CheckName(c.Node.Name); err != nil && c.Node.Name != "" {
		errs = append(errs, fmt.Errorf("node.name: %w", err))
	}
	if a := c.Node.Address4; a.IsValid() && !a.Is4() {
		errs = append(errs, fmt.Errorf("node.address4: %s is not an IPv4 address", a))
	}
	if a := c.Node.Address6; a.IsValid() && (!a.Is6() || a.Is4In6()) {
		errs = append(errs, fmt.Errorf("node.address6: %s is not an IPv6 address", a))
	}
	addresses := map[string]netip.Addr{}
	for _, set := range slices.Sorted(maps.Keys(c.Sets)) {
		errs = append(errs, c.validateSet(set, addresses)...)
	}
	errs = append(errs, c.validateSites(addresses)...)
	if len(c.CIDs) > 0 {
		errs = append(errs, c.validateServers()...)
	}
	if c.SecondChance < 0 {
		errs = append(errs, fmt.Errorf("steer.second_chance: %s is below 0", c.SecondChance))
	}
	if c.Deadman != 0 && (c.Deadman < minDeadman || c.Deadman > maxDeadman) {
		errs = append(errs, fmt.Errorf("steer.deadman: %s: want 0 (off), or %s to %s", c.Deadman, minDeadman, maxDeadman))
	}
	return errors.Join(append(errs, c.Probe.Validate())...)
}

func (c Config) validateSet(set string, addresses map[string]netip.Addr) (errs []error) {
	key := "backends." + set
	if err := bermmaps.CheckName(set); err != nil {
		errs = append(errs, fmt.Errorf("%s: %w", key, err))
	}
	errs = append(errs, c.validateMembers(key, c.Sets[set], addresses)...)
	self := slices.ContainsFunc(c.Sets[set], func(b Backend) bool { return b.Name == c.Node.Name })
	if c.SecretFile == "" && self && len(c.Sets[set]) > 1 {
		errs = append(errs, fmt.Errorf("steer.secret_file: is needed, because %s has edges besides this one, and all of a site must share a secret (make one with: openssl rand -hex 32)", key))
	}
	return errs
}

func (c Config) validateMembers(key string, members []Backend, addresses map[string]netip.Addr) (errs []error) {
	if len(members) == 0 {
		errs = append(errs, fmt.Errorf("%s: has no backend: list at least one, or leave the set out", key))
	}
	seen := map[string]bool{}
	for i, b := range members {
		at := fmt.Sprintf("%s[%d]", key, i)
		if err := bermmaps.CheckName(b.Name); err != nil {
			errs = append(errs, fmt.Errorf("%s.name: %w", at, err))
		}
		if seen[b.Name] {
			errs = append(errs, fmt.Errorf("%s.name: %q is in the set twice", at, b.Name))
		}
		seen[b.Name] = true
		if a := b.Address; !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			errs = append(errs, fmt.Errorf("%s.address: %s: want a unicast address without a zone", at, a))
		} else if old, ok := addresses[b.Name]; ok && old != a {
			errs = append(errs, fmt.Errorf("%s.address: backend %q has address %s elsewhere and %s here: it can have one", at, b.Name, old, a))
		}
		addresses[b.Name] = b.Address
		if b.Weight < 0 || b.Weight > maxWeight {
			errs = append(errs, fmt.Errorf("%s.weight: %d: want 1 to %d", at, b.Weight, maxWeight))
		}
	}
	return errs
}

// Validate reports everything that is wrong with the probe.
func (p Probe) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf("steer.probe."+format, args...)) }
	if !slices.Contains([]string{"", "udp", "tcp", "http"}, p.Protocol) {
		fail("protocol: %q: want udp, tcp or http", p.Protocol)
	}
	if p.Port == 0 {
		fail("port: is 0: want 1 to 65535")
	}
	if p.Interval < 10*time.Millisecond {
		fail("interval: %s is below 10ms", p.Interval)
	}
	if p.Timeout <= 0 || p.Timeout > p.Interval {
		fail("timeout: %s: want more than 0 and at most the interval, %s", p.Timeout, p.Interval)
	}
	if p.Failures < 1 {
		fail("failures: %d: want at least 1", p.Failures)
	}
	if p.Successes < 1 {
		fail("successes: %d: want at least 1", p.Successes)
	}
	return errors.Join(errs...)
}
