package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	bermmaps "github.com/bermedge/berm/maps"
)

// check reports what is wrong with single sections, and between them.
func (c *Config) check(d *decoder) {
	c.checkNode(d)
	d.reportTree("kernel", c.Kernel.Validate())
	d.reportTree("listen", c.Listen.Validate())
	d.reportTree("tls", c.TLS.Validate())
	d.reportTree("tls.tickets", c.TLS.Tickets.Validate())
	d.reportTree("tls.early_data", c.TLS.EarlyData.Validate())
	d.reportTree("admin", c.Admin.Validate())
	d.reportTree("cache", c.Cache.Validate())
	d.reportTree("compression.dictionaries", c.Compression.Dictionaries.Validate())
	d.reportTree("headers", c.Headers.Validate())
	d.reportTree("cc", c.CC.Validate())
	d.reportTree("fec", c.FEC.Validate())
	d.reportTree("log", c.Log.Validate())
	c.checkPorts(d)
	c.checkRates(d)
	c.checkGeo(d)
	c.checkQUIC(d)
	c.checkSteer(d)
	c.checkVIPs(d)
	c.checkSites(d)
	c.checkAnycast(d)
	c.checkRoutes(d)
}

func (c *Config) checkNode(d *decoder) {
	for key, a := range map[string]netip.Addr{"node.address4": c.Node.Address4, "node.address6": c.Node.Address6} {
		if a.IsValid() && (a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.Zone() != "") {
			d.report(key, fmt.Sprintf("%s cannot be reached by other edges", a), "write this host's address in the network of the edges")
		}
	}
}

// Validate reports everything wrong with the section.
func (k Kernel) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !slices.Contains([]string{"auto", "native", "generic"}, k.Mode) {
		fail("mode: %q is none of auto, native, generic", k.Mode)
	}
	if !filepath.IsAbs(k.Pins) || filepath.Clean(k.Pins) == "/" {
		fail("pins: %q is not an absolute path below /", k.Pins)
	} else if strings.Contains(strings.TrimPrefix(k.Pins, "/sys/fs/bpf/"), ".") && strings.HasPrefix(k.Pins, "/sys/fs/bpf/") {
		fail("pins: %q has a dot, which bpffs allows in no name", k.Pins)
	}
	if k.Cgroup != "auto" && k.Cgroup != "none" && !filepath.IsAbs(k.Cgroup) {
		fail("cgroup: %q is neither auto, none nor an absolute path", k.Cgroup)
	}
	if k.Group == "" {
		fail("group: must name the group that may use the maps")
	}
	const least, most = 64, 8 << 20
	if k.RateCells < least || k.RateCells > most || bits.OnesCount(uint(k.RateCells)) != 1 {
		fail("rate_cells: %d is not a power of two from %d to %d", k.RateCells, least, most)
	}
	for i, name := range k.Interfaces {
		if name == "" || len(name) > 15 || strings.ContainsAny(name, "/ \t\n") {
			fail("interfaces[%d]: %q is no interface's name", i, name)
		}
		if slices.Contains(k.Interfaces[:i], name) {
			fail("interfaces[%d]: %s is listed twice", i, name)
		}
	}
	return errors.Join(errs...)
}

// port is one address that the daemon opens.
type port struct{ key, address, network string }

// checkPorts reports addresses that cannot be open at the same time. transport reports equal ones
// in its own section.
func (c *Config) checkPorts(d *decoder) {
	var all []port
	for i, a := range c.Listen.HTTP {
		all = append(all, port{fmt.Sprintf("listen.http[%d]", i), a, "tcp"})
	}
	for i, a := range c.Listen.HTTPS {
		all = append(all, port{fmt.Sprintf("listen.https[%d]", i), a, "tcp"})
	}
	if c.Admin.Metrics != "" {
		all = append(all, port{"admin.metrics", c.Admin.Metrics, "tcp"})
	}
	for i, a := range all {
		for _, b := range all[:i] {
			sameSection := a.address == b.address && strings.HasPrefix(a.key, "listen.")
			if sameSection || !collide(a.address, b.address) {
				continue
			}
			at, other := a, b
			if !d.knows(at.key) { // a default: the place to change is what the file says
				at, other = b, a
			}
			d.report(at.key, fmt.Sprintf("%s is already taken by %s (%s)", at.address, other.key, other.address), "choose another port")
		}
	}
}

