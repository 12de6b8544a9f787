package anycast

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is the section anycast: whom this edge tells which addresses are reached through it.
type Config struct {
	AS       uint32     `yaml:"as"`        // this edge's autonomous system
	RouterID netip.Addr `yaml:"router_id"` // an IPv4 address, unique among the speakers; default: node.address4
	Port     uint16     `yaml:"port"`      // to be called at by peers; 0: this edge calls them
	Peers    []Peer     `yaml:"peers"`     // none: nothing is announced

	Announcements []Announcement `yaml:"announcements"` // none: the address of every VIP
	Communities   []Community    `yaml:"communities"`   // of every announcement: 64512:100, 64512:1:2 or a well-known name
	MED           uint32         `yaml:"med"`           // of every announcement; 0: none
	NextHop4      netip.Addr     `yaml:"next_hop4"`     // default: this end of the session
	NextHop6      netip.Addr     `yaml:"next_hop6"`     // default: this end of the session

	Prepend int           `yaml:"prepend"` // times this edge's AS is added while it is sick or drains
	Drain   time.Duration `yaml:"drain"`   // prepended for so long before it is withdrawn, by operators and at the daemon's end
	Sick    Sick          `yaml:"sick"`
}

// Sick says when health is acted on, so that announcements do not flap.
type Sick struct {
	After   time.Duration `yaml:"after"`   // of problems, until announcements are prepended
	Hold    time.Duration `yaml:"hold"`    // prepended for so long before it is withdrawn; 0: it stays prepended
	Recover time.Duration `yaml:"recover"` // without problems, until it is announced again
}

// Peer is a router to speak BGP with.
type Peer struct {
	Address      netip.Addr    `yaml:"address"`
	AS           uint32        `yaml:"as"`
	Port         uint16        `yaml:"port"`
	Local        netip.Addr    `yaml:"local"`         // address to speak from; default: as the route says
	Families     []Family      `yaml:"families"`      // ipv4, ipv6; default: that of the address
	PasswordFile string        `yaml:"password_file"` // holds the password of RFC 2385 (TCP MD5)
	Multihop     uint8         `yaml:"multihop"`      // hops to a peer that is no neighbour; 0: it is one
	HoldTime     time.Duration `yaml:"hold_time"`     // without a message for so long the session ends
	MaxPrefixes  uint32        `yaml:"max_prefixes"`  // that a peer may send before the session ends; none is ever used
	BFD          *BFD          `yaml:"bfd"`
}

// BFD is how fast a peer notices that this edge, or its daemon, is gone.
type BFD struct {
	Interval   time.Duration `yaml:"interval"`   // between packets, either way
	Multiplier uint8         `yaml:"multiplier"` // of the interval: after so long without a packet the route goes
}

// Announcement is one prefix that is reached through this edge.
type Announcement struct {
	Prefix      netip.Prefix `yaml:"prefix"`
	Communities []Community  `yaml:"communities"` // beside those of the section
	MED         *uint32      `yaml:"med"`         // instead of the section's
}

// Family is an address family.
type Family string

// Families.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
)

func familyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Community is a standard (RFC 1997) or large (RFC 8092) community.
type Community struct {
	Parts [3]uint32
	Large bool
}

// graceful is GRACEFUL_SHUTDOWN (RFC 8326): routers prefer any other way.
var graceful = Community{Parts: [3]uint32{65535, 0}} //nolint:gochecknoglobals // constant

var wellKnown = map[string]Community{ //nolint:gochecknoglobals // constant
	"graceful-shutdown":   graceful,
	"blackhole":           {Parts: [3]uint32{65535, 666}},
	"no-export":           {Parts: [3]uint32{65535, 65281}},
	"no-advertise":        {Parts: [3]uint32{65535, 65282}},
	"no-export-subconfed": {Parts: [3]uint32{65535, 65283}},
}

// UnmarshalText reads 64512:100, 64512:1:2 or a well-known name.
func (c *Community) UnmarshalText(b []byte) error {
	if w, ok := wellKnown[string(b)]; ok {
		*c = w
		return nil
	}
	parts := strings.Split(string(b), ":")
	*c = Community{Large: len(parts) == 3}
	bits := 16
	if c.Large {
		bits = 32
	}
	bad := len(parts) != 2 && len(parts) != 3
	for i := 0; i < len(parts) && !bad; i++ {
		v, err := strconv.ParseUint(parts[i], 10, bits)
		c.Parts[i], bad = uint32(v), err != nil
	}
	if bad {
		return fmt.Errorf("%q is no community: write 64512:100, 64512:1:2, or a name such as no-export", b)
	}
	return nil
}

