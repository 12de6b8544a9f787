package bpf_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

// FuzzXDP gives the program whatever comes to mind and checks what must hold for every frame:
// it is never aborted; one that is not for us leaves as it came; one that is sent on has its
// inner packet unchanged behind an outer header with the right lengths and checksum; and the
// same frame has the same owner.
func FuzzXDP(f *testing.F) {
	for _, m := range mutations() {
		f.Add(m.in)
	}
	fuzzWorld = false // other tests have changed it
	f.Add(good(false))
	f.Add(good(true))
	f.Add(eth(tunnel(good(false)[14:], flow4, baseConfig.TagSecrets[0])))
	f.Add(eth(tunnel6(good(true)[14:], flow6, baseConfig.TagSecrets[0])))
	f.Add(eth(chance(good(false)[14:], flow4, baseConfig.TagSecrets[0])))
	f.Add(tcpTo(good4, shadow, 443, packet.ACK))
	for hops := range 4 {
		f.Add(eth(farTunnel(good(true)[14:], flow6, false, hops, false)))
		f.Add(eth(farTunnel(tcpTo(good4, shadow, 443, packet.ACK)[14:], flowOf(good4, shadow, 40000, 443, packet.ProtoTCP), true, hops, hops%2 == 0)))
	}
	f.Add(packet.Ethernet{Tags: []packet.Tag{{Type: packet.TypeQinQ, TCI: 1}, {Type: packet.TypeVLAN, TCI: 2}}}.With(good(true)[14:]))
	for _, six := range []bool{false, true} {
		request, _ := echoes(six, payload)
		f.Add(eth(request))
	}
	f.Add(eth(ip(good6, web6, packet.HopByHop, packet.Extension(packet.Fragment, 1, packet.Fragment6(packet.ProtoUDP, 8, true, payload)))))
	for id := range byte(8) {
		long := append([]byte{0xc0, 0, 0, 0, 1, 17 + 3*(id&1), id << 5}, make([]byte, 60)...)
		f.Add(eth(ip(good4, web4, packet.ProtoUDP, packet.UDP{Src: 40000, Dst: 443}.With(long))))
		f.Add(eth(ip(good6, web6, packet.ProtoUDP, packet.UDP{Src: 40000, Dst: 443}.With(append([]byte{0x40, id << 5}, make([]byte, 60)...)))))
	}
	f.Add(datagram(false, check(user(ufrag(sidSix, 1)))))
	f.Add(datagram(true, check(attribute(0x8022, []byte("software")), user(ufrag(sidFour, 2)))))
	f.Add(eth(ip(good4, web4, packet.ICMP, packet.ICMPMessage(3, 4, ip(web4, good4, packet.ProtoTCP, payload)))))

	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 14 || len(frame) > 1500 {
			return // the kernel refuses to run these
		}
		frame = repair(frame)
		k := fuzzKernel(t)
		for _, flags := range []uint32{0, uint32(bpf.XDPBermConfigFlagsBERM_CONFIG_OBSERVE_ONLY)} {
			k.configure(t, func(c *bpf.XDPBermConfig) { c.Flags = flags })
			action, out := run(t, k.XdpBermAt, frame)
			checkInvariants(t, frame, action, out)
			again, out2 := run(t, k.XdpBermAt, frame)
			if again != action || !bytes.Equal(out, out2) {
				t.Errorf("the same frame ended as %d and then as %d\n%x\n%x\n%x", action, again, frame, out, out2)
			}
			if action == xdpTX && !isTunnel(frame) {
				checkOwner(t, k, frame, out)
			}
		}
	})
}

// fuzzWorld is whether the world is set up: nothing that a frame does changes it.
var fuzzWorld bool