// collide tells whether two listening addresses exclude each other. ":80" stands for both families.
func collide(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB || portA == "0" {
		return false
	}
	if hostA == hostB || hostA == "" || hostB == "" {
		return true
	}
	ipA, errA := netip.ParseAddr(hostA)
	ipB, errB := netip.ParseAddr(hostB)
	return errA == nil && errB == nil && ipA.Is4() == ipB.Is4() && (ipA.IsUnspecified() || ipB.IsUnspecified())
}

func (c *Config) checkRates(d *decoder) {
	for _, name := range slices.Sorted(maps.Keys(c.Rate.Classes)) {
		key := "rate.classes." + name
		if err := bermmaps.CheckName(name); err != nil {
			d.report(key, err.Error(), "")
			continue
		}
		whole := c.Rate.Classes[name].Class(name)
		for field, part := range map[string]bermmaps.RateClass{ // one limit each, so that an error has one place
			"packets": {Packets: whole.Packets}, "bytes": {Bytes: whole.Bytes}, "syns": {SYNs: whole.SYNs}, "initials": {Initials: whole.Initials},
			"aggregate.packets":  {Packets: whole.Packets, Aggregate: bermmaps.Limits{Packets: whole.Aggregate.Packets}},
			"aggregate.bytes":    {Bytes: whole.Bytes, Aggregate: bermmaps.Limits{Bytes: whole.Aggregate.Bytes}},
			"aggregate.syns":     {SYNs: whole.SYNs, Aggregate: bermmaps.Limits{SYNs: whole.Aggregate.SYNs}},
			"aggregate.initials": {Initials: whole.Initials, Aggregate: bermmaps.Limits{Initials: whole.Aggregate.Initials}},
			"network.packets":    {Packets: whole.Packets, Aggregate: bermmaps.Limits{Packets: whole.Aggregate.Packets}, Network: bermmaps.Limits{Packets: whole.Network.Packets}},
			"network.bytes":      {Bytes: whole.Bytes, Aggregate: bermmaps.Limits{Bytes: whole.Aggregate.Bytes}, Network: bermmaps.Limits{Bytes: whole.Network.Bytes}},
			"network.syns":       {SYNs: whole.SYNs, Aggregate: bermmaps.Limits{SYNs: whole.Aggregate.SYNs}, Network: bermmaps.Limits{SYNs: whole.Network.SYNs}},
			"network.initials":   {Initials: whole.Initials, Aggregate: bermmaps.Limits{Initials: whole.Aggregate.Initials}, Network: bermmaps.Limits{Initials: whole.Network.Initials}},
		} {
			part.Name = name
			if err := part.Validate(); err != nil {
				_, message, of := strings.Cut(err.Error(), field+": ")
				if !of {
					continue // its source's limit is wrong, and said to be in its own place
				}
				at := key + "." + field
				if strings.Contains(message, "burst") && d.knows(at+"_burst") {
					at += "_burst"
				}
				d.report(at, message, "")
			}
		}
	}
}

// serviceKey is what must not stand twice.
type serviceKey struct {
	addr  netip.Addr
	port  uint16
	proto bermmaps.Protocol
}

