package origin

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Config is one entry of origins in the file.
type Config struct {
	// URLs are the servers that have the originals: "http://host:port" or "https://host". A path is put before the
	// request's.
	URLs []string `yaml:"urls"`
	// Host replaces the Host of requests; empty passes on the client's.
	Host string `yaml:"host"`
	// Balance is how a server is picked among the healthy ones: least_pending or round_robin.
	Balance string `yaml:"balance"`
	// ConnectTimeout is for the TCP connection, and again for the TLS handshake.
	ConnectTimeout time.Duration `yaml:"connect_timeout"`
	// HeaderTimeout is from the request sent to the first byte of the answer.
	HeaderTimeout time.Duration `yaml:"header_timeout"`
	// IdleTimeout is the longest silence within a body.
	IdleTimeout time.Duration `yaml:"idle_timeout"`
	// Timeout is for the whole exchange with the body; 0 sets no limit, as a live stream needs.
	Timeout time.Duration `yaml:"timeout"`
	// KeepAlive is how long an unused connection stays open.
	KeepAlive time.Duration `yaml:"keep_alive"`
	// MaxIdle is how many unused connections stay open to each server.
	MaxIdle int `yaml:"max_idle"`
	// MaxPending is how many requests may be under way at once; more are refused with 503. 0 sets no limit.
	MaxPending int `yaml:"max_pending"`
	// Retries is how often a request that may be repeated goes to another server after a connection failed.
	Retries int `yaml:"retries"`
	// Probe asks each server regularly whether it is well; without a path there are none.
	Probe Probe `yaml:"probe"`
	// Ejection takes a server out after so many failed requests in a row, until a probe or EjectionTime brings it
	// back; 0 turns it off.
	Ejection     int           `yaml:"ejection"`
	EjectionTime time.Duration `yaml:"ejection_time"`
	// TLS is for https URLs.
	TLS TLS `yaml:"tls"`
}

// Probe is how the health of servers is asked for. A server is healthy while at least Threshold of its last Window
// probes succeeded.
type Probe struct {
	Path      string        `yaml:"path"`
	Host      string        `yaml:"host"`
	Interval  time.Duration `yaml:"interval"`
	Timeout   time.Duration `yaml:"timeout"`
	Window    int           `yaml:"window"`
	Threshold int           `yaml:"threshold"`
	Status    int           `yaml:"status"` // expected; 0 accepts 200 to 399
}

// TLS is how https servers are verified.
type TLS struct {
	CA         string `yaml:"ca"`          // a PEM file of authorities, instead of the system's
	ServerName string `yaml:"server_name"` // expected in the certificate, instead of the URL's host
	Insecure   bool   `yaml:"insecure"`    // accepts any certificate: for labs
}

// The ways to balance.
const (
	LeastPending = "least_pending"
	RoundRobin   = "round_robin"
)

// WithDefaults returns the configuration with what an entry leaves out filled in.
func (c Config) WithDefaults() Config {
	c.Balance = cmp.Or(c.Balance, LeastPending)
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, 2*time.Second)
	c.HeaderTimeout = cmp.Or(c.HeaderTimeout, 15*time.Second)
	c.IdleTimeout = cmp.Or(c.IdleTimeout, 30*time.Second)
	c.KeepAlive = cmp.Or(c.KeepAlive, 90*time.Second)
	c.MaxIdle = cmp.Or(c.MaxIdle, 64)
	c.EjectionTime = cmp.Or(c.EjectionTime, 5*time.Second)
	if c.Probe.Path != "" {
		c.Probe.Interval = cmp.Or(c.Probe.Interval, 2*time.Second)
		c.Probe.Timeout = cmp.Or(c.Probe.Timeout, time.Second)
		c.Probe.Window = cmp.Or(c.Probe.Window, 5)
		c.Probe.Threshold = cmp.Or(c.Probe.Threshold, min(3, c.Probe.Window))
	}
	return c
}

