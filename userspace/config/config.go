package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/anycast"
	"github.com/bermedge/berm/userspace/cache"
	"github.com/bermedge/berm/userspace/cache/dictionary"
	"github.com/bermedge/berm/userspace/certs"
	"github.com/bermedge/berm/userspace/congestion"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/fec"
	"github.com/bermedge/berm/userspace/geo"
	"github.com/bermedge/berm/userspace/observe"
	"github.com/bermedge/berm/userspace/origin"
	"github.com/bermedge/berm/userspace/pipeline"
	"github.com/bermedge/berm/userspace/quiclb"
	"github.com/bermedge/berm/userspace/steer"
	"github.com/bermedge/berm/userspace/tickets"
	"github.com/bermedge/berm/userspace/transport"
)

// DefaultPath is where the file is, unless a flag says otherwise.
const DefaultPath = "/etc/berm/berm.yaml"

// Config is the whole file.
type Config struct {
	Node        Node                       `yaml:"node"`
	Kernel      Kernel                     `yaml:"kernel"`
	Listen      transport.Config           `yaml:"listen"`
	TLS         TLS                        `yaml:"tls"`
	Admin       control.Config             `yaml:"admin"`
	VIPs        []VIP                      `yaml:"vips"`
	Backends    map[string][]steer.Backend `yaml:"backends"`
	Sites       map[string]steer.Site      `yaml:"sites"` // the others, by name
	Steer       Steer                      `yaml:"steer"`
	QUIC        quiclb.Config              `yaml:"quic"`
	Anycast     anycast.Config             `yaml:"anycast"`
	Geo         geo.Config                 `yaml:"geo"`
	Rate        Rate                       `yaml:"rate"`
	Cache       cache.Config               `yaml:"cache"`
	Compression Compression                `yaml:"compression"`
	Origins     map[string]origin.Config   `yaml:"origins"`
	Routes      []pipeline.RouteConfig     `yaml:"routes"`
	Headers     pipeline.DietConfig        `yaml:"headers"`
	CC          congestion.Config          `yaml:"cc"`
	FEC         fec.Config                 `yaml:"fec"`
	Log         observe.Config             `yaml:"log"`
}

// TLS is the section tls.
type TLS struct {
	certs.Config `yaml:",inline"`
	Tickets      tickets.Config `yaml:"tickets"`
	EarlyData    tickets.Early  `yaml:"early_data"`
}

// Compression is the section compression.
type Compression struct {
	Dictionaries dictionary.Config `yaml:"dictionaries"` // answers of the same origin that others are encoded with
}

// HeapLimit is a soft limit for the Go heap: that of the cache, with dictionaries beside it.
func (c *Config) HeapLimit() int64 {
	return c.Cache.HeapLimit() + int64(c.Compression.Dictionaries.Memory)
}

// Node is this edge.
type Node struct {
	Name     string     `yaml:"name"` // that of its backend; empty: the host's
	Site     string     `yaml:"site"`
	Region   string     `yaml:"region"`   // of the site: services may be a region's alone
	Address4 netip.Addr `yaml:"address4"` // tunnels leave from and arrive at it
	Address6 netip.Addr `yaml:"address6"`
}

// Kernel says where and how the kernel half runs.
type Kernel struct {
	Interfaces []string `yaml:"interfaces"`
	Mode       string   `yaml:"mode"`       // auto, native or generic
	Pins       string   `yaml:"pins"`       // root of the pins
	Cgroup     string   `yaml:"cgroup"`     // for sock_ops: auto, none or a path
	Group      string   `yaml:"group"`      // that may use the maps and the admin socket
	RateCells  int      `yaml:"rate_cells"` // 8 bytes each; a power of two
	// ObserveOnly counts what would be dropped, and drops nothing.
	ObserveOnly bool `yaml:"observe_only"`
}