func fuzzKernel(t *testing.T) *kernel {
	if !fuzzWorld {
		k := newKernel(t)
		peers(t, k)
		quicWorld(t, k)
		for id, flags := range map[uint32]bpf.XDPBermCidFlags{3: bpf.XDPBermCidFlagsBERM_CID_BLOCK, 4: bpf.XDPBermCidFlagsBERM_CID_FEISTEL} {
			// Any keys do: what comes out is a server ID, of somebody or nobody.
			put(t, k.BermCids, id, &bpf.XDPBermCid{Flags: uint32(flags | bpf.XDPBermCidFlagsBERM_CID_USED), ServerLen: 1, ContentLen: 16 + uint8(id-3)*3})
		}
		for id := range uint32(256) {
			put(t, k.BermSids, id, &bpf.XDPBermSid{Backend: backend4 + id%2, Sets: ^uint64(0)})
		}
		for _, name := range []string{"web-udp", "web6-udp"} {
			k.changeVIP(t, name, func(v *bpf.XDPBermVip) { v.Flags |= uint16(bpf.XDPBermVipFlagsBERM_VIP_STUN) })
		}
		inSet("shadow", setMoved4)(t, loaded)
		for _, name := range []string{"shadow", "web6", "web6-udp"} {
			k.changeVIP(t, name, func(v *bpf.XDPBermVip) {
				v.Flags, v.CarrySet, v.CarryHops, v.SpillSet, v.Spill = v.Flags|vipSites, setFar4, 3, setFar6, 20000
			})
		}
		fuzzWorld = true
	}
	return loaded
}

// repair puts the IPv4 checksum right half of the time: else no mutation gets past it.
func repair(frame []byte) []byte {
	at := l3(frame)
	if len(frame)%2 == 0 && len(frame) >= at+20 && frame[at]>>4 == 4 && frame[at]&15 >= 5 && len(frame) >= at+int(frame[at]&15)*4 {
		return mutate(frame, func(b []byte) { packet.Sum4(b[at:]) })
	}
	return frame
}

func checkInvariants(t *testing.T, frame []byte, action uint32, out []byte) {
	t.Helper()
	switch action {
	case xdpPass:
		if !bytes.Equal(out, frame) && !isTunnel(frame) {
			t.Errorf("passed, but changed\n in %x\nout %x", frame, out)
		}
	case xdpDrop:
		if !bytes.Equal(out, frame) {
			t.Errorf("dropped, but changed\n in %x\nout %x", frame, out)
		}
		if !isOurs(frame) && !isTunnel(frame) {
			t.Errorf("dropped, but not ours: %x", frame)
		}
	case xdpTX:
		if isAnswer(frame, out) {
			checkAnswered(t, frame, out)
		} else {
			checkOuter(t, frame, out)
		}
	default:
		t.Errorf("action %d for %x", action, frame)
	}
}

// destination is a frame's, if it has any.
func destination(frame []byte) (netip.Addr, bool) {
	at := l3(frame)
	switch p := frame[at:]; {
	case len(p) >= 20 && frame[at-2] == 8 && frame[at-1] == 0:
		return netip.AddrFrom4([4]byte(p[16:])), true
	case len(p) >= 40 && frame[at-2] == 0x86 && frame[at-1] == 0xdd:
		return netip.AddrFrom16([16]byte(p[24:])), true
	}
	return netip.Addr{}, false
}

func isOurs(frame []byte) bool {
	dst, ok := destination(frame)
	for _, v := range vips {
		if ok && dst == v.addr {
			return true
		}
	}
	return false
}

func isTunnel(frame []byte) bool {
	dst, ok := destination(frame)
	return ok && (dst == self4 || dst == self6)
}

// isAnswer reports whether a frame that was sent goes to the source of the one that came.
func isAnswer(frame, out []byte) bool {
	at := l3(frame)
	if isTunnel(frame) || len(out) < at+20 || out[at]>>4 != frame[at]>>4 {
		return false
	}
	if out[at]>>4 == 4 {
		return bytes.Equal(out[at+12:at+16], frame[at+16:at+20]) && bytes.Equal(out[at+16:at+20], frame[at+12:at+16])
	}
	return len(out) >= at+40 && bytes.Equal(out[at+8:at+24], frame[at+24:at+40]) && bytes.Equal(out[at+24:at+40], frame[at+8:at+24])
}

