package bpf_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

// gue4 and gue6 are frames as they leave for servers in GUE.
func gue4(frame []byte, flow uint64) []byte {
	inner := totalOf(frame[l3(frame):])
	outer := packet.IPv4{Src: self4, Dst: peer4, Proto: packet.ProtoUDP, Frag: packet.DF, TOS: tosOf(inner) & 0xfc}
	return l2(frame, [6]byte{2, 1, 0, 0, 0, 4}, packet.TypeIPv4, append(outer.With(gueIn(inner, flow)), padding(frame)...))
}

func gue6(frame []byte, flow uint64) []byte {
	inner := totalOf(frame[l3(frame):])
	outer := packet.IPv6{Src: self6, Dst: peer6, Next: packet.ProtoUDP, Class: tosOf(inner) & 0xfc}
	return l2(frame, [6]byte{2, 1, 0, 0, 0, 6}, packet.TypeIPv6, append(outer.With(gueIn(inner, flow)), padding(frame)...))
}

// gueIn is what GUE's UDP carries the packet in: a port of the flow's, and no checksum.
func gueIn(inner []byte, flow uint64) []byte {
	b := binary.BigEndian.AppendUint16(nil, 0xc000|uint16(flow>>32)&0x3fff)
	b = binary.BigEndian.AppendUint16(b, guePort)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(inner)))
	return append(append(b, 0, 0), inner...)
}

func tosOf(inner []byte) byte {
	if inner[0]>>4 == 6 {
		return inner[0]<<4 | inner[1]>>4
	}
	return inner[1]
}

// padding is what a frame has behind its packet.
func padding(frame []byte) []byte {
	p := frame[l3(frame):]
	return p[len(totalOf(p)):]
}

// direct is a frame as it leaves for serverL2: with another Ethernet address, from the host it came to.
func direct(frame []byte) []byte {
	return append(append([]byte{2, 1, 0, 0, 0, 9}, frame[:6]...), frame[12:]...)
}

// sentAs is a packet that went to a server as this frame.
func sentAs(out []byte, vip, exit string) want {
	return want{action: xdpTX, out: out, counts: counted(vip, "DELIVER", exit, nil)}
}

