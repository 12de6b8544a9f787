package anycast

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var (
	addr   = netip.MustParseAddr
	prefix = netip.MustParsePrefix
)

func valid() Config {
	c := Default()
	c.AS, c.RouterID = 64513, addr("192.0.2.1")
	p := DefaultPeer()
	p.Address, p.AS = addr("192.0.2.254"), 64512
	b := DefaultBFD()
	p.BFD = &b
	c.Peers = []Peer{p}
	c.Announcements = []Announcement{{Prefix: prefix("203.0.113.0/24")}}
	return c
}

func secret(t *testing.T, mode os.FileMode, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestValidConfig(t *testing.T) {
	c := valid()
	c.Peers[0].PasswordFile = secret(t, 0o640, "s3cret\n")
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if err := Default().Validate(); err != nil {
		t.Error("the default:", err)
	}
	if p, err := c.Peers[0].password(); p != "s3cret" || err != nil {
		t.Error(p, err)
	}
}

// Each mistake is found, by its key.
func TestValidateRefuses(t *testing.T) {
	peer := func(f func(p *Peer)) func(*Config) { return func(c *Config) { f(&c.Peers[0]) } }
	for want, mutate := range map[string]func(c *Config){
		"as: is missing": func(c *Config) { c.AS = 0 },
		"router_id: 2001:db8::1 is not an IPv4 address":                    func(c *Config) { c.RouterID = addr("2001:db8::1") },
		"router_id: is missing":                                            func(c *Config) { c.RouterID = netip.Addr{} },
		"next_hop4: 2001:db8::1 is no unicast IPv4 address":                func(c *Config) { c.NextHop4 = addr("2001:db8::1") },
		"next_hop6: ff02::1 is no unicast IPv6 address":                    func(c *Config) { c.NextHop6 = addr("ff02::1") },
		"prepend: 21 is not between":                                       func(c *Config) { c.Prepend = 21 },
		"prepend: -1 is not between":                                       func(c *Config) { c.Prepend = -1 },
		"drain: -1s is not between":                                        func(c *Config) { c.Drain = -time.Second },
		"sick.after: 2h0m0s is not between":                                func(c *Config) { c.Sick.After = 2 * time.Hour },
		"sick.hold: -1s is not between":                                    func(c *Config) { c.Sick.Hold = -time.Second },
		"sick.recover: -1s is not between":                                 func(c *Config) { c.Sick.Recover = -time.Second },
		"peers[1].address: 192.0.2.254 is also that of peers[0]":           func(c *Config) { c.Peers = append(c.Peers, c.Peers[0]) },
		"announcements[0].prefix: is missing":                              func(c *Config) { c.Announcements[0].Prefix = netip.Prefix{} },
		"announcements[0].prefix: 203.0.113.1/24 has bits":                 func(c *Config) { c.Announcements[0].Prefix = prefix("203.0.113.1/24") },
		"announcements[0].prefix: 0.0.0.0/0 cannot be announced":           func(c *Config) { c.Announcements[0].Prefix = prefix("0.0.0.0/0") },
		"announcements[0].prefix: ff00::/8 cannot be announced":            func(c *Config) { c.Announcements[0].Prefix = prefix("ff00::/8") },
		"announcements[1].prefix: 203.0.113.0/24 is also that of":          func(c *Config) { c.Announcements = append(c.Announcements, c.Announcements[0]) },
		"peers[0].address: want a unicast address":                         peer(func(p *Peer) { p.Address = netip.Addr{} }),
		"peers[0].as: is missing":                                          peer(func(p *Peer) { p.AS = 0 }),
		"peers[0].as: 64513 is this edge's own":                            peer(func(p *Peer) { p.AS = 64513 }),
		"peers[0].port: is 0":                                              peer(func(p *Peer) { p.Port = 0 }),
		"peers[0].local: 2001:db8::1 cannot speak with 192.0.2.254":        peer(func(p *Peer) { p.Local = addr("2001:db8::1") }),
		`peers[0].families[0]: "ipx" is neither`:                           peer(func(p *Peer) { p.Families = []Family{"ipx"} }),
		"peers[0].families[1]: ipv4 stands twice":                          peer(func(p *Peer) { p.Families = []Family{IPv4, IPv4} }),
		"peers[0].families[0]: ipv6 over a session with 192.0.2.254 needs": peer(func(p *Peer) { p.Families = []Family{IPv6} }),
		"peers[0].hold_time: 2s is not":                                    peer(func(p *Peer) { p.HoldTime = 2 * time.Second }),
		"peers[0].hold_time: 9.5s is not":                                  peer(func(p *Peer) { p.HoldTime = 9500 * time.Millisecond }),
		"peers[0].max_prefixes: is 0":                                      peer(func(p *Peer) { p.MaxPrefixes = 0 }),
		"peers[0].multihop: 1 hop":                                         peer(func(p *Peer) { p.Multihop, p.BFD = 1, nil }),
		"peers[0].bfd: works with neighbours alone":                        peer(func(p *Peer) { p.Multihop = 3 }),
		"peers[0].bfd.interval: 1ms is not between":                        peer(func(p *Peer) { p.BFD.Interval = time.Millisecond }),
		"peers[0].bfd.multiplier: is 0":                                    peer(func(p *Peer) { p.BFD.Multiplier = 0 }),
		"peers[0].password_file: stat /nowhere":                            peer(func(p *Peer) { p.PasswordFile = "/nowhere" }),
		"everybody may use it, with mode 0644":                             peer(func(p *Peer) { p.PasswordFile = secret(t, 0o644, "s3cret") }),
		"want one line of 1 to 80 bytes":                                   peer(func(p *Peer) { p.PasswordFile = secret(t, 0o600, "two\nlines") }),
	} {
		c := valid()
		mutate(&c)
		err := c.Validate()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		} else if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("it tells the secret: %v", err)
		}
	}
}