// VIP is a service.
type VIP struct {
	Name     string        `yaml:"name"`
	Address  netip.Addr    `yaml:"address"`
	Port     uint16        `yaml:"port"`
	Protocol maps.Protocol `yaml:"protocol"`
	Backends string        `yaml:"backends"` // a set; empty: this host
	Geo      string        `yaml:"geo"`      // a policy; empty: none
	Rate     string        `yaml:"rate"`     // a class; empty: none
	Shadow   bool          `yaml:"shadow"`   // count what policies would do, and do nothing
	Strict   bool          `yaml:"strict"`   // drop packets for this address to ports without a service
	Gate     Gate          `yaml:"gate"`
	Tenant   uint16        `yaml:"tenant"`
	Spill    steer.Spill   `yaml:"spill"`   // a share of the new flows begins at another site
	Region   string        `yaml:"region"`  // whose edges alone serve it; empty: every one's
	Outside  string        `yaml:"outside"` // what edges of other regions do with its packets: drop (default), or carry them there
	// QUIC sends packets to the backend that their connection ID names; default: where bermd serves
	// HTTP/3 at the VIP's port.
	QUIC bool `yaml:"quic"`
	// STUN sends WebRTC to the backend that has given out its ICE username fragment (berm steer ufrag).
	STUN bool `yaml:"stun"`
}

// Gate guards a service against floods whose sources are made up. Rates are of all sources
// together, on one edge.
type Gate struct {
	Cookies      maps.GateMode `yaml:"cookies"`       // tcp: SYN cookies, off, auto or on; they need net.ipv4.tcp_syncookies = 2
	CookiesAbove uint64        `yaml:"cookies_above"` // SYNs a second, with auto; 0: 10000
	Retry        maps.GateMode `yaml:"retry"`         // udp: QUIC clients show their address first, off, auto or on
	RetryAbove   uint64        `yaml:"retry_above"`   // Initials a second, with auto; 0: 1000
	BadInitials  maps.Action   `yaml:"bad_initials"`  // udp: QUIC packets that no client sends, none, shadow or drop
	Amplified    maps.Action   `yaml:"amplified"`     // udp: from ports of services that amplify, none, shadow or drop
}

// Rate is the section rate.
type Rate struct {
	Classes map[string]RateClass `yaml:"classes"`
}

// RateClass is a set of limits for one source (IPv6: a /64), in what one edge sees of it. 0 is no
// limit; a burst left out is one second's worth.
type RateClass struct {
	Packets       uint64    `yaml:"packets"`
	PacketsBurst  uint64    `yaml:"packets_burst"`
	Bytes         uint64    `yaml:"bytes"`
	BytesBurst    uint64    `yaml:"bytes_burst"`
	SYNs          uint64    `yaml:"syns"`
	SYNsBurst     uint64    `yaml:"syns_burst"`
	Initials      uint64    `yaml:"initials"` // of QUIC; a client sends one to three for a connection
	InitialsBurst uint64    `yaml:"initials_burst"`
	Aggregate     Aggregate `yaml:"aggregate"`
	Network       Network   `yaml:"network"`
	Shadow        bool      `yaml:"shadow"`
}

// Aggregate is the limits of all sources of an IPv4 /24, or an IPv6 /48, together. Where one is exceeded, each
// address (IPv6: /56) may still send 1/256 of it.
type Aggregate struct {
	Packets       uint64 `yaml:"packets"`
	PacketsBurst  uint64 `yaml:"packets_burst"`
	Bytes         uint64 `yaml:"bytes"`
	BytesBurst    uint64 `yaml:"bytes_burst"`
	SYNs          uint64 `yaml:"syns"`
	SYNsBurst     uint64 `yaml:"syns_burst"`
	Initials      uint64 `yaml:"initials"`
	InitialsBurst uint64 `yaml:"initials_burst"`
}

// Network is the limits of all sources of a network (ASN) together, where geo.networks tells it. Where one is exceeded,
// each of 256 parts of the network, into which a hash puts its /24s and /48s, may still send 1/256 of it.
type Network Aggregate

// Default is what an empty file means.
func Default() Config {
	return Config{
		Kernel: Kernel{Mode: "auto", Pins: "/sys/fs/bpf/berm", Cgroup: "auto", Group: "berm", RateCells: 8 << 20},
		Listen: transport.Default(), TLS: TLS{Config: certs.Default(), Tickets: tickets.Default()}, Admin: control.Default(),
		Steer: Steer{Probe: steer.DefaultProbe(), SecondChance: steer.DefaultSecondChance, Deadman: steer.DefaultDeadman, Carry: steer.DefaultCarry()}, QUIC: quiclb.Default(), Anycast: anycast.Default(), Cache: cache.DefaultConfig(), CC: congestion.Default(),
		Compression: Compression{Dictionaries: dictionary.Default()}, Log: observe.Default(),
	}
}

