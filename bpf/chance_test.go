package bpf_test

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

// sockets gives the calling test a network namespace with the services' and the clients'
// addresses, in which the programs look for sockets too. The thread is not given back.
func sockets(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		Require(t, errors.New("needs root, to make a network namespace"))
	}
	runtime.LockOSThread() // until the goroutine ends, and the thread with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{web4, web6, good4, good6} {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(lo, addr); err != nil {
			t.Fatal(err)
		}
	}
	// Cookies for every SYN.
	if err := os.WriteFile("/proc/sys/net/ipv4/tcp_syncookies", []byte("2"), 0); err != nil {
		t.Fatal(err)
	}
}

func listen(t *testing.T, at netip.Addr) net.Listener {
	t.Helper()
	var plain net.ListenConfig
	plain.SetMultipathTCP(false) // as the daemon's
	l, err := plain.Listen(t.Context(), "tcp", netip.AddrPortFrom(at, 443).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// connect makes the flow of the tests' packets one that this host has.
func connect(t *testing.T, from, to netip.Addr) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 40000))}
	c, err := d.Dial("tcp", netip.AddrPortFrom(to, 443).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// finish ends the flow of the tests' packets as a server does, so that TIME_WAIT is what is left of it, and tells the
// sequence number of the client's FIN.
func finish(t *testing.T, l net.Listener, client net.Conn) (seq uint32) {
	t.Helper()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.(*net.TCPConn).CloseWrite(); err != nil { // the first FIN is the server's
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	seq = nextSequence(t, client.(*net.TCPConn))
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	return seq
}

// nextSequence is the sequence number of what a connection sends next.
func nextSequence(t *testing.T, c *net.TCPConn) (seq uint32) {
	t.Helper()
	const repairOffNoProbe = -1
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var in error
	err = raw.Control(func(fd uintptr) {
		s := int(fd)
		var v int
		in = unix.SetsockoptInt(s, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1)
		if in == nil {
			in = unix.SetsockoptInt(s, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, 2) // what is sent
		}
		if in == nil {
			v, in = unix.GetsockoptInt(s, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		}
		if in == nil {
			in = unix.SetsockoptInt(s, unix.IPPROTO_TCP, unix.TCP_REPAIR, repairOffNoProbe)
		}
		seq = uint32(v)
	})
	if err := errors.Join(err, in); err != nil {
		t.Fatal(err)
	}
	return seq
}

// chance is a packet that a peer gives a second chance here.
func chance(inner []byte, flow, secret uint64) []byte {
	return packet.IPv4{Src: peer4, Dst: self4, Proto: innerProto(inner), Frag: packet.DF, ID: chanceTag(flow, secret)}.With(inner)
}

func chance6(inner []byte, flow, secret uint64) []byte {
	return packet.IPv6{Src: peer6, Dst: self6, Next: innerProto(inner), Label: uint32(chanceTag(flow, secret))}.With(inner)
}

// handed is a packet for a service that went to backend4 or backend6 as its second chance.
func handed(in, inner []byte, vip, exit string, flow uint64, six bool) want {
	w := want{action: xdpTX, counts: counted(vip, "DELIVER", exit, nil), bytes: len(inner)}
	frame := l2of(in, inner)
	tag := chanceTag(flow, baseConfig.TagSecrets[0])
	if six {
		w.out = mutate(encap6(frame, flow), func(b []byte) { binary.BigEndian.PutUint16(b[l3(b)+2:], tag) })
		return w
	}
	w.out = mutate(encap4(frame, flow), func(b []byte) {
		binary.BigEndian.PutUint16(b[l3(b)+4:], tag)
		packet.Sum4(b[l3(b):])
	})
	return w
}

type chanceWorld struct {
	k *kernel
	t *testing.T
}

// see is a case without a subtest of its own, which would run on another thread.
func (w chanceWorld) see(name string, setup func(*testing.T, *kernel), in []byte, want want) {
	w.t.Helper()
	w.k.reset(w.t)
	peers(w.t, w.k)
	if setup != nil {
		setup(w.t, w.k)
	}
	failed := w.t.Failed()
	w.k.check(w.t, in, want)
	if !failed && w.t.Failed() {
		w.t.Fatalf("%s: see above", name)
	}
}

func decapped(vip string, frame, inner []byte) want {
	return want{action: xdpPass, out: l2of(frame, inner), counts: counted(vip, "DELIVER", "DECAP", nil), bytes: len(inner)}
}

// family is what the cases of one family are made of.
type family struct {
	six      bool
	vip      string
	src, dst netip.Addr
	flow     uint64
	moved    uint16 // set whose previous owner is reached by this family
	flagsAt  int    // of TCP, in the packet
}

var families = []family{
	{false, "web", good4, web4, flow4, setMoved4, 33},
	{true, "web6", good6, web6, flow6, setMoved6, 53},
}

func (f family) tcp(flags byte) []byte { return tcpTo(f.src, f.dst, 443, flags) }

// quote is an ICMP error about a packet that the service sent to the client.
func (f family) quote() []byte {
	sent := ip(f.dst, f.src, packet.ProtoTCP, packet.TCP{Src: 443, Dst: 40000, Flags: packet.ACK}.With(payload))
	if f.six {
		return eth(ip(f.src, f.dst, packet.ICMPv6, packet.ICMPMessage(2, 0, sent)))
	}
	return eth(ip(f.src, f.dst, packet.ICMP, packet.ICMPMessage(3, 4, sent)))
}

func TestSecondChance(t *testing.T) {
	k := newKernel(t)
	sockets(t)
	w := chanceWorld{k, t}
	for _, f := range families {
		in := func(set uint16) func(*testing.T, *kernel) {
			return func(t *testing.T, k *kernel) {
				for _, name := range []string{f.vip, f.vip + "-udp", f.vip + "-addr"} {
					inSet(name, set)(t, k)
				}
			}
		}
		away := func(frame []byte) want { return handed(frame, frame[14:], f.vip, "CHANCE", f.flow, f.six) }

		// nobody here knows the flow, and nothing listens
		for name, flags := range map[string]byte{"ACK": packet.ACK, "FIN": packet.FIN | packet.ACK, "RST": packet.RST, "data": packet.PSH | packet.ACK, "SYN and ACK": packet.SYN | packet.ACK} {
			w.see(name+" of no flow of ours", in(f.moved), f.tcp(flags), away(f.tcp(flags)))
		}
		w.see("in a VLAN", in(f.moved), tagsOf(f.tcp(packet.ACK)), handed(tagsOf(f.tcp(packet.ACK)), f.tcp(packet.ACK)[14:], f.vip, "CHANCE", f.flow, f.six))
		w.see("SYN", in(f.moved), f.tcp(packet.SYN), local(f.vip))
		w.see("an error about no flow of ours", in(f.moved), f.quote(), away(f.quote()))
		w.see("UDP", in(f.moved), udpTo(f.src, f.dst, 443), local(f.vip+"-udp"))
		w.see("a row that has never moved", in(setHeir), f.tcp(packet.ACK), local(f.vip))
		w.see("previous owner lost", in(setMovedX), f.tcp(packet.ACK), local(f.vip))
		w.see("previous owner this edge", in(setMovedI), f.tcp(packet.ACK), local(f.vip))
		w.see("another's, once ours", in(setMine), f.tcp(packet.ACK), forwardedBy(f, f.tcp(packet.ACK)))

		// a listener is no flow, but its cookie is
		listener := listen(t, f.dst)
		w.see("ACK that meets a listener only", in(f.moved), f.tcp(packet.ACK), away(f.tcp(packet.ACK)))
		w.see("SYN that meets a listener", in(f.moved), f.tcp(packet.SYN), local(f.vip))
		answer := f.cookie(t, k)
		w.see("ACK with a cookie", in(f.moved), answer, local(f.vip))
		forged := mutate(answer, func(b []byte) { b[14+f.flagsAt-5+2] ^= 1 })
		w.see("ACK with a forged cookie", in(f.moved), forged, away(forged))
		w.see("ACK with a cookie, by a peer", in(f.moved), eth(tunnel(answer[14:], f.flow, baseConfig.TagSecrets[0])),
			decapped(f.vip, answer, answer[14:]))

		// by a tunnel, in both ways to tunnel
		secret := baseConfig.TagSecrets[0]
		inner := f.tcp(packet.ACK)[14:]
		for _, c := range []struct{ first, second []byte }{
			{eth(tunnel(inner, f.flow, secret)), eth(chance(inner, f.flow, secret))},
			{eth(tunnel6(inner, f.flow, secret)), eth(chance6(inner, f.flow, secret))},
		} {
			w.see("by a peer, of no flow of ours", in(f.moved), c.first, handed(c.first, inner, f.vip, "CHANCE", f.flow, f.six))
			w.see("a second chance", in(f.moved), c.second, decapped(f.vip, c.second, inner))
			w.see("a second chance, in another's row", in(set4), c.second, decapped(f.vip, c.second, inner))
			w.see("by a peer, in another's row", in(set4), c.first, handed(c.first, inner, f.vip, "CHANCE", f.flow, false))
			bit := mutateIP(c.second, func(p []byte) { p[map[byte]int{4: 4, 6: 2}[p[0]>>4]] ^= 0x80 })
			forgery := want{action: xdpDrop, counts: counts{"DECAP/DROP": 1, "drop/TUNNEL_TAG": 1}, bytes: len(inner)}
			w.see("a second chance that denies it", in(f.moved), bit, forgery)
			bit = mutateIP(c.first, func(p []byte) { p[map[byte]int{4: 4, 6: 2}[p[0]>>4]] ^= 0x80 })
			w.see("what claims to be one", in(f.moved), bit, forgery)
			let := decapped(f.vip, bit, inner)
			let.counts = counted(f.vip, "DELIVER", "DECAP", counts{"shadow/TUNNEL_TAG": 1, "DECAP/SHADOW": 1, "vip/" + f.vip + "/shadowed": 1})
			w.see("what claims to be one, shadowed", both(in(f.moved), shadowing(bpf.XDPBermDropBERM_DROP_TUNNEL_TAG)), bit, let)
			bit = mutateIP(c.first, func(p []byte) { p[map[byte]int{4: 5, 6: 3}[p[0]>>4]] ^= 1 })
			w.see("a wrong tag, shadowed: not sent on", both(in(f.moved), shadowing(bpf.XDPBermDropBERM_DROP_TUNNEL_TAG)), bit, let)
			w.see("no secrets: the bit alone", both(in(f.moved), func(t *testing.T, k *kernel) {
				k.configure(t, func(c *bpf.XDPBermConfig) { c.TagSecrets = [2]uint64{} })
			}), c.second, decapped(f.vip, c.second, inner))
		}
		syn := f.tcp(packet.SYN)
		peerSYN := eth(tunnel(syn[14:], f.flow, secret))
		w.see("a SYN by a peer, in another's row", in(set4), peerSYN, decapped(f.vip, peerSYN, syn[14:]))

		// the flow is here
		conn := connect(t, f.src, f.dst)
		for name, flags := range map[string]byte{"ACK": packet.ACK, "FIN": packet.FIN | packet.ACK, "RST": packet.RST} {
			w.see(name+" of our flow", in(f.moved), f.tcp(flags), local(f.vip))
		}
		w.see("an error about our flow", in(f.moved), f.quote(), local(f.vip))
		w.see("by a peer, of our flow", in(f.moved), eth(tunnel(inner, f.flow, secret)), decapped(f.vip, eth(inner), inner))
		w.see("by a peer, of our flow, in another's row", in(set4), eth(tunnel(inner, f.flow, secret)), decapped(f.vip, eth(inner), inner))
		w.see("another's row, once ours, of our flow", in(setMine), f.tcp(packet.ACK), local(f.vip))
		w.see("another's row, once ours, a new flow", in(setMine), syn, forwardedBy(f, syn))
		w.see("another's row, never ours, of our flow", in(set4), f.tcp(packet.ACK), forwardedBy(f, f.tcp(packet.ACK)))

		// the flow was here, and its port begins another elsewhere
		last := finish(t, listener, conn)
		end := mutate(f.tcp(packet.FIN|packet.ACK), func(b []byte) { binary.BigEndian.PutUint32(b[14+f.flagsAt-13+4:], last) })
		w.see("the end of our flow, repeated", in(f.moved), end, local(f.vip))
		w.see("its answer to what is left of ours", in(f.moved), mutate(end, func(b []byte) { b[f.flagsAt+14] = packet.RST }), local(f.vip))
		for name, flags := range map[string]byte{"ACK": packet.ACK, "data": packet.PSH | packet.ACK, "FIN": packet.FIN | packet.ACK, "RST": packet.RST} {
			w.see(name+" of the next flow from the port of one that ended here", in(f.moved), f.tcp(flags), away(f.tcp(flags)))
		}
		w.see("another's row, once ours, the next flow", in(setMine), f.tcp(packet.ACK), forwardedBy(f, f.tcp(packet.ACK)))
		connect(t, f.src, f.dst)
		w.see("the next flow, here", in(f.moved), f.tcp(packet.ACK), local(f.vip))
	}
	piece := eth(packet.IPv4{Src: good4, Dst: web4, Proto: tcp, Frag: packet.MF}.With(good(false)[34:58]))
	w.see("a fragment", func(t *testing.T, k *kernel) { inSet("web-addr", setMoved4)(t, k) }, piece, local("web-addr"))
	options := eth(ip(good6, web6, packet.DestOpts, packet.Extension(tcp, 0, good(true)[54:])))
	w.see("extension headers", inSet("web6", setMoved6), options, local("web6"))
}

// forwardedBy is a packet that went to the owner of its row, backend4, as any other.
func forwardedBy(f family, in []byte) want {
	w := forwarded(in, f.vip, f.flow)
	w.out = encap4(in, f.flow)
	return w
}

func tagsOf(frame []byte) []byte {
	return packet.Ethernet{Tags: []packet.Tag{{Type: packet.TypeQinQ, TCI: 5}, {Type: packet.TypeVLAN, TCI: 9}}}.With(frame[14:])
}

// cookie is the ACK that answers a cookie of the kernel's.
func (f family) cookie(t *testing.T, k *kernel) []byte {
	t.Helper()
	if action, _ := run(t, k.TestMakeCookie, f.tcp(packet.SYN)); action != xdpPass {
		t.Fatalf("no cookie: action %d", action)
	}
	var cookie int64
	if err := k.TestCookie.Get(&cookie); err != nil || cookie < 0 {
		t.Fatalf("no cookie: %d, %v", cookie, err)
	}
	return mutate(f.tcp(packet.ACK), func(b []byte) {
		tcp := b[14+f.flagsAt-13:]
		binary.BigEndian.PutUint32(tcp[4:], 1)
		binary.BigEndian.PutUint32(tcp[8:], uint32(cookie)+1)
	})
}

// However three edges disagree about a row, no packet goes round: it is delivered within three hops.
func TestSecondChanceEnds(t *testing.T) {
	k := newKernel(t)
	sockets(t)
	edges := []struct {
		id   uint32
		addr netip.Addr
	}{{backendSelf, netip.MustParseAddr("10.0.0.0")}, {backend4, netip.MustParseAddr("10.0.1.0")}, {backend6, netip.MustParseAddr("10.0.2.0")}}
	k.reset(t)
	for _, e := range edges {
		put(t, k.BermBackends, e.id, &bpf.XDPBermBackend{Addr: addrOf(e.addr), Flags: 3, Family: 4, Mac: [6]byte{2, 1, 0, 0, 0, byte(e.id)}})
		a := addrOf(e.addr)
		put(t, k.BermPeers, &a, uint64(e.id))
	}
	cell := flow4 & 0xffffffff * 65537 >> 32
	most := 0
	for table := range 18 * 18 * 18 { // owner, second and whether it moved, for each of the edges
		frame := good(false)
		at := 0
		for hop := 0; ; hop++ {
			row := table / []int{1, 18, 18 * 18}[at] % 18
			v := edges[row%3].id | edges[row/3%3].id<<16 | uint32(row/9)<<31
			k.words(t, k.BermRows, set4*32769+uint32(cell/2), uint64(v)<<32|uint64(v))
			k.configure(t, func(c *bpf.XDPBermConfig) { c.Self, c.Self4 = edges[at].id, addrOf(edges[at].addr) })
			action, out := run(t, k.XdpBermAt, frame)
			if action == xdpPass {
				most = max(most, hop)
				break
			}
			if action != xdpTX || hop == 3 {
				t.Fatalf("tables %d: action %d at hop %d: %x", table, action, hop, out)
			}
			for i, e := range edges {
				if out[5] == byte(e.id) {
					at = i
				}
			}
			frame = out
		}
	}
	if most != 2 {
		t.Errorf("the longest way has %d hops, want 2", most)
	}
}

// silence makes the daemon have beaten last at a time.
func (k *kernel) silence(t *testing.T, h bpf.XDPBermHeart) {
	t.Helper()
	put(t, k.BermHeart, uint32(0), &h)
}

func (k *kernel) heart(t *testing.T) bpf.XDPBermHeart {
	t.Helper()
	var h bpf.XDPBermHeart
	if err := k.BermHeart.Lookup(uint32(0), &h); err != nil {
		t.Fatal(err)
	}
	return h
}

// quic is a UDP packet to the service with these first octets.
func (f family) quic(first byte, version uint32) []byte {
	body := binary.BigEndian.AppendUint32([]byte{first}, version)
	return eth(ip(f.src, f.dst, packet.ProtoUDP, packet.UDP{Src: 40000, Dst: 443}.With(append(body, make([]byte, 40)...))))
}

func TestDeadman(t *testing.T) {
	k := newKernel(t)
	sockets(t)
	w := chanceWorld{k, t}
	const limit, now = 125, 1_000_000_000_000 / 4_000_000 // jiffies, as reset has them
	alive := bpf.XDPBermHeart{Beat: 7, LimitTicks: limit, Noted: 7<<32 | now - limit}
	dead := bpf.XDPBermHeart{Beat: 7, LimitTicks: limit, Noted: 7<<32 | now - limit - 1}
	fired := alive
	fired.Fired = 1
	for _, f := range families {
		set := map[bool]uint16{false: setHeir, true: f.moved}[f.six]
		with := func(h bpf.XDPBermHeart, set uint16) func(*testing.T, *kernel) {
			return func(t *testing.T, k *kernel) {
				for _, name := range []string{f.vip, f.vip + "-udp", f.vip + "-addr"} {
					inSet(name, set)(t, k)
				}
				k.silence(t, h)
			}
		}
		flowUDP := flowOf(f.src, f.dst, 40000, 443, udp)
		syn, ack := f.tcp(packet.SYN), f.tcp(packet.ACK)
		gone := func(in []byte, vip, exit string, flow uint64) want {
			return handed(in, in[14:], vip, exit, flow, f.six)
		}
		initial, zero, shake, retry := f.quic(0xc3, 1), f.quic(0xd3, 1), f.quic(0xe3, 1), f.quic(0xf0, 1)
		initial2, zero2, retry2 := f.quic(0xd3, 0x6b3343cf), f.quic(0xe3, 0x6b3343cf), f.quic(0xc3, 0x6b3343cf)
		odd, negotiation, short := f.quic(0xc3, 0x1a2a3a4a), f.quic(0xc3, 0), f.quic(0x43, 1)

		w.see("a SYN while the daemon beats", with(alive, set), syn, local(f.vip))
		w.see("a SYN while it is silent", with(dead, set), syn, gone(syn, f.vip, "DEADMAN", f.flow))
		if h := k.heart(t); h.Fired != 1 || h.Noted != dead.Noted {
			t.Fatalf("after a new flow went elsewhere: %+v", h)
		}
		w.see("an ACK of no flow of ours while it is silent", with(dead, set), ack, gone(ack, f.vip, "CHANCE", f.flow))
		w.see("no limit", with(bpf.XDPBermHeart{Beat: 7, Noted: 7 << 32}, set), syn, local(f.vip))
		w.see("another beat", with(bpf.XDPBermHeart{Beat: 8, LimitTicks: limit, Noted: dead.Noted}, set), syn, local(f.vip))
		if h := k.heart(t); h.Noted != 8<<32|now || h.Fired != 0 {
			t.Fatalf("after another beat: %+v", h)
		}
		w.see("nobody to hand it to", with(dead, setSelf), syn, local(f.vip))
		if k.heart(t).Fired != 0 {
			t.Fatal("fired without a shot")
		}
		w.see("by a peer", with(dead, set), eth(tunnel(syn[14:], f.flow, baseConfig.TagSecrets[0])),
			handed(syn, syn[14:], f.vip, "DEADMAN", f.flow, f.six))
		w.see("a second chance", with(dead, set), eth(chance(syn[14:], f.flow, baseConfig.TagSecrets[0])), decapped(f.vip, syn, syn[14:]))
		w.see("another's row", with(dead, set4), syn, forwardedBy(f, syn))
		w.see("it beats again: a new flow", with(fired, set), syn, local(f.vip))
		w.see("it beats again: a flow of meanwhile", with(fired, set), ack, gone(ack, f.vip, "CHANCE", f.flow))

		for name, in := range map[string][]byte{"Initial": initial, "0-RTT": zero, "Initial of version 2": initial2, "0-RTT of version 2": zero2, "unknown version": odd} {
			w.see(name+" while it is silent", with(dead, set), in, gone(in, f.vip+"-udp", "DEADMAN", flowUDP))
			w.see(name+" while it beats", with(alive, set), in, local(f.vip+"-udp"))
		}
		for name, in := range map[string][]byte{"handshake": shake, "retry": retry, "retry of version 2": retry2, "version negotiation": negotiation, "short header": short, "too short": udpTo(f.src, f.dst, 443)[:14+20+8]} {
			if name == "too short" {
				in = eth(ip(f.src, f.dst, packet.ProtoUDP, packet.UDP{Src: 40000, Dst: 443}.With([]byte{0xc3, 0, 0, 0})))
			}
			w.see(name+" while it is silent", with(dead, set), in, local(f.vip+"-udp"))
		}

		listen(t, f.dst)
		w.see("a SYN that meets a listener", with(dead, set), syn, gone(syn, f.vip, "DEADMAN", f.flow))
		connect(t, f.src, f.dst)
		w.see("our flow while it is silent", with(dead, set), ack, local(f.vip))
		w.see("a SYN of our flow, sent again", with(dead, set), syn, local(f.vip))
		if k.heart(t).Fired != 0 {
			t.Fatal("fired at a flow of ours")
		}
	}
}
