package bpf_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

// asnGood is of the sources 198.51.0.0/16, and of those of good6's first 16 bits.
const asnGood = 4_200_000_001

// network makes the network of good sources known, and a class whose networks have limits.
func network(set func(*bpf.XDPBermRateClass)) func(*testing.T, *kernel) {
	return func(t *testing.T, k *kernel) {
		k.setNetwork(t, asnGood)
		var c bpf.XDPBermRateClass
		set(&c)
		c.Flags |= uint16(bpf.XDPBermRateFlagsBERM_RATE_NETWORK)
		if c.Network.Initials.Cost != 0 {
			c.Flags |= uint16(bpf.XDPBermRateFlagsBERM_RATE_INITIALS)
		}
		k.class(t, c)
	}
}

func (k *kernel) setNetwork(t *testing.T, asn uint64) {
	t.Helper()
	for n := range 256 {
		k.setPrefix4(t, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, byte(n), 0}), 24), recordGood)
	}
	k.setRecord(t, recordGood, bpf.XDPBermPrefixRecord{Country: countryGood, Network: 3})
	put(t, k.BermNetworks, uint32(3), asn)
}

// inNetwork is a source of good4's network that is of its /24 number n, or of good6's that is of /48 number n.
func inNetwork(six bool, n, host int) netip.Addr {
	if six {
		a := good6.As16()
		a[5], a[6] = byte(n), byte(host)
		return netip.AddrFrom16(a)
	}
	return netip.AddrFrom4([4]byte{198, 51, byte(n), byte(host)})
}

// partOf is the part of its network that a source is of.
func partOf(six bool, a netip.Addr) uint64 {
	bits := 24
	if six {
		bits = 48
	}
	return prefixHash(baseConfig.Seed, a, bits) >> 56
}

// otherPart is the number of a /24 or /48 that is not of the part of number 0.
func otherPart(six bool) int {
	for n := 1; ; n++ {
		if partOf(six, inNetwork(six, n, 0)) != partOf(six, inNetwork(six, 0, 0)) {
			return n
		}
	}
}

// Each limit of a network refuses, once another part of it has used it up and the source's part its share; in every form.
func TestNetworkRefusals(t *testing.T) {
	var list []refusal
	for _, six := range []bool{false, true} {
		dst, names := web4, [2]string{"web", "web-udp"}
		if six {
			dst, names = web6, [2]string{"web6", "web6-udp"}
		}
		initial := func(from netip.Addr) []byte {
			in := initialFrame(six, 0xc0, 1, 8, 1200)
			return eth(ip(from, dst, udp, in[l3(in)+map[bool]int{false: 20, true: 40}[six]:]))
		}
		over := func(flags byte) func(netip.Addr) []byte {
			return func(a netip.Addr) []byte { return tcpTo(a, dst, 443, flags) }
		}
		for _, c := range []struct {
			kind string
			vip  string
			in   func(netip.Addr) []byte
			pick func(*bpf.XDPBermRateClass) *bpf.XDPBermLimit
		}{
			{"packets", names[0], over(packet.ACK), func(c *bpf.XDPBermRateClass) *bpf.XDPBermLimit { return &c.Network.Packets }},
			{"bytes", names[0], over(packet.ACK), func(c *bpf.XDPBermRateClass) *bpf.XDPBermLimit { return &c.Network.Bytes }},
			{"SYNs", names[0], over(packet.SYN), func(c *bpf.XDPBermRateClass) *bpf.XDPBermLimit { return &c.Network.Syns }},
			{"Initials", names[1], initial, func(c *bpf.XDPBermRateClass) *bpf.XDPBermLimit { return &c.Network.Initials }},
		} {
			make := func(flags bpf.XDPBermRateFlags) func(*testing.T, *kernel) {
				return func(t *testing.T, k *kernel) {
					quic(t, k)
					inSet(c.vip, setNone)(t, k)
					network(func(class *bpf.XDPBermRateClass) {
						at(c.pick(class), 10, 1)
						class.Flags = uint16(flags)
					})(t, k)
					for range 2 {
						run(t, k.XdpBermAt, c.in(inNetwork(six, otherPart(six), 8))) // uses the limit up, and its own share
					}
					run(t, k.XdpBermAt, c.in(inNetwork(six, 0, 8))) // the source's share
				}
			}
			list = append(list, refusal{
				fmt.Sprintf("%s of a network, IPv6 %v", c.kind, six), "RATE", "RATE_NETWORK", c.vip, bpf.XDPBermDropBERM_DROP_RATE_NETWORK,
				c.in(inNetwork(six, 0, 7)), make(0), make(bpf.XDPBermRateFlagsBERM_RATE_SHADOW), local(c.vip),
			})
		}
	}
	runForms(t, list)
}