func TestServers(t *testing.T) {
	four, six := good(false), good(true)
	dscp := mutateIP(four, func(p []byte) { p[1] = 0xb9 }) // EF with ECN
	tagged := packet.Ethernet{Tags: []packet.Tag{{Type: packet.TypeQinQ, TCI: 5}, {Type: packet.TypeVLAN, TCI: 9}}}.With(four[14:])
	padded := append(append([]byte{}, four...), 0, 0, 0, 0, 0, 0)
	broadcast := packet.Ethernet{Dst: [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}.With(four[14:])
	redirected := func(out []byte) want {
		w := sentAs(out, "web", "FORWARD")
		w.action = xdpRedirect
		return w
	}
	mtu := func(n int) func(*testing.T, *kernel) {
		return func(t *testing.T, k *kernel) { k.configure(t, func(c *bpf.XDPBermConfig) { c.Mtu = uint32(n) }) }
	}
	noSelf := func(t *testing.T, k *kernel) {
		k.configure(t, func(c *bpf.XDPBermConfig) { c.Self4, c.Self6 = bpf.XDPBermAddr{}, bpf.XDPBermAddr{} })
	}
	syn := tcpTo(good4, web4, 443, packet.SYN)
	udp := udpTo(good4, web4, 443)
	cases := []testCase{
		{"GUE, IPv4 in IPv4", inSet("web", setGUE4), four, sentAs(gue4(four, flow4), "web", "FORWARD")},
		{"GUE, IPv6 in IPv4", inSet("web6", setGUE4), six, sentAs(gue4(six, flow6), "web6", "FORWARD")},
		{"GUE, IPv4 in IPv6", inSet("web", setGUE6), four, sentAs(gue6(four, flow4), "web", "FORWARD")},
		{"GUE, IPv6 in IPv6", inSet("web6", setGUE6), six, sentAs(gue6(six, flow6), "web6", "FORWARD")},
		{"GUE, a SYN", inSet("web", setGUE4), syn, sentAs(gue4(syn, flow4), "web", "FORWARD")},
		{"GUE, UDP", inSet("web-udp", setGUE4), udp, sentAs(gue4(udp, flowOf(good4, web4, 40000, 443, packet.ProtoUDP)), "web-udp", "FORWARD")},
		{"GUE, DSCP goes along and ECN does not", inSet("web", setGUE4), dscp, sentAs(gue4(dscp, flow4), "web", "FORWARD")},
		{"GUE, from a VLAN", inSet("web", setGUE6), tagged, sentAs(gue6(tagged, flow4), "web", "FORWARD")},
		{"GUE, a padded frame", inSet("web", setGUE4), padded, withBytes(sentAs(gue4(padded, flow4), "web", "FORWARD"), len(four)-14)},
		{"GUE, just small enough", both(inSet("web", setGUE4), mtu(len(four)-14+28)), four, sentAs(gue4(four, flow4), "web", "FORWARD")},
		{"GUE, a byte too long", both(inSet("web", setGUE4), mtu(len(four)-14+27)), four, dropped("web", "DELIVER", "TOO_BIG")},
		{"GUE in IPv6, a byte too long", both(inSet("web", setGUE6), mtu(len(four)-14+47)), four, dropped("web", "DELIVER", "TOO_BIG")},
		{"GUE, no address to send from", both(inSet("web", setGUE4), noSelf), four, want{action: xdpPass, counts: counted("web", "DELIVER", "FAIL_OPEN", nil)}},
		{"GUE, no IPv6 address to send from", both(inSet("web", setGUE6), noSelf), four, want{action: xdpPass, counts: counted("web", "DELIVER", "FAIL_OPEN", nil)}},
		{"GUE, a broadcast", inSet("web", setGUE4), broadcast, local("web")},
		{"L2", inSet("web", setL2), four, sentAs(direct(four), "web", "FORWARD")},
		{"L2, IPv6", inSet("web6", setL2), six, sentAs(direct(six), "web6", "FORWARD")},
		{"L2, ECN stays", inSet("web", setL2), dscp, sentAs(direct(dscp), "web", "FORWARD")},
		{"L2, from a VLAN", inSet("web", setL2), tagged, sentAs(direct(tagged), "web", "FORWARD")},
		{"L2, a padded frame", inSet("web", setL2), padded, withBytes(sentAs(direct(padded), "web", "FORWARD"), len(four)-14)},
		{"L2, no address to send from", both(inSet("web", setL2), noSelf), four, sentAs(direct(four), "web", "FORWARD")},
		{"L2, a broadcast", inSet("web", setL2), broadcast, local("web")},
		{"L2, out of another interface", inSet("web", setL2Away), four, redirected(append([]byte{2, 1, 0, 0, 0, 9, 2, 1, 0, 0, 0, 8}, four[12:]...))},
		{"L2, out of another interface, from a VLAN", inSet("web", setL2Away), tagged, redirected(append([]byte{2, 1, 0, 0, 0, 9, 2, 1, 0, 0, 0, 8, 8, 0}, four[14:]...))},
		{"IPIP", inSet("web", setIPIP), four, forwarded(four, "web", flow4)},
	}
	runCases(t, cases)
}

// What is malformed is refused as ever, and nothing of it reaches a server.
func TestServersMalformed(t *testing.T) {
	for _, set := range []uint16{setGUE4, setGUE6, setL2} {
		k := newKernel(t)
		for _, m := range mutations() {
			k.reset(t)
			for name := range vipIDs {
				k.changeVIP(t, name, func(v *bpf.XDPBermVip) { v.Set = set })
			}
			k.check(t, m.in, withBytes(dropped(m.vip, "PARSE", m.reason), m.bytes))
		}
	}
}

// A packet that came in a peer's tunnel, since the peer's table is older, loses the tunnel's header on
// its way to a server.
func TestServersThroughTunnel(t *testing.T) {
	four, six := good(false)[14:], good(true)[14:]
	handed := func(out []byte, vip string, bytes int) want {
		return withBytes(sentAs(out, vip, "CHANCE"), bytes)
	}
	in4 := eth(tunnel(four, flow4, baseConfig.TagSecrets[0]))
	in6 := eth(tunnel6(six, flow6, baseConfig.TagSecrets[0]))
	runCases(t, []testCase{
		{"to GUE", both(peers, inSet("web", setGUE4)), in4, handed(gue4(eth(four), flow4), "web", len(four))},
		{"to GUE, IPv6", both(peers, inSet("web6", setGUE6)), in6, handed(gue6(eth(six), flow6), "web6", len(six))},
		{"to L2", both(peers, inSet("web", setL2)), in4, handed(direct(eth(four)), "web", len(four))},
		{"to L2, IPv6", both(peers, inSet("web6", setL2)), in6, handed(direct(eth(six)), "web6", len(six))},
	})
}

// One flow has one port, and flows have many.
func TestGUEPorts(t *testing.T) {
	k := newKernel(t)
	inSet("web", setGUE4)(t, k)
	seen := map[uint16]bool{}
	for port := uint16(1); port <= 500; port++ {
		in := eth(ip(good4, web4, tcp, packet.TCP{Src: port, Dst: 443, Flags: packet.ACK}.With(nil)))
		_, out := run(t, k.XdpBermAt, in)
		if want := gue4(in, flowOf(good4, web4, port, 443, tcp)); !bytes.Equal(out, want) {
			t.Fatalf("port %d\n got %x\nwant %x", port, out, want)
		}
		if !checksumRight(out[14:34]) {
			t.Fatalf("port %d: outer checksum", port)
		}
		seen[binary.BigEndian.Uint16(out[34:])] = true
	}
	if len(seen) < 450 { // 500 throws at 16384 leave 8 in pairs on average
		t.Errorf("only %d source ports", len(seen))
	}
}