// Load reads a file. The error is Problems when the file was read but is not right.
func Load(path string) (*Config, error) {
	src, err := read(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, src)
}

// Check is Load for who only asks: it reads the geo databases too, which the daemon does when it puts them in force.
func Check(path string) (*Config, error) {
	src, err := read(path)
	if err != nil {
		return nil, err
	}
	return parse(path, src, (*Config).readGeo)
}

func read(path string) ([]byte, error) {
	src, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, Problems{{File: path, Message: "does not exist", Hint: "name another file with --config, or start from /usr/share/doc/berm/examples/berm.yaml"}}
	case errors.Is(err, fs.ErrPermission):
		return nil, Problems{{File: path, Message: fmt.Sprintf("may not be read by uid %d", os.Geteuid()), Hint: "chgrp berm, chmod 640"}}
	case err != nil:
		return nil, Problems{{File: path, Message: err.Error()}}
	}
	return src, nil
}

// Parse reads src, the content of a file called name.
func Parse(name string, src []byte) (*Config, error) { return parse(name, src) }

func parse(name string, src []byte, more ...func(*Config, *decoder)) (*Config, error) {
	c := Default()
	d := newDecoder(name)
	preset(d, origin.DefaultConfig())
	preset(d, fec.DefaultRelay())
	preset(d, fec.DefaultStream())
	presetAnycast(d)
	d.decode(src, &c)
	if c.Node.Name == "" {
		c.Node.Name = hostName()
	}
	c.check(d)
	for _, check := range more {
		check(&c, d)
	}
	if len(d.problems) > 0 {
		d.problems.sort()
		return nil, d.problems
	}
	return &c, nil
}

// hostName makes a node's name of the host's: what maps.CheckName takes.
func hostName() string {
	h, err := os.Hostname()
	if err != nil || h == "" {
		return "edge"
	}
	h, _, _ = strings.Cut(h, ".")
	h = strings.Map(func(r rune) rune {
		if maps.CheckName(string(r)) != nil {
			return '-'
		}
		return r
	}, h)
	return h[:min(len(h), maps.NameLen)]
}

// Class turns a class into the maps' form.
func (c RateClass) Class(name string) maps.RateClass {
	limit := func(rate, burst, least uint64) maps.Limit {
		if rate > 0 && burst == 0 {
			burst = max(rate, least)
		}
		return maps.Limit{PerSecond: rate, Burst: burst}
	}
	const packet = 1500 // a burst below one full-sized packet would refuse that packet for ever
	all := func(a Aggregate) maps.Limits {
		return maps.Limits{
			Packets: limit(a.Packets, a.PacketsBurst, 1), Bytes: limit(a.Bytes, a.BytesBurst, packet),
			SYNs: limit(a.SYNs, a.SYNsBurst, 1), Initials: limit(a.Initials, a.InitialsBurst, 1),
		}
	}
	return maps.RateClass{
		Name: name, Owner: maps.OwnerFile, Shadow: c.Shadow, Packets: limit(c.Packets, c.PacketsBurst, 1),
		Bytes: limit(c.Bytes, c.BytesBurst, packet), SYNs: limit(c.SYNs, c.SYNsBurst, 1), Initials: limit(c.Initials, c.InitialsBurst, 1),
		Aggregate: all(c.Aggregate), Network: all(Aggregate(c.Network)),
	}
}

// Service turns a VIP into the maps' form, but for its sites.
func (v VIP) Service() maps.VIP {
	return maps.VIP{
		Name: v.Name, Address: v.Address, Port: v.Port, Protocol: v.Protocol, Owner: maps.OwnerFile, Tenant: v.Tenant,
		Backends: v.Backends, GeoPolicy: v.Geo, RateClass: v.Rate, Shadow: v.Shadow, Strict: v.Strict, QUIC: v.QUIC, STUN: v.STUN,
		Gate: maps.Gate(v.Gate),
	}
}
