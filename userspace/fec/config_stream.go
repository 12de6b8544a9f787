package fec

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/bermedge/berm/maps"
)

// StreamConfig is a live stream: what comes in at a UDP address goes to the subscribers of a route, with parity.
type StreamConfig struct {
	Name   string         `yaml:"name"`
	Listen netip.AddrPort `yaml:"listen"` // where the stream comes in, a packet for each datagram
	// From are the senders whose packets are taken; empty: all.
	From []netip.Prefix `yaml:"from"`
	Host string         `yaml:"host"` // of the route: a name without port, or "*" for any
	Path string         `yaml:"path"` // of the route: subscribers ask there for a session of WebTransport
	// Page serves a player at the path, and its decoder at PATH/fec.js.
	Page bool `yaml:"page"`
	// Origins are pages of other hosts that may subscribe, such as https://www.example.com; "*" is any.
	Origins []string `yaml:"origins"`
	// Delay is how long the first packet of a block waits for its parity at most.
	Delay time.Duration `yaml:"delay"`
	// Residual is the share of packets that may stay lost.
	Residual float64 `yaml:"residual"`
	// Overhead is the most parity for any subscriber, in packets for each packet.
	Overhead float64 `yaml:"overhead"`
	// Packet is the largest packet in bytes.
	Packet int `yaml:"packet"`
	// Subscribers are how many may subscribe at once.
	Subscribers int `yaml:"subscribers"`
}

// maxStreamPacket fits with a payload ID, a symbol's head and a kind into a datagram of QUIC, also where packets
// of the path have no more than the 1200 bytes that QUIC asks for (RFC 9000, section 14).
const maxStreamPacket = 1130

// DefaultStream is what a stream that says nothing gets.
func DefaultStream() StreamConfig {
	return StreamConfig{Host: "*", Delay: 20 * time.Millisecond, Residual: 1e-4, Overhead: 0.35, Packet: 1100, Subscribers: 1000}
}

func (c Config) validateStreams(taken portsTaken) (errs []error) {
	names, routes := map[string]bool{}, map[string]string{}
	for i, s := range c.Streams {
		at := fmt.Sprintf("fec.streams[%d]", i)
		if names[s.Name] {
			errs = append(errs, fmt.Errorf("%s.name: %q is another stream's name too", at, s.Name))
		}
		names[s.Name] = true
		route := strings.ToLower(s.Host) + s.Path
		if other, twice := routes[route]; twice {
			errs = append(errs, fmt.Errorf("%s.path: %s of host %s is stream %q's", at, s.Path, s.Host, other))
		}
		routes[route] = s.Name
		errs = append(errs, taken.by(at, fmt.Sprintf("stream %q", s.Name), s.Listen)...)
		errs = append(errs, s.validate(at)...)
	}
	return errs
}

func (c StreamConfig) validate(at string) (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(at+"."+format, args...)) }
	if err := maps.CheckName(c.Name); err != nil {
		fail("name: %w", err)
	}
	if !c.Listen.IsValid() || c.Listen.Port() == 0 || c.Listen.Addr().IsMulticast() {
		fail("listen: %q: want a unicast address and a port, such as 127.0.0.1:5000", text(c.Listen))
	}
	if c.Host == "" || strings.ContainsAny(c.Host, ":/ ") || c.Host != "*" && strings.Contains(c.Host, "*") {
		fail("host: %q: want a name without port, or * for any", c.Host)
	}
	if len(c.Path) < 2 || c.Path[0] != '/' || strings.HasSuffix(c.Path, "/") || strings.ContainsAny(c.Path, "?#") || strings.HasPrefix(c.Path+"/", "/.berm/") {
		fail("path: %q: want one such as /live/stage, which does not end with / nor lie in /.berm/", c.Path)
	}
	for i, o := range c.Origins {
		if u, err := url.Parse(o); o != "*" && (err != nil || u.Scheme == "" || u.Host == "" || u.Path != "") {
			fail("origins[%d]: %q: want one such as https://www.example.com, or *", i, o)
		}
	}
	if c.Packet < 64 || c.Packet > maxStreamPacket {
		fail("packet: %d: want 64 to %d bytes", c.Packet, maxStreamPacket)
	}
	if c.Subscribers < 1 || c.Subscribers > 100_000 {
		fail("subscribers: %d: want 1 to 100000", c.Subscribers)
	}
	return append(errs, validateGoal(at, c.Delay, c.Residual, c.Overhead)...)
}
