package fec

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/bermedge/berm/maps"
)

// Config is the section fec.
type Config struct {
	Relays  []RelayConfig  `yaml:"relays"`
	Streams []StreamConfig `yaml:"streams"`
}

// Roles of relays.
const (
	RoleProtect = "protect" // sends packets on with parity
	RoleRepair  = "repair"  // rebuilds those that were lost, and sends packets on without parity
)

// RelayConfig is a UDP relay: one protects a flow before a lossy path, another repairs it behind.
type RelayConfig struct {
	Name   string         `yaml:"name"`
	Role   string         `yaml:"role"` // protect or repair
	Listen netip.AddrPort `yaml:"listen"`
	To     netip.AddrPort `yaml:"to"`
	// Parity is the address that repair packets go to, or arrive at, since RFC 6363 has them on a port of their own. Default:
	// the next port after that of source packets.
	Parity netip.AddrPort `yaml:"parity"`
	// From are the senders that a repairing relay listens to; empty: all.
	From []netip.Prefix `yaml:"from"`
	// Delay is how long the first packet of a block waits for its parity at most: with the path's jitter, what repair adds.
	Delay time.Duration `yaml:"delay"`
	// Residual is the share of packets that may stay lost.
	Residual float64 `yaml:"residual"`
	// Overhead is the most parity, in packets for each packet.
	Overhead float64 `yaml:"overhead"`
	// Packet is the largest packet in bytes.
	Packet int `yaml:"packet"`
}

// DefaultRelay is what a relay that says nothing gets.
func DefaultRelay() RelayConfig {
	return RelayConfig{Delay: 20 * time.Millisecond, Residual: 1e-4, Overhead: 0.35, Packet: 1400}
}

// parity is where repair packets go, or arrive.
func (c RelayConfig) parity() netip.AddrPort {
	if c.Parity.IsValid() {
		return c.Parity
	}
	wire := c.To
	if c.Role == RoleRepair {
		wire = c.Listen
	}
	return netip.AddrPortFrom(wire.Addr(), wire.Port()+1)
}

// Validate reports everything that is wrong, by the file's keys.
func (c Config) Validate() error {
	var errs []error
	taken := portsTaken{}
	names := map[string]bool{}
	for i, r := range c.Relays {
		at := fmt.Sprintf("fec.relays[%d]", i)
		if names[r.Name] {
			errs = append(errs, fmt.Errorf("%s.name: %q is another relay's name too", at, r.Name))
		}
		names[r.Name] = true
		listens := []netip.AddrPort{r.Listen}
		if r.Role == RoleRepair {
			listens = append(listens, r.parity())
		}
		errs = append(errs, taken.by(at, "relay "+strconv.Quote(r.Name), listens...)...)
		errs = append(errs, r.validate(at)...)
	}
	return errors.Join(append(errs, c.validateStreams(taken)...)...)
}

// portsTaken says by whom.
type portsTaken map[netip.AddrPort]string

func (p portsTaken) by(at, who string, addrs ...netip.AddrPort) (errs []error) {
	for _, a := range addrs {
		if other, taken := p[a]; taken && a.IsValid() {
			errs = append(errs, fmt.Errorf("%s.listen: %s is taken by %s", at, a, other))
		}
		p[a] = who
	}
	return errs
}

func (c RelayConfig) validate(at string) (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(at+"."+format, args...)) }
	if err := maps.CheckName(c.Name); err != nil {
		fail("name: %w", err)
	}
	if c.Role != RoleProtect && c.Role != RoleRepair {
		fail("role: %q: want %s (before the lossy path) or %s (behind it)", c.Role, RoleProtect, RoleRepair)
	}
	for _, a := range []struct {
		key  string
		addr netip.AddrPort
		wild bool
	}{{"listen", c.Listen, true}, {"to", c.To, false}, {"parity", c.parity(), c.Role == RoleRepair}} {
		if !a.addr.IsValid() || a.addr.Port() == 0 || a.addr.Addr().IsMulticast() || !a.wild && a.addr.Addr().IsUnspecified() {
			fail("%s: %q: want a unicast address and a port, such as 192.0.2.1:5000", a.key, text(a.addr))
		}
	}
	if c.Role == RoleProtect && len(c.From) > 0 {
		fail("from: is for %s", RoleRepair)
	}
	if c.Packet < 64 || c.Packet > 9000 {
		fail("packet: %d: want 64 to 9000 bytes", c.Packet)
	}
	return append(errs, validateGoal(at, c.Delay, c.Residual, c.Overhead)...)
}

func validateGoal(at string, delay time.Duration, residual, overhead float64) (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(at+"."+format, args...)) }
	if delay < time.Millisecond || delay > time.Second {
		fail("delay: %s: want 1ms to 1s", delay)
	}
	if residual <= 0 || residual >= 1 {
		fail("residual: %g: want a share between 0 and 1, such as 0.0001", residual)
	}
	if overhead < 0 || overhead > 2 {
		fail("overhead: %g: want 0 to 2 packets of parity for each packet, such as 0.35", overhead)
	}
	return errs
}

func text(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
