package bpf_test

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

// host is a network namespace with a listener, whose kernel makes cookies.
type host struct{ ns int }

// newHost makes a host that listens on port 443 of both families.
func newHost(t *testing.T) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		Require(t, errors.New("needs root, for a network namespace"))
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home := openNS(t)
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal("new network namespace:", err)
	}
	h := &host{ns: openNS(t)}
	defer func() {
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			panic(err) // the thread would run other tests in there
		}
	}()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", ":443")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	sysctl(t, "tcp_syncookies", "2")
	return h
}

func openNS(t *testing.T) int {
	t.Helper()
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// sysctl sets one of the namespace that the thread is in.
func sysctl(t *testing.T, name, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0o600); err != nil {
		t.Fatal(err)
	}
}

// enter puts the test's thread into the host until the test ends: a test run's packets arrive in the namespace of
// whoever asks for it.
func (h *host) enter(t *testing.T, _ *kernel) {
	t.Helper()
	runtime.LockOSThread()
	home := openNS(t)
	if err := unix.Setns(h.ns, unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			panic(err)
		}
		runtime.UnlockOSThread()
	})
}

// gated makes services of this host, with a gate.
func gated(gate bpf.XDPBermGate, names ...string) func(*testing.T, *kernel) {
	return func(t *testing.T, k *kernel) {
		for _, name := range names {
			k.changeVIP(t, name, func(v *bpf.XDPBermVip) {
				v.Set = setSelf
				v.Flags |= uint16(bpf.XDPBermVipFlagsBERM_VIP_GATE | bpf.XDPBermVipFlagsBERM_VIP_GUARD)
			})
			put(t, k.BermGates, vipIDs[name], &gate)
		}
	}
}

const (
	gateAuto = uint8(bpf.XDPBermGateModeBERM_GATE_AUTO)
	gateOn   = uint8(bpf.XDPBermGateModeBERM_GATE_ON)
)

func replying(r bpf.XDPBermReply) func(*testing.T, *kernel) {
	return func(t *testing.T, k *kernel) { put(t, k.BermReply, uint32(0), &r) }
}

const (
	synSeq   = 0xfffffffe // so that the answer's wraps
	synStamp = 0x01020304
)

// TCP options.
var (
	optMSS    = []byte{2, 4, 5, 180} // 1460
	optSACK   = []byte{4, 2}
	optTime   = []byte{8, 10, 1, 2, 3, 4, 0, 0, 0, 0}
	optWScale = []byte{3, 3, 7}
	nop       = []byte{1}
	linux     = slices.Concat(optMSS, optSACK, optTime, nop, optWScale)
)

// syn is a SYN from port 40000 to port 443, as an IP packet.
func syn(six bool, options []byte, body ...byte) []byte {
	tcp := packet.TCP{Src: 40000, Dst: 443, Flags: packet.SYN, Options: options}.With(body)
	binary.BigEndian.PutUint32(tcp[4:], synSeq)
	if six {
		return ip(good6, web6, packet.ProtoTCP, tcp)
	}
	return ip(good4, web4, packet.ProtoTCP, tcp)
}

// synAck is what answers it, without cookie and time of the cookie.
func synAck(six bool, mss uint16, options []byte) []byte {
	tcp := packet.TCP{Src: 443, Dst: 40000, Flags: packet.SYN | packet.ACK, Options: append([]byte{2, 4, byte(mss >> 8), byte(mss)}, options...)}.With(nil)
	binary.BigEndian.PutUint32(tcp[8:], (synSeq+1)&0xffffffff)
	binary.BigEndian.PutUint16(tcp[14:], 29200)
	if six {
		return packet.IPv6{Src: web6, Dst: good6, Next: packet.ProtoTCP}.With(tcp)
	}
	return packet.IPv4{Src: web4, Dst: good4, Proto: packet.ProtoTCP, Frag: packet.DF}.With(tcp)
}