func (c *Config) checkVIPs(d *decoder) {
	seen, names := map[serviceKey]string{}, map[string]string{}
	addresses := map[netip.Addr]bool{}
	for i, v := range c.VIPs {
		at := fmt.Sprintf("vips[%d]", i)
		if err := bermmaps.CheckName(v.Name); err != nil {
			d.report(at+".name", err.Error(), "")
		} else if first, ok := names[v.Name]; ok {
			d.report(at+".name", fmt.Sprintf("%q is already the name of %s", v.Name, first), "")
		}
		names[v.Name] = cmp.Or(names[v.Name], at)
		c.checkAddress(d, at, v)
		key := serviceKey{v.Address.Unmap(), v.Port, v.Protocol}
		if first, ok := seen[key]; ok && v.Address.IsValid() {
			d.report(at, fmt.Sprintf("%s/%s overlaps %s: one service has an address, port and protocol", netip.AddrPortFrom(v.Address, v.Port), v.Protocol, first), "change the port, or remove one")
		}
		seen[key] = cmp.Or(seen[key], fmt.Sprintf("%s (%s)", at, v.Name))
		addresses[key.addr] = true
		c.checkGate(d, at, v)
		named(d, at+".backends", "backend set", v.Backends, c.Backends)
		named(d, at+".geo", "geo policy", v.Geo, c.Geo.Policies)
		named(d, at+".rate", "rate class", v.Rate, c.Rate.Classes)
	}
	if n := len(seen) + len(addresses); n > bermmaps.MaxVIPs {
		d.report("vips", fmt.Sprintf("%d services and addresses, %d fit", n, bermmaps.MaxVIPs), "remove some; each address takes an entry of its own")
	}
}

func (c *Config) checkAddress(d *decoder, at string, v VIP) {
	switch a := v.Address; {
	case !a.IsValid():
		d.report(at+".address", "is missing", "")
	case a.IsUnspecified() || a.IsMulticast() || a.Zone() != "":
		d.report(at+".address", fmt.Sprintf("%s cannot be a service's", a), "want one unicast address")
	case a == c.Node.Address4 || a == c.Node.Address6:
		d.report(at+".address", fmt.Sprintf("%s is the address of this node's tunnels", a), "give the service an address of its own")
	}
	if v.Port == 0 {
		d.report(at+".port", "is missing", "1 to 65535")
	}
	if v.Protocol != bermmaps.ProtocolTCP && v.Protocol != bermmaps.ProtocolUDP {
		d.report(at+".protocol", fmt.Sprintf("is %s", v.Protocol), "write tcp or udp; a service of both takes two entries")
	}
}

// checkGate: what is wrong with one key does not hide what is wrong with another.
func (c *Config) checkGate(d *decoder, at string, v VIP) {
	g := v.Gate
	for _, part := range []struct {
		key  string
		gate Gate
	}{
		{"cookies", Gate{Cookies: g.Cookies}},
		{"cookies_above", Gate{Cookies: g.Cookies, CookiesAbove: g.CookiesAbove}},
		{"retry", Gate{Retry: g.Retry}},
		{"retry_above", Gate{Retry: g.Retry, RetryAbove: g.RetryAbove}},
		{"bad_initials", Gate{BadInitials: g.BadInitials}},
		{"amplified", Gate{Amplified: g.Amplified}},
	} {
		err := bermmaps.Gate(part.gate).Validate(v.Protocol)
		if err == nil || !d.knows(at+".gate."+part.key) {
			continue
		}
		first, _, _ := strings.Cut(err.Error(), "\n")
		_, message, _ := strings.Cut(first, ": ")
		d.report(at+".gate."+part.key, message, "")
	}
}

// named reports a name that nothing has.
func named[T any](d *decoder, key, kind, name string, among map[string]T) {
	if name == "" {
		return
	}
	if _, ok := among[name]; ok {
		return
	}
	hint := nearest(name, slices.Collect(maps.Keys(among)))
	if hint == "" {
		hint = "the file defines none"
	}
	d.report(key, fmt.Sprintf("no %s is called %q", kind, name), hint)
}

func (c *Config) checkRoutes(d *decoder) {
	for _, name := range slices.Sorted(maps.Keys(c.Origins)) {
		d.reportTree("origins."+name, c.Origins[name].Validate())
	}
	seen := map[string]int{}
	for i, r := range c.Routes {
		at := fmt.Sprintf("routes[%d]", i)
		d.reportTree(at, r.Validate())
		named(d, at+".origin", "origin", r.Origin, c.Origins)
		key := fmt.Sprintf("%s%s", strings.ToLower(r.Host), cmp.Or(strings.TrimRight(r.Path, "/"), "/"))
		if first, ok := seen[key]; ok {
			d.report(at, fmt.Sprintf("%s%s is already routes[%d]'s", r.Host, r.Path, first), "remove one")
		} else {
			seen[key] = i
		}
	}
}
