package bpf_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

const (
	vipSites   = uint16(bpf.XDPBermVipFlagsBERM_VIP_SITES)
	vipRegion  = uint16(bpf.XDPBermVipFlagsBERM_VIP_REGION)
	vipOutside = uint16(bpf.XDPBermVipFlagsBERM_VIP_OUTSIDE)
)

// ttlOf is the outer TTL of a tunnelled packet that went from site to site so often.
func ttlOf(hops int) byte { return byte(64 + 60*hops) }

// farTunnel is inner in a tunnel, after so many hops from site to site.
func farTunnel(inner []byte, flow uint64, six bool, hops int, chance bool) []byte {
	tag := flowTag(hopped(flow, hops), baseConfig.TagSecrets[0])
	if chance {
		tag = chanceTag(hopped(flow, hops), baseConfig.TagSecrets[0])
	}
	return retag(map[bool]func([]byte, uint64, uint64) []byte{false: tunnel, true: tunnel6}[six](inner, flow, baseConfig.TagSecrets[0]), hops, tag)
}

// retag gives a tunnel's header another TTL and tag.
func retag(p []byte, hops int, tag uint16) []byte {
	return mutate(p, func(p []byte) {
		if p[0]>>4 == 4 {
			p[8] = ttlOf(hops)
			binary.BigEndian.PutUint16(p[4:], tag)
			packet.Sum4(p)
			return
		}
		p[7] = ttlOf(hops)
		binary.BigEndian.PutUint16(p[2:], tag)
	})
}

// away is a packet for a service that went to backendFar4 or backendFar6, or, with a chance, to backend4 or
// backend6.
func (f family) away(in, inner []byte, vip, exit string, hops int, chance bool) want {
	frame := l2of(in, inner)
	out := encap4(frame, f.flow)
	if f.six {
		out = encap6(frame, f.flow)
	}
	tag := flowTag(hopped(f.flow, hops), baseConfig.TagSecrets[0])
	if chance {
		tag = chanceTag(hopped(f.flow, hops), baseConfig.TagSecrets[0])
	}
	at := l3(out)
	if !chance {
		if f.six {
			out[5] = 11
			copy(out[at+24:], far6.AsSlice())
		} else {
			out[5] = 10
			copy(out[at+16:], far4.AsSlice())
		}
	}
	return want{
		action: xdpTX, counts: counted(vip, "DELIVER", exit, nil), bytes: len(inner),
		out: append(out[:at:at], retag(out[at:], hops, tag)...),
	}
}

// atSites gives the services of a family other sites.
func (f family) atSites(set uint16, change func(*bpf.XDPBermVip)) func(*testing.T, *kernel) {
	return func(t *testing.T, k *kernel) {
		for _, name := range []string{f.vip, f.vip + "-udp", f.vip + "-addr"} {
			k.changeVIP(t, name, func(v *bpf.XDPBermVip) {
				v.Set, v.Flags, v.CarrySet, v.CarryHops = set, v.Flags|vipSites, f.far(), 1
				v.SpillSet = v.CarrySet
				if change != nil {
					change(v)
				}
			})
		}
	}
}

func (f family) far() uint8 {
	if f.six {
		return setFar6
	}
	return setFar4
}

func hopsMost(n uint8) func(*bpf.XDPBermVip) { return func(v *bpf.XDPBermVip) { v.CarryHops = n } }

// share of new flows, of 65536.
func share(n uint32) func(*bpf.XDPBermVip) { return func(v *bpf.XDPBermVip) { v.Spill = n } }