// back is a frame the other way.
func back(frame []byte, p []byte) []byte {
	out := l2of(frame, p)
	copy(out, frame[6:12])
	copy(out[6:], frame[0:6])
	return out
}

// checkAnswer runs a SYN and compares the answer, whose cookie and stamp only the kernel knows: its checksum must be
// right with them, and stamp must say what is in the stamp's low bits. It returns the cookie.
func (k *kernel) checkAnswer(t *testing.T, in []byte, action uint32, want []byte, bytes int, vip string, stamp int) uint32 {
	t.Helper()
	before := k.counters(t)
	got, out := run(t, k.XdpBermAt, in)
	if got != action || len(out) != len(want) {
		t.Fatalf("action %d, want %d\n got %x\nwant %x", got, action, out, want)
	}
	tcp := out[l3(out)+20:]
	if out[l3(out)]>>4 == 6 {
		tcp = out[l3(out)+40:]
	}
	cookie := binary.BigEndian.Uint32(tcp[4:])
	if sum := tcpSum(out[l3(out):]); sum != 0xffff {
		t.Errorf("TCP checksum of %x", out)
	}
	if stamp >= 0 {
		v := binary.BigEndian.Uint32(tcp[28:])
		if now := uint32(1_000_000); int(v&63) != stamp || now-v > 64 { // the world's clock is at 1000 s
			t.Errorf("stamp %d at %d says %#x, want %#x", v, now, v&63, stamp)
		}
		clear(tcp[28:32])
	}
	clear(tcp[4:8])
	clear(tcp[16:18])
	k.compare(t, before, out, want, tally{1, uint64(bytes)}, counted(vip, "GATE", "ANSWER", nil))
	return cookie
}

// compare is the rest of check.
func (k *kernel) compare(t *testing.T, before map[string]tally, out, want []byte, each tally, counts counts) {
	t.Helper()
	if !slices.Equal(out, want) {
		t.Errorf("frame\n got %x\nwant %x", out, want)
	}
	diff := moved(before, k.counters(t))
	for name, n := range counts {
		if diff[name] != (tally{n, n * each.bytes}) {
			t.Errorf("%s moved by %v, want %d of %d bytes", name, diff[name], n, each.bytes)
		}
		delete(diff, name)
	}
	for name, n := range diff {
		t.Errorf("%s moved by %v", name, n)
	}
}