// String writes the numbers.
func (c Community) String() string {
	if c.Large {
		return fmt.Sprintf("%d:%d:%d", c.Parts[0], c.Parts[1], c.Parts[2])
	}
	return fmt.Sprintf("%d:%d", c.Parts[0], c.Parts[1])
}

// MarshalJSON writes the same.
func (c Community) MarshalJSON() ([]byte, error) { return json.Marshal(c.String()) }

// Default is what an empty section means: nothing is announced.
func Default() Config {
	return Config{Prepend: 3, Drain: 3 * time.Second, Sick: Sick{After: time.Second, Hold: 30 * time.Second, Recover: 10 * time.Second}}
}

// DefaultPeer is what an entry of peers starts from.
func DefaultPeer() Peer { return Peer{Port: 179, HoldTime: 9 * time.Second, MaxPrefixes: 1000} }

// DefaultBFD is what bfd: {} means: a hung daemon is out of the route within 0.3 s.
func DefaultBFD() BFD { return BFD{Interval: 100 * time.Millisecond, Multiplier: 3} }

// Enabled tells whether anything is to be announced.
func (c Config) Enabled() bool { return len(c.Peers) > 0 }

// Limits, with what they keep out.
const (
	maxPrepend = 20                    // routers drop longer paths
	minHold    = 3 * time.Second       // RFC 4271, section 4.2
	maxHold    = 65535 * time.Second   // two bytes
	minBFD     = 10 * time.Millisecond // what a process that shares its CPUs can keep
	maxBFD     = 10 * time.Second
	maxWait    = time.Hour // of drain and sick: longer is a mistake

	reservedAS = 0 // RFC 7607
)

// Validate reports everything that is wrong, by the file's keys.
func (c Config) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Enabled() && c.AS == reservedAS {
		fail("as: is missing (this edge's autonomous system, such as 64512)")
	}
	if c.RouterID.IsValid() && (!c.RouterID.Is4() || c.RouterID.IsUnspecified()) {
		fail("router_id: %s is not an IPv4 address", c.RouterID)
	}
	if c.Enabled() && !c.RouterID.IsValid() {
		fail("router_id: is missing (an IPv4 address of this edge; node.address4 would do too)")
	}
	for key, hop := range map[string]netip.Addr{"next_hop4": c.NextHop4, "next_hop6": c.NextHop6} {
		if hop.IsValid() && (hop.Is4() != (key == "next_hop4") || !unicast(hop)) {
			fail("%s: %s is no unicast IPv%s address", key, hop, key[len(key)-1:])
		}
	}
	if c.Prepend < 0 || c.Prepend > maxPrepend {
		fail("prepend: %d is not between 0 and %d", c.Prepend, maxPrepend)
	}
	for key, d := range map[string]time.Duration{"drain": c.Drain, "sick.after": c.Sick.After, "sick.hold": c.Sick.Hold, "sick.recover": c.Sick.Recover} {
		if d < 0 || d > maxWait {
			fail("%s: %s is not between 0s and %s", key, d, maxWait)
		}
	}
	seen := map[netip.Addr]int{}
	for i, p := range c.Peers {
		errs = append(errs, p.validate(fmt.Sprintf("peers[%d]", i), c)...)
		if first, ok := seen[p.Address]; ok && p.Address.IsValid() {
			fail("peers[%d].address: %s is also that of peers[%d] (one session a peer; families can share it)", i, p.Address, first)
		} else {
			seen[p.Address] = i
		}
	}
	return errors.Join(append(errs, c.validateAnnouncements()...)...)
}

func unicast(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && a.Zone() == "" && !a.Is4In6()
}

func (c Config) validateAnnouncements() (errs []error) {
	seen := map[netip.Prefix]int{}
	for i, a := range c.Announcements {
		at := fmt.Sprintf("announcements[%d].prefix", i)
		switch first, again := seen[a.Prefix]; {
		case !a.Prefix.IsValid():
			errs = append(errs, fmt.Errorf("%s: is missing", at))
		case a.Prefix != a.Prefix.Masked():
			errs = append(errs, fmt.Errorf("%s: %s has bits beyond its length (did you mean %s?)", at, a.Prefix, a.Prefix.Masked()))
		case !unicast(a.Prefix.Addr()) || a.Prefix.Bits() == 0:
			errs = append(errs, fmt.Errorf("%s: %s cannot be announced (want a unicast prefix)", at, a.Prefix))
		case again:
			errs = append(errs, fmt.Errorf("%s: %s is also that of announcements[%d]", at, a.Prefix, first))
		default:
			seen[a.Prefix] = i
		}
	}
	return errs
}

