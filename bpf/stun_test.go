package bpf_test

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

const (
	stunLife  = 30 // seconds
	stunWays  = 8
	stunBurst = 16 // new flows of one fragment at once
)

// stunSets are the sets of cells that the tests' flows lie in.
var stunSets = func() (sets []uint32) {
	for i := range 40 {
		sets = append(sets, stunSet(stunFlow(false, uint16(40000+i))), stunSet(stunFlow(true, uint16(40000+i))))
	}
	return sets
}()

func stunSet(flow uint64) uint32 { return uint32(flow>>32) % 8192 }

func stunFlow(six bool, port uint16) uint64 {
	if six {
		return flowOf(good6, web6, port, 443, packet.ProtoUDP)
	}
	return flowOf(good4, web4, port, 443, packet.ProtoUDP)
}

// stunWorld makes the services at UDP port 443 steer by ICE username fragment.
func stunWorld(t *testing.T, k *kernel) {
	t.Helper()
	quicWorld(t, k)
	for _, name := range []string{"web-udp", "web6-udp"} {
		k.changeVIP(t, name, func(v *bpf.XDPBermVip) {
			v.Flags = v.Flags&^uint16(bpf.XDPBermVipFlagsBERM_VIP_QUIC) | uint16(bpf.XDPBermVipFlagsBERM_VIP_STUN)
		})
	}
}

// ufrag is an edge's ICE username fragment.
func ufrag(server uint16, nonce uint32) string {
	named := uint64(server)<<32 | uint64(nonce)
	b := binary.BigEndian.AppendUint64(nil, named<<16)[:6]
	b = append(b, binary.BigEndian.AppendUint64(nil, sip13(baseConfig.Secret, named|6<<56))[:6]...)
	return base64.StdEncoding.EncodeToString(b)
}

func attribute(kind uint16, value []byte) []byte {
	b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, kind), uint16(len(value)))
	b = append(b, value...)
	return append(b, make([]byte, (4-len(value)%4)%4)...)
}

func user(ufrag string) []byte { return attribute(6, []byte(ufrag+":client")) }

// check is a connectivity check: a binding request with these attributes.
func check(attributes ...[]byte) []byte {
	body := slices.Concat(attributes...)
	b := binary.BigEndian.AppendUint16([]byte{0, 1}, uint16(len(body)))
	b = append(b, 0x21, 0x12, 0xa4, 0x42)
	return append(append(b, "transaction!"...), body...)
}

// stunWays are where a datagram may go: by row, and by fragment to the other family's backend.
func stunWaysOf(six bool, in []byte) ways {
	vip, flow := "web-udp", stunFlow(six, binary.BigEndian.Uint16(in[len(in)-len(udpOf(in)):]))
	byRow, named := encap4(in, flow), encap6(in, flow)
	if six {
		vip, byRow, named = "web6-udp", named, byRow
	}
	to := func(out []byte, more counts) want {
		return want{action: xdpTX, out: out, counts: counted(vip, "DELIVER", "FORWARD", more)}
	}
	lost, routed := counts{"vip/" + vip + "/stun_lost": 1}, counts{"vip/" + vip + "/stun": 1}
	return ways{
		row: to(byRow, nil), cid: to(named, routed), lost: to(byRow, lost),
		self: want{action: xdpPass, counts: counted(vip, "DELIVER", "LOCAL", routed)},
	}
}

// udpOf is the UDP datagram of a plain frame.
func udpOf(frame []byte) []byte {
	if frame[14]>>4 == 6 {
		return frame[54:]
	}
	return frame[34:]
}

func fromPort(six bool, port uint16, payload []byte) []byte {
	b := packet.UDP{Src: port, Dst: 443}.With(payload)
	if six {
		return eth(ip(good6, web6, packet.ProtoUDP, b))
	}
	return eth(ip(good4, web4, packet.ProtoUDP, b))
}

// foreignSID is the backend of the other family than a packet's, by server ID.
func foreignSID(six bool) uint16 {
	if six {
		return sidFour
	}
	return sidSix
}