// tcpSum is the checksum over a TCP packet with its pseudo-header: 0xffff when right.
func tcpSum(p []byte) uint32 {
	addresses, tcp := p[12:20], p[20:]
	if p[0]>>4 == 6 {
		addresses, tcp = p[8:40], p[40:]
	}
	sum := uint32(packet.ProtoTCP) + uint32(len(tcp))
	for _, b := range [][]byte{addresses, tcp} {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return sum
}

// name4 is a service of either family.
func nameOf(six bool) string {
	if six {
		return "web6"
	}
	return "web"
}

// A SYN becomes its answer, in place.
func TestSynCookies(t *testing.T) {
	h := newHost(t)
	on := gated(bpf.XDPBermGate{Cookies: gateOn}, "web", "web6")
	mss := replying(bpf.XDPBermReply{Mss4: 1440, Mss6: 1420})
	options := replying(bpf.XDPBermReply{
		Mss4: 1440, Mss6: 1420, WindowScale: 9, Flags: uint8(bpf.XDPBermReplyFlagsBERM_REPLY_OPTIONS),
	})
	stamped := func(head, tail []byte) []byte {
		return slices.Concat(head, []byte{8, 10, 0, 0, 0, 0, 1, 2, 3, 4}, tail)
	}
	scale, none := []byte{1, 3, 3, 9}, []byte{1, 1, 1, 1}
	for _, c := range []struct {
		name    string
		setup   func(*testing.T, *kernel)
		options []byte
		want    []byte // options of the answer, without its MSS
		stamp   int
	}{
		{"as Linux sends it, plain", mss, linux, nil, -1},
		{"without options", mss, nil, nil, -1},
		{"as Linux sends it", options, linux, stamped([]byte{4, 2}, scale), 16 | 7},
		{"no SACK", options, slices.Concat(optMSS, nop, optWScale, optTime, nop, nop), stamped([]byte{1, 1}, scale), 7},
		{"no window scale", options, slices.Concat(optMSS, optTime, optSACK), stamped([]byte{4, 2}, none), 16 | 15},
		{"a window scale above 14", options, slices.Concat(optTime, []byte{3, 3, 200}, optSACK, nop), stamped([]byte{4, 2}, scale), 16 | 14},
		{"no timestamp", options, slices.Concat(optMSS, optSACK, nop, optWScale, nop, nop), nil, -1},
		{"options after the end", options, slices.Concat(optMSS, []byte{0}, optTime, nop), nil, -1},
		{"an option of length 0", options, slices.Concat([]byte{254, 0}, optTime), nil, -1},
		{"an option of length 1", options, slices.Concat([]byte{254, 1}, optTime), nil, -1},
		{"an option that is longer than the header", options, []byte{8, 11, 0, 0}, nil, -1},
		{"an option without its length", options, []byte{1, 1, 1, 8}, nil, -1},
		{"timestamps of another length", options, []byte{8, 9, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, nil, -1},
		{"others between", options, slices.Concat([]byte{253, 6, 1, 2, 3, 4}, optTime), stamped([]byte{1, 1}, none), 15},
		{"forty bytes", options, slices.Concat(make4(1, 28), optTime, nop, nop), stamped([]byte{1, 1}, none), 15},
	} {
		for _, six := range []bool{false, true} {
			t.Run(c.name, func(t *testing.T) {
				k := newKernel(t)
				both(h.enter, on, c.setup)(t, k)
				inner := syn(six, c.options)
				announce := uint16(1440)
				if six {
					announce = 1420
				}
				in := eth(inner)
				k.checkAnswer(t, in, xdpTX, back(in, synAck(six, announce, c.want)), len(inner), nameOf(six), c.stamp)
			})
		}
	}
}

func make4(b byte, n int) []byte { return slices.Repeat([]byte{b}, n) }

// Frames of every kind, and hosts that know less.
func TestSynCookieFrames(t *testing.T) {
	h := newHost(t)
	on := gated(bpf.XDPBermGate{Cookies: gateOn}, "web", "web6")
	via := bpf.XDPBermReply{Mss4: 1440, Mss6: 1420}
	via.Via4.Mac, via.Via4.SrcMac, via.Via4.Ifindex = [6]byte{2, 9, 0, 0, 0, 4}, [6]byte{2, 9, 0, 0, 0, 1}, 1 // of lo, where test runs come in
	via.Via6.Mac, via.Via6.SrcMac, via.Via6.Ifindex = [6]byte{2, 9, 0, 0, 0, 6}, [6]byte{2, 9, 0, 0, 0, 1}, 4242
	routed := func(frame []byte) []byte { // as via addresses it
		out := slices.Clone(frame)
		if out[l3(out)]>>4 == 4 {
			copy(out, []byte{2, 9, 0, 0, 0, 4, 2, 9, 0, 0, 0, 1})
		} else {
			copy(out, []byte{2, 9, 0, 0, 0, 6, 2, 9, 0, 0, 0, 1})
		}
		return out
	}
	four, six := syn(false, linux), syn(true, linux)
	ack4, ack6 := synAck(false, 1440, nil), synAck(true, 1420, nil)
	vlan := packet.Ethernet{Tags: []packet.Tag{{Type: packet.TypeQinQ, TCI: 5}, {Type: packet.TypeVLAN, TCI: 77}}}
	secret := baseConfig.TagSecrets[0]
	for _, c := range []struct {
		name   string
		setup  func(*testing.T, *kernel)
		in     []byte
		action uint32
		want   []byte
		bytes  int
	}{
		{"in two VLANs", nothing, vlan.With(four), xdpTX, back(vlan.With(four), ack4), len(four)},
		{"in two VLANs, IPv6", nothing, vlan.With(six), xdpTX, back(vlan.With(six), ack6), len(six)},
		{"with data", nothing, eth(syn(false, linux, payload...)), xdpTX, back(eth(four), ack4), len(four) + len(payload)},
		{"padded", nothing, append(eth(syn(false, nil)), 0, 0, 0, 0, 0, 0), xdpTX, back(eth(four), ack4), 40},
		{"no MSS of ours", replying(bpf.XDPBermReply{}), eth(four), xdpTX, back(eth(four), synAck(false, 536, nil)), len(four)},
		{"no MSS of ours, IPv6", replying(bpf.XDPBermReply{}), eth(six), xdpTX, back(eth(six), synAck(true, 1220, nil)), len(six)},
		{"IPv4 in IPv4", peers, eth(tunnel(four, flow4, secret)), xdpTX, routed(eth(ack4)), len(four)},
		{"IPv4 in IPv6", peers, eth(tunnel6(four, flow4, secret)), xdpTX, routed(eth(ack4)), len(four)},
		{"IPv6 in IPv4, out of another interface", peers, eth(tunnel(six, flow6, secret)), xdpRedirect, routed(eth(ack6)), len(six)},
		{"IPv6 in IPv6, out of another interface", peers, eth(tunnel6(six, flow6, secret)), xdpRedirect, routed(eth(ack6)), len(six)},
		{"tunnelled in a VLAN", peers, vlan.With(tunnel(four, flow4, secret)), xdpTX, routed(vlan.With(ack4)), len(four)},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newKernel(t)
			both(h.enter, on, replying(via), c.setup)(t, k)
			name := nameOf(c.want[l3(c.want)]>>4 == 6)
			k.checkAnswer(t, c.in, c.action, c.want, c.bytes, name, -1)
		})
	}

	decapped := func(frame, inner []byte) want {
		return want{action: xdpPass, out: l2of(frame, inner), counts: counted("web", "DELIVER", "DECAP", nil), bytes: len(inner)}
	}
	cookies := func(v string) func(*testing.T, *kernel) {
		return func(t *testing.T, _ *kernel) {
			sysctl(t, "tcp_syncookies", v)
			t.Cleanup(func() { sysctl(t, "tcp_syncookies", "2") })
		}
	}
	other := func(port uint16, flags byte) []byte {
		return eth(ip(good4, web4, packet.ProtoTCP, packet.TCP{Src: 40000, Dst: port, Flags: flags}.With(nil)))
	}
	tunnelled := eth(tunnel(four, flow4, secret))
	var cases []testCase
	for _, c := range []testCase{
		{"the way back is not known", both(peers, replying(bpf.XDPBermReply{})), tunnelled, decapped(tunnelled, four)},
		{"the kernel makes no cookies", cookies("0"), eth(four), local("web")},
		{"the kernel makes cookies only when overflowing", cookies("1"), eth(four), local("web")},
		{"not a SYN", nothing, other(443, packet.ACK), local("web")},
		{"a SYN-ACK", nothing, other(443, packet.SYN|packet.ACK), local("web")},
		{"IPv4 options", nothing, eth(packet.IPv4{Src: good4, Dst: web4, Proto: packet.ProtoTCP, Options: make4(1, 4)}.With(four[20:])), local("web")},
		{"IPv6 extension headers", nothing, eth(packet.IPv6{Src: good6, Dst: web6, Next: packet.DestOpts}.With(packet.Extension(packet.ProtoTCP, 0, six[40:]))), local("web6")},
		{"off", gated(bpf.XDPBermGate{}, "web"), eth(four), local("web")},
		{"another's flow", inSet("web", set4), eth(four), forwarded(eth(four), "web", flow4)},
		{"SYN and FIN, observed only", observing, other(443, packet.SYN|packet.FIN), shadowed(local("web"), "web", "PARSE", "BAD_TCP_FLAGS")},
	} {
		c.setup = both(h.enter, on, replying(via), c.setup)
		cases = append(cases, c)
	}
	nobody := both(h.enter, gated(bpf.XDPBermGate{Cookies: gateOn}, "strict"))
	runCases(t, append(cases, testCase{"nobody listens", nobody, tcpTo(good4, strict, 80, packet.SYN), local("strict")}))
}

