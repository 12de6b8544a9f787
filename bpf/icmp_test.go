package bpf_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

// sumICMP puts the right checksum into an ICMP or ICMPv6 packet.
func sumICMP(p []byte) []byte {
	at, sum := 20, uint32(0)
	if p[0]>>4 == 6 {
		at = 40
		for i := 8; i < 40; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(p[i:]))
		}
		sum += packet.ICMPv6 + uint32(len(p)-40)
	}
	p[at+2], p[at+3] = 0, 0
	for i := at; i < len(p); i += 2 {
		if i+1 == len(p) {
			sum += uint32(p[i]) << 8
			break
		}
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(p[at+2:], ^uint16(sum))
	return p
}

// echoes are a request with a body, and the reply.
func echoes(six bool, body []byte) (request, reply []byte) {
	if six {
		return sumICMP(packet.IPv6{Src: good6, Dst: web6, Next: packet.ICMPv6, Hops: 3, Class: 0x20}.With(packet.ICMPMessage(128, 0, body))),
			sumICMP(packet.IPv6{Src: web6, Dst: good6, Next: packet.ICMPv6, Class: 0x20}.With(packet.ICMPMessage(129, 0, body)))
	}
	return sumICMP(packet.IPv4{Src: good4, Dst: web4, Proto: packet.ICMP, TTL: 3, ID: 77}.With(packet.ICMPMessage(8, 0, body))),
		sumICMP(packet.IPv4{Src: web4, Dst: good4, Proto: packet.ICMP, ID: 77}.With(packet.ICMPMessage(0, 0, body)))
}

// Echo to a VIP's address is answered, by the first edge that sees it; to others it passes.
func TestEcho(t *testing.T) {
	var cases []testCase
	vlan := packet.Ethernet{Tags: []packet.Tag{{Type: packet.TypeVLAN, TCI: 77}}}
	for _, six := range []bool{false, true} {
		name := map[bool]string{false: "web-addr", true: "web6-addr"}[six]
		answered := func(frame, reply []byte) want {
			return want{action: xdpTX, out: back(frame, reply), counts: counted(name, "ICMP", "ANSWER", nil)}
		}
		request, reply := echoes(six, payload)
		cases = append(cases, testCase{"echo to " + name, nothing, eth(request), answered(eth(request), reply)})
		tagged := answered(vlan.With(request), reply)
		tagged.bytes = len(request)
		cases = append(cases, testCase{"in a VLAN to " + name, nothing, vlan.With(request), tagged})
		// Sums that carry, at both ends of what a checksum can be.
		for _, b := range []byte{0, 0xf7, 0xf8, 0xfe, 0xff} {
			request, reply := echoes(six, []byte{b, 0xff, 0, 0, b, b, 1})
			cases = append(cases, testCase{fmt.Sprintf("bytes %#x to %s", b, name), nothing, eth(request), answered(eth(request), reply)})
		}
		other := map[bool]netip.Addr{false: other4, true: other6}[six]
		elsewhere := mutate(request, func(p []byte) {
			if six {
				a := other.As16()
				copy(p[24:], a[:])
			} else {
				a := other.As4()
				copy(p[16:], a[:])
				packet.Sum4(p)
			}
		})
		cases = append(cases,
			testCase{"not an address of ours", nothing, eth(elsewhere), foreign("VIP")},
			testCase{"to a group of hosts", func(t *testing.T, k *kernel) {
				k.changeVIP(t, name, func(v *bpf.XDPBermVip) { v.Set = setSelf })
			}, packet.Ethernet{Dst: [6]byte{0x33, 0x33, 0, 0, 0, 1}}.With(request), local(name)},
		)
	}
	fromBad := sumICMP(packet.IPv4{Src: bad4, Dst: web4, Proto: packet.ICMP}.With(packet.ICMPMessage(8, 0, payload)))
	request, _ := echoes(false, payload)
	options := packet.IPv4{Src: good4, Dst: web4, Proto: packet.ICMP, Options: make4(1, 4)}.With(packet.ICMPMessage(8, 0, payload))
	fragment := packet.IPv4{Src: good4, Dst: web4, Proto: packet.ICMP, Frag: packet.MF}.With(packet.ICMPMessage(8, 0, payload))
	code := packet.IPv4{Src: good4, Dst: web4, Proto: packet.ICMP}.With(packet.ICMPMessage(8, 1, payload))
	flow := flowOf(good4, web4, 0, 0, packet.ICMP)
	tunnelled := eth(tunnel(request, flow, baseConfig.TagSecrets[0]))
	cases = append(
		cases,
		testCase{"policy comes first", nothing, eth(fromBad), dropped("web-addr", "GEO", "GEO")},
		testCase{"with options", nothing, eth(options), forwarded(eth(options), "web-addr", flow)},
		testCase{"a fragment", nothing, eth(fragment[:len(fragment)/8*8+4]), forwarded(eth(fragment[:len(fragment)/8*8+4]), "web-addr", flow)},
		testCase{"of another code", nothing, eth(code), forwarded(eth(code), "web-addr", flow)},
		testCase{"through a tunnel", peers, tunnelled, want{
			action: xdpPass, out: eth(request), bytes: len(request), counts: counted("web-addr", "DELIVER", "DECAP", nil),
		}},
	)
	runCases(t, cases)
}

