package bpf_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

func inSet(vip string, set uint16) func(*testing.T, *kernel) {
	return func(t *testing.T, k *kernel) { k.changeVIP(t, vip, func(v *bpf.XDPBermVip) { v.Set = set }) }
}

func TestSteer(t *testing.T) {
	four, six := good(false), good(true)
	failOpen := func(stage string) want {
		return want{action: xdpPass, counts: counted("web", stage, "FAIL_OPEN", nil)}
	}
	tagged := packet.Ethernet{Tags: []packet.Tag{{Type: packet.TypeQinQ, TCI: 5}, {Type: packet.TypeVLAN, TCI: 9}}}.With(four[14:])
	away := func(in []byte) want {
		w := forwarded(in, "web", flow4)
		w.action = xdpRedirect
		// Out of another interface: its addresses, and none of this one's tags.
		w.out = append([]byte{2, 1, 0, 0, 0, 7, 2, 1, 0, 0, 0, 8, 8, 0}, w.out[l3(in):]...)
		return w
	}
	sixIn4 := forwarded(six, "web6", flow6)
	sixIn4.out = encap4(six, flow6)
	fourIn6 := forwarded(four, "web", flow4)
	fourIn6.out = encap6(four, flow4)
	cases := []testCase{
		{"no set: this host", inSet("web", setNone), four, local("web")},
		{"a set that cannot be: this host", inSet("web", 64), four, local("web")},
		{"this edge owns it", inSet("web", setSelf), four, local("web")},
		{"IPv6 in IPv4", inSet("web6", set4), six, sixIn4},
		{"IPv4 in IPv6", inSet("web", set6), four, fourIn6},
		{"out of another interface", inSet("web", setAway), four, away(four)},
		{"out of another interface, from a VLAN", inSet("web", setAway), tagged, away(tagged)},
		{"owner lost: the previous", inSet("web", setSecond), four, forwarded(four, "web", flow4)},
		{"owner lost, previous this edge", inSet("web", setOwnLast), four, local("web")},
		{"both lost", inSet("web", setLost), four, failOpen("STEER")},
		{"empty row", inSet("web", setNobody), four, failOpen("STEER")},
		{"no address to send from", func(t *testing.T, k *kernel) {
			k.configure(t, func(c *bpf.XDPBermConfig) { c.Self4 = bpf.XDPBermAddr{} })
		}, four, failOpen("DELIVER")},
		{"no tag secret", func(t *testing.T, k *kernel) {
			k.configure(t, func(c *bpf.XDPBermConfig) { c.TagSecrets = [2]uint64{} })
		}, four, want{action: xdpTX, counts: counted("web", "DELIVER", "FORWARD", nil), out: mutate(encap4(four, flow4), func(b []byte) {
			b[18], b[19] = 0, 0
			packet.Sum4(b[14:])
		})}},
		{"just small enough", func(t *testing.T, k *kernel) {
			k.configure(t, func(c *bpf.XDPBermConfig) { c.Mtu = uint32(len(four) - 14 + 20) })
		}, four, forwarded(four, "web", flow4)},
		{"this edge has no id", func(t *testing.T, k *kernel) {
			k.configure(t, func(c *bpf.XDPBermConfig) { c.Self = 0 })
		}, four, forwarded(four, "web", flow4)},
		{"second copy of the VIP table", func(t *testing.T, k *kernel) {
			k.words(t, k.BermVipSeeds, 4096, make([]uint64, 4096)...)
			k.words(t, k.BermVipSlots, 16384, make([]uint64, 16384)...)
			k.configure(t, func(c *bpf.XDPBermConfig) { c.VipActive = 1 })
		}, four, foreign("VIP")},
	}
	runCases(t, cases)
}

// Each row's half of a cell is found.
func TestRows(t *testing.T) {
	k := newKernel(t)
	for port := uint16(1); port < 200; port++ {
		flow := flowOf(good4, web4, port, 443, tcp)
		row := uint32(flow & 0xffffffff * 65537 >> 32)
		cell := uint64(backendLost | backendLost<<32)
		shift := row % 2 * 32
		cell = cell&^(0xffffffff<<shift) | backend4<<shift
		k.words(t, k.BermRows, set4*32769, fill(32769, uint64(backendLost)<<32|backendLost)...)
		k.words(t, k.BermRows, set4*32769+row/2, cell)
		in := eth(ip(good4, web4, tcp, packet.TCP{Src: port, Dst: 443, Flags: packet.ACK}.With(nil)))
		if action, _ := run(t, k.XdpBermAt, in); action != xdpTX {
			t.Fatalf("port %d, row %d: action %d, want %d", port, row, action, xdpTX)
		}
	}
}

