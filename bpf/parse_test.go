package bpf_test

import (
	"net/netip"
	"testing"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

const (
	tcp = packet.ProtoTCP
	udp = packet.ProtoUDP
)

// flow4 and flow6 are the flows of good's packets.
var (
	flow4 = flowOf(good4, web4, 40000, 443, tcp)
	flow6 = flowOf(good6, web6, 40000, 443, tcp)
)

func tcpBody(flags byte) []byte { return packet.TCP{Src: 40000, Dst: 443, Flags: flags}.With(payload) }

func TestForward(t *testing.T) {
	vlan := packet.Tag{Type: packet.TypeVLAN, TCI: 0x2064}
	outer := packet.Tag{Type: packet.TypeQinQ, TCI: 0x0065}
	tagged := func(p []byte, tags ...packet.Tag) []byte { return packet.Ethernet{Tags: tags}.With(p) }
	four, six := good(false)[14:], good(true)[14:]
	options := packet.IPv4{Src: good4, Dst: web4, Proto: tcp, TOS: 0xb9, Options: []byte{1, 1, 1, 1, 7, 8, 4, 1, 2, 3, 4, 0}}.With(tcpBody(packet.ACK))
	var cases []testCase
	add := func(name string, in []byte, vip string, flow uint64) {
		cases = append(cases, testCase{name: name, in: in, want: forwarded(in, vip, flow)})
	}
	add("TCP over IPv4", good(false), "web", flow4)
	add("TCP over IPv6", good(true), "web6", flow6)
	add("SYN over IPv4", tcpTo(good4, web4, 443, packet.SYN), "web", flow4)
	add("SYN over IPv6", tcpTo(good6, web6, 443, packet.SYN), "web6", flow6)
	add("one VLAN, IPv4", tagged(four, vlan), "web", flow4)
	add("one VLAN, IPv6", tagged(six, vlan), "web6", flow6)
	add("two VLANs, IPv4", tagged(four, outer, vlan), "web", flow4)
	add("two VLANs, IPv6", tagged(six, outer, vlan), "web6", flow6)
	add("IPv4 options, DSCP and ECN", eth(options), "web", flow4)
	add("IPv4 options in a VLAN", tagged(options, vlan), "web", flow4)
	add("IPv6 traffic class", eth(packet.IPv6{Src: good6, Dst: web6, Next: tcp, Class: 0xbb, Label: 0x54321}.With(tcpBody(packet.ACK))), "web6", flow6)
	add("TCP options", eth(ip(good4, web4, tcp, packet.TCP{Src: 40000, Dst: 443, Flags: packet.ACK, Options: make([]byte, 40)}.With(payload))), "web", flow4)
	add("padding of a short frame", append(eth(ip(good4, web4, tcp, packet.TCP{Src: 40000, Dst: 443, Flags: packet.RST}.With(nil))), make([]byte, 6)...), "web", flow4)
	cases[len(cases)-1].want.bytes = 40
	add("hop-by-hop options", eth(ip(good6, web6, packet.HopByHop, packet.Extension(tcp, 0, tcpBody(packet.ACK)))), "web6", flow6)
	add("destination options", eth(ip(good6, web6, packet.DestOpts, packet.Extension(tcp, 2, tcpBody(packet.ACK)))), "web6", flow6)
	add("routing header at its end", eth(ip(good6, web6, packet.Routing, packet.Extension(tcp, 2, tcpBody(packet.ACK)))), "web6", flow6)
	add("authentication header", eth(ip(good6, web6, packet.AH, packet.Auth(tcp, tcpBody(packet.ACK)))), "web6", flow6)
	add("atomic fragment", eth(ip(good6, web6, packet.Fragment, packet.Fragment6(tcp, 0, false, tcpBody(packet.ACK)))), "web6", flow6)
	add("five extension headers", eth(ip(good6, web6, packet.HopByHop, packet.Extension(packet.DestOpts, 0,
		packet.Extension(packet.Routing, 1, packet.Extension(packet.AH, 0, packet.Auth(packet.DestOpts,
			packet.Extension(tcp, 0, tcpBody(packet.ACK)))))))), "web6", flow6)
	add("extension headers in two VLANs", tagged(ip(good6, web6, packet.DestOpts, packet.Extension(tcp, 5, tcpBody(packet.ACK))), outer, vlan), "web6", flow6)
	runCases(t, cases)
}

func TestBareAddress(t *testing.T) {
	quote := func(src, dst netip.Addr, proto byte, body []byte) []byte { return ip(src, dst, proto, body) }
	ports := packet.UDP{Src: 443, Dst: 40000}.With(nil)
	var cases []testCase
	add := func(name string, in []byte, vip string, flow uint64) {
		cases = append(cases, testCase{name: name, in: in, want: forwarded(in, vip, flow)})
	}
	add("another port, IPv4", tcpTo(good4, web4, 22, packet.SYN), "web-addr", flowOf(good4, web4, 40000, 22, tcp))
	add("another port, IPv6", udpTo(good6, web6, 53), "web6-addr", flowOf(good6, web6, 40000, 53, udp))
	add("UDP service", udpTo(good4, web4, 443), "web-udp", flowOf(good4, web4, 40000, 443, udp))
	add("UDP service, IPv6", udpTo(good6, web6, 443), "web6-udp", flowOf(good6, web6, 40000, 443, udp))
	add("GRE", eth(ip(good4, web4, packet.ProtoGRE, payload)), "web-addr", flowOf(good4, web4, 0, 0, packet.ProtoGRE))
	add("timestamp request, IPv4", eth(ip(good4, web4, packet.ICMP, packet.ICMPMessage(13, 0, payload))), "web-addr", flowOf(good4, web4, 0, 0, packet.ICMP))
	add("node information query, IPv6", eth(ip(good6, web6, packet.ICMPv6, packet.ICMPMessage(139, 0, payload))), "web6-addr", flowOf(good6, web6, 0, 0, packet.ICMPv6))
	add("no next header", eth(ip(good6, web6, packet.NoNext, nil)), "web6-addr", flowOf(good6, web6, 0, 0, packet.NoNext))
	add("tunnel packet to a VIP", eth(ip(good4, web4, packet.IPIP, good(false)[14:])), "web-addr", flowOf(good4, web4, 0, 0, packet.IPIP))

	// The error about a packet that the service sent goes where the flow goes.
	add("fragmentation needed, quoting eight bytes of TCP", eth(ip(netip.MustParseAddr("198.51.100.1"), web4, packet.ICMP,
		packet.ICMPMessage(3, 4, quote(web4, good4, tcp, ports)))), "web", flow4)
	add("time exceeded, quoting UDP", eth(ip(netip.MustParseAddr("198.51.100.1"), web4, packet.ICMP,
		packet.ICMPMessage(11, 0, quote(web4, good4, udp, ports)))), "web-udp", flowOf(good4, web4, 40000, 443, udp))
	add("packet too big", eth(ip(netip.MustParseAddr("2a00:1::1"), web6, packet.ICMPv6,
		packet.ICMPMessage(2, 0, quote(web6, good6, tcp, ports)))), "web6", flow6)
	add("error that quotes a packet of others", eth(ip(good4, web4, packet.ICMP,
		packet.ICMPMessage(3, 4, quote(other4, good4, tcp, ports)))), "web-addr", flowOf(good4, web4, 0, 0, packet.ICMP))
	add("error that quotes a later fragment", eth(ip(good4, web4, packet.ICMP,
		packet.ICMPMessage(3, 4, packet.IPv4{Src: web4, Dst: good4, Proto: tcp, Frag: 100}.With(ports)))), "web-addr", flowOf(good4, web4, 0, 0, tcp))
	add("error that quotes a first fragment", eth(ip(netip.MustParseAddr("198.51.100.1"), web4, packet.ICMP,
		packet.ICMPMessage(3, 4, packet.IPv4{Src: web4, Dst: good4, Proto: tcp, Frag: packet.MF}.With(ports)))), "web", flow4)
	add("error that quotes an echo reply", eth(ip(netip.MustParseAddr("198.51.100.1"), web4, packet.ICMP,
		packet.ICMPMessage(3, 4, quote(web4, good4, packet.ICMP, ports)))), "web-addr", flowOf(good4, web4, 0, 0, packet.ICMP))
	from6 := netip.MustParseAddr("2a00:1::1")
	fragment6 := func(offset uint16, proto byte, body []byte) []byte {
		return eth(ip(from6, web6, packet.ICMPv6, packet.ICMPMessage(2, 0, quote(web6, good6, packet.Fragment, packet.Fragment6(proto, offset, true, body)))))
	}
	add("packet too big, quoting a first fragment", fragment6(0, tcp, ports), "web6", flow6)
	add("packet too big, quoting a later fragment", fragment6(8, tcp, ports), "web6-addr", flowOf(good6, web6, 0, 0, tcp))
	add("packet too big, quoting a fragment of an echo reply", fragment6(0, packet.ICMPv6, ports), "web6-addr", flowOf(good6, web6, 0, 0, packet.ICMPv6))
	add("packet too big, quoting a fragment header alone", fragment6(0, tcp, nil), "web6-addr", flowOf(from6, web6, 0, 0, packet.ICMPv6))
	add("packet too big, quoting an echo reply", eth(ip(from6, web6, packet.ICMPv6,
		packet.ICMPMessage(2, 0, quote(web6, good6, packet.ICMPv6, ports)))), "web6-addr", flowOf(good6, web6, 0, 0, packet.ICMPv6))
	add("error that quotes too little", eth(ip(good4, web4, packet.ICMP,
		packet.ICMPMessage(3, 4, quote(web4, good4, tcp, nil)))), "web-addr", flowOf(good4, web4, 0, 0, packet.ICMP))
	add("IPv6 error that quotes too little", eth(ip(good6, web6, packet.ICMPv6,
		packet.ICMPMessage(2, 0, quote(web6, good6, tcp, nil)))), "web6-addr", flowOf(good6, web6, 0, 0, packet.ICMPv6))

	discovery := eth(ip(good6, web6, packet.ICMPv6, packet.ICMPMessage(135, 0, make([]byte, 16))))
	cases = append(cases, testCase{name: "neighbour discovery", in: discovery, want: foreign("PARSE")})
	runCases(t, cases)
}

func TestFragments(t *testing.T) {
	f4 := func(frag uint16, proto byte, body []byte) []byte {
		return eth(packet.IPv4{Src: good4, Dst: web4, Proto: proto, Frag: frag}.With(body))
	}
	f6 := func(offset uint16, more bool, proto byte, body []byte) []byte {
		return eth(ip(good6, web6, packet.Fragment, packet.Fragment6(proto, offset, more, body)))
	}
	t4, u4 := flowOf(good4, web4, 0, 0, tcp), flowOf(good4, web4, 0, 0, udp)
	t6, u6 := flowOf(good6, web6, 0, 0, tcp), flowOf(good6, web6, 0, 0, udp)
	var cases []testCase
	ok := func(name string, in []byte, vip string, flow uint64) {
		cases = append(cases, testCase{name: name, in: in, want: forwarded(in, vip, flow)})
	}
	bad := func(name string, in []byte, vip string) {
		cases = append(cases, testCase{name: name, in: in, want: dropped(vip, "PARSE", "BAD_FRAGMENT")},
			testCase{name: name + ", shadowed", in: in, setup: shadowing(bpf.XDPBermDropBERM_DROP_BAD_FRAGMENT), want: shadowed(local(vip), vip, "PARSE", "BAD_FRAGMENT")})
	}
	ok("first of TCP, IPv4", f4(packet.MF, tcp, make([]byte, 32)), "web-addr", t4)
	ok("middle of TCP, IPv4", f4(packet.MF|4, tcp, make([]byte, 32)), "web-addr", t4)
	ok("last of TCP, IPv4", f4(8, tcp, make([]byte, 5)), "web-addr", t4)
	ok("first of UDP, IPv4", f4(packet.MF, udp, make([]byte, 8)), "web-addr", u4)
	ok("second of UDP, IPv4", f4(1, udp, make([]byte, 8)), "web-addr", u4)
	ok("last that just fits 64 KiB", f4(8189, udp, make([]byte, 3)), "web-addr", u4)
	ok("first of TCP, IPv6", f6(0, true, tcp, make([]byte, 32)), "web6-addr", t6)
	ok("last of TCP, IPv6", f6(32, false, tcp, make([]byte, 5)), "web6-addr", t6)
	ok("first of UDP, IPv6", f6(0, true, udp, make([]byte, 8)), "web6-addr", u6)
	ok("behind hop-by-hop options", eth(ip(good6, web6, packet.HopByHop, packet.Extension(packet.Fragment, 0,
		packet.Fragment6(udp, 800, true, make([]byte, 16))))), "web6-addr", u6)
	bad("overlaps the TCP header, IPv4", f4(2, tcp, make([]byte, 32)), "web-addr")
	bad("overlaps the TCP header, IPv6", f6(16, false, tcp, make([]byte, 32)), "web6-addr")
	bad("first without all of the TCP header, IPv4", f4(packet.MF, tcp, make([]byte, 16)), "web-addr")
	bad("first without all of the TCP header, IPv6", f6(0, true, tcp, make([]byte, 16)), "web6-addr")
	bad("odd length before the last, IPv4", f4(packet.MF|8, udp, make([]byte, 33)), "web-addr")
	bad("odd length before the last, IPv6", f6(64, true, udp, make([]byte, 33)), "web6-addr")
	bad("ends above 64 KiB, IPv4", f4(8189, udp, make([]byte, 8)), "web-addr")
	bad("ends above 64 KiB, IPv6", f6(0xfff8, false, udp, make([]byte, 8)), "web6-addr")
	bad("empty, IPv4", f4(100, udp, nil), "web-addr")
	bad("empty, IPv6", f6(800, true, udp, nil), "web6-addr")
	runCases(t, cases)
}

// mutations are valid packets for a VIP with one thing wrong.
func mutations() []struct {
	name, vip, reason string
	in                []byte
	bytes             int
} {
	type m = struct {
		name, vip, reason string
		in                []byte
		bytes             int
	}
	four, six := good(false), good(true)
	n4, n6 := len(four)-14, len(six)-14
	set4 := func(at int, v byte) []byte { return mutateIP(four, func(p []byte) { p[at] = v }) }
	set6 := func(at int, v byte) []byte { return mutateIP(six, func(p []byte) { p[at] = v }) }
	from := func(s string) []byte {
		src := netip.MustParseAddr(s)
		if src.Is4() {
			return tcpTo(src, web4, 443, packet.ACK)
		}
		return tcpTo(src, web6, 443, packet.ACK)
	}
	ext := func(next byte, body []byte) []byte { return eth(ip(good6, web6, next, body)) }
	u4, u6 := udpTo(good4, web4, 443), udpTo(good6, web6, 443)
	list := []m{
		{"IPv4: version 5", "web-addr", "MALFORMED", set4(0, 0x55), 0},
		{"IPv4: header of 16 bytes", "web-addr", "MALFORMED", set4(0, 0x44), 0},
		{"IPv4: length below the header's", "web-addr", "MALFORMED", mutateIP(four, func(p []byte) { p[2], p[3] = 0, 19 }), 0},
		{"IPv4: longer than the frame", "web-addr", "TRUNCATED", mutateIP(four, func(p []byte) { p[3]++ }), 0},
		{"IPv4: cut within TCP", "web-addr", "TRUNCATED", four[:14+30], 30},
		{"IPv4: cut behind its header", "web-addr", "TRUNCATED", four[:34], 20},
		{"IPv4: options behind the frame", "web-addr", "TRUNCATED", mutate(eth(packet.IPv4{Src: good4, Dst: web4, Proto: tcp}.With(nil)), func(b []byte) { b[14] = 0x4f; b[17] = 60 }), 20},
		{"IPv4: checksum", "web", "BAD_CHECKSUM", mutate(four, func(b []byte) { b[24] ^= 1 }), 0},
		{"IPv4: checksum with options", "web", "BAD_CHECKSUM", mutate(eth(packet.IPv4{Src: good4, Dst: web4, Proto: tcp, Options: []byte{1, 1, 1, 0}}.With(tcpBody(packet.ACK))), func(b []byte) { b[34] ^= 2 }), 0},
		{"IPv4: no room for TCP", "web-addr", "TRUNCATED", eth(ip(good4, web4, tcp, make([]byte, 19))), 39},
		{"IPv4: TCP header in the padding", "web-addr", "TRUNCATED", append(eth(ip(good4, web4, tcp, make([]byte, 10))), make([]byte, 20)...), 30},
		{"TCP: header of 16 bytes", "web", "MALFORMED", set4(32, 0x40), 0},
		{"TCP: header behind the packet", "web", "TRUNCATED", eth(ip(good4, web4, tcp, mutate(packet.TCP{Src: 40000, Dst: 443, Flags: packet.ACK}.With(nil), func(b []byte) { b[12] = 0xf0 }))), 40},
		{"TCP: no flags", "web", "BAD_TCP_FLAGS", set4(33, 0), 0},
		{"TCP: only ECN flags", "web", "BAD_TCP_FLAGS", set4(33, 0xc0), 0},
		{"TCP: SYN and FIN", "web", "BAD_TCP_FLAGS", set4(33, packet.SYN|packet.FIN), 0},
		{"TCP: SYN and RST", "web", "BAD_TCP_FLAGS", set4(33, packet.SYN|packet.RST|packet.ACK), 0},
		{"TCP: all flags", "web", "BAD_TCP_FLAGS", set4(33, 0x3f), 0},
		{"TCP over IPv6: SYN and FIN", "web6", "BAD_TCP_FLAGS", set6(53, packet.SYN|packet.FIN), 0},
		{"UDP: shorter than its header", "web-udp", "MALFORMED", mutateIP(u4, func(p []byte) { p[24], p[25] = 0, 7 }), 0},
		{"UDP: longer than the packet", "web-udp", "TRUNCATED", mutateIP(u4, func(p []byte) { p[24] = 1 }), 0},
		{"UDP: no room", "web-addr", "TRUNCATED", eth(ip(good4, web4, udp, make([]byte, 7))), 27},
		{"UDP over IPv6: longer than the packet", "web6-udp", "TRUNCATED", mutateIP(u6, func(p []byte) { p[44] = 1 }), 0},
		{"UDP over IPv6: no length", "web6-udp", "MALFORMED", mutateIP(u6, func(p []byte) { p[44], p[45] = 0, 0 }), 0},
		{"ICMP: no room", "web-addr", "TRUNCATED", eth(ip(good4, web4, packet.ICMP, make([]byte, 7))), 27},
		{"ICMPv6: no room", "web6-addr", "TRUNCATED", eth(ip(good6, web6, packet.ICMPv6, make([]byte, 7))), 47},
		{"IPv6: version 4", "web6-addr", "MALFORMED", set6(0, 0x40), 0},
		{"IPv6: longer than the frame", "web6-addr", "TRUNCATED", mutateIP(six, func(p []byte) { p[5]++ }), 0},
		{"IPv6: cut within TCP", "web6-addr", "TRUNCATED", six[:14+50], 50},
		{"IPv6: no payload, yet TCP", "web6-addr", "TRUNCATED", eth(ip(good6, web6, tcp, nil)), 40},
		{"IPv6: extension header cut short", "web6-addr", "TRUNCATED", ext(packet.DestOpts, make([]byte, 7)), 47},
		{"IPv6: extension header behind the packet", "web6-addr", "TRUNCATED", ext(packet.DestOpts, []byte{tcp, 9, 0, 0, 0, 0, 0, 0}), 48},
		{"IPv6: hop-by-hop options not first", "web6-addr", "MALFORMED", ext(packet.DestOpts, packet.Extension(packet.HopByHop, 0, packet.Extension(tcp, 0, tcpBody(packet.ACK)))), 0},
		{"IPv6: segments left", "web6-addr", "MALFORMED", ext(packet.Routing, mutate(packet.Extension(tcp, 2, tcpBody(packet.ACK)), func(b []byte) { b[3] = 1 })), 0},
		{"IPv6: empty authentication header", "web6-addr", "MALFORMED", ext(packet.AH, mutate(packet.Auth(tcp, tcpBody(packet.ACK)), func(b []byte) { b[1] = 0 })), 0},
		{"IPv6: seven extension headers", "web6-addr", "MALFORMED", ext(packet.DestOpts, extensions(7, tcpBody(packet.ACK))), 0},
		{"LAND, IPv4", "web", "LAND", eth(ip(web4, web4, tcp, packet.TCP{Src: 443, Dst: 443, Flags: packet.SYN}.With(nil))), 40},
		{"LAND, IPv6", "web6", "LAND", eth(ip(web6, web6, tcp, packet.TCP{Src: 443, Dst: 443, Flags: packet.SYN}.With(nil))), 60},
		{"LAND without ports", "web-addr", "LAND", eth(ip(web4, web4, packet.ICMP, packet.ICMPMessage(8, 0, payload))), 0},
	}
	for _, s := range []string{"0.1.2.3", "127.0.0.1", "224.0.0.1", "239.255.255.255", "255.255.255.255"} {
		list = append(list, m{"source " + s, "web", "BAD_SOURCE", from(s), n4})
	}
	for _, s := range []string{"::", "::1", "::192.0.2.1", "ff02::1"} {
		list = append(list, m{"source " + s, "web6", "BAD_SOURCE", from(s), n6})
	}
	mapped := mutateIP(six, func(p []byte) { copy(p[8:], []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 51, 100, 7}) })
	return append(list, m{"source ::ffff:198.51.100.7", "web6", "BAD_SOURCE", mapped, n6})
}