// What has no number has no limit: a record without one, and an entry that is empty; nor is a network's limit one
// for another, or for a class that has none. An aggregate's limit comes first, and is another's budget.
func TestNetworkBounds(t *testing.T) {
	k := newKernel(t)
	w := chanceWorld{k, t}
	for _, six := range []bool{false, true} {
		vip, dst := "web", web4
		if six {
			vip, dst = "web6", web6
		}
		frame := func(n, host int) []byte { return tcpTo(inNetwork(six, n, host), dst, 443, packet.ACK) }
		other := otherPart(six)
		exhausted := both(inSet(vip, setNone), network(func(c *bpf.XDPBermRateClass) { at(&c.Network.Packets, 10, 1) }), func(t *testing.T, k *kernel) {
			for range 2 {
				run(t, k.XdpBermAt, frame(other, 8))
				run(t, k.XdpBermAt, frame(0, 8))
			}
		})
		w.see("a network", exhausted, frame(0, 7), dropped(vip, "RATE", "RATE_NETWORK"))
		w.see("a record without a network", both(exhausted, func(t *testing.T, k *kernel) {
			k.setRecord(t, recordGood, bpf.XDPBermPrefixRecord{Country: countryGood})
		}), frame(0, 7), local(vip))
		w.see("a network without a number", both(exhausted, func(t *testing.T, k *kernel) { k.setNetwork(t, 0) }), frame(0, 7), local(vip))
		w.see("an index behind the table", both(exhausted, func(t *testing.T, k *kernel) {
			k.setRecord(t, recordGood, bpf.XDPBermPrefixRecord{Country: countryGood, Network: 65535})
		}), frame(0, 7), local(vip))
		w.see("another network", both(exhausted, func(t *testing.T, k *kernel) { k.setNetwork(t, asnGood+1) }), frame(0, 7), local(vip))
		w.see("the same by another index", both(exhausted, func(t *testing.T, k *kernel) {
			k.setRecord(t, recordGood, bpf.XDPBermPrefixRecord{Country: countryGood, Network: 16383})
			put(t, k.BermNetworks, uint32(16383), uint64(asnGood))
		}), frame(0, 7), dropped(vip, "RATE", "RATE_NETWORK"))
		w.see("a class without networks", both(exhausted, func(t *testing.T, k *kernel) {
			k.class(t, bpf.XDPBermRateClass{Flags: uint16(bpf.XDPBermRateFlagsBERM_RATE_USED)})
		}), frame(0, 7), local(vip))
		w.see("a second later", both(exhausted, func(_ *testing.T, k *kernel) { k.at(w.t, 1_001_000_000_000) }), frame(0, 7), local(vip))
		two := both(inSet(vip, setNone), network(func(c *bpf.XDPBermRateClass) {
			c.Flags = uint16(bpf.XDPBermRateFlagsBERM_RATE_AGGREGATE)
			at(&c.Aggregate.Packets, 10, 1)
			at(&c.Network.Packets, 100, 10)
		}), func(t *testing.T, k *kernel) {
			run(t, k.XdpBermAt, frame(0, 8))
			run(t, k.XdpBermAt, frame(0, 7))
		})
		w.see("within the network's limit, above the aggregate's", two, frame(0, 7), dropped(vip, "RATE", "RATE_AGGREGATE"))
		w.see("another aggregate of the network", two, frame(other, 7), local(vip))
	}
}