// DefaultConfig is what an entry with nothing but its URLs means.
func DefaultConfig() Config {
	return Config{Retries: 1, Ejection: 5}.WithDefaults()
}

// Validate reports everything wrong, by the file's names below the entry's own.
func (c Config) Validate() error {
	var errs []error
	if len(c.URLs) == 0 {
		errs = append(errs, errors.New("urls: must name at least one server"))
	}
	seen := map[string]bool{}
	for i, raw := range c.URLs {
		if _, err := parseURL(raw); err != nil {
			errs = append(errs, fmt.Errorf("urls[%d]: %w", i, err))
		}
		if seen[raw] {
			errs = append(errs, fmt.Errorf("urls[%d]: %q is given twice", i, raw))
		}
		seen[raw] = true
	}
	if c.Balance != "" && c.Balance != LeastPending && c.Balance != RoundRobin {
		errs = append(errs, fmt.Errorf("balance: %q must be %s or %s", c.Balance, LeastPending, RoundRobin))
	}
	for _, d := range []struct {
		name string
		d    time.Duration
	}{
		{"connect_timeout", c.ConnectTimeout},
		{"header_timeout", c.HeaderTimeout},
		{"idle_timeout", c.IdleTimeout},
		{"timeout", c.Timeout},
		{"keep_alive", c.KeepAlive},
		{"ejection_time", c.EjectionTime},
		{"probe.interval", c.Probe.Interval},
		{"probe.timeout", c.Probe.Timeout},
	} {
		if d.d < 0 {
			errs = append(errs, fmt.Errorf("%s: %s is negative", d.name, d.d))
		}
	}
	for _, n := range []struct {
		name string
		n    int
	}{{"max_idle", c.MaxIdle}, {"max_pending", c.MaxPending}, {"retries", c.Retries}, {"ejection", c.Ejection}} {
		if n.n < 0 {
			errs = append(errs, fmt.Errorf("%s: %d is negative", n.name, n.n))
		}
	}
	return errors.Join(append(errs, c.Probe.validate())...)
}

func (p Probe) validate() error {
	var errs []error
	if p.Path == "" {
		if p != (Probe{}) {
			errs = append(errs, errors.New("probe.path: must be set where anything else of probe is"))
		}
		return errors.Join(errs...)
	}
	if !strings.HasPrefix(p.Path, "/") {
		errs = append(errs, fmt.Errorf("probe.path: %q must begin with /", p.Path))
	}
	if p.Interval > 0 && p.Timeout > p.Interval {
		errs = append(errs, fmt.Errorf("probe.timeout: %s is longer than probe.interval (%s)", p.Timeout, p.Interval))
	}
	if p.Window < 0 || p.Window > 64 {
		errs = append(errs, fmt.Errorf("probe.window: %d must be between 1 and 64", p.Window))
	}
	if p.Threshold < 0 || p.Window > 0 && p.Threshold > p.Window {
		errs = append(errs, fmt.Errorf("probe.threshold: %d must be between 1 and probe.window (%d)", p.Threshold, p.Window))
	}
	if p.Status != 0 && (p.Status < 100 || p.Status > 599) {
		errs = append(errs, fmt.Errorf("probe.status: %d is not a status", p.Status))
	}
	return errors.Join(errs...)
}

// parseURL reads a server's URL.
func parseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%q: %w", raw, err)
	case !slices.Contains([]string{"http", "https"}, u.Scheme):
		return nil, fmt.Errorf("%q must begin with http:// or https://", raw)
	case u.Hostname() == "":
		return nil, fmt.Errorf("%q names no host", raw)
	case u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return nil, fmt.Errorf("%q may have nothing but scheme, host, port and path", raw)
	}
	if strings.Contains(u.Hostname(), ":") {
		if _, err := netip.ParseAddr(u.Hostname()); err != nil {
			return nil, fmt.Errorf("%q: %w", raw, err)
		}
	}
	return u, nil
}