// checkAnswered: echo comes back as it was asked for, but for its type and sums.
func checkAnswered(t *testing.T, frame, out []byte) {
	t.Helper()
	at := l3(frame)
	if !isOurs(frame) {
		t.Errorf("answered, but not ours: %x", frame)
	}
	header := 40
	if out[at]>>4 == 4 {
		header = 20
		if !checksumRight(out[at : at+20]) {
			t.Errorf("checksum of %x", out)
		}
	}
	if len(out) != len(frame) || !bytes.Equal(out[at+header+4:], frame[at+header+4:]) {
		t.Errorf("answer to\n   %x\nis %x", frame, out)
	}
}

// checkOwner gives the program a later packet of the flow, which another router has passed: it goes the same way.
func checkOwner(t *testing.T, k *kernel, frame, out []byte) {
	t.Helper()
	later := mutate(frame, func(b []byte) {
		if p := b[l3(b):]; p[0]>>4 == 4 {
			p[8] ^= 1 // TTL
			packet.Sum4(p)
		} else {
			p[7] ^= 1 // hop limit
		}
	})
	action, out2 := run(t, k.XdpBermAt, later)
	if action == xdpTX && (isAnswer(frame, out) || isAnswer(later, out2)) {
		return // who answers, owns nothing; and one of the two may have a checksum that nobody answers to
	}
	if action != xdpTX || !bytes.Equal(outerAddresses(out), outerAddresses(out2)) {
		t.Errorf("a flow with two owners\n in %x\nout %x\n in %x\nout %x", frame, out, later, out2)
	}
}

// outerAddresses are source and destination of a frame that was sent on.
func outerAddresses(out []byte) []byte {
	p := out[l3(out):]
	if p[0]>>4 == 4 {
		return p[12:20]
	}
	return p[8:40]
}

// isChance looks at the bit that says so in a tunnel's outer header.
func isChance(p []byte) bool { return p[map[byte]int{4: 4, 6: 2}[p[0]>>4]]&0x80 != 0 }

// hopsOf is how often a tunnelled packet went from site to site, by its outer header.
func hopsOf(p []byte) int { return int(p[map[byte]int{4: 8, 6: 7}[p[0]>>4]]-1) / 64 }

func checkOuter(t *testing.T, frame, out []byte) {
	t.Helper()
	at := l3(frame)
	inner := frame[at:]
	if isTunnel(frame) { // sent on once more, as its second chance, or to the next site
		was, is := hopsOf(inner), hopsOf(out[l3(out):])
		if is < was || is > was+1 || is == was && (isChance(inner) || !isChance(out[l3(out):])) {
			t.Errorf("may go round\n in %x\nout %x", frame, out)
		}
		inner = inner[map[byte]int{4: 20, 6: 40}[inner[0]>>4]:]
	} else if !isOurs(frame) {
		t.Errorf("sent on, but not ours: %x", frame)
	}
	outer := out[at:]
	size, total := 20, 0
	switch {
	case len(outer) >= 20 && outer[0] == 0x45:
		total = int(binary.BigEndian.Uint16(outer[2:]))
		if !checksumRight(outer[:20]) {
			t.Errorf("outer checksum of %x", out)
		}
	case len(outer) >= 40 && outer[0]>>4 == 6:
		size, total = 40, 40+int(binary.BigEndian.Uint16(outer[4:]))
	default:
		t.Fatalf("no outer header: %x", out)
	}
	if !bytes.Equal(outer[size:], inner) {
		t.Errorf("inner packet changed\n in %x\nout %x", inner, outer[size:])
	}
	if total != size+len(totalOf(inner)) {
		t.Errorf("outer length %d around %d bytes", total, len(totalOf(inner)))
	}
}
