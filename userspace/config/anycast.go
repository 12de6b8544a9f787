package config

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/bermedge/berm/userspace/anycast"
)

// Announces lists the addresses of the services, which are announced unless section anycast names
// others.
func (c *Config) Announces() []netip.Addr {
	var out []netip.Addr
	for _, v := range c.VIPs {
		if a := v.Address.Unmap(); !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// checkAnycast fills in what other sections know, and checks the rest. It comes after checkSteer, by
// which a node takes its backend's address.
func (c *Config) checkAnycast(d *decoder) {
	a := &c.Anycast
	if a.Enabled() && !a.RouterID.IsValid() && c.Node.Address4.Is4() {
		a.RouterID = c.Node.Address4
	}
	d.reportTree("anycast", a.Validate())
	for i, x := range a.Announcements {
		if !slices.ContainsFunc(c.VIPs, func(v VIP) bool { return x.Prefix.Contains(v.Address.Unmap()) }) && x.Prefix.IsValid() {
			d.report(fmt.Sprintf("anycast.announcements[%d].prefix", i), x.Prefix.String()+" holds the address of no VIP: who came here would find nothing", "add the service to vips")
		}
	}
	if a.Enabled() && len(a.Announcements) == 0 && len(c.VIPs) == 0 {
		d.report("anycast.peers", "there is nothing to announce", "add services to vips, or prefixes to anycast.announcements")
	}
	if a.Enabled() && a.Port != 0 {
		at := netip.AddrPortFrom(netip.IPv4Unspecified(), a.Port).String()
		for _, other := range append(slices.Concat(c.Listen.HTTP, c.Listen.HTTPS), c.Admin.Metrics) {
			if collide(at, other) {
				d.report("anycast.port", at+" is already taken by "+other, "choose another port, or 0 to be the one that calls")
			}
		}
	}
}

// presetAnycast says what entries of its lists start from.
func presetAnycast(d *decoder) {
	preset(d, anycast.DefaultPeer())
	preset(d, anycast.DefaultBFD())
}
