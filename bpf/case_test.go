package bpf_test

import (
	"maps"
	"net/netip"
	"testing"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

// testCase is one frame given to the program in the world as it is after set-up.
type testCase struct {
	name  string
	setup func(t *testing.T, k *kernel)
	in    []byte
	want  want
}

func runCases(t *testing.T, cases []testCase) {
	k := newKernel(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			k.reset(t)
			if c.setup != nil {
				c.setup(t, k)
			}
			k.check(t, c.in, c.want)
		})
	}
}

var payload = []byte("GET / HTTP/1.1\r\nHost: berm.test\r\n\r\n.....")

// ip is a packet of either family.
func ip(src, dst netip.Addr, proto byte, body []byte) []byte {
	if src.Is4() {
		return packet.IPv4{Src: src, Dst: dst, Proto: proto}.With(body)
	}
	return packet.IPv6{Src: src, Dst: dst, Next: proto}.With(body)
}

func eth(p []byte) []byte { return packet.Ethernet{}.With(p) }

func tcpTo(src, dst netip.Addr, port uint16, flags byte) []byte {
	return eth(ip(src, dst, packet.ProtoTCP, packet.TCP{Src: 40000, Dst: port, Flags: flags}.With(payload)))
}

func udpTo(src, dst netip.Addr, port uint16) []byte {
	return eth(ip(src, dst, packet.ProtoUDP, packet.UDP{Src: 40000, Dst: port}.With(payload)))
}

// good is a TCP packet to the service web of either family, from a source that may send it.
func good(six bool) []byte {
	if six {
		return tcpTo(good6, web6, 443, packet.ACK)
	}
	return tcpTo(good4, web4, 443, packet.ACK)
}

// mutate returns a copy of frame with one change; the header's checksum is what it was.
func mutate(frame []byte, change func(b []byte)) []byte {
	b := append([]byte{}, frame...)
	change(b)
	return b
}

// mutateIP is mutate of the IP packet, with the IPv4 checksum put right after it.
func mutateIP(frame []byte, change func(p []byte)) []byte {
	return mutate(frame, func(b []byte) {
		p := b[l3(b):]
		change(p)
		if p[0]>>4 == 4 && int(p[0]&15)*4 <= len(p) && p[0]&15 >= 5 {
			packet.Sum4(p)
		}
	})
}

// flowOf is the flow hash of a packet from port 40000, or 0 for protocols without ports.
func flowOf(src, dst netip.Addr, sport, dport uint16, proto byte) uint64 {
	return flowHash(baseConfig.Secret, netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport), proto)
}

// encap4 and encap6 are frames as they leave for backend4 and backend6.
func encap4(frame []byte, flow uint64) []byte {
	at := l3(frame)
	inner, proto := frame[at:], byte(packet.IPIP)
	tos := inner[1]
	if inner[0]>>4 == 6 {
		proto, tos = packet.IPv6In, inner[0]<<4|inner[1]>>4
	}
	outer := packet.IPv4{
		Src: self4, Dst: peer4, Proto: proto, Frag: packet.DF, TOS: tos & 0xfc, ID: flowTag(flow, baseConfig.TagSecrets[0]),
	}.With(totalOf(inner))
	return l2(frame, [6]byte{2, 1, 0, 0, 0, 4}, packet.TypeIPv4, append(outer, inner[len(totalOf(inner)):]...))
}

func encap6(frame []byte, flow uint64) []byte {
	at := l3(frame)
	inner, proto := frame[at:], byte(packet.IPv6In)
	tos := inner[0]<<4 | inner[1]>>4
	if inner[0]>>4 == 4 {
		proto, tos = packet.IPIP, inner[1]
	}
	outer := packet.IPv6{
		Src: self6, Dst: peer6, Next: proto, Class: tos & 0xfc, Label: uint32(flowTag(flow, baseConfig.TagSecrets[0])),
	}.With(totalOf(inner))
	return l2(frame, [6]byte{2, 1, 0, 0, 0, 6}, packet.TypeIPv6, append(outer, inner[len(totalOf(inner)):]...))
}

// totalOf is the packet without the padding of its frame.
func totalOf(p []byte) []byte {
	if p[0]>>4 == 4 {
		return p[:int(p[2])<<8|int(p[3])]
	}
	return p[:40+(int(p[4])<<8|int(p[5]))]
}

// l2 puts a packet behind a frame's tags, from the host it came to.
func l2(frame []byte, dst [6]byte, proto uint16, p []byte) []byte {
	out := append([]byte{}, dst[:]...)
	out = append(out, frame[0:6]...)
	out = append(out, frame[12:l3(frame)-2]...)
	return append(append(out, byte(proto>>8), byte(proto)), p...)
}

// counted are the counters of a packet for a service that ended at a stage.
func counted(vip, stage, exit string, more counts) counts {
	c := counts{stage + "/" + exit: 1, "vip/" + vip + "/in": 1}
	if len(vip) >= 3 && vip[:3] == "web" {
		c["tenant/7"] = 1
	}
	switch exit {
	case "DROP":
		c["vip/"+vip+"/dropped"] = 1
	case "FORWARD", "CHANCE", "DEADMAN", "CARRY", "SPILL":
		c["vip/"+vip+"/forwarded"] = 1
	case "ANSWER":
		c["vip/"+vip+"/answered"] = 1
	}
	maps.Copy(c, more)
	return c
}

// forwarded is a packet for a service of IPv4 or IPv6 that went to its backend.
func forwarded(in []byte, vip string, flow uint64) want {
	w := want{action: xdpTX, out: encap4(in, flow), counts: counted(vip, "DELIVER", "FORWARD", nil)}
	if in[l3(in)]>>4 == 6 {
		w.out = encap6(in, flow)
	}
	return w
}

// foreign is a packet that passed as not ours.
func foreign(stage string) want {
	return want{action: xdpPass, counts: counts{stage + "/FOREIGN": 1}}
}

func local(vip string) want {
	return want{action: xdpPass, counts: counted(vip, "DELIVER", "LOCAL", nil)}
}

func dropped(vip, stage, reason string) want {
	return want{action: xdpDrop, counts: counted(vip, stage, "DROP", counts{"drop/" + reason: 1})}
}

// shadowed adds that the packet would have been dropped.
func shadowed(w want, vip, stage, reason string) want {
	w.counts = maps.Clone(w.counts)
	w.counts["shadow/"+reason] = 1
	w.counts[stage+"/SHADOW"] = 1
	w.counts["vip/"+vip+"/shadowed"] = 1
	return w
}

func withBytes(w want, bytes int) want {
	w.bytes = bytes
	return w
}

// shadowing puts one reason, or all, into its shadow form.
func shadowing(d bpf.XDPBermDrop) func(*testing.T, *kernel) {
	return func(t *testing.T, k *kernel) {
		k.configure(t, func(c *bpf.XDPBermConfig) { c.Shadow = 1 << d })
	}
}

func observing(t *testing.T, k *kernel) {
	k.configure(t, func(c *bpf.XDPBermConfig) { c.Flags = uint32(bpf.XDPBermConfigFlagsBERM_CONFIG_OBSERVE_ONLY) })
}

func both(fns ...func(*testing.T, *kernel)) func(*testing.T, *kernel) {
	return func(t *testing.T, k *kernel) {
		for _, fn := range fns {
			fn(t, k)
		}
	}
}