func extensions(n int, body []byte) []byte {
	next := byte(tcp)
	for range n {
		body, next = packet.Extension(next, 0, body), packet.DestOpts
	}
	return body
}

// Malformed packets for a VIP are dropped with their reason.
func TestMalformed(t *testing.T) {
	var cases []testCase
	for _, m := range mutations() {
		cases = append(cases, testCase{name: m.name, in: m.in, want: withBytes(dropped(m.vip, "PARSE", m.reason), m.bytes)})
	}
	runCases(t, cases)
}

// Observed, they are counted; what could be steered is, and what has lengths that lie goes to the stack.
func TestMalformedObserved(t *testing.T) {
	flows := map[string]uint64{"web": flow4, "web6": flow6}
	var cases []testCase
	for _, m := range mutations() {
		w := local(m.vip)
		if m.reason == "BAD_CHECKSUM" || m.reason == "BAD_TCP_FLAGS" {
			w = forwarded(m.in, m.vip, flows[m.vip])
		}
		if m.reason == "BAD_SOURCE" || m.reason == "LAND" {
			src, dst := addrsOf(m.in)
			proto, sport, dport := byte(tcp), uint16(40000), uint16(443)
			if m.reason == "LAND" {
				sport = 443
			}
			if m.vip == "web-addr" {
				proto, sport, dport = packet.ICMP, 0, 0
			}
			w = forwarded(m.in, m.vip, flowOf(src, dst, sport, dport, proto))
		}
		w = withBytes(shadowed(w, m.vip, "PARSE", m.reason), m.bytes)
		cases = append(cases, testCase{name: m.name, setup: observing, in: m.in, want: w})
	}
	runCases(t, cases)
}

