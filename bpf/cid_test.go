package bpf_test

import (
	"maps"
	"net/netip"
	"testing"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

// Server IDs. The rows of the services' sets name others, so that it shows who decided.
const (
	sidSix     = 0x0102 // backend6, of set4 and set6
	sidSelf    = 0x0103 // this edge
	sidLost    = 0x0104 // a backend whose next hop is not known
	sidAbroad  = 0x0105 // backend6, of neither set
	sidFour    = 0x0106 // backend4, of both
	sidNobody  = 0x0107
	sidLargest = 0x010203 // backend6, too large for the array
)

// Formats: plaintext, with a server ID of two bytes and of three.
const (
	formatTwo    = 0
	formatThree  = 2
	formatUnused = 5
	formatNone   = 7 // of connection IDs that name nobody
)

// quicWorld makes the services at UDP port 443 steer by connection ID.
func quicWorld(t *testing.T, k *kernel) {
	t.Helper()
	used := uint32(bpf.XDPBermCidFlagsBERM_CID_USED)
	put(t, k.BermCids, uint32(formatTwo), &bpf.XDPBermCid{Flags: used, ServerLen: 2, ContentLen: 8})
	put(t, k.BermCids, uint32(formatThree), &bpf.XDPBermCid{Flags: used, ServerLen: 3, ContentLen: 7})
	const sets = 1<<set4 | 1<<set6
	for id, s := range map[uint32]bpf.XDPBermSid{
		sidSix: {Backend: backend6, Sets: sets}, sidSelf: {Backend: backendSelf, Sets: sets}, sidLost: {Backend: backendLost, Sets: sets},
		sidAbroad: {Backend: backend6, Sets: 1 << setAway}, sidFour: {Backend: backend4, Sets: sets},
	} {
		put(t, k.BermSids, id, &s)
	}
	put(t, k.BermSidsLong, uint64(sidLargest), &bpf.XDPBermSid{Backend: backend6, Sets: sets})
	for _, name := range []string{"web-udp", "web6-udp"} {
		k.changeVIP(t, name, func(v *bpf.XDPBermVip) { v.Flags |= uint16(bpf.XDPBermVipFlagsBERM_VIP_QUIC) })
	}
}

// cid is a plaintext connection ID.
func cid(format byte, server, size int) []byte {
	b := []byte{format<<5 | byte(size+6)}
	for i := size - 1; i >= 0; i-- {
		b = append(b, byte(server>>(8*i)))
	}
	return append(b, 1, 2, 3, 4, 5, 6)[:1+8]
}

func two(server int) []byte   { return cid(formatTwo, server, 2) }
func three(server int) []byte { return cid(formatThree, server, 3)[:8] }

// Types of long headers.
const (
	initial   = 0xc0
	zeroRTT   = 0xd0
	handshake = 0xe0
	retry     = 0xf0
)

func long(first byte, version uint32, dcid []byte) []byte {
	b := []byte{first, byte(version >> 24), byte(version >> 16), byte(version >> 8), byte(version), byte(len(dcid))}
	b = append(append(b, dcid...), 4, 0xa, 0xb, 0xc, 0xd) // the client's own
	return append(b, make([]byte, 40)...)
}

func short(dcid []byte) []byte { return append(append([]byte{0x40}, dcid...), make([]byte, 40)...) }

// datagram carries a payload to the service of either family.
func datagram(six bool, payload []byte) []byte {
	segment := packet.UDP{Src: 40000, Dst: 443}.With(payload)
	if six {
		return eth(ip(good6, web6, packet.ProtoUDP, segment))
	}
	return eth(ip(good4, web4, packet.ProtoUDP, segment))
}

func udpFlow(six bool) uint64 {
	if six {
		return flowOf(good6, web6, 40000, 443, packet.ProtoUDP)
	}
	return flowOf(good4, web4, 40000, 443, packet.ProtoUDP)
}

// Where a datagram of a family may go: by row, and by connection ID to the other family's backend.
type ways struct{ row, cid, lost, self want }

func waysOf(six bool, in []byte) ways {
	vip, byRow, byCID := "web-udp", encap4(in, udpFlow(six)), encap6(in, udpFlow(six))
	if six {
		vip, byRow, byCID = "web6-udp", byCID, byRow
	}
	to := func(out []byte, more counts) want {
		return want{action: xdpTX, out: out, counts: counted(vip, "DELIVER", "FORWARD", more)}
	}
	lost, routed := counts{"vip/" + vip + "/cid_lost": 1}, counts{"vip/" + vip + "/cid": 1}
	return ways{
		row: to(byRow, nil), cid: to(byCID, routed), lost: to(byRow, lost),
		self: want{action: xdpPass, counts: counted(vip, "DELIVER", "LOCAL", routed)},
	}
}

func TestCIDs(t *testing.T) {
	other := map[bool]int{false: sidSix, true: sidFour} // by row each family goes to its own
	clients := []byte{0x1f, 0xfe, 1, 2, 3, 4, 5, 6}     // made up by a client
	var cases []testCase
	for _, six := range []bool{false, true} {
		add := func(name string, payload []byte, pick func(ways) want) {
			in := datagram(six, payload)
			cases = append(cases, testCase{map[bool]string{false: "IPv4, ", true: "IPv6, "}[six] + name, quicWorld, in, pick(waysOf(six, in))})
		}
		byRow, byCID := func(w ways) want { return w.row }, func(w ways) want { return w.cid }
		lost, self := func(w ways) want { return w.lost }, func(w ways) want { return w.self }
		ours := two(other[six])

		add("short header", short(ours), byCID)
		add("short header, to this edge", short(two(sidSelf)), self)
		add("short header, three bytes of server ID", short(three(sidLargest)), map[bool]func(ways) want{false: byCID, true: byRowOf6}[six])
		add("short header, backend not ready", short(two(sidLost)), lost)
		add("short header, server ID of nobody", short(two(sidNobody)), lost)
		add("short header, server ID of another set", short(two(sidAbroad)), lost)
		add("short header, unknown large server ID", short(three(sidLargest+1)), lost)
		add("short header, unused format", short(cid(formatUnused, other[six], 2)), lost)
		add("short header, ID that names nobody", short(cid(formatNone, other[six], 2)), lost)
		add("short header, fixed bit unset", append([]byte{0}, short(ours)[1:]...), byCID)
		add("short header, as long as must be", short(ours)[:21], byCID)
		add("short header, cut", short(ours)[:20], byRow)
		add("nothing", nil, byRow)
		add("one byte", []byte{0x40}, byRow)

		for name, first := range map[string]byte{"Initial": initial, "0-RTT": zeroRTT, "Handshake": handshake, "Retry": retry} {
			for v, version := range map[string]uint32{"1": 1, "2": 0x6b3343cf, "unknown": 0x1a2a3a4a, "negotiation": 0} {
				add(name+" of version "+v, long(first, version, ours), byCID)
				add(name+" of version "+v+", client's ID", long(first, version, clients), byRow)
			}
		}
		add("Initial, to this edge", long(initial, 1, two(sidSelf)), self)
		add("Initial, backend not ready", long(initial, 1, two(sidLost)), lost)
		add("Initial, client's ID of our length", long(initial, 1, append([]byte{}, clients[0], clients[1], 0, 0, 0, 0, 0, 0, 0)), byRow)
		add("Initial, no ID", long(initial, 1, nil), byRow)
		add("Initial, ID longer than the format's", long(initial, 1, append(two(other[six]), 7)), byRow)
		add("Initial, ID shorter than the format's", long(initial, 1, ours[:8]), byRow)
		add("Initial, ID longer than there can be", mutate(long(initial, 1, ours), func(b []byte) { b[5] = 255 }), byRow)
		add("Initial, cut", long(initial, 1, ours)[:25], byRow)
		add("Initial, as long as must be", long(initial, 1, ours)[:26], byCID)
		add("Initial before a short header", append(long(initial, 1, ours), short(two(sidSelf))...), byCID)
		add("client's Initial before a short header", append(long(initial, 1, clients), short(ours)...), byRow)
	}
	runCases(t, cases)
}

// byRowOf6: the large server ID is backend6's, to which an IPv6 flow's row leads as well.
func byRowOf6(w ways) want {
	w.row.counts = maps.Clone(w.row.counts)
	w.row.counts["vip/web6-udp/cid"] = 1
	return w.row
}

// What stands between the frame's start and the UDP payload, and what is no QUIC packet at all.
func TestCIDsBehindHeaders(t *testing.T) {
	segment := packet.UDP{Src: 40000, Dst: 443}.With(short(two(sidSix)))
	segment6 := packet.UDP{Src: 40000, Dst: 443}.With(short(two(sidFour)))
	var cases []testCase
	add := func(name string, six bool, in []byte, pick func(ways) want) {
		cases = append(cases, testCase{name, quicWorld, in, pick(waysOf(six, in))})
	}
	byCID := func(w ways) want { return w.cid }
	add("IPv4 options", false, eth(packet.IPv4{Src: good4, Dst: web4, Proto: packet.ProtoUDP, Options: make([]byte, 40)}.With(segment)), byCID)
	tagged := packet.Ethernet{Tags: []packet.Tag{{Type: packet.TypeQinQ, TCI: 5}, {Type: packet.TypeVLAN, TCI: 9}}}
	add("two tags", false, tagged.With(ip(good4, web4, packet.ProtoUDP, segment)), byCID)
	add("IPv6 extension headers", true, eth(ip(good6, web6, packet.HopByHop, packet.Extension(packet.DestOpts, 1, packet.Extension(packet.ProtoUDP, 0, segment6)))), byCID)
	add("IPv6 extension headers behind a tag", true, packet.Ethernet{Tags: []packet.Tag{{Type: packet.TypeVLAN, TCI: 9}}}.With(
		ip(good6, web6, packet.HopByHop, packet.Extension(packet.ProtoUDP, 3, segment6))), byCID)

	in := datagram(false, short(two(sidSix)))
	cases = append(cases,
		testCase{"the service does not steer by ID", func(t *testing.T, k *kernel) {
			quicWorld(t, k)
			k.changeVIP(t, "web-udp", func(v *bpf.XDPBermVip) { v.Flags &^= uint16(bpf.XDPBermVipFlagsBERM_VIP_QUIC) })
		}, in, waysOf(false, in).row},
		testCase{"the service has no set", both(quicWorld, inSet("web-udp", setNone)), in, local("web-udp")},
		testCase{"policy comes first", both(quicWorld, func(t *testing.T, k *kernel) {
			k.setRecord(t, recordGood, bpf.XDPBermPrefixRecord{Country: countryBad})
		}), in, dropped("web-udp", "GEO", "GEO")},
		quotedCase(),
		fragmentCase(),
		tunnelCase(),
	)
	runCases(t, cases)
}

// quotedCase: an ICMP error goes by the row of the flow that it quotes, whatever its bytes say.
func quotedCase() testCase {
	quote := packet.IPv4{Src: web4, Dst: good4, Proto: packet.ProtoUDP}.With(packet.UDP{Src: 443, Dst: 40000}.With(short(two(sidSelf))))
	in := eth(ip(netip.MustParseAddr("198.51.100.1"), web4, packet.ICMP, packet.ICMPMessage(3, 4, quote)))
	return testCase{"ICMP error", quicWorld, in, forwarded(in, "web-udp", udpFlow(false))}
}

// fragmentCase: fragments go by the row of the bare address.
func fragmentCase() testCase {
	in := eth(packet.IPv4{Src: good4, Dst: web4, Proto: packet.ProtoUDP, Frag: packet.MF}.With(
		packet.UDP{Src: 40000, Dst: 443}.With(short(two(sidSelf))[:40])))
	return testCase{"fragment", quicWorld, in, forwarded(in, "web-addr", flowOf(good4, web4, 0, 0, packet.ProtoUDP))}
}

// tunnelCase: what a peer has steered stays here, whomever its ID names.
func tunnelCase() testCase {
	in := datagram(false, short(two(sidSix)))
	frame := eth(tunnel(in[14:], udpFlow(false), baseConfig.TagSecrets[0]))
	return testCase{"from a peer", func(t *testing.T, k *kernel) {
		quicWorld(t, k)
		peers(t, k)
	}, frame, want{
		action: xdpPass, out: l2of(frame, in[14:]), bytes: len(in) - 14, counts: counted("web-udp", "DELIVER", "DECAP", nil),
	}}
}