// The outer source's low bits vary with the flow, and only they.
func TestSpread(t *testing.T) {
	for _, six := range []bool{false, true} {
		k := newKernel(t)
		k.configure(t, func(c *bpf.XDPBermConfig) { c.Spread = 8 })
		seen := map[byte]bool{}
		for port := uint16(1); port <= 500; port++ {
			src, dst := good4, web4
			if six {
				src, dst = good6, web6
			}
			_, out := run(t, k.XdpBermAt, eth(ip(src, dst, tcp, packet.TCP{Src: port, Dst: 443, Flags: packet.ACK}.With(nil))))
			at, self := 26, self4.AsSlice()
			if six {
				at, self = 22, self6.AsSlice()
			} else if !checksumRight(out[14:34]) {
				t.Fatalf("port %d: outer checksum", port)
			}
			end := at + len(self) - 1
			if !bytes.Equal(out[at:end], self[:len(self)-1]) {
				t.Fatalf("outer source %x, want that of %x", out[at:end+1], self)
			}
			seen[out[end]] = true
		}
		if len(seen) < 180 { // 500 throws at 256 leave 36 empty on average
			t.Errorf("only %d outer sources", len(seen))
		}
	}
}

func checksumRight(header []byte) bool {
	var sum uint32
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return sum == 0xffff
}

