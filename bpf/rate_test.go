package bpf_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

// A source that sends ten times its limit gets its limit and its burst, no more and hardly less,
// at any rate and on either clock.
func TestRateAccuracy(t *testing.T) {
	for _, c := range []struct {
		name             string
		perSecond, burst uint64
		fine             bool
	}{
		{"10 a second", 10, 20, false},
		{"1000 a second", 1000, 2000, false},
		{"1000 a second, burst of one tick's worth", 1000, 4, false},
		{"50000 a second", 50_000, 1000, false},
		{"700001 a second", 700_001, 10_000, false},
		{"1000 a second, one at a time", 1000, 1, true},
		{"50000 a second, two at a time", 50_000, 2, true},
	} {
		for _, six := range []bool{false, true} {
			t.Run(c.name, func(t *testing.T) {
				k := newKernel(t)
				class := bpf.XDPBermRateClass{}
				class.Packets.Cost, class.Packets.BurstUnits = limit(c.perSecond, c.burst)
				if c.fine {
					class.Flags = uint16(bpf.XDPBermRateFlagsBERM_RATE_FINE_CLOCK)
				}
				k.class(t, class)
				const sent = 20_000
				step := 1_000_000_000 / (10 * c.perSecond)
				now, passed := uint64(5_000_000_000_000), uint64(0)
				in := good(six)
				for range sent {
					k.at(t, now)
					if action, _ := run(t, k.XdpBermAt, in); action == xdpTX {
						passed++
					}
					now += step
				}
				allowed := float64(sent)*float64(step)*float64(c.perSecond)/1e9 + float64(c.burst)
				// Within 2 %, or one tick's worth where that is more.
				slack := max(allowed*0.02, float64(c.perSecond)*0.004+1)
				if float64(passed) > allowed+slack || float64(passed) < allowed-slack {
					t.Errorf("%d packets passed, want %.0f +- %.0f", passed, allowed, slack)
				}
			})
		}
	}
}

// A byte limit counts the IP packet, and a packet larger than the burst passes when nothing is owed.
func TestRateBytes(t *testing.T) {
	k := newKernel(t)
	class := bpf.XDPBermRateClass{}
	class.Bytes.Cost, class.Bytes.BurstUnits = limit(100_000, 5_000)
	k.class(t, class)
	in := eth(ip(good4, web4, udp, packet.UDP{Src: 40000, Dst: 443}.With(make([]byte, 1000-28))))
	now, passed := uint64(5_000_000_000_000), 0
	for range 10_000 { // 10 s at 1000 packets a second
		k.at(t, now)
		if action, _ := run(t, k.XdpBermAt, in); action == xdpTX {
			passed++
		}
		now += 1_000_000
	}
	if passed < 985 || passed > 1025 {
		t.Errorf("%d packets of 1000 bytes passed in 10 s, want 1005 +- 20", passed)
	}
	k.at(t, now+10_000_000_000)
	class.Bytes.BurstUnits = 1
	k.class(t, class)
	if action, _ := run(t, k.XdpBermAt, in); action != xdpTX {
		t.Error("a packet above the burst was refused though nothing was owed")
	}
	if action, _ := run(t, k.XdpBermAt, in); action != xdpDrop {
		t.Error("the packet after it passed")
	}
}

// SYN limits leave other packets alone, and each limit has its own account.
func TestRateDimensions(t *testing.T) {
	k := newKernel(t)
	class := bpf.XDPBermRateClass{}
	class.Packets.Cost, class.Packets.BurstUnits = limit(1, 4)
	class.Syns.Cost, class.Syns.BurstUnits = limit(1, 2)
	k.class(t, class)
	syn, synAck, ack := tcpTo(good4, web4, 443, packet.SYN), tcpTo(good4, web4, 443, packet.SYN|packet.ACK), good(false)
	want := []struct {
		in     []byte
		action uint32
	}{{syn, xdpTX}, {synAck, xdpTX}, {syn, xdpTX}, {syn, xdpDrop}, {ack, xdpDrop}}
	for i, w := range want {
		if action, _ := run(t, k.XdpBermAt, w.in); action != w.action {
			t.Errorf("packet %d: action %d, want %d", i, action, w.action)
		}
	}
}

