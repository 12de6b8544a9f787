// Package transport is where clients come in: h1 and h2 over TCP, h3 over UDP on the same port,
// with limits that keep slow or greedy clients from holding on to the edge.
package transport

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is the section listen.
type Config struct {
	HTTP        []string       `yaml:"http"`         // h1 in the clear
	HTTPS       []string       `yaml:"https"`        // h1 and h2 over TCP, h3 over UDP
	Drain       time.Duration  `yaml:"drain"`        // how long requests in flight may take to finish
	StatusAllow []netip.Prefix `yaml:"status_allow"` // who sees the status page

	HeaderTimeout time.Duration `yaml:"header_timeout"` // for a whole request head
	IdleTimeout   time.Duration `yaml:"idle_timeout"`   // between requests
	StallTimeout  time.Duration `yaml:"stall_timeout"`  // without a byte of a body, either way
	MaxHeader     int           `yaml:"max_header"`     // bytes of a request head
	MaxStreams    int           `yaml:"max_streams"`    // of one h2 or h3 connection
	// HeaderTable bounds the table of h2 connections by which heads of responses repeat what others said: 4096, 16384 or
	// 65536 bytes of memory each. Clients that keep a smaller one have it so.
	HeaderTable int `yaml:"header_table"`
	// QUICWorkers is how many sockets of h3 an address has, each read by a goroutine of its own: 1 to 8; 0: as many as the daemon
	// may use processors, 4 at most. Without the kernel half there is one.
	QUICWorkers int `yaml:"quic_workers"`
}

// Default is what an empty section means.
func Default() Config {
	return Config{
		HTTP: []string{":8080"}, HTTPS: []string{":8443"}, Drain: 10 * time.Second,
		StatusAllow:   []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		HeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, StallTimeout: 30 * time.Second,
		MaxHeader: 64 << 10, MaxStreams: 250, HeaderTable: 4 << 10,
	}
}

// Validate reports everything wrong with the section.
func (c Config) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.HTTP)+len(c.HTTPS) == 0 {
		fail("http: neither http nor https has an address (write https: [\":8443\"])")
	}
	seen := map[string]string{}
	for _, list := range []struct {
		key   string
		addrs []string
	}{{"http", c.HTTP}, {"https", c.HTTPS}} {
		for i, a := range list.addrs {
			key := fmt.Sprintf("%s[%d]", list.key, i)
			if _, _, err := split(a); err != nil {
				fail("%s: %w", key, err)
			} else if first, ok := seen[a]; ok && !strings.HasSuffix(a, ":0") {
				fail("%s: %s is already %s's", key, a, first)
			}
			seen[a] = key
		}
	}
	for key, d := range map[string]time.Duration{"header_timeout": c.HeaderTimeout, "idle_timeout": c.IdleTimeout, "stall_timeout": c.StallTimeout} {
		if d < 100*time.Millisecond {
			fail("%s: %s is below 100ms", key, d)
		}
	}
	if c.Drain < 0 || c.Drain > time.Hour {
		fail("drain: %s is not between 0s and 1h", c.Drain)
	}
	if c.MaxHeader < 4096 || c.MaxHeader > 1<<20 {
		fail("max_header: %d is not between 4096 and 1048576 bytes", c.MaxHeader)
	}
	if c.MaxStreams < 1 || c.MaxStreams > 10000 {
		fail("max_streams: %d is not between 1 and 10000", c.MaxStreams)
	}
	if !slices.Contains([]int{4 << 10, 16 << 10, 64 << 10}, c.HeaderTable) {
		fail("header_table: %d is none of 4096, 16384, 65536 bytes", c.HeaderTable)
	}
	if c.QUICWorkers < 0 || c.QUICWorkers > MaxWorkers {
		fail("quic_workers: %d is not between 0 and %d", c.QUICWorkers, MaxWorkers)
	}
	return errors.Join(errs...)
}

// limits are the settings that a listener keeps from its opening to its end.
type limits struct {
	header, idle, stall                time.Duration
	maxHeader, maxStreams, headerTable int
	workers                            int
}

func (c Config) limits() limits {
	return limits{c.HeaderTimeout, c.IdleTimeout, c.StallTimeout, c.MaxHeader, c.MaxStreams, c.HeaderTable, c.Workers()}
}

// split takes an address apart. family is "4" for IPv4, "6" for IPv6, and "" when no host is
// given: both.
func split(address string) (family string, port uint16, err error) {
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("%q is no address with a port (write 0.0.0.0:8080, [::]:8080, or :8080 for both)", address)
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("%q is no port in %q (0 to 65535)", p, address)
	}
	if host == "" {
		return "", uint16(n), nil
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return "", 0, fmt.Errorf("%q is no IP address in %q (names are not looked up)", host, address)
	case ip.Is4():
		family = "4"
	default:
		family = "6"
	}
	return family, uint16(n), nil
}