// At most so many SYNs a second are let through, then each is answered; once they have been below half of that for
// long enough, they are let through again. The neighbour does not notice.
func TestGateAuto(t *testing.T) {
	h := newHost(t)
	for _, six := range []bool{false, true} {
		k := newKernel(t)
		gate := bpf.XDPBermGate{Cookies: gateAuto}
		gate.Syns.Cost, gate.Syns.BurstUnits = limit(1000, 100)
		both(h.enter, gated(gate, "web", "web6", "shadow"))(t, k)
		in := eth(syn(six, linux))
		neighbour := tcpTo(good4, shadow, 443, packet.SYN)
		now := uint64(2_000_000_000_000)
		// send gives so many SYNs, a millisecond divided by perMS apart, and returns how many were answered.
		send := func(frame []byte, n int, perMS uint64) (answered int) {
			for i := range n {
				k.at(t, now+uint64(i)*1_000_000/perMS)
				if action, _ := run(t, k.XdpBermAt, frame); action == xdpTX {
					answered++
				}
			}
			now += uint64(n) * 1_000_000 / perMS
			return answered
		}
		if n := send(in, 2000, 1); n != 0 {
			t.Errorf("IPv6 %v: %d of 2000 SYNs at the limit were answered", six, n)
		}
		// At four times the limit, the burst of 100 is used up after 100/3 ms.
		if n := send(in, 4000, 4); n < 3800 || n > 3900 {
			t.Errorf("IPv6 %v: %d of 4000 SYNs at four times the limit were answered, want about 3866", six, n)
		}
		if n := send(neighbour, 100, 1); n != 0 {
			t.Errorf("IPv6 %v: %d of the neighbour's SYNs were answered", six, n)
		}
		if n := send(in, 6000, 1); n != 6000 { // at the limit: above half of it
			t.Errorf("IPv6 %v: %d of 6000 SYNs at the limit were answered while the gate was shut", six, n)
		}
		k.at(t, now)
		for range 2 {
			now += 2_400_000_000
			if n := send(in, 1, 1); n != 1 {
				t.Errorf("IPv6 %v: the gate opened too early", six)
			}
		}
		now += 300_000_000
		if n := send(in, 90, 1); n != 0 {
			t.Errorf("IPv6 %v: %d of 90 SYNs were answered after the gate should have opened", six, n)
		}
		var state bpf.XDPBermGateState
		if err := k.BermGateStates.Lookup(vipIDs[nameOf(six)], &state); err != nil {
			t.Fatal(err)
		}
		if state.Syns.OverNs == 0 || state.Syns.OverNs > now {
			t.Errorf("IPv6 %v: over at %d, now is %d", six, state.Syns.OverNs, now)
		}
	}
}