func TestCarry(t *testing.T) {
	k := newKernel(t)
	sockets(t)
	w := chanceWorld{k, t}
	for _, f := range families {
		in := f.atSites(setHeir, nil)
		carried := func(frame []byte) want { return f.away(frame, frame[14:], f.vip, "CARRY", 1, false) }
		ack := f.tcp(packet.ACK)
		inner := ack[14:]

		// nobody here knows the flow, and nothing listens
		for name, flags := range map[string]byte{"ACK": packet.ACK, "FIN": packet.FIN | packet.ACK, "RST": packet.RST, "data": packet.PSH | packet.ACK, "SYN and ACK": packet.SYN | packet.ACK} {
			w.see(name+" of no flow of ours", in, f.tcp(flags), carried(f.tcp(flags)))
		}
		w.see("in a VLAN", in, tagsOf(ack), f.away(tagsOf(ack), inner, f.vip, "CARRY", 1, false))
		w.see("an error about no flow of ours", in, f.quote(), carried(f.quote()))
		w.see("SYN", in, f.tcp(packet.SYN), local(f.vip))
		w.see("UDP", in, udpTo(f.src, f.dst, 443), local(f.vip+"-udp"))
		w.see("another's row", f.atSites(set4, nil), ack, forwardedBy(f, ack))
		w.see("a row without anybody who is there", f.atSites(setOwnLast, nil), ack, carried(ack))
		w.see("no service's sites", inSet(f.vip, setHeir), ack, local(f.vip))
		w.see("the next site is lost", f.atSites(setHeir, func(v *bpf.XDPBermVip) { v.CarrySet = setLost }), ack, local(f.vip))
		w.see("the next site is no set", f.atSites(setHeir, func(v *bpf.XDPBermVip) { v.CarrySet = 64 }), ack, local(f.vip))
		if !f.six {
			w.see("its owner there is lost", f.atSites(setHeir, func(v *bpf.XDPBermVip) { v.CarrySet = setFarNext }), ack, carried(ack))
		}
		// this site's second chance comes first, and its receiver carries
		w.see("a row that has moved", f.atSites(f.moved, nil), ack, f.away(ack, inner, f.vip, "CHANCE", 0, true))
		for _, six := range []bool{false, true} {
			second := eth(farTunnel(inner, f.flow, six, 0, true))
			w.see("a second chance", f.atSites(f.moved, nil), second, f.away(second, inner, f.vip, "CARRY", 1, false))
			first := eth(farTunnel(inner, f.flow, six, 0, false))
			w.see("by a peer", in, first, f.away(first, inner, f.vip, "CARRY", 1, false))
			// from another site
			there := eth(farTunnel(inner, f.flow, six, 1, false))
			w.see("from the last other site", in, there, decapped(f.vip, there, inner))
			w.see("from another site, of three", f.atSites(setHeir, hopsMost(2)), there, f.away(there, inner, f.vip, "CARRY", 2, false))
			w.see("from another site, in a row that has moved", f.atSites(f.moved, nil), there, f.away(there, inner, f.vip, "CHANCE", 1, true))
			after := eth(farTunnel(inner, f.flow, six, 1, true))
			w.see("and as the second chance there", in, after, decapped(f.vip, after, inner))
			last := eth(farTunnel(inner, f.flow, six, 3, false))
			w.see("after three hops", f.atSites(setHeir, hopsMost(3)), last, decapped(f.vip, last, inner))
			syn := eth(farTunnel(f.tcp(packet.SYN)[14:], f.flow, six, 1, false))
			w.see("a SYN from another site", f.atSites(setHeir, share(65536)), syn, decapped(f.vip, syn, f.tcp(packet.SYN)[14:]))

			// what the TTL says is what the tag is keyed for
			forgery := want{action: xdpDrop, counts: counts{"DECAP/DROP": 1, "drop/TUNNEL_TAG": 1}, bytes: len(inner)}
			for _, hops := range []int{0, 2, 3} {
				lie := mutate(there, func(b []byte) { copy(b[14:], retag(b[14:], hops, tagOf(b[14:]))) })
				w.see("from another site, with the hops of others", in, lie, forgery)
			}
			for _, ways := range []byte{1, 50} { // routers on the way
				far := mutate(there, func(b []byte) { shorten(b[14:], ways) })
				w.see("from another site, by a longer way", in, far, decapped(f.vip, far, inner))
			}
			w.see("from another site, a wrong tag in shadow", both(f.atSites(setHeir, hopsMost(3)), shadowing(bpf.XDPBermDropBERM_DROP_TUNNEL_TAG)),
				mutate(there, func(b []byte) { copy(b[14:], retag(b[14:], 2, tagOf(b[14:]))) }),
				want{
					action: xdpPass, out: l2of(there, inner), bytes: len(inner),
					counts: counted(f.vip, "DELIVER", "DECAP", counts{"shadow/TUNNEL_TAG": 1, "DECAP/SHADOW": 1, "vip/" + f.vip + "/shadowed": 1}),
				})
		}

		// a listener is no flow, but its cookie is
		listen(t, f.dst)
		w.see("ACK that meets a listener only", in, ack, carried(ack))
		last := f.cookie(t, k)
		w.see("ACK with a cookie", in, last, local(f.vip))

		// the flow is here
		connect(t, f.src, f.dst)
		for name, flags := range map[string]byte{"ACK": packet.ACK, "FIN": packet.FIN | packet.ACK, "RST": packet.RST} {
			w.see(name+" of our flow", in, f.tcp(flags), local(f.vip))
		}
		w.see("an error about our flow", in, f.quote(), local(f.vip))
		there := eth(farTunnel(inner, f.flow, f.six, 1, false))
		w.see("from another site, of our flow", f.atSites(setHeir, hopsMost(3)), there, decapped(f.vip, there, inner))
	}
	piece := eth(packet.IPv4{Src: good4, Dst: web4, Proto: tcp, Frag: packet.MF}.With(good(false)[34:58]))
	w.see("a fragment", families[0].atSites(setHeir, nil), piece, local("web-addr"))
}

