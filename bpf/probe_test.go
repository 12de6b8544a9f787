package bpf_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

const (
	tcxNext   = 0xffffffff // TC_ACT_UNSPEC: as if nobody had looked
	tcShot    = 2
	probeFrom = 50000
)

var (
	edge4 = netip.MustParseAddr("198.51.100.200") // what the daemon's sockets are bound to
	edge6 = netip.MustParseAddr("2a00:1::200")
)

// newEgress is the program for packets that leave, with the maps of k.
func newEgress(t *testing.T, k *kernel) *ebpf.Program {
	t.Helper()
	spec, err := bpf.LoadEgress()
	if err != nil {
		t.Fatal(err)
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{
		bpf.XDPMapBermConfig: k.BermConfig, bpf.XDPMapBermBackends: k.BermBackends, bpf.XDPMapBermProbes: k.BermProbes,
	}})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(coll.Close)
	return coll.Programs["berm_egress"]
}

// probing puts a probe of a backend there, of a service at port 80. It ends with the test.
func probing(t *testing.T, k *kernel, backend uint32, server, service netip.Addr) {
	t.Helper()
	k.configure(t, func(c *bpf.XDPBermConfig) { c.Flags |= uint32(bpf.XDPBermConfigFlagsBERM_CONFIG_PROBES) })
	put(t, k.BermProbes, uint32(probeFrom), &bpf.XDPBermProbe{Server: addrOf(server), Service: addrOf(service), Backend: backend, Port: 80})
	t.Cleanup(func() { put(t, k.BermProbes, uint32(probeFrom), &bpf.XDPBermProbe{}) })
}

// segment is a TCP packet whose checksum is right.
func segment(src, dst netip.Addr, sport, dport uint16, flags byte, options ...byte) []byte {
	tcp := packet.TCP{Src: sport, Dst: dport, Seq: 0xfedcba98, Flags: flags, Options: options}.With(payload)
	pseudo := append(src.AsSlice(), dst.AsSlice()...)
	pseudo = append(pseudo, 0, packet.ProtoTCP)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(tcp)))
	sum := uint32(0)
	for b := append(pseudo, tcp...); len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(tcp[16:], ^uint16(sum))
	return eth(ip(src, dst, packet.ProtoTCP, tcp))
}

// A probe's packet leaves as a client's would reach the server, and no other is touched.
func TestProbeLeaves(t *testing.T) {
	k := newKernel(t)
	egress := newEgress(t, k)
	under := func(frame, outer []byte, proto uint16) []byte {
		return append(binary.BigEndian.AppendUint16(append([]byte{}, frame[:12]...), proto), outer[14:]...)
	}
	v4 := func(wrap func([]byte, uint64) []byte) func(in, inner []byte, flow uint64) []byte {
		return func(in, inner []byte, flow uint64) []byte { return under(in, wrap(inner, flow), packet.TypeIPv4) }
	}
	v6 := func(wrap func([]byte, uint64) []byte) func(in, inner []byte, flow uint64) []byte {
		return func(in, inner []byte, flow uint64) []byte { return under(in, wrap(inner, flow), packet.TypeIPv6) }
	}
	as := func(_, inner []byte, _ uint64) []byte { return inner }
	for _, c := range []struct {
		name          string
		backend       uint32
		edge, at, vip netip.Addr
		out           func(in, inner []byte, flow uint64) []byte
	}{
		{"IPIP", serverIPIP, edge4, peer4, web4, v4(encap4)},
		{"IP6IP6", backend6, edge6, peer6, web6, v6(encap6)},
		{"GUE", serverGUE4, edge4, peer4, web4, v4(gue4)},
		{"GUE in IPv6", serverGUE6, edge6, peer6, web6, v6(gue6)},
		{"L2", serverL2, edge4, peer4, web4, as},
		{"L2, IPv6", serverL2, edge6, peer6, web6, as},
	} {
		t.Run(c.name, func(t *testing.T) {
			k.reset(t)
			probing(t, k, c.backend, c.at, c.vip)
			in := segment(c.edge, c.at, probeFrom, 80, packet.SYN, 2, 4, 5, 0xb4)
			inner := segment(c.edge, c.vip, probeFrom, 80, packet.SYN, 2, 4, 5, 0xb4)
			want := c.out(in, inner, flowOf(c.edge, c.vip, probeFrom, 80, packet.ProtoTCP))
			action, out := run(t, egress, in)
			if action != tcxNext || !bytes.Equal(out, want) {
				t.Errorf("action %d\n got %x\nwant %x", action, out, want)
			}
			var row bpf.XDPBermProbe
			if err := k.BermProbes.Lookup(uint32(probeFrom), &row); err != nil || row.Sent != 1 {
				t.Errorf("sent %d (%v), want 1", row.Sent, err)
			}
			for what, other := range map[string][]byte{
				"from another port": segment(c.edge, c.at, probeFrom+1, 80, packet.SYN),
				"to another port":   segment(c.edge, c.at, probeFrom, 81, packet.SYN),
				"to another host":   segment(c.edge, c.vip, probeFrom, 80, packet.SYN),
				"UDP":               eth(ip(c.edge, c.at, packet.ProtoUDP, packet.UDP{Src: probeFrom, Dst: 80}.With(payload))),
				"cut short":         in[:len(in)-len(payload)-16],
				"ARP":               packet.Ethernet{Type: 0x0806}.With(make([]byte, 28)),
			} {
				if action, out := run(t, egress, other); action != tcxNext || !bytes.Equal(out, other) {
					t.Errorf("%s: action %d\n got %x\nwant %x", what, action, out, other)
				}
			}
			k.configure(t, func(c *bpf.XDPBermConfig) { c.Flags = 0 })
			if action, out := run(t, egress, in); action != tcxNext || !bytes.Equal(out, in) {
				t.Errorf("without probes: action %d\n got %x\nwant %x", action, out, in)
			}
		})
	}
}

