package bpf_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

// aggregated makes a class whose aggregates have limits.
func aggregated(set func(*bpf.XDPBermRateClass)) func(*testing.T, *kernel) {
	return func(t *testing.T, k *kernel) {
		var c bpf.XDPBermRateClass
		set(&c)
		c.Flags |= uint16(bpf.XDPBermRateFlagsBERM_RATE_AGGREGATE)
		if c.Initials.Cost|c.Aggregate.Initials.Cost != 0 {
			c.Flags |= uint16(bpf.XDPBermRateFlagsBERM_RATE_INITIALS)
		}
		k.class(t, c)
	}
}

func at(l *bpf.XDPBermLimit, perSecond, burst uint64) { l.Cost, l.BurstUnits = limit(perSecond, burst) }

// quic makes the services of UDP some that speak QUIC, on this host.
func quic(t *testing.T, k *kernel) {
	for _, name := range []string{"web-udp", "web6-udp"} {
		k.changeVIP(t, name, func(v *bpf.XDPBermVip) {
			v.Set = setNone
			v.Flags |= uint16(bpf.XDPBermVipFlagsBERM_VIP_QUIC)
		})
	}
}

// inAggregate is address n of good4's /24, or a source of the /56 n of good6's /48.
func inAggregate(six bool, n int) netip.Addr {
	if six {
		a := good6.As16()
		a[6] = byte(n)
		return netip.AddrFrom16(a)
	}
	a := good4.As4()
	a[3] = byte(n)
	return netip.AddrFrom4(a)
}

// Each limit of an aggregate refuses, once a neighbour has used it up and the source its share; in every form.
func TestAggregateRefusals(t *testing.T) {
	var list []refusal
	for _, six := range []bool{false, true} {
		dst, names := web4, [2]string{"web", "web-udp"}
		if six {
			dst, names = web6, [2]string{"web6", "web6-udp"}
		}
		source := inAggregate(six, 7)
		initial := func(from netip.Addr) []byte {
			in := initialFrame(six, 0xc0, 1, 8, 1200)
			return eth(ip(from, dst, udp, in[l3(in)+map[bool]int{false: 20, true: 40}[six]:]))
		}
		for _, c := range []struct {
			kind string
			vip  string
			in   func(netip.Addr) []byte
			pick func(*bpf.XDPBermRateClass) *bpf.XDPBermLimit
		}{
			{"packets", names[0], func(a netip.Addr) []byte { return tcpTo(a, dst, 443, packet.ACK) }, func(c *bpf.XDPBermRateClass) *bpf.XDPBermLimit { return &c.Aggregate.Packets }},
			{"bytes", names[0], func(a netip.Addr) []byte { return tcpTo(a, dst, 443, packet.ACK) }, func(c *bpf.XDPBermRateClass) *bpf.XDPBermLimit { return &c.Aggregate.Bytes }},
			{"SYNs", names[0], func(a netip.Addr) []byte { return tcpTo(a, dst, 443, packet.SYN) }, func(c *bpf.XDPBermRateClass) *bpf.XDPBermLimit { return &c.Aggregate.Syns }},
			{"Initials", names[1], initial, func(c *bpf.XDPBermRateClass) *bpf.XDPBermLimit { return &c.Aggregate.Initials }},
		} {
			make := func(flags bpf.XDPBermRateFlags) func(*testing.T, *kernel) {
				return func(t *testing.T, k *kernel) {
					quic(t, k)
					inSet(c.vip, setNone)(t, k)
					aggregated(func(class *bpf.XDPBermRateClass) {
						at(c.pick(class), 10, 1)
						class.Flags = uint16(flags)
					})(t, k)
					for range 2 {
						run(t, k.XdpBermAt, c.in(inAggregate(six, 8))) // uses the limit up, and its own share
					}
					run(t, k.XdpBermAt, c.in(source)) // its share
				}
			}
			list = append(list, refusal{
				fmt.Sprintf("%s of an aggregate, IPv6 %v", c.kind, six), "RATE", "RATE_AGGREGATE", c.vip, bpf.XDPBermDropBERM_DROP_RATE_AGGREGATE,
				c.in(source), make(0), make(bpf.XDPBermRateFlagsBERM_RATE_SHADOW), local(c.vip),
			})
		}
	}
	runForms(t, list)
}