// A frame to a group of hosts is not answered from the group's address.
func TestGroupFrames(t *testing.T) {
	in := packet.Ethernet{Dst: [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}.With(good(false)[14:])
	runCases(t, []testCase{{"broadcast", nil, in, local("web")}})
}

// tunnel is a packet from a peer, as put there.
func tunnel(inner []byte, flow uint64, secret uint64) []byte {
	return packet.IPv4{Src: peer4, Dst: self4, Proto: innerProto(inner), Frag: packet.DF, ID: flowTag(flow, secret)}.With(inner)
}

func tunnel6(inner []byte, flow uint64, secret uint64) []byte {
	return packet.IPv6{Src: peer6, Dst: self6, Next: innerProto(inner), Label: uint32(flowTag(flow, secret))}.With(inner)
}

func innerProto(inner []byte) byte {
	if inner[0]>>4 == 6 {
		return packet.IPv6In
	}
	return packet.IPIP
}

func peers(t *testing.T, k *kernel) {
	for _, p := range []netip.Addr{peer4, peer6} {
		a := addrOf(p)
		put(t, k.BermPeers, &a, uint64(backend4))
	}
}

// owner makes this edge the owner of what the tests send.
func owner(t *testing.T, k *kernel) {
	for _, name := range []string{"web", "web-udp", "web-addr", "web6"} {
		inSet(name, setSelf)(t, k)
	}
}

func TestDecap(t *testing.T) {
	four, six := good(false)[14:], good(true)[14:]
	secret := baseConfig.TagSecrets[0]
	in := func(vip string, frame, inner []byte) want {
		w := want{action: xdpPass, out: l2of(frame, inner), counts: counted(vip, "DELIVER", "DECAP", nil), bytes: len(inner)}
		return w
	}
	refused := func(stage, reason string) want {
		return want{action: xdpDrop, counts: counts{stage + "/DROP": 1, "drop/" + reason: 1}}
	}
	// observed: what a refused tunnel packet that cannot be let in counts.
	observed := func(stage, reason, left string) want {
		return want{action: xdpPass, counts: counts{left + "/FOREIGN": 1, stage + "/SHADOW": 1, "shadow/" + reason: 1}}
	}
	blocked := tcpTo(bad4, web4, 443, packet.ACK)[14:]
	flowBlocked := flowOf(bad4, web4, 40000, 443, tcp)
	tags := packet.Ethernet{Tags: []packet.Tag{{Type: packet.TypeVLAN, TCI: 77}}}
	fragment := packet.IPv4{Src: good4, Dst: web4, Proto: udp, Frag: 4}.With(make([]byte, 24))

	var cases []testCase
	add := func(name string, setup func(*testing.T, *kernel), frame []byte, w want) {
		cases = append(cases, testCase{name, both(peers, owner, setup), frame, w})
	}
	// accepted, in all four ways to tunnel
	for _, c := range []struct {
		name, vip string
		frame     []byte
		inner     []byte
	}{
		{"IPv4 in IPv4", "web", eth(tunnel(four, flow4, secret)), four},
		{"IPv6 in IPv4", "web6", eth(tunnel(six, flow6, secret)), six},
		{"IPv4 in IPv6", "web", eth(tunnel6(four, flow4, secret)), four},
		{"IPv6 in IPv6", "web6", eth(tunnel6(six, flow6, secret)), six},
		{"in a VLAN", "web", tags.With(tunnel(four, flow4, secret)), four},
		{"policy ran at the first hop", "web", eth(tunnel(blocked, flowBlocked, secret)), blocked},
		{"fragment", "web-addr", eth(tunnel(fragment, flowOf(good4, web4, 0, 0, udp), secret)), fragment},
	} {
		add(c.name, nothing, c.frame, in(c.vip, c.frame, c.inner))
	}
	rotate := func(a, b uint64) func(*testing.T, *kernel) {
		return func(t *testing.T, k *kernel) {
			k.configure(t, func(c *bpf.XDPBermConfig) { c.TagSecrets = [2]uint64{a, b} })
		}
	}
	ok := eth(tunnel(four, flow4, secret))
	add("the old secret, while it rotates", rotate(0x2222, secret), ok, in("web", ok, four))
	add("the old secret, afterwards", rotate(0x2222, 0), ok, withBytes(refused("DECAP", "TUNNEL_TAG"), len(four)))
	add("no secrets", rotate(0, 0), ok, in("web", ok, four))
	spread := eth(packet.IPv4{Src: netip.MustParseAddr("10.0.1.77"), Dst: self4, Proto: packet.IPIP, ID: flowTag(flow4, secret)}.With(four))
	wide := func(t *testing.T, k *kernel) { k.configure(t, func(c *bpf.XDPBermConfig) { c.Spread = 8 }) }
	add("a spread source", wide, spread, in("web", spread, four))
	add("another source than the peer's", nothing, spread, refused("DECAP", "TUNNEL_PEER"))

	// forged and broken
	forged := mutateIP(ok, func(p []byte) { p[5] ^= 1 })
	add("wrong tag", nothing, forged, withBytes(refused("DECAP", "TUNNEL_TAG"), len(four)))
	forged6 := mutate(eth(tunnel6(six, flow6, secret)), func(b []byte) { b[17] ^= 1 })
	add("wrong tag, IPv6", nothing, forged6, withBytes(refused("DECAP", "TUNNEL_TAG"), len(six)))
	options := eth(packet.IPv4{Src: peer4, Dst: self4, Proto: packet.IPIP, Options: make([]byte, 4), ID: flowTag(flow4, secret)}.With(four))
	add("outer options", nothing, options, refused("DECAP", "TUNNEL_PEER"))
	pieces := eth(packet.IPv4{Src: peer4, Dst: self4, Proto: packet.IPIP, Frag: packet.MF}.With(four[:64]))
	add("outer fragment", nothing, pieces, refused("DECAP", "TUNNEL_PEER"))
	spoiled := mutate(ok, func(b []byte) { b[24] ^= 1 })
	add("outer checksum", nothing, spoiled, refused("PARSE", "BAD_CHECKSUM"))
	flags := mutate(four, func(p []byte) { p[33] = 0 })
	add("inner flags", nothing, eth(tunnel(flags, flow4, secret)), withBytes(refused("DECAP", "TUNNEL_INNER"), len(four)))
	longer := mutate(four, func(p []byte) { p[3]++; packet.Sum4(p) })
	add("inner longer than the outer", nothing, append(eth(tunnel(longer, flow4, secret)), 0, 0), withBytes(refused("DECAP", "TUNNEL_INNER"), len(four)+20))
	elsewhere := tcpTo(good4, other4, 443, packet.ACK)[14:]
	add("inner not for a VIP", nothing, eth(tunnel(elsewhere, flowOf(good4, other4, 40000, 443, tcp), secret)), withBytes(refused("DECAP", "TUNNEL_INNER"), len(four)))
	add("inner cut off", nothing, eth(packet.IPv4{Src: peer4, Dst: self4, Proto: packet.IPIP}.With(four[:19])), refused("DECAP", "TUNNEL_INNER"))
	version := packet.IPv4{Src: peer4, Dst: self4, Proto: packet.IPIP, ID: 1}.With(mutate(four, func(p []byte) { p[0] = 0x65 }))
	add("inner version", nothing, eth(version), refused("DECAP", "TUNNEL_INNER"))

	// In shadow, what can be let in is, but policy sees it.
	let := in("web", forged, four)
	let.counts = counted("web", "DELIVER", "DECAP", counts{"shadow/TUNNEL_TAG": 1, "DECAP/SHADOW": 1, "vip/web/shadowed": 1})
	add("wrong tag, shadowed", shadowing(bpf.XDPBermDropBERM_DROP_TUNNEL_TAG), forged, let)
	let = in("web", spread, four)
	let.counts = counted("web", "DELIVER", "DECAP", counts{"shadow/TUNNEL_PEER": 1, "DECAP/SHADOW": 1, "vip/web/shadowed": 1})
	add("another source, shadowed", shadowing(bpf.XDPBermDropBERM_DROP_TUNNEL_PEER), spread, let)
	w := dropped("web", "GEO", "GEO")
	w.counts["shadow/TUNNEL_TAG"], w.counts["DECAP/SHADOW"], w.counts["vip/web/shadowed"] = 1, 1, 1
	add("wrong tag, shadowed, from a blocked country", shadowing(bpf.XDPBermDropBERM_DROP_TUNNEL_TAG),
		eth(tunnel(blocked, ^flowBlocked, secret)), withBytes(w, len(blocked)))
	add("inner flags, shadowed", shadowing(bpf.XDPBermDropBERM_DROP_TUNNEL_INNER), eth(tunnel(flags, flow4, secret)),
		withBytes(observed("DECAP", "TUNNEL_INNER", "DECAP"), len(four)))
	add("inner not for a VIP, shadowed", shadowing(bpf.XDPBermDropBERM_DROP_TUNNEL_INNER),
		eth(tunnel(elsewhere, flowOf(good4, other4, 40000, 443, tcp), secret)), withBytes(observed("DECAP", "TUNNEL_INNER", "VIP"), len(four)))
	add("outer checksum, shadowed", observing, spoiled, observed("PARSE", "BAD_CHECKSUM", "DECAP"))
	add("outer fragment, shadowed", observing, pieces, observed("DECAP", "TUNNEL_PEER", "DECAP"))

	// not a tunnel of ours
	add("to another address", nothing, eth(packet.IPv4{Src: peer4, Dst: other4, Proto: packet.IPIP}.With(four)), foreign("VIP"))
	add("no tunnel address", func(t *testing.T, k *kernel) {
		k.configure(t, func(c *bpf.XDPBermConfig) { c.Self4 = bpf.XDPBermAddr{} })
	}, ok, foreign("VIP"))
	add("other protocols to the tunnel address", nothing, tcpTo(peer4, self4, 179, packet.ACK), foreign("VIP"))
	runCases(t, cases)
}

// l2of is inner behind the Ethernet header and tags of frame.
func l2of(frame, inner []byte) []byte {
	out := append([]byte{}, frame[:l3(frame)-2]...)
	proto := uint16(packet.TypeIPv4)
	if inner[0]>>4 == 6 {
		proto = packet.TypeIPv6
	}
	return append(binary.BigEndian.AppendUint16(out, proto), inner...)
}

// What one edge encapsulates another takes out again, byte for byte.
func TestThereAndBack(t *testing.T) {
	for _, six := range []bool{false, true} {
		for _, set := range []uint16{set4, set6} {
			k := newKernel(t)
			name := map[bool]string{false: "web", true: "web6"}[six]
			inSet(name, set)(t, k)
			in := good(six)
			action, out := run(t, k.XdpBermAt, in)
			if action != xdpTX {
				t.Fatalf("first edge: action %d", action)
			}
			inSet(name, setSelf)(t, k)
			k.configure(t, func(c *bpf.XDPBermConfig) {
				c.Self4, c.Self6 = addrOf(peer4), addrOf(peer6)
			})
			for _, p := range []netip.Addr{self4, self6} {
				a := addrOf(p)
				put(t, k.BermPeers, &a, uint64(backendSelf))
			}
			action, back := run(t, k.XdpBermAt, out)
			if action != xdpPass || !bytes.Equal(back[14:], in[14:]) {
				t.Errorf("second edge, IPv6 %v, set %d: action %d\n got %x\nwant %x", six, set, action, back[14:], in[14:])
			}
		}
	}
}