// Every address of a /64 is one source; two IPv4 addresses are two, and so are two classes.
func TestRateSources(t *testing.T) {
	k := newKernel(t)
	class := bpf.XDPBermRateClass{}
	class.Packets.Cost, class.Packets.BurstUnits = limit(1, 1)
	k.class(t, class)
	class.Flags |= uint16(bpf.XDPBermRateFlagsBERM_RATE_USED)
	put(t, k.BermRateClasses, uint32(2), &class)
	expect := func(what string, in []byte, action uint32) {
		t.Helper()
		if got, _ := run(t, k.XdpBermAt, in); got != action {
			t.Errorf("%s: action %d, want %d", what, got, action)
		}
	}
	expect("first of a /64", tcpTo(netip.MustParseAddr("2a00:1::1"), web6, 443, packet.ACK), xdpTX)
	expect("another of the /64", tcpTo(netip.MustParseAddr("2a00:1::2"), web6, 443, packet.ACK), xdpDrop)
	expect("another /64", tcpTo(netip.MustParseAddr("2a00:1:0:1::1"), web6, 443, packet.ACK), xdpTX)
	expect("an IPv4 address", tcpTo(good4, web4, 443, packet.ACK), xdpTX)
	expect("the same, another service of the class", udpTo(good4, web4, 443), xdpDrop)
	expect("its neighbour", tcpTo(good4.Next(), web4, 443, packet.ACK), xdpTX)
	k.setRecord(t, recordGood, bpf.XDPBermPrefixRecord{Country: countryGood, RateClass: 2})
	expect("the class of the prefix", good(false), xdpTX)
	expect("and its limit", good(false), xdpDrop)
}

// A flood of made-up sources does not push out one that is over its limit.
func TestRateFlood(t *testing.T) {
	k := newKernel(t)
	k.configure(t, func(c *bpf.XDPBermConfig) { c.RateMask = 0 }) // one set for all
	class := bpf.XDPBermRateClass{}
	class.Packets.Cost, class.Packets.BurstUnits = limit(10, 100)
	k.class(t, class)
	for range 101 {
		run(t, k.XdpBermAt, good(false))
	}
	r := rand.New(rand.NewPCG(7, 7))
	passed := 0
	for i := range 5000 {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 0xc6336500|r.Uint32()&0xff|uint32(i)<<8&0xff00)
		run(t, k.XdpBermAt, tcpTo(netip.AddrFrom4(a), web4, 443, packet.ACK))
		if action, _ := run(t, k.XdpBermAt, good(false)); action == xdpTX {
			passed++
		}
	}
	if passed != 0 {
		t.Errorf("the offender got %d packets through", passed)
	}
}

// Cells whose time is long past, or lies further ahead than any can, are free: the clock wraps after 19.5 hours.
func TestRateClockWraps(t *testing.T) {
	const wrap = uint64(64) << 40
	for _, at := range []uint64{wrap - 500_000_000, 3*wrap - 500_000_000} {
		k := newKernel(t)
		class := bpf.XDPBermRateClass{}
		class.Packets.Cost, class.Packets.BurstUnits = limit(100, 100)
		k.class(t, class)
		passed := 0
		for i := range uint64(2000) { // 2 s over the wrap, at ten times the limit
			k.at(t, at+i*1_000_000)
			if action, _ := run(t, k.XdpBermAt, good(false)); action == xdpTX {
				passed++
			}
		}
		if passed < 290 || passed > 310 {
			t.Errorf("%d packets passed around the wrap, want 300", passed)
		}
		k.at(t, at+wrap/2)
		if action, _ := run(t, k.XdpBermAt, good(false)); action != xdpTX {
			t.Error("refused half a wrap later")
		}
	}
}