func addrsOf(frame []byte) (src, dst netip.Addr) {
	p := frame[l3(frame):]
	if p[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:]))
	}
	return netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:]))
}

// The same packets pass untouched when they are not for a VIP.
func TestForeignUntouched(t *testing.T) {
	var cases []testCase
	for _, m := range mutations() {
		in := mutate(m.in, func(b []byte) {
			p := b[14:]
			if b[12] == 0x86 {
				d := other6.As16()
				copy(p[24:], d[:])
				return
			}
			d := other4.As4()
			copy(p[16:], d[:])
		})
		w := foreign("VIP")
		w.bytes = m.bytes
		cases = append(cases, testCase{name: m.name, in: in, want: w})
	}
	four, six := good(false), good(true)
	short := func(name string, in []byte, bytes int) {
		w := foreign("PARSE")
		w.bytes = bytes
		cases = append(cases, testCase{name: name, in: in, want: w})
	}
	short("IPv4: destination cut off", four[:14+19], 19)
	short("IPv6: destination cut off", six[:14+39], 39)
	short("VLAN tag cut off", packet.Ethernet{Tags: []packet.Tag{{Type: packet.TypeVLAN}}}.With(four[14:])[:16], 2)
	short("three VLANs", packet.Ethernet{Tags: []packet.Tag{{Type: packet.TypeQinQ}, {Type: packet.TypeQinQ}, {Type: packet.TypeVLAN}}}.With(four[14:]), len(four)-14+4)
	short("ARP", packet.Ethernet{Type: packet.TypeARP}.With(make([]byte, 28)), 28)
	short("nothing behind the header", packet.Ethernet{Type: 0x88cc}.With(make([]byte, 1)), 1)
	short("v4-mapped destination", mutateIP(six, func(p []byte) {
		copy(p[24:], []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 10})
	}), 0)
	cases = append(cases, testCase{name: "good, to others, IPv4", in: tcpTo(good4, other4, 443, packet.ACK), want: foreign("VIP")},
		testCase{name: "good, to others, IPv6", in: tcpTo(good6, other6, 443, packet.ACK), want: foreign("VIP")},
		testCase{name: "fragment to others", in: eth(packet.IPv4{Src: good4, Dst: other4, Proto: udp, Frag: 1}.With(make([]byte, 9))), want: foreign("VIP")})
	runCases(t, cases)
}

// Without services everything passes at once, and nothing is counted.
func TestNoServices(t *testing.T) {
	none := func(t *testing.T, k *kernel) { k.configure(t, func(c *bpf.XDPBermConfig) { c.Vips = 0 }) }
	runCases(t, []testCase{{name: "IPv4", setup: none, in: good(false), want: want{action: xdpPass}}})
}