// Always on, the gauge still says whether there is a flood.
func TestGateOn(t *testing.T) {
	h := newHost(t)
	k := newKernel(t)
	gate := bpf.XDPBermGate{Cookies: gateOn}
	gate.Syns.Cost, gate.Syns.BurstUnits = limit(1000, 10)
	both(h.enter, gated(gate, "web"))(t, k)
	for i := range 20 {
		if action, _ := run(t, k.XdpBermAt, eth(syn(false, linux))); action != xdpTX {
			t.Fatalf("SYN %d: action %d", i, action)
		}
	}
	var state bpf.XDPBermGateState
	if err := k.BermGateStates.Lookup(vipIDs["web"], &state); err != nil {
		t.Fatal(err)
	}
	if state.Syns.OverNs != 1_000_000_000_000 {
		t.Errorf("over at %d, want the test's time", state.Syns.OverNs)
	}
}

// longHeader is a QUIC packet of so many bytes with a long header, to port 443.
func longHeader(six bool, first byte, version uint32, idLen byte, size int) []byte {
	b := make([]byte, max(size, 6))
	b[0], b[5] = first, idLen
	binary.BigEndian.PutUint32(b[1:], version)
	return quicTo(six, b[:size])
}

func quicTo(six bool, b []byte) []byte {
	udp := packet.UDP{Src: 40000, Dst: 443}.With(b)
	if six {
		return eth(ip(good6, web6, packet.ProtoUDP, udp))
	}
	return eth(ip(good4, web4, packet.ProtoUDP, udp))
}