func tagOf(p []byte) uint16 { return binary.BigEndian.Uint16(p[map[byte]int{4: 4, 6: 2}[p[0]>>4]:]) }

// shorten takes from a packet's TTL.
func shorten(p []byte, by byte) {
	if p[0]>>4 == 6 {
		p[7] -= by
		return
	}
	p[8] -= by
	packet.Sum4(p)
}

// What is carried is bounded, for a source and for all.
func TestCarryLimit(t *testing.T) {
	k := newKernel(t)
	sockets(t)
	for _, f := range families {
		for _, ofAll := range []bool{false, true} {
			for _, shadow := range []bool{false, true} {
				k.reset(t)
				f.atSites(setHeir, nil)(t, k)
				var bounds bpf.XDPBermCarry
				if ofAll {
					bounds.All.Cost, bounds.All.BurstUnits = limit(1000, 3)
				} else {
					bounds.Source.Cost, bounds.Source.BurstUnits = limit(1000, 3)
				}
				put(t, k.BermCarry, uint32(0), &bounds)
				if shadow {
					shadowing(bpf.XDPBermDropBERM_DROP_CARRY)(t, k)
				}
				ack := f.tcp(packet.ACK)
				carried := f.away(ack, ack[14:], f.vip, "CARRY", 1, false)
				for range 3 {
					k.check(t, ack, carried)
				}
				refused := dropped(f.vip, "STEER", "CARRY")
				if shadow {
					refused = shadowed(carried, f.vip, "STEER", "CARRY")
				}
				k.check(t, ack, refused)
				other, inner := f.other(packet.ACK)
				if ofAll && !shadow {
					k.check(t, other, withBytes(dropped(f.vip, "STEER", "CARRY"), len(inner)))
				} else if !ofAll {
					if action, _ := run(t, k.XdpBermAt, other); action != xdpTX {
						t.Errorf("another source: action %d, want it carried", action)
					}
				}
				k.at(t, 1_000_000_000_000+1_000_000_000)
				k.check(t, ack, carried)
			}
		}
	}
}

// other is a packet from a source beside the family's.
func (f family) other(flags byte) (frame, inner []byte) {
	src := netip.MustParseAddr("198.51.100.8")
	if f.six {
		src = netip.MustParseAddr("2a00:1:0:1::7")
	}
	frame = tcpTo(src, f.dst, 443, flags)
	return frame, frame[14:]
}