// Who sends more than the tunnel carries is told what it carries, in the service's name.
func TestTooBig(t *testing.T) {
	body := make([]byte, 1300)
	for i := range body {
		body[i] = byte(i)
	}
	tcpBody := packet.TCP{Src: 40000, Dst: 443, Flags: packet.ACK}.With(body)
	big4 := packet.IPv4{Src: good4, Dst: web4, Proto: packet.ProtoTCP, Frag: packet.DF, TOS: 8}.With(tcpBody)
	big6 := ip(good6, web6, packet.ProtoTCP, tcpBody)
	mtu := func(n int) func(*testing.T, *kernel) {
		return func(t *testing.T, k *kernel) { k.configure(t, func(c *bpf.XDPBermConfig) { c.Mtu = uint32(n) }) }
	}
	told := func(six bool, carries int) []byte {
		if six {
			m := packet.ICMPMessage(2, 0, big6[:60])
			binary.BigEndian.PutUint32(m[4:], uint32(carries))
			return sumICMP(packet.IPv6{Src: web6, Dst: good6, Next: packet.ICMPv6}.With(m))
		}
		m := packet.ICMPMessage(3, 4, big4[:40])
		binary.BigEndian.PutUint32(m[4:], uint32(carries))
		return sumICMP(packet.IPv4{Src: web4, Dst: good4, Proto: packet.ICMP, Frag: packet.DF}.With(m))
	}
	answer := func(vip string, frame, p []byte, bytes int) want {
		return want{action: xdpTX, out: back(frame, p), counts: counted(vip, "DELIVER", "ANSWER", counts{"drop/TOO_BIG": 1}), bytes: bytes}
	}
	vlan := packet.Ethernet{Tags: []packet.Tag{{Type: packet.TypeQinQ, TCI: 5}, {Type: packet.TypeVLAN, TCI: 77}}}
	may := packet.IPv4{Src: good4, Dst: web4, Proto: packet.ProtoTCP}.With(tcpBody)
	ping := packet.IPv4{Src: good4, Dst: web4, Proto: packet.ProtoGRE, Frag: packet.DF}.With(body)
	group := packet.Ethernet{Dst: [6]byte{0x33, 0x33, 0, 0, 0, 1}}
	runCases(t, []testCase{
		{"IPv4", mtu(1350), eth(big4), answer("web", eth(big4), told(false, 1330), len(big4))},
		{"IPv4 that just fits", mtu(1360), eth(big4), forwarded(eth(big4), "web", flow4)},
		{"IPv4 that just does not", mtu(1359), eth(big4), answer("web", eth(big4), told(false, 1339), len(big4))},
		{"IPv4 in VLANs", mtu(1350), vlan.With(big4), answer("web", vlan.With(big4), told(false, 1330), len(big4))},
		{"IPv4, padded", mtu(1350), append(eth(big4), 1, 2, 3), answer("web", eth(big4), told(false, 1330), len(big4))},
		{"IPv4 through IPv6", both(mtu(1350), inSet("web", set6)), eth(big4), answer("web", eth(big4), told(false, 1310), len(big4))},
		{"IPv6", mtu(1390), eth(big6), answer("web6", eth(big6), told(true, 1350), len(big6))},
		{"IPv6, below what its links may carry", mtu(1300), eth(big6), answer("web6", eth(big6), told(true, 1280), len(big6))},
		{"IPv6 in VLANs", mtu(1390), vlan.With(big6), answer("web6", vlan.With(big6), told(true, 1350), len(big6))},
		{"may be fragmented", mtu(1350), eth(may), dropped("web", "DELIVER", "TOO_BIG")},
		{"neither TCP nor UDP", mtu(1000), eth(ping), dropped("web-addr", "DELIVER", "TOO_BIG")},
		{"to a group of hosts", mtu(1390), group.With(big6), dropped("web6", "DELIVER", "TOO_BIG")},
		{"IPv6, in shadow", both(mtu(1390), shadowing(bpf.XDPBermDropBERM_DROP_TOO_BIG)), eth(big6), shadowed(forwarded(eth(big6), "web6", flow6), "web6", "DELIVER", "TOO_BIG")},
	})

	// Ten are told at once, and ten a second; the others' packets are refused all the same.
	k := newKernel(t)
	mtu(1350)(t, k)
	count := func(n int) (told int) {
		for range n {
			switch action, _ := run(t, k.XdpBermAt, eth(big4)); action {
			case xdpTX:
				told++
			case xdpDrop:
			default:
				t.Fatalf("action %d", action)
			}
		}
		return told
	}
	if n := count(100); n != 10 {
		t.Errorf("%d of 100 at once were told, want 10", n)
	}
	k.at(t, 1_000_500_000_000)
	if n := count(100); n != 5 {
		t.Errorf("%d of 100 half a second later were told, want 5", n)
	}
}