func TestBadInitials(t *testing.T) {
	drop := gated(bpf.XDPBermGate{BadInitial: actDrop}, "web-udp", "web6-udp")
	var list []refusal
	for _, six := range []bool{false, true} {
		name, in := "web-udp", longHeader(six, 0xc0, 1, 8, 1199)
		if six {
			name = "web6-udp"
		}
		list = append(list, refusal{
			"Initial too small", "GATE", "BAD_INITIAL", name, bpf.XDPBermDropBERM_DROP_BAD_INITIAL, in, drop,
			gated(bpf.XDPBermGate{BadInitial: actShadow}, name), local(name),
		})
	}
	runForms(t, list)
	var cases []testCase
	const v1, v2 = 1, 0x6b3343cf
	for _, six := range []bool{false, true} {
		name := map[bool]string{false: "web-udp", true: "web6-udp"}[six]
		for _, c := range []struct {
			name string
			in   []byte
			bad  bool
		}{
			{"Initial", longHeader(six, 0xc0, v1, 8, 1200), false},
			{"Initial, all bits that vary", longHeader(six, 0xcf, v1, 20, 1200), false},
			{"Initial of version 2", longHeader(six, 0xd0, v2, 8, 1200), false},
			{"Initial of version 2, small", longHeader(six, 0xd0, v2, 8, 1199), true},
			{"0-RTT", longHeader(six, 0xd0, v1, 8, 100), false},
			{"Handshake", longHeader(six, 0xe0, v1, 8, 40), false},
			{"Retry of version 2 from a client", longHeader(six, 0xc0, v2, 8, 100), false},
			{"another version", longHeader(six, 0xc0, 0xbabababa, 8, 1200), false},
			{"another version, small", longHeader(six, 0xc0, 0xbabababa, 8, 1199), true},
			{"another version, no fixed bit", longHeader(six, 0x80, 0xbabababa, 8, 1200), false},
			{"no fixed bit", longHeader(six, 0x80, v1, 8, 1200), true},
			{"version negotiation", longHeader(six, 0xc0, 0, 8, 1200), true},
			{"a short ID, of the server's", longHeader(six, 0xc0, v1, 4, 1200), false},
			{"ID too long", longHeader(six, 0xe0, v1, 21, 1200), true},
			{"cut off in the header", longHeader(six, 0xc0, v1, 8, 5), true},
			{"empty", quicTo(six, nil), true},
			{"short header", quicTo(six, []byte{0x40}), false},
			{"short header without the fixed bit", quicTo(six, []byte{0, 1, 2}), false},
		} {
			w := local(name)
			if c.bad {
				w = dropped(name, "GATE", "BAD_INITIAL")
			}
			cases = append(cases, testCase{name + ": " + c.name, drop, c.in, w})
		}
		inner := longHeader(six, 0xc0, v1, 8, 1199)
		flow := flowOf(good4, web4, 40000, 443, udp)
		if six {
			flow = flowOf(good6, web6, 40000, 443, udp)
		}
		cases = append(cases,
			testCase{
				name + ": tunnelled", both(drop, peers), eth(tunnel(inner[14:], flow, baseConfig.TagSecrets[0])),
				withBytes(dropped(name, "GATE", "BAD_INITIAL"), len(inner)-14),
			},
			testCase{name + ": not judged", gated(bpf.XDPBermGate{Retry: gateAuto}, name), inner, local(name)},
		)
	}
	runCases(t, cases)
}