// A spoofer who walks through a whole aggregate gets its limit through, and a source that sends no more than its share
// does not notice; nor does the next aggregate.
func TestAggregateShares(t *testing.T) {
	for _, six := range []bool{false, true} {
		k := newKernel(t)
		const perSecond, burst = 2560, 256 // a share is 10 a second
		aggregated(func(c *bpf.XDPBermRateClass) { at(&c.Aggregate.Packets, perSecond, burst) })(t, k)
		dst, other := web4, netip.MustParseAddr("198.51.101.7")
		if six {
			dst, other = web6, netip.MustParseAddr("2a00:2::7")
		}
		var passed, good, neighbour int
		const seconds, flood = 10, 25_600 // ten times the limit
		for i := range seconds * flood {
			k.at(t, 5_000_000_000_000+uint64(i)*1_000_000_000/flood)
			n := 1 + i%255
			if action, _ := run(t, k.XdpBermAt, tcpTo(inAggregate(six, n), dst, 443, packet.ACK)); action == xdpTX {
				passed++
			}
			if i%(flood/9) == 0 { // nine a second, from the one address that the spoofer leaves out
				if action, _ := run(t, k.XdpBermAt, tcpTo(inAggregate(six, 0), dst, 443, packet.ACK)); action == xdpTX {
					good++
				}
				if action, _ := run(t, k.XdpBermAt, tcpTo(other, dst, 443, packet.ACK)); action == xdpTX {
					neighbour++
				}
			}
		}
		want := perSecond*seconds + burst
		if passed+good < want*98/100 || passed+good > want*102/100+256 { // each share may begin with one packet
			t.Errorf("IPv6 %v: %d packets of the aggregate passed, want %d", six, passed+good, want)
		}
		if good < 91 || neighbour < 91 {
			t.Errorf("IPv6 %v: of 91 packets %d of the good source and %d of the next aggregate passed", six, good, neighbour)
		}
	}
}

// A few addresses of an aggregate may use all of its limit, up to their own.
func TestAggregateOfOne(t *testing.T) {
	k := newKernel(t)
	aggregated(func(c *bpf.XDPBermRateClass) {
		at(&c.Packets, 1000, 100)
		at(&c.Aggregate.Packets, 1500, 200)
	})(t, k)
	passed := map[int]int{}
	for i := range 40_000 { // ten seconds, 2000 a second of each
		k.at(t, 5_000_000_000_000+uint64(i)*250_000)
		if action, _ := run(t, k.XdpBermAt, tcpTo(inAggregate(false, i&1), web4, 443, packet.ACK)); action == xdpTX {
			passed[i&1]++
		}
	}
	if all := passed[0] + passed[1]; all < 15_000 || all > 15_500 {
		t.Errorf("%d packets passed, want 15200", all)
	}
}

// While two CPUs race, 256 sources that send ten times their aggregate's limit get the limit, within 2 %.
func TestAggregateAccuracyTwoCPUs(t *testing.T) {
	const perSecond, burst, seconds = 2560, 256, 20
	for _, six := range []bool{false, true} {
		k := newKernel(t)
		aggregated(func(c *bpf.XDPBermRateClass) { at(&c.Aggregate.Packets, perSecond, burst) })(t, k)
		for _, vip := range []string{"web", "web6"} {
			inSet(vip, setNone)(t, k)
		}
		given, passed := k.many(t, good(six), 256, 10*perSecond*seconds, time.Second/perSecond/10)
		var all uint64
		for _, n := range passed {
			all += n
		}
		allowed := float64(given)*float64(time.Second/perSecond/10)/1e9*perSecond + burst
		if off := float64(all) - allowed; off > 0.02*allowed || off < -0.02*allowed {
			t.Errorf("IPv6 %v: %d packets passed, want %.0f within 2 %%", six, all, allowed)
		}
		t.Logf("IPv6 %v: %d packets passed, %+.3f %% off", six, all, 100*(float64(all)-allowed)/allowed)
	}
}

// A TCP connection that this host has is spared, whatever others of its aggregate send; packets that are of none,
// and new attempts, are not.
func TestAggregateSparesConnections(t *testing.T) {
	k := newKernel(t)
	sockets(t)
	w := chanceWorld{k, t}
	for _, f := range families {
		listen(t, f.dst)
		exhausted := both(inSet(f.vip, setNone), aggregated(func(c *bpf.XDPBermRateClass) { at(&c.Aggregate.Packets, 10, 1) }), func(t *testing.T, k *kernel) {
			for range 2 {
				run(t, k.XdpBermAt, tcpTo(inAggregate(f.six, 8), f.dst, 443, packet.ACK))
				run(t, k.XdpBermAt, f.tcp(packet.ACK))
			}
		})
		w.see("no connection", exhausted, f.tcp(packet.ACK), dropped(f.vip, "RATE", "RATE_AGGREGATE"))
		connect(t, f.src, f.dst)
		w.see("a connection", exhausted, f.tcp(packet.ACK), local(f.vip))
		w.see("its end", exhausted, f.tcp(packet.FIN|packet.ACK), local(f.vip))
		w.see("a router about it", exhausted, f.quote(), local(f.vip))
		w.see("a SYN", exhausted, f.tcp(packet.SYN), dropped(f.vip, "RATE", "RATE_AGGREGATE"))
		w.see("another of the aggregate", both(exhausted, func(t *testing.T, k *kernel) {
			run(t, k.XdpBermAt, tcpTo(inAggregate(f.six, 9), f.dst, 443, packet.ACK))
		}), tcpTo(inAggregate(f.six, 9), f.dst, 443, packet.ACK), dropped(f.vip, "RATE", "RATE_AGGREGATE"))
		own := both(inSet(f.vip, setNone), aggregated(func(c *bpf.XDPBermRateClass) {
			at(&c.Packets, 10, 1)
			at(&c.Aggregate.Packets, 10, 1)
		}), func(t *testing.T, k *kernel) { run(t, k.XdpBermAt, f.tcp(packet.ACK)) })
		w.see("a connection above its own limit", own, f.tcp(packet.ACK), dropped(f.vip, "RATE", "RATE_PACKETS"))
	}
}