// Many /24s or /48s of one network send ten times its limit: all together get the limit, and one that sends less
// than its share does not notice, nor do those of another network.
func TestNetworkShares(t *testing.T) {
	for _, six := range []bool{false, true} {
		k := newKernel(t)
		const perSecond, burst = 2560, 256 // a share is 10 a second
		network(func(c *bpf.XDPBermRateClass) { at(&c.Network.Packets, perSecond, burst) })(t, k)
		dst, other := web4, netip.MustParseAddr("203.0.114.7")
		if six {
			dst, other = web6, netip.MustParseAddr("2a02:2::7")
		}
		var bad []int // of other parts than the good one's
		for n := 1; n < 256; n++ {
			if partOf(six, inNetwork(six, n, 0)) != partOf(six, inNetwork(six, 0, 0)) {
				bad = append(bad, n)
			}
		}
		var passed, good, neighbour int
		const seconds, flood = 10, 25_600 // ten times the limit
		for i := range seconds * flood {
			k.at(t, 5_000_000_000_000+uint64(i)*1_000_000_000/flood)
			if action, _ := run(t, k.XdpBermAt, tcpTo(inNetwork(six, bad[i%len(bad)], i>>8&255), dst, 443, packet.ACK)); action == xdpTX {
				passed++
			}
			if i%(flood/9) == 0 { // nine a second
				if action, _ := run(t, k.XdpBermAt, tcpTo(inNetwork(six, 0, i&255), dst, 443, packet.ACK)); action == xdpTX {
					good++
				}
				if action, _ := run(t, k.XdpBermAt, tcpTo(other, dst, 443, packet.ACK)); action == xdpTX {
					neighbour++
				}
			}
		}
		want := perSecond*seconds + burst
		if all := passed + good; all < want*98/100 || all > want*102/100+256 { // each share may begin with one packet
			t.Errorf("IPv6 %v: %d packets of the network passed, want %d", six, all, want)
		}
		if good < 91 || neighbour < 91 {
			t.Errorf("IPv6 %v: of 91 packets %d of the good /24 or /48 and %d of another network passed", six, good, neighbour)
		}
		t.Logf("IPv6 %v: %d of %d packets of %d /24s or /48s passed, want %d; good %d, another network %d of 91", six, passed+good, seconds*flood, len(bad), want, good, neighbour)
	}
}

// While two CPUs race, 256 /24s or /48s that send ten times their network's limit get the limit, within 2 %.
func TestNetworkAccuracyTwoCPUs(t *testing.T) {
	const perSecond, burst, seconds = 2560, 256, 20
	for _, six := range []bool{false, true} {
		k := newKernel(t)
		network(func(c *bpf.XDPBermRateClass) { at(&c.Network.Packets, perSecond, burst) })(t, k)
		for _, vip := range []string{"web", "web6"} {
			inSet(vip, setNone)(t, k)
		}
		if err := k.TestNetworks.Set(true); err != nil {
			t.Fatal(err)
		}
		given, passed := k.many(t, good(six), 256, 10*perSecond*seconds, time.Second/perSecond/10)
		var all uint64
		for _, n := range passed {
			all += n
		}
		if err := k.TestNetworks.Set(false); err != nil {
			t.Fatal(err)
		}
		allowed := float64(given)*float64(time.Second/perSecond/10)/1e9*perSecond + burst
		if off := float64(all) - allowed; off > 0.02*allowed || off < -0.02*allowed {
			t.Errorf("IPv6 %v: %d packets passed, want %.0f within 2 %%", six, all, allowed)
		}
		t.Logf("IPv6 %v: %d packets passed, %+.3f %% off", six, all, 100*(float64(all)-allowed)/allowed)
	}
}

// A TCP connection that this host has is spared, whatever others of its network send.
func TestNetworkSparesConnections(t *testing.T) {
	k := newKernel(t)
	sockets(t)
	w := chanceWorld{k, t}
	for _, f := range families {
		listen(t, f.dst)
		exhausted := both(inSet(f.vip, setNone), network(func(c *bpf.XDPBermRateClass) { at(&c.Network.Packets, 10, 1) }), func(t *testing.T, k *kernel) {
			for range 2 {
				run(t, k.XdpBermAt, f.tcp(packet.ACK))
				run(t, k.XdpBermAt, tcpTo(inNetwork(f.six, 0, 8), f.dst, 443, packet.ACK))
			}
		})
		w.see("no connection", exhausted, f.tcp(packet.ACK), dropped(f.vip, "RATE", "RATE_NETWORK"))
		connect(t, f.src, f.dst)
		w.see("a connection", exhausted, f.tcp(packet.ACK), local(f.vip))
		w.see("a router about it", exhausted, f.quote(), local(f.vip))
		w.see("a SYN", exhausted, f.tcp(packet.SYN), dropped(f.vip, "RATE", "RATE_NETWORK"))
		aggregate := both(inSet(f.vip, setNone), network(func(c *bpf.XDPBermRateClass) {
			c.Flags = uint16(bpf.XDPBermRateFlagsBERM_RATE_AGGREGATE)
			at(&c.Aggregate.Packets, 10, 1)
			at(&c.Network.Packets, 10, 1)
		}), func(t *testing.T, k *kernel) {
			for range 2 {
				run(t, k.XdpBermAt, f.tcp(packet.ACK))
			}
		})
		w.see("a connection above both limits", aggregate, f.tcp(packet.ACK), local(f.vip))
	}
}