// Initials are counted where Retry is automatic, and nothing else is.
func TestInitialGauge(t *testing.T) {
	for _, six := range []bool{false, true} {
		k := newKernel(t)
		name := map[bool]string{false: "web-udp", true: "web6-udp"}[six]
		gate := bpf.XDPBermGate{Retry: gateAuto}
		gate.Initials.Cost, gate.Initials.BurstUnits = limit(1000, 10)
		gated(gate, name)(t, k)
		over := func() uint64 {
			var s bpf.XDPBermGateState
			if err := k.BermGateStates.Lookup(vipIDs[name], &s); err != nil {
				t.Fatal(err)
			}
			return s.Initials.OverNs
		}
		for range 20 {
			run(t, k.XdpBermAt, longHeader(six, 0xe0, 1, 8, 1200)) // Handshake packets
		}
		for range 10 {
			run(t, k.XdpBermAt, longHeader(six, 0xc0, 1, 8, 1200))
		}
		if n := over(); n != 0 {
			t.Errorf("IPv6 %v: over at %d with ten Initials", six, n)
		}
		if action, _ := run(t, k.XdpBermAt, longHeader(six, 0xc0, 1, 8, 1200)); action != xdpPass {
			t.Errorf("IPv6 %v: an Initial above the limit ended as %d", six, action)
		}
		if n := over(); n != 1_000_000_000_000 {
			t.Errorf("IPv6 %v: over at %d with eleven", six, n)
		}
	}
}

func TestAmplified(t *testing.T) {
	from := func(src, dst netip.Addr, port uint16) []byte {
		return eth(ip(src, dst, packet.ProtoUDP, packet.UDP{Src: port, Dst: 443}.With(payload)))
	}
	four, six := from(good4, web4, 53), from(good6, web6, 11211)
	guarded := func(action uint8, names ...string) func(*testing.T, *kernel) {
		return gated(bpf.XDPBermGate{Amplified: action}, names...)
	}
	runForms(t, []refusal{
		{"DNS, IPv4", "GATE", "AMPLIFIED", "web-udp", bpf.XDPBermDropBERM_DROP_AMPLIFIED, four, guarded(actDrop, "web-udp"), guarded(actShadow, "web-udp"), local("web-udp")},
		{"memcached, IPv6", "GATE", "AMPLIFIED", "web6-udp", bpf.XDPBermDropBERM_DROP_AMPLIFIED, six, guarded(actDrop, "web6-udp"), guarded(actShadow, "web6-udp"), local("web6-udp")},
	})
	var cases []testCase
	for _, port := range []uint16{17, 19, 53, 111, 123, 137, 161, 389, 520, 1900, 3283, 3702, 5353, 10001, 11211, 37810} {
		cases = append(cases, testCase{"an amplifier's port", guarded(actDrop, "web-udp"), from(good4, web4, port), dropped("web-udp", "GATE", "AMPLIFIED")})
	}
	for _, port := range []uint16{1, 443, 1024, 54, 40000, 65535} {
		cases = append(cases, testCase{"a client's port", guarded(actDrop, "web-udp"), from(good4, web4, port), local("web-udp")})
	}
	trusted := four[14:]
	cases = append(cases,
		testCase{"a service that does not mind", guarded(0, "web-udp"), four, local("web-udp")},
		testCase{"a neighbour", guarded(actDrop, "web6-udp"), four, forwarded(four, "web-udp", flowOf(good4, web4, 53, 443, udp))},
		testCase{"judged at the first hop", both(guarded(actDrop, "web-udp"), peers), eth(tunnel(trusted, flowOf(good4, web4, 53, 443, udp), baseConfig.TagSecrets[0])), want{
			action: xdpPass, out: eth(trusted), bytes: len(trusted), counts: counted("web-udp", "DELIVER", "DECAP", nil),
		}},
	)
	runCases(t, cases)
}