func (p Peer) validate(at string, c Config) (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(at+"."+format, args...)) }
	if !unicast(p.Address) {
		fail("address: want a unicast address without a zone")
		return errs
	}
	if p.AS == reservedAS {
		fail("as: is missing (the router's autonomous system)")
	}
	if p.AS == c.AS && p.AS != reservedAS {
		fail("as: %d is this edge's own: within one AS a longer path means nothing (give the edges an AS of their own)", p.AS)
	}
	if p.Port == 0 {
		fail("port: is 0 (want 1 to 65535; BGP's own is 179)")
	}
	if p.Local.IsValid() && (p.Local.Is4() != p.Address.Is4() || !unicast(p.Local)) {
		fail("local: %s cannot speak with %s", p.Local, p.Address)
	}
	errs = append(errs, p.validateFamilies(at, c)...)
	if p.HoldTime < minHold || p.HoldTime > maxHold || p.HoldTime%time.Second != 0 {
		fail("hold_time: %s is not a number of whole seconds from %s", p.HoldTime, minHold)
	}
	if p.MaxPrefixes == 0 {
		fail("max_prefixes: is 0 (want at least 1: they are counted, and never used)")
	}
	if p.Multihop == 1 {
		fail("multihop: 1 hop is a neighbour (leave it out)")
	}
	if p.PasswordFile != "" {
		if _, err := p.password(); err != nil {
			fail("password_file: %w", err)
		}
	}
	if b := p.BFD; b != nil {
		if p.Multihop > 0 {
			fail("bfd: works with neighbours alone, and multihop is %d (leave one of them out)", p.Multihop)
		}
		if b.Interval < minBFD || b.Interval > maxBFD || b.Interval%time.Microsecond != 0 {
			fail("bfd.interval: %s is not between %s and %s", b.Interval, minBFD, maxBFD)
		}
		if b.Multiplier == 0 {
			fail("bfd.multiplier: is 0 (want 1 to 255; 3 is usual)")
		}
	}
	return errs
}

func (p Peer) validateFamilies(at string, c Config) (errs []error) {
	for i, f := range p.Families {
		key := fmt.Sprintf("%s.families[%d]", at, i)
		hop := map[Family]netip.Addr{IPv4: c.NextHop4, IPv6: c.NextHop6}[f]
		switch {
		case f != IPv4 && f != IPv6:
			errs = append(errs, fmt.Errorf("%s: %q is neither ipv4 nor ipv6", key, f))
		case slices.Contains(p.Families[:i], f):
			errs = append(errs, fmt.Errorf("%s: %s stands twice", key, f))
		case f != familyOf(p.Address) && !hop.IsValid():
			errs = append(errs, fmt.Errorf("%s: %s over a session with %s needs a next hop (set anycast.next_hop%s)", key, f, p.Address, string(f[3])))
		}
	}
	return errs
}

// families are those of the session.
func (p Peer) families() []Family {
	if len(p.Families) > 0 {
		return p.Families
	}
	return []Family{familyOf(p.Address)}
}

// maxPassword is what TCP MD5 takes (TCP_MD5SIG_MAXKEYLEN).
const maxPassword = 80

// password reads the file. It is a secret: no message tells it.
func (p Peer) password() (string, error) {
	if p.PasswordFile == "" {
		return "", nil
	}
	info, err := os.Stat(p.PasswordFile)
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o007 != 0 {
		return "", fmt.Errorf("%s: everybody may use it, with mode %04o (chmod 640 it, with the daemon's group)", p.PasswordFile, info.Mode().Perm())
	}
	raw, err := os.ReadFile(p.PasswordFile)
	if err != nil {
		return "", err
	}
	text := strings.TrimRight(string(raw), "\r\n")
	if text == "" || len(text) > maxPassword || strings.ContainsAny(text, "\r\n\x00") {
		return "", fmt.Errorf("%s: want one line of 1 to %d bytes", p.PasswordFile, maxPassword)
	}
	return text, nil
}