func TestSpill(t *testing.T) {
	k := newKernel(t)
	sockets(t)
	w := chanceWorld{k, t}
	for _, f := range families {
		syn, ack := f.tcp(packet.SYN), f.tcp(packet.ACK)
		udp := f.vip + "-udp"
		flowUDP := f
		flowUDP.flow = flowOf(f.src, f.dst, 40000, 443, packet.ProtoUDP)
		spilled := f.away(syn, syn[14:], f.vip, "SPILL", 1, false)
		hash := uint32(f.flow >> 48)
		listen(t, f.dst)
		quic := func(v *bpf.XDPBermVip) { v.Spill, v.Flags = 65536, v.Flags|uint16(bpf.XDPBermVipFlagsBERM_VIP_QUIC) }

		w.see("all, of a row of ours", f.atSites(setHeir, share(65536)), syn, spilled)
		w.see("all, of a row of another's", f.atSites(set4, share(65536)), syn, spilled)
		w.see("the share just above the flow", f.atSites(setHeir, share(hash+1)), syn, spilled)
		w.see("the share just below it", f.atSites(setHeir, share(hash)), syn, local(f.vip))
		w.see("none", f.atSites(setHeir, share(0)), syn, local(f.vip))
		w.see("the site is lost", f.atSites(setHeir, func(v *bpf.XDPBermVip) { v.Spill, v.SpillSet = 65536, setLost }), syn, local(f.vip))
		w.see("an ACK of no flow of ours", f.atSites(setHeir, share(65536)), ack, f.away(ack, ack[14:], f.vip, "CARRY", 1, false))
		w.see("an ACK in a row of another's", f.atSites(set4, share(65536)), ack, forwardedBy(f, ack))
		w.see("an error about a flow", f.atSites(set4, share(65536)), f.quote(), forwardedBy(f, f.quote()))
		peer := eth(farTunnel(syn[14:], f.flow, false, 0, false))
		w.see("a SYN by a peer: the first edge has spilled", f.atSites(setHeir, share(65536)), peer, decapped(f.vip, peer, syn[14:]))
		w.see("UDP that is no QUIC", f.atSites(setHeir, share(65536)), udpTo(f.src, f.dst, 443), local(udp))
		initial := f.quic(0xc0, 1)
		w.see("an Initial to no QUIC service", f.atSites(setHeir, share(65536)), initial, local(udp))
		w.see("an Initial", f.atSites(setHeir, quic), initial, flowUDP.away(initial, initial[14:], udp, "SPILL", 1, false))
		short := f.quic(0x40, 1)
		lost := local(udp)
		lost.counts = counted(udp, "DELIVER", "LOCAL", counts{"vip/" + udp + "/cid_lost": 1})
		w.see("a short header", f.atSites(setHeir, quic), short, lost)

		// Where the flow is here, it stays, whatever the share.
		connect(t, f.src, f.dst)
		w.see("an ACK of our flow", f.atSites(setHeir, share(65536)), ack, local(f.vip))
	}
}

