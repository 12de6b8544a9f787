package config

import (
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	bermmaps "github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/quiclb"
	"github.com/bermedge/berm/userspace/steer"
)

// Steer is the section steer.
type Steer struct {
	SecretFile   string        `yaml:"secret_file"` // the site's, the same on all its edges
	Probe        steer.Probe   `yaml:"probe"`
	SecondChance time.Duration `yaml:"second_chance"` // so long after a row moved, its former owner gets the packets of flows that the new one does not know; 0 = never
	Carry        steer.Carry   `yaml:"carry"`         // bounds what goes to other sites because nobody here knows its flow
	Deadman      time.Duration `yaml:"deadman"`       // after this silence of the daemon, new flows go to other edges; 0 = never
}

// Steering is all that the file says about steering.
func (c *Config) Steering() steer.Config {
	return steer.Config{
		Node: steer.Node{Name: c.Node.Name, Site: c.Node.Site, Region: c.Node.Region, Address4: c.Node.Address4, Address6: c.Node.Address6},
		Sets: c.Backends, Sites: c.Sites, Regions: c.regions(), Carry: c.Steer.Carry, SecretFile: c.Steer.SecretFile, Probe: c.Steer.Probe,
		Services: c.servicesBySet(), SecondChance: c.Steer.SecondChance, Deadman: c.Steer.Deadman, CIDs: cidFormats(c.QUIC.Plain()),
	}
}

// servicesBySet are the addresses by which clients know the servers of each set.
func (c *Config) servicesBySet() map[string][]netip.AddrPort {
	out := map[string][]netip.AddrPort{}
	for _, v := range c.VIPs {
		port := v.Port
		if v.Protocol != bermmaps.ProtocolTCP {
			port = 0
		}
		if v.Backends != "" {
			out[v.Backends] = append(out[v.Backends], netip.AddrPortFrom(v.Address, port))
		}
	}
	return out
}

// ReadSteering is Steering with the keys of connection IDs.
func (c *Config) ReadSteering() (steer.Config, error) {
	s := c.Steering()
	formats, err := c.QUIC.Formats()
	s.CIDs = cidFormats(formats)
	return s, err
}

func cidFormats(formats []quiclb.Format) []bermmaps.CIDFormat {
	var out []bermmaps.CIDFormat
	for _, f := range formats {
		out = append(out, bermmaps.CIDFormat(f))
	}
	return out
}

// ServerID is this edge's number in QUIC connection IDs; nil if it is no backend.
func (c *Config) ServerID() *uint64 {
	for _, set := range c.Backends {
		for _, b := range set {
			if b.Name == c.Node.Name {
				id := b.Server()
				return &id
			}
		}
	}
	return nil
}

// checkQUIC reports what is wrong with connection IDs, and makes VIPs' defaults.
func (c *Config) checkQUIC(d *decoder) {
	d.reportTree("quic", c.QUIC.Validate())
	for i, x := range c.QUIC.CIDs {
		if x.KeyFile == "" {
			continue
		}
		if _, err := quiclb.ReadKey(x.KeyFile); err != nil {
			d.report(fmt.Sprintf("quic.cid[%d].key_file", i), err.Error(), "")
		}
	}
	for i := range c.VIPs {
		v, at := &c.VIPs[i], fmt.Sprintf("vips[%d].quic", i)
		if !d.knows(at) {
			v.QUIC = v.Protocol == bermmaps.ProtocolUDP && v.Backends != "" && len(c.QUIC.CIDs) > 0 && c.listensQUIC(v.Port)
		} else if v.QUIC && v.Protocol != bermmaps.ProtocolUDP {
			d.report(at, fmt.Sprintf("is true, but protocol is %s", v.Protocol), "QUIC runs over udp: a service of both takes two entries")
		}
		c.checkSTUN(d, i)
	}
}

// checkSTUN reports a VIP that cannot steer by ICE username fragment.
func (c *Config) checkSTUN(d *decoder, i int) {
	v, at := c.VIPs[i], fmt.Sprintf("vips[%d].stun", i)
	switch {
	case !v.STUN:
	case v.Protocol != bermmaps.ProtocolUDP:
		d.report(at, fmt.Sprintf("is true, but protocol is %s", v.Protocol), "STUN is steered over udp")
	case v.QUIC:
		d.report(at, "is true, and so is quic", "a service speaks one of them: at the port of HTTP/3 WebRTC needs quic: false")
	case v.Backends == "":
		d.report(at, "is true, but the VIP has no backends", "name the set among whose edges fragments choose")
	default:
		for _, b := range c.Backends[v.Backends] {
			if b.Server() > math.MaxUint16 {
				d.report(at, fmt.Sprintf("is true, but backend %q has server ID %d", b.Name, b.Server()), "an ICE username fragment has room for two bytes: write a smaller one")
			}
		}
	}
}

func (c *Config) listensQUIC(port uint16) bool {
	return slices.ContainsFunc(c.Listen.HTTPS, func(a string) bool {
		_, p, err := net.SplitHostPort(a)
		return err == nil && p == strconv.Itoa(int(port))
	})
}

// AnswersProbes lists where this edge answers its peers' probes: at its addresses, if it is a
// backend.
func (c *Config) AnswersProbes() []netip.AddrPort {
	var out []netip.AddrPort
	for _, set := range slices.Sorted(maps.Keys(c.Backends)) {
		for _, b := range c.Backends[set] {
			at := netip.AddrPortFrom(b.Address, c.Steer.Probe.Port)
			if b.Name == c.Node.Name && !slices.Contains(out, at) {
				out = append(out, at)
			}
		}
	}
	return out
}

func (c *Config) checkSteer(d *decoder) {
	for _, set := range slices.Sorted(maps.Keys(c.Backends)) {
		for i, b := range c.Backends[set] {
			at := fmt.Sprintf("backends.%s[%d]", set, i)
			c.checkSelf(d, at, b)
			for j, other := range c.Backends[set][:i] {
				if other.Address == b.Address && other.Name != b.Name && b.Address.IsValid() {
					d.report(at+".address", fmt.Sprintf("%s is also that of backends.%s[%d] (%s)", b.Address, set, j, other.Name), "remove one")
				}
			}
		}
	}
	d.reportTree("", c.Steering().Validate())
	if c.Steer.SecretFile != "" {
		if _, err := steer.ReadSecret(c.Steer.SecretFile); err != nil {
			d.report("steer.secret_file", err.Error(), "")
		}
	}
	for _, at := range c.AnswersProbes() {
		for i, a := range c.Listen.HTTPS { // h3 listens on UDP too
			if collide(at.String(), a) {
				d.report(fmt.Sprintf("listen.https[%d]", i), fmt.Sprintf("%s takes the UDP port of steer.probe.port (%s)", a, at), "choose another port for one of them; steer.probe.port is the same on all edges")
			}
		}
	}
}

// checkSelf: the backend of this node has the node's address. A node without an address takes its
// backend's.
func (c *Config) checkSelf(d *decoder, at string, b steer.Backend) {
	if b.Name != c.Node.Name || !b.Address.IsValid() {
		return
	}
	own, key := &c.Node.Address4, "node.address4"
	if b.Address.Is6() {
		own, key = &c.Node.Address6, "node.address6"
	}
	if !own.IsValid() {
		*own = b.Address
	} else if *own != b.Address {
		d.report(at+".address", fmt.Sprintf("%s is this node, whose %s is %s", b.Name, key, *own), "make them equal")
	}
}