func TestCommunity(t *testing.T) {
	for text, want := range map[string]string{"64512:100": "64512:100", "no-export": "65535:65281", "4200000000:1:2": "4200000000:1:2", "graceful-shutdown": "65535:0"} {
		var c Community
		if err := c.UnmarshalText([]byte(text)); err != nil || c.String() != want {
			t.Errorf("%s: %s, %v", text, c, err)
		}
		if b, err := c.MarshalJSON(); err != nil || string(b) != `"`+want+`"` {
			t.Errorf("%s: %s, %v", text, b, err)
		}
	}
	for _, text := range []string{"", "1", "a:b", "65536:1", "1:2:3:4", "1:-2", "4294967296:1:1", "no-exports"} {
		var c Community
		if err := c.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q became %s", text, c)
		}
	}
}

func TestRoutes(t *testing.T) {
	c := valid()
	med := uint32(7)
	c.MED, c.Communities = 50, []Community{{Parts: [3]uint32{64513, 1}}}
	c.NextHop6 = addr("2001:db8::9")
	c.Announcements = []Announcement{{Prefix: prefix("2001:db8:f::/48"), MED: &med, Communities: []Community{{Parts: [3]uint32{64513, 2}}}}, {Prefix: prefix("203.0.113.0/24")}}
	vips := []netip.Addr{addr("198.51.100.1"), addr("::ffff:198.51.100.1"), addr("2001:db8::1")}

	if r := c.routes(vips, decision{phase: Withdrawn}); len(r) != 0 {
		t.Errorf("withdrawn: %+v", r)
	}
	r := c.routes(vips, decision{phase: Announced})
	if len(r) != 2 || r[0].Prefix != prefix("203.0.113.0/24") || r[0].MED != 50 || len(r[0].Communities) != 1 || r[0].Prepend != 0 || !r[0].NextHop.IsUnspecified() {
		t.Errorf("%+v", r)
	}
	if r[1].MED != 7 || len(r[1].Communities) != 2 || r[1].NextHop != c.NextHop6 {
		t.Errorf("%+v", r)
	}
	r = c.routes(vips, decision{phase: Prepended, graceful: true})
	if len(c.Communities) != 1 || r[0].Prepend != c.Prepend || r[0].Communities[1] != graceful {
		t.Errorf("%+v", r)
	}
	c.Announcements = nil
	if r := c.routes(vips, decision{phase: Announced}); len(r) != 2 || r[0].Prefix != prefix("198.51.100.1/32") || r[1].Prefix != prefix("2001:db8::1/128") {
		t.Errorf("%+v", r)
	}
}