// QUIC goes straight to the edge that its connection ID names, at whatever site.
func TestCarryByConnectionID(t *testing.T) {
	const sidFar = 777
	udp := map[bool]string{false: "web-udp", true: "web6-udp"}
	for _, f := range families {
		f.flow = flowOf(f.src, f.dst, 40000, 443, packet.ProtoUDP)
		vip := udp[f.six]
		world := func(change func(*bpf.XDPBermVip)) func(*testing.T, *kernel) {
			return func(t *testing.T, k *kernel) {
				quicWorld(t, k)
				f.atSites(set4, change)(t, k)
				far := uint32(backendFar4)
				if f.six {
					far = backendFar6
				}
				put(t, k.BermSids, uint32(sidFar), &bpf.XDPBermSid{Backend: far, Sets: 1 << set4})
			}
		}
		frame := eth(ip(f.src, f.dst, packet.ProtoUDP, packet.UDP{Src: 40000, Dst: 443}.With(append(append([]byte{0x40}, two(sidFar)...), make([]byte, 40)...))))
		carried := f.away(frame, frame[14:], vip, "CARRY", 1, false)
		carried.counts["vip/"+vip+"/cid"] = 1
		inRegion := func(n uint8) func(*bpf.XDPBermVip) {
			return func(v *bpf.XDPBermVip) { v.Region, v.Flags = n, v.Flags|vipRegion }
		}
		refused := dropped(vip, "STEER", "REGION")
		refused.counts["vip/"+vip+"/cid"] = 1
		there := eth(farTunnel(frame[14:], f.flow, f.six, 1, false))
		runCases(t, []testCase{
			{"to another site", world(nil), frame, carried},
			{"whatever the share", world(share(65536)), frame, carried},
			{"within the region", world(inRegion(regionFar)), frame, carried},
			{"into another region", world(inRegion(regionHere)), frame, refused},
			{"into another region, shadowed", both(world(inRegion(regionHere)), shadowing(bpf.XDPBermDropBERM_DROP_REGION)), frame, shadowed(carried, vip, "STEER", "REGION")},
			{"from an edge outside", world(func(v *bpf.XDPBermVip) { v.Region, v.Flags = regionFar, v.Flags|vipRegion|vipOutside }), frame, carried},
			{"from another site", both(peers, world(nil)), there, decapped(vip, there, frame[14:])},
		})
	}
}

func TestRegion(t *testing.T) {
	k := newKernel(t)
	sockets(t)
	w := chanceWorld{k, t}
	outside := func(carry bool) func(v *bpf.XDPBermVip) {
		return func(v *bpf.XDPBermVip) {
			v.Region, v.Flags = regionFar, v.Flags|vipRegion|vipOutside
			if !carry {
				v.CarrySet, v.CarryHops = 0, 0
			}
		}
	}
	within := func(change func(v *bpf.XDPBermVip)) func(v *bpf.XDPBermVip) {
		return func(v *bpf.XDPBermVip) {
			v.Region, v.Flags = regionHere, v.Flags|vipRegion
			if change != nil {
				change(v)
			}
		}
	}
	for _, f := range families {
		syn, ack, udp := f.tcp(packet.SYN), f.tcp(packet.ACK), udpTo(f.src, f.dst, 443)
		flowUDP := f
		flowUDP.flow = flowOf(f.src, f.dst, 40000, 443, packet.ProtoUDP)
		refused := func(vip string) want { return dropped(vip, "STEER", "REGION") }

		// in its region it is served, and not carried out of it
		w.see("within", f.atSites(setHeir, within(nil)), syn, local(f.vip))
		w.see("within, of no flow of ours", f.atSites(setHeir, within(nil)), ack, local(f.vip))
		w.see("within, to spill into another region", f.atSites(setHeir, within(share(65536))), syn, local(f.vip))
		w.see("within, in a row of another's", f.atSites(set4, within(share(65536))), syn, forwardedBy(f, syn))

		// outside it is refused
		for _, c := range []struct {
			frame []byte
			vip   string
		}{{syn, f.vip}, {ack, f.vip}, {udp, f.vip + "-udp"}, {f.quote(), f.vip}} {
			w.see("outside", f.atSites(setHeir, outside(false)), c.frame, refused(c.vip))
			w.see("outside, in a row of another's", f.atSites(set4, outside(false)), c.frame, refused(c.vip))
			w.see("outside, shadowed", both(f.atSites(setHeir, outside(false)), shadowing(bpf.XDPBermDropBERM_DROP_REGION)), c.frame,
				shadowed(local(c.vip), c.vip, "STEER", "REGION"))
		}
		// or goes into its region as it is, all of it
		w.see("outside, to be carried", f.atSites(setHeir, outside(true)), syn, f.away(syn, syn[14:], f.vip, "CARRY", 1, false))
		w.see("outside, to be carried, in a row of another's", f.atSites(set4, outside(true)), ack, f.away(ack, ack[14:], f.vip, "CARRY", 1, false))
		w.see("outside, to be carried, UDP", f.atSites(setHeir, outside(true)), udp, flowUDP.away(udp, udp[14:], f.vip+"-udp", "CARRY", 1, false))
		peer := eth(farTunnel(syn[14:], f.flow, f.six, 0, false))
		w.see("outside, to be carried, by a peer", f.atSites(setHeir, outside(true)), peer, f.away(peer, syn[14:], f.vip, "CARRY", 1, false))
		there := eth(farTunnel(syn[14:], f.flow, f.six, 1, false))
		w.see("outside, to be carried, from another site", f.atSites(setHeir, outside(true)), there, withBytes(refused(f.vip), len(syn)-14))
		w.see("outside, the region is lost", f.atSites(setHeir, func(v *bpf.XDPBermVip) { outside(true)(v); v.CarrySet = setLost }), syn, refused(f.vip))
		w.see("outside, the site is of a third region", f.atSites(setHeir, func(v *bpf.XDPBermVip) { outside(true)(v); v.Region = 9 }), syn, refused(f.vip))
		w.see("outside, no backends", f.atSites(setNone, outside(false)), syn, refused(f.vip))
	}
	piece := eth(packet.IPv4{Src: good4, Dst: web4, Proto: tcp, Frag: packet.MF}.With(good(false)[34:58]))
	fragments := families[0]
	fragments.flow = flowOf(good4, web4, 0, 0, tcp)
	w.see("a fragment outside", fragments.atSites(setHeir, outside(false)), piece, dropped("web-addr", "STEER", "REGION"))
	w.see("a fragment outside, to be carried", fragments.atSites(setHeir, outside(true)), piece, fragments.away(piece, piece[14:], "web-addr", "CARRY", 1, false))
}

