package bpf_test

import (
	"bytes"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

// Whatever map somebody empties, in whole or by removing what others name: traffic that is not ours passes as it came, no
// packet is aborted or leaves damaged, and what is sent on is well formed.
func TestEmptiedMaps(t *testing.T) {
	frames := map[string][]byte{
		"IPv4": good(false), "IPv6": good(true), "UDP": udpTo(good4, web4, 443), "blocked": tcpTo(bad4, web4, 443, packet.ACK),
		"to others, IPv4": tcpTo(good4, other4, 443, packet.ACK), "to others, IPv6": tcpTo(good6, other6, 443, packet.ACK),
		"tunnel": eth(tunnel(good(false)[14:], flow4, baseConfig.TagSecrets[0])),
	}
	k := newKernel(t)
	for name, m := range map[string]*ebpf.Map{
		"config": k.BermConfig, "vip_seeds": k.BermVipSeeds, "vip_slots": k.BermVipSlots, "vips": k.BermVips, "geo_rules": k.BermGeoRules,
		"rate_classes": k.BermRateClasses, "prefix4": k.BermPrefix4, "prefix6_root": k.BermPrefix6Root, "prefix_records": k.BermPrefixRecords, "networks": k.BermNetworks,
		"verdict_bits": k.BermVerdictBits, "rows": k.BermRows, "backends": k.BermBackends, "peers": k.BermPeers, "sample": k.BermSample,
	} {
		t.Run(name, func(t *testing.T) {
			k.reset(t)
			peers(t, k)
			empty(t, k, m)
			for what, frame := range frames {
				action, out := run(t, k.XdpBermAt, frame)
				checkInvariants(t, frame, action, out)
				if !isOurs(frame) && !isTunnel(frame) && (action != xdpPass || !bytes.Equal(out, frame)) {
					t.Errorf("%s: action %d", what, action)
				}
			}
			clearMap(t, k.BermPeers)
			k.events(t) // an emptied table of samples asks for every packet
		})
	}
	k.reset(t)
}

func empty(t *testing.T, k *kernel, m *ebpf.Map) {
	t.Helper()
	switch {
	case m.Type() == ebpf.Hash:
		clearMap(t, m)
	case m.MaxEntries() <= 4096:
		for i := range m.MaxEntries() {
			put(t, m, i, make([]byte, m.ValueSize()))
		}
	default:
		mem := k.memory(t, m)
		if _, err := mem.WriteAt(make([]byte, mem.Size()), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// A clock that steps back or far ahead holds nobody to a debt that he did not make.
func TestClockSteps(t *testing.T) {
	k := newKernel(t)
	const hour = uint64(3600e9)
	cost, units := limit(1, 1)
	for name, step := range map[string]func(now uint64) uint64{
		"an hour back":   func(now uint64) uint64 { return now - hour },
		"an hour ahead":  func(now uint64) uint64 { return now + hour },
		"30 hours ahead": func(now uint64) uint64 { return now + 30*hour },
	} {
		t.Run(name, func(t *testing.T) {
			k.reset(t)
			var class bpf.XDPBermRateClass
			class.Packets.Cost, class.Packets.BurstUnits = cost, units
			k.class(t, class)
			now := 40 * hour
			k.at(t, now)
			limited := false
			for range 10 {
				action, _ := run(t, k.XdpBermAt, good(false))
				limited = limited || action == xdpDrop
			}
			if !limited {
				t.Fatal("not limited before")
			}
			k.at(t, step(now))
			if action, _ := run(t, k.XdpBermAt, good(false)); action != xdpTX {
				t.Errorf("action %d after the step", action)
			}
		})
	}
	k.reset(t)
}