func TestSTUN(t *testing.T) {
	var cases []testCase
	for _, six := range []bool{false, true} {
		add := func(name string, payload []byte, pick func(ways) want) {
			in := fromPort(six, 40000, payload)
			cases = append(cases, testCase{map[bool]string{false: "IPv4, ", true: "IPv6, "}[six] + name, stunWorld, in, pick(stunWaysOf(six, in))})
		}
		byRow, named := func(w ways) want { return w.row }, func(w ways) want { return w.cid }
		lost, self := func(w ways) want { return w.lost }, func(w ways) want { return w.self }
		ours := ufrag(foreignSID(six), 7)
		changed := func(at int, to byte) []byte {
			b := check(user(ours))
			b[at] = to
			return b
		}

		add("a check", check(user(ours)), named)
		add("of this edge", check(user(ufrag(sidSelf, 1))), self)
		add("username second", check(attribute(0x8022, []byte("a client")), user(ours)), named)
		add("username eighth", check(append(slices.Repeat([][]byte{attribute(0x25, nil)}, 7), user(ours))...), named)
		add("username ninth", check(append(slices.Repeat([][]byte{attribute(0x25, nil)}, 8), user(ours))...), byRow)
		add("with more behind", append(check(user(ours), attribute(8, make([]byte, 20))), 1, 2, 3), named)
		add("of a backend that is not ready", check(user(ufrag(sidLost, 1))), lost)
		add("of nobody", check(user(ufrag(sidNobody, 1))), lost)
		add("of another set", check(user(ufrag(sidAbroad, 1))), lost)
		add("a character changed", changed(24, ours[0]^1), byRow)
		add("a character that base64 has not", changed(24, '_'), byRow)
		add("a character of the check changed", changed(39, ours[15]^1), byRow)
		add("a byte above ASCII", changed(30, 0xff), byRow)
		add("no colon", changed(40, '.'), byRow)
		add("another transaction", changed(10, 'x'), named)
		add("a response", changed(0, 1), byRow)
		add("an indication", changed(1, 0x11), byRow)
		add("another cookie", changed(7, 0x43), byRow)
		add("username that ends at the colon", check(attribute(6, []byte(ours+":"))), byRow)
		add("username too short", check(attribute(6, []byte(ours[:12]+":abc"))), byRow)
		add("a longer fragment", check(attribute(6, []byte(ours+"x:abc"))), byRow)
		add("no username", check(attribute(0x8022, []byte("a client"))), byRow)
		add("no attributes", check(), byRow)
		add("attributes longer than the message", changed(23, 60), byRow)
		add("an attribute that is longer than what is left", check(attribute(0x8022, make([]byte, 8)), user(ours)[:3]), byRow)
		add("message of no length", changed(3, 0), byRow)
		add("cut behind the header", check(user(ours))[:20], byRow)
		add("cut in the username", check(user(ours))[:40], byRow)
		add("cut in the header", check(user(ours))[:12], byRow)
		add("DTLS", append([]byte{22, 0xfe, 0xfd}, make([]byte, 60)...), byRow)
		add("empty", nil, byRow)
	}
	off := fromPort(false, 40000, check(user(ufrag(sidSix, 1))))
	cases = append(cases, testCase{"where nobody asked for it", nothing, off, stunWaysOf(false, off).row})
	runCases(t, cases)
}

// Behind what may be in front of it, a check is found all the same; in fragments it is not looked for.
func TestSTUNBehindHeaders(t *testing.T) {
	b := check(user(ufrag(sidSix, 1)))
	u := packet.UDP{Src: 40000, Dst: 443}.With(b)
	options := eth(packet.IPv4{Src: good4, Dst: web4, Proto: packet.ProtoUDP, Options: make4(1, 8)}.With(u))
	vlan := packet.Ethernet{Tags: []packet.Tag{{Type: packet.TypeQinQ, TCI: 5}, {Type: packet.TypeVLAN, TCI: 77}}}.With(ip(good4, web4, packet.ProtoUDP, u))
	u6 := packet.UDP{Src: 40000, Dst: 443}.With(check(user(ufrag(sidFour, 1))))
	extended := eth(ip(good6, web6, packet.HopByHop, packet.Extension(packet.ProtoUDP, 1, u6)))
	to := func(vip string, out []byte) want {
		return want{action: xdpTX, out: out, counts: counted(vip, "DELIVER", "FORWARD", counts{"vip/" + vip + "/stun": 1})}
	}
	fragment := eth(packet.IPv4{Src: good4, Dst: web4, Proto: packet.ProtoUDP, Frag: packet.MF}.With(u[:len(u)/8*8]))
	runCases(t, []testCase{
		{"IPv4 options", stunWorld, options, to("web-udp", encap6(options, stunFlow(false, 40000)))},
		{"two VLAN tags", stunWorld, vlan, to("web-udp", encap6(vlan, stunFlow(false, 40000)))},
		{"IPv6 extension headers", stunWorld, extended, to("web6-udp", encap4(extended, stunFlow(true, 40000)))},
		{"a fragment", stunWorld, fragment, forwarded(fragment, "web-addr", flowOf(good4, web4, 0, 0, packet.ProtoUDP))},
	})
}

