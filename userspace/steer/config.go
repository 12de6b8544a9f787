// Package steer decides which backend owns which flows and keeps the kernel half's rows, backends,
// peers and secrets so: it probes backends, finds their next hops, and moves rows when one
// goes away or returns. What it wrote stays in force when the daemon is gone.
package steer

import (
	"cmp"
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
	// Services are what sets serve: addresses, with their port where it is one of TCP.
	Services map[string][]netip.AddrPort `yaml:"-"`
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
	// Via is how packets get to it. An edge asks for nothing; ipip, gue and l2 are for servers that run no Berm.
	Via  bermmaps.Via `yaml:"via"`
	Port uint16       `yaml:"port"` // gue: where the server listens; default 6080
	// Probe is for a server; what is left out is as in steer.probe.
	Probe Probe `yaml:"probe"`
	// ServerID is its number in QUIC connection IDs; default: made of its name.
	ServerID *uint64 `yaml:"server_id"`
}

// Probe is how a backend's health is found out.
type Probe struct {
	Protocol  string        `yaml:"protocol"` // udp asks another edge's daemon; tcp connects; http wants an answer below 400; default udp
	Port      uint16        `yaml:"port"`
	Path      string        `yaml:"path"`    // http only
	Host      string        `yaml:"host"`    // http only: of which site; default the address
	Through   string        `yaml:"through"` // servers only: tunnel asks for the services as clients' packets come, direct at the server's own address; default tunnel
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

// DefaultGUEPort is the one that IANA has assigned to GUE.
const DefaultGUEPort = 6080

// isServer says whether a backend runs no Berm.
func (b Backend) isServer() bool { return b.Via != bermmaps.ViaEdge }

// guePort is what the kernel half is told.
func (b Backend) guePort() uint16 {
	if b.Via != bermmaps.ViaGUE {
		return 0
	}
	return cmp.Or(b.Port, DefaultGUEPort)
}

// over is a server's probe, where what it leaves out is p's.
func (p Probe) over(s Probe) Probe {
	return Probe{
		Protocol: cmp.Or(s.Protocol, p.Protocol), Port: cmp.Or(s.Port, p.Port), Path: cmp.Or(s.Path, p.Path), Host: cmp.Or(s.Host, p.Host), Through: cmp.Or(s.Through, p.Through),
		Interval: cmp.Or(s.Interval, p.Interval), Timeout: cmp.Or(s.Timeout, p.Timeout),
		Failures: cmp.Or(s.Failures, p.Failures), Successes: cmp.Or(s.Successes, p.Successes),
	}
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
	known := map[string]Backend{}
	for _, set := range slices.Sorted(maps.Keys(c.Sets)) {
		errs = append(errs, c.validateSet(set, known)...)
	}
	errs = append(errs, c.validateSites(known)...)
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

func (c Config) validateSet(set string, known map[string]Backend) (errs []error) {
	key := "backends." + set
	if err := bermmaps.CheckName(set); err != nil {
		errs = append(errs, fmt.Errorf("%s: %w", key, err))
	}
	errs = append(errs, c.validateMembers(key, c.Sets[set], known)...)
	self := slices.ContainsFunc(c.Sets[set], func(b Backend) bool { return b.Name == c.Node.Name })
	servers := 0
	for _, b := range c.Sets[set] {
		if b.isServer() {
			servers++
		}
	}
	if c.SecretFile == "" && self && len(c.Sets[set])-servers > 1 {
		errs = append(errs, fmt.Errorf("steer.secret_file: is needed, because %s has edges besides this one, and all of a site must share a secret (make one with: openssl rand -hex 32)", key))
	}
	return errs
}

func (c Config) validateMembers(key string, members []Backend, known map[string]Backend) (errs []error) {
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
		} else if old, ok := known[b.Name]; ok && old.Address != a {
			errs = append(errs, fmt.Errorf("%s.address: backend %q has address %s elsewhere and %s here: it can have one", at, b.Name, old.Address, a))
		} else if ok && (old.Via != b.Via || old.guePort() != b.guePort() || old.Probe != b.Probe) {
			errs = append(errs, fmt.Errorf("%s.via: backend %q is reached or probed otherwise elsewhere: it can be in one way", at, b.Name))
		}
		known[b.Name] = b
		errs = append(errs, c.validateVia(at, b)...)
		if b.Weight < 0 || b.Weight > maxWeight {
			errs = append(errs, fmt.Errorf("%s.weight: %d: want 1 to %d", at, b.Weight, maxWeight))
		}
	}
	return errs
}

// validateVia checks what is for servers only.
func (c Config) validateVia(at string, b Backend) (errs []error) {
	if b.Port != 0 && b.Via != bermmaps.ViaGUE {
		errs = append(errs, fmt.Errorf("%s.port: is for via: gue, and this one is %s", at, b.Via))
	}
	switch {
	case !b.isServer() && b.Probe != Probe{}:
		errs = append(errs, fmt.Errorf("%s.probe: is for servers (via: ipip, gue or l2): how edges are probed is in steer.probe", at))
	case b.isServer() && b.Name == c.Node.Name:
		errs = append(errs, fmt.Errorf("%s.via: %s is this node, which runs Berm: want edge", at, b.Name))
	case b.isServer():
		p := c.Probe.over(b.Probe)
		if p.Protocol == "" || p.Protocol == "udp" {
			errs = append(errs, fmt.Errorf("%s.probe.protocol: udp asks an edge's daemon, and %s runs none: want tcp or http", at, b.Name))
		}
		if b.Probe.Port == 0 && c.Probe.Protocol != p.Protocol {
			errs = append(errs, fmt.Errorf("%s.probe.port: is missing: where does %s answer %s?", at, b.Name, cmp.Or(p.Protocol, "probes")))
		}
		if b.Probe != (Probe{}) {
			errs = append(errs, p.validate(at+".probe.")...)
		}
	}
	return errs
}

// Validate reports everything that is wrong with the probe.
func (p Probe) Validate() error { return errors.Join(p.validate("steer.probe.")...) }

func (p Probe) validate(at string) (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(at+format, args...)) }
	if !slices.Contains([]string{"", "udp", "tcp", "http"}, p.Protocol) {
		fail("protocol: %q: want udp, tcp or http", p.Protocol)
	}
	if !slices.Contains([]string{"", throughTunnel, throughDirect}, p.Through) {
		fail("through: %q: want tunnel or direct", p.Through)
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
	return errs
}