// initials limits what begins a connection of QUIC.
func initials(flags bpf.XDPBermRateFlags) func(*testing.T, *kernel) {
	return func(t *testing.T, k *kernel) {
		quic(t, k)
		c := bpf.XDPBermRateClass{Flags: uint16(flags | bpf.XDPBermRateFlagsBERM_RATE_INITIALS)}
		at(&c.Initials, 10, 1)
		k.class(t, c)
		for _, six := range []bool{false, true} { // uses the burst up
			run(t, k.XdpBermAt, initialFrame(six, 0xc0, 1, 8, 1200))
		}
	}
}

func TestInitialRefusals(t *testing.T) {
	var list []refusal
	for _, six := range []bool{false, true} {
		vip := map[bool]string{false: "web-udp", true: "web6-udp"}[six]
		list = append(list, refusal{
			fmt.Sprintf("Initials, IPv6 %v", six), "RATE", "RATE_INITIAL", vip, bpf.XDPBermDropBERM_DROP_RATE_INITIAL,
			initialFrame(six, 0xc0, 1, 8, 1200), initials(0), initials(bpf.XDPBermRateFlagsBERM_RATE_SHADOW), local(vip),
		})
	}
	runForms(t, list)
}

// Only Initials of a size that a server answers count, and only where QUIC is spoken; what hides behind extension
// headers counts too.
func TestInitialsCounted(t *testing.T) {
	const v1, v2 = 1, 0x6b3343cf
	var cases []testCase
	for _, six := range []bool{false, true} {
		vip, tcpVIP, dst, src := "web-udp", "web", web4, good4
		if six {
			vip, tcpVIP, dst, src = "web6-udp", "web6", web6, good6
		}
		full := initialFrame(six, 0xc0, v1, 8, 1200)
		over := dropped(vip, "RATE", "RATE_INITIAL")
		other := initialFrame(six, 0xc0, v1, 8, 1200)
		neighbour := mutateIP(other, func(p []byte) { p[map[bool]int{false: 15, true: 23}[six]]++ }) // six: of the /64
		add := func(name string, setup func(*testing.T, *kernel), in []byte, w want) {
			cases = append(cases, testCase{fmt.Sprintf("%s: %s", vip, name), setup, in, w})
		}
		add("Initial", initials(0), full, over)
		add("Initial of version 2", initials(0), initialFrame(six, 0xd0, v2, 20, 1300), over)
		add("Initial too small", initials(0), initialFrame(six, 0xc0, v1, 8, 1199), local(vip))
		add("0-RTT", initials(0), initialFrame(six, 0xd0, v1, 8, 1200), local(vip))
		add("Handshake", initials(0), initialFrame(six, 0xe0, v1, 8, 1200), local(vip))
		add("short header", initials(0), quicTo(six, make([]byte, 1200)), local(vip))
		add("empty", initials(0), quicTo(six, nil), local(vip))
		add("another version", initials(0), initialFrame(six, 0xc0, 0xbabababa, 8, 1200), local(vip))
		add("TCP", initials(0), tcpTo(src, dst, 443, packet.SYN), forwarded(tcpTo(src, dst, 443, packet.SYN), tcpVIP, flowOf(src, dst, 40000, 443, tcp)))
		add("a service without QUIC", both(initials(0), func(t *testing.T, k *kernel) {
			k.changeVIP(t, vip, func(v *bpf.XDPBermVip) { v.Flags &^= uint16(bpf.XDPBermVipFlagsBERM_VIP_QUIC) })
		}), full, local(vip))
		if six {
			add("the /64's neighbour", initials(0), neighbour, over)
			p := packet.IPv6{Src: src, Dst: dst, Next: packet.DestOpts}.With(packet.Extension(packet.ProtoUDP, 0, full[14+40:]))
			add("extension headers", initials(0), eth(p), over)
		} else {
			add("a neighbour", initials(0), neighbour, local(vip))
			p := packet.IPv4{Src: src, Dst: dst, Proto: packet.ProtoUDP, Options: make4(1, 4)}.With(full[14+20:])
			add("options", initials(0), eth(p), over)
			vlan := packet.Ethernet{Tags: []packet.Tag{{Type: packet.TypeQinQ, TCI: 5}, {Type: packet.TypeVLAN, TCI: 77}}}
			add("in two VLANs", initials(0), vlan.With(full[14:]), withBytes(over, len(full)-14))
		}
		add("a second later", both(initials(0), func(t *testing.T, k *kernel) { k.at(t, 1_001_000_000_000) }), full, local(vip))
	}
	runCases(t, cases)
}