// What cannot go into the tunnel is lost, not sent to the server's own address.
func TestProbeWithoutTunnel(t *testing.T) {
	k := newKernel(t)
	egress := newEgress(t, k)
	probing(t, k, serverGUE4, peer4, web4)
	k.configure(t, func(c *bpf.XDPBermConfig) { c.Self4 = bpf.XDPBermAddr{} })
	if action, _ := run(t, egress, segment(edge4, peer4, probeFrom, 80, packet.SYN)); action != tcShot {
		t.Errorf("no address to send from: action %d, want %d", action, tcShot)
	}
	probing(t, k, serverIPIP, peer4, web6)
	if action, _ := run(t, egress, segment(edge4, peer4, probeFrom, 80, packet.SYN)); action != tcShot {
		t.Errorf("a service of the other family: action %d, want %d", action, tcShot)
	}
}

// The answer, from the service to this host, becomes the server's own, and no other packet is touched.
func TestProbeAnswered(t *testing.T) {
	k := newKernel(t)
	const synAck = packet.SYN | packet.ACK
	for _, c := range []struct {
		name          string
		edge, at, vip netip.Addr
	}{{"IPv4", edge4, peer4, web4}, {"IPv6", edge6, peer6, web6}} {
		t.Run(c.name, func(t *testing.T) {
			k.reset(t)
			probing(t, k, serverIPIP, c.at, c.vip)
			in := segment(c.vip, c.edge, 80, probeFrom, synAck, 2, 4, 5, 0xb4)
			tags := packet.Ethernet{Tags: []packet.Tag{{Type: packet.TypeQinQ, TCI: 5}, {Type: packet.TypeVLAN, TCI: 9}}}
			out := segment(c.at, c.edge, 80, probeFrom, synAck, 2, 4, 5, 0xb4)
			answered := foreign("VIP")
			answered.out = out
			k.check(t, in, answered)
			answered.out = tags.With(out[14:])
			in = tags.With(in[14:])
			answered.bytes = len(out) - 14
			k.check(t, in, answered)
			for what, other := range map[string][]byte{
				"to another port":   segment(c.vip, c.edge, 80, probeFrom+1, synAck),
				"from another port": segment(c.vip, c.edge, 81, probeFrom, synAck),
				"from its own":      segment(c.at, c.edge, 80, probeFrom, synAck),
				"UDP":               eth(ip(c.vip, c.edge, packet.ProtoUDP, packet.UDP{Src: 80, Dst: probeFrom}.With(payload))),
			} {
				t.Log(what)
				k.check(t, other, foreign("VIP"))
			}
			k.configure(t, func(c *bpf.XDPBermConfig) { c.Flags = 0 })
			k.check(t, in, foreign("VIP"))
		})
	}
}