// What a flow has shown once holds for all of its packets, for as long as checks are repeated.
func TestSTUNRemembers(t *testing.T) {
	k := newKernel(t)
	dtls := append([]byte{22, 0xfe, 0xfd}, make([]byte, 60)...)
	second := uint64(1_000_000_000)
	for _, six := range []bool{false, true} {
		k.reset(t)
		stunWorld(t, k)
		now := uint64(1_000_000_000_000)
		expect := func(what string, in []byte, pick func(ways) want) {
			t.Helper()
			k.at(t, now)
			t.Run(fmt.Sprintf("%s, IPv6 %t", what, six), func(t *testing.T) { k.check(t, in, pick(stunWaysOf(six, in))) })
		}
		byRow, named := func(w ways) want { return w.row }, func(w ways) want { return w.cid }
		self := func(w ways) want { return w.self }
		ask := func(port uint16, server uint16) []byte { return fromPort(six, port, check(user(ufrag(server, 1)))) }
		media := func(port uint16) []byte { return fromPort(six, port, dtls) }
		sid := foreignSID(six)

		expect("media before any check", media(40000), byRow)
		expect("a check", ask(40000, sid), named)
		expect("media after it", media(40000), named)
		expect("media of another port", media(40001), byRow)
		now += 25 * second
		expect("media, late", media(40000), named)
		expect("another edge's fragment does not take the flow over", ask(40000, sidSelf), self)
		expect("media all the same", media(40000), named)
		expect("the check again", ask(40000, sid), named)
		now += 25 * second
		expect("media, kept by the second check", media(40000), named)
		now += (stunLife + 2) * second
		expect("media, too late", media(40000), byRow)
		expect("then another edge's fragment does take it", ask(40000, sidSelf), self)
		expect("and has it", media(40000), self)
		// A rebinding: the new flow shows the same fragment.
		expect("a check from another port", ask(40002, sid), named)
		expect("media from there", media(40002), named)
		// The backend goes.
		put(t, k.BermSids, uint32(sid), &bpf.XDPBermSid{})
		expect("a check that names nobody now", ask(40003, sid), func(w ways) want { return w.lost })
		expect("media of who was named before", media(40002), named)

		// An ICMP error about the flow goes after it.
		if !six {
			quoted := ip(web4, good4, packet.ProtoUDP, packet.UDP{Src: 443, Dst: 40002}.With(nil))
			in := eth(ip(netip.MustParseAddr("198.51.100.1"), web4, packet.ICMP, packet.ICMPMessage(3, 4, quoted)))
			k.check(t, in, want{
				action: xdpTX, out: encap6(in, stunFlow(false, 40002)), counts: counted("web-udp", "DELIVER", "FORWARD", counts{"vip/web-udp/stun": 1}),
			})
		}
	}
}

// Whoever has one fragment writes few cells with it, and none that is in use.
func TestSTUNFlood(t *testing.T) {
	k := newKernel(t)
	k.reset(t)
	stunWorld(t, k)
	learned := func() (n int) {
		t.Helper()
		var list []uint32
		for i := range 40 {
			list = append(list, stunSet(stunFlow(false, uint16(40000+i))))
		}
		slices.Sort(list)
		for _, set := range slices.Compact(list) {
			var s bpf.XDPBermStunSet
			if err := k.BermStun.Lookup(set, &s); err != nil {
				t.Fatal(err)
			}
			for _, c := range s.Cells {
				if c != 0 {
					n++
				}
			}
		}
		return n
	}
	send := func(port int, payload []byte) {
		t.Helper()
		if action, _ := run(t, k.XdpBermAt, fromPort(false, uint16(port), payload)); action != xdpTX {
			t.Fatalf("action %d", action)
		}
	}
	for i := range 40 {
		b := check(user(ufrag(sidSix, 1)))
		b[36] ^= 1 // of the check: made up
		send(40000+i, b)
	}
	if n := learned(); n != 0 {
		t.Errorf("made-up fragments wrote %d cells", n)
	}
	for i := range 40 {
		send(40000+i, check(user(ufrag(sidSix, 1))))
	}
	if n := learned(); n != stunBurst {
		t.Errorf("40 flows with one fragment wrote %d cells, want %d", n, stunBurst)
	}
	for i := range 40 {
		send(40000+i, check(user(ufrag(sidSix, 2))))
	}
	if n := learned(); n != 2*stunBurst {
		t.Errorf("with another fragment there are %d cells, want %d", n, 2*stunBurst)
	}

	// A set whose cells are all in use keeps them.
	flow := stunFlow(false, 40039)
	var full bpf.XDPBermStunSet
	for i := range stunWays {
		full.Cells[i] = uint64(i+1)<<32 | backend6<<16 | (1_000_000_000_000>>30)&0xffff
	}
	put(t, k.BermStun, stunSet(flow), &full)
	send(40039, check(user(ufrag(sidSix, 3))))
	var got bpf.XDPBermStunSet
	if err := k.BermStun.Lookup(stunSet(flow), &got); err != nil || got != full {
		t.Errorf("%v: a set in use became %x", err, got)
	}
	full.Cells[5] -= 40 // the seconds of one
	put(t, k.BermStun, stunSet(flow), &full)
	send(40039, check(user(ufrag(sidSix, 3))))
	if err := k.BermStun.Lookup(stunSet(flow), &got); err != nil || got.Cells[5]>>32 != flow&0xffffffff {
		t.Errorf("%v: a cell that is free was not taken: %x", err, got)
	}
}