// However the edges of four sites disagree about rows and about each other, no packet goes round: it passes from
// site to site three times at most, and within one twice.
func TestSitesEnd(t *testing.T) {
	k := newKernel(t)
	sockets(t)
	k.reset(t)
	const edges = 8 // of whatever sites
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 9, byte(i), 0}) }
	for i := range edges {
		id := uint32(i + 1)
		put(t, k.BermBackends, id, &bpf.XDPBermBackend{Addr: addrOf(addr(i)), Flags: 3, Family: 4, Mac: [6]byte{2, 1, 0, 0, 0, byte(id)}})
		a := addrOf(addr(i))
		put(t, k.BermPeers, &a, uint64(id))
	}
	r := rand.New(rand.NewPCG(7, 9))
	row := flow4 & 0xffffffff * 65537 >> 32
	most, seen := 0, map[int]int{}
	for range 4000 {
		type table struct{ own, carry uint32 }
		var tables [edges]table
		pick := func() uint32 {
			return (1 + r.Uint32N(edges)) | (1+r.Uint32N(edges))<<16 | r.Uint32N(2)<<31
		}
		for i := range tables {
			tables[i] = table{pick(), pick()}
		}
		frame, at := good(false), r.IntN(edges)
		for hop := 0; ; hop++ {
			put := func(set uint32, v uint32) {
				k.words(t, k.BermRows, set*32769+uint32(row/2), uint64(v)<<32|uint64(v))
			}
			put(set4, tables[at].own)
			put(setFar4, tables[at].carry)
			k.configure(t, func(c *bpf.XDPBermConfig) { c.Self, c.Self4 = uint32(at+1), addrOf(addr(at)) })
			k.changeVIP(t, "web", func(v *bpf.XDPBermVip) {
				v.Set, v.Flags, v.CarrySet, v.CarryHops = set4, v.Flags|vipSites, setFar4, 3
			})
			action, out := run(t, k.XdpBermAt, frame)
			if action == xdpPass {
				most = max(most, hop)
				seen[hop]++
				break
			}
			if action != xdpTX || hop > 8 {
				t.Fatalf("tables %x: action %d at hop %d: %x", tables, action, hop, out)
			}
			at = int(out[5]) - 1
			frame = out
		}
	}
	if most < 6 {
		t.Errorf("the longest way has %d hops: these tables try too little (%v)", most, seen)
	}
}
