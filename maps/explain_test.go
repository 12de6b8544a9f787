package maps_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

// steered prepares a set whose rows name every kind of backend.
func steered(t *testing.T, k *mapstest.Kernel, r *rand.Rand) (names map[netip.Addr]string) {
	t.Helper()
	names = map[netip.Addr]string{}
	var ids []uint16
	for i, addr := range []string{"203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4"} {
		b := maps.Backend{Name: string(rune('a' + i)), Address: netip.MustParseAddr(addr)}
		id, err := k.Backends.Put(b)
		if err != nil {
			t.Fatal(err)
		}
		if b.Name != "d" { // never ready
			if err := k.Backends.SetNextHop(id, maps.NextHop{Ready: true, MAC: maps.MAC{2, 0, 0, 0, 1, byte(id)}, SourceMAC: maps.MAC{2, 0, 0, 0, 0, 1}}); err != nil {
				t.Fatal(err)
			}
		}
		ids = append(ids, uint16(id))
		names[b.Address] = b.Name
	}
	set, err := k.Sets.Put(maps.BackendSet{Name: "edges"})
	if err != nil {
		t.Fatal(err)
	}
	rows := make([]maps.Row, maps.RowCount)
	for i := range rows {
		rows[i] = maps.Row{Owner: ids[r.IntN(4)], Second: append(ids, 0)[r.IntN(5)]}
	}
	if err := k.Rows.Write(set, rows); err != nil {
		t.Fatal(err)
	}
	if err := k.Config.SetSelf(maps.Self{Backend: uint32(ids[0]), Address4: netip.MustParseAddr("203.0.113.1")}); err != nil {
		t.Fatal(err)
	}
	for _, v := range []maps.VIP{service("web", "192.0.2.10", 443), service("six", "2001:db8::10", 443), service("local", "192.0.2.11", 80)} {
		if v.Name != "local" {
			v.Backends = "edges"
		}
		if _, err := k.VIPs.Put(v); err != nil {
			t.Fatal(err)
		}
	}
	return names
}

// TestSteerAgreesWithKernel sends flows through the program and compares where they go.
func TestSteerAgreesWithKernel(t *testing.T) {
	k := mapstest.New(t)
	r := rand.New(rand.NewPCG(3, 3))
	names := steered(t, k, r)
	seen := map[maps.Exit]int{}
	for range 600 {
		src := netip.AddrPortFrom(addr4(0x0b000000+r.Uint64N(1<<24)), uint16(1+r.IntN(65535)))
		dst := netip.MustParseAddrPort([]string{"192.0.2.10:443", "192.0.2.10:80", "192.0.2.11:80", "192.0.2.12:443"}[r.IntN(4)])
		if r.IntN(3) == 0 {
			src = netip.AddrPortFrom(addr6(0x2400<<48+r.Uint64N(1<<40)), src.Port())
			dst = netip.MustParseAddrPort("[2001:db8::10]:443")
		}
		proto, frame := maps.ProtocolTCP, mapstest.TCP(src, dst, mapstest.ACK)
		switch r.IntN(4) {
		case 0:
			proto, frame = maps.ProtocolUDP, mapstest.UDP(src, dst, 30)
		case 1:
			proto = 47
			frame = mapstest.Frame(src.Addr(), dst.Addr(), proto, make([]byte, 40))
		}
		want, err := k.Steer(src, dst, proto)
		if err != nil {
			t.Fatal(err)
		}
		seen[want.Exit]++
		action, out := k.Run(t, frame)
		switch got := mapstest.Action(action); {
		case want.Exit != maps.ExitForward && got != "pass":
			t.Fatalf("%s → %s %s: %s, want %+v", src, dst, proto, got, want)
		case want.Exit == maps.ExitForward:
			if got != "tx" {
				t.Fatalf("%s → %s %s: %s, want %+v", src, dst, proto, got, want)
			}
			outer := netip.AddrFrom4([4]byte(out[14+16:]))
			if names[outer] != want.To {
				t.Fatalf("%s → %s %s went to %s (%s), want %+v", src, dst, proto, outer, names[outer], want)
			}
			tag := binary.BigEndian.Uint16(out[14+4:])
			if secrets := k.Config.Secrets(); secrets.Tags[0] != 0 && tag != maps.FlowTag(want.Hash, secrets.Tags[0], false, 0) {
				t.Fatalf("tag %#x, want %#x", tag, maps.FlowTag(want.Hash, secrets.Tags[0], false, 0))
			}
		}
	}
	for _, e := range []maps.Exit{maps.ExitForeign, maps.ExitLocal, maps.ExitForward, maps.ExitFailOpen} {
		if seen[e] == 0 {
			t.Errorf("no flow was to end as %s", e)
		}
	}
	t.Log(seen)
}

func TestSteerTag(t *testing.T) {
	k := mapstest.New(t)
	if err := k.Config.Update(func(c *bpf.XDPBermConfig) { c.TagSecrets[0] = 0x1234567890abcdef }); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(4, 4))
	steered(t, k, r)
	checked := 0
	for port := range uint16(200) {
		src, dst := netip.AddrPortFrom(client.Addr(), 1000+port), netip.MustParseAddrPort("192.0.2.10:443")
		want, err := k.Steer(src, dst, maps.ProtocolTCP)
		if err != nil {
			t.Fatal(err)
		}
		if want.Exit != maps.ExitForward {
			continue
		}
		_, out := k.Run(t, mapstest.TCP(src, dst, mapstest.ACK))
		if got := binary.BigEndian.Uint16(out[14+4:]); got != maps.FlowTag(want.Hash, 0x1234567890abcdef, false, 0) {
			t.Fatalf("tag %#x, want %#x", got, maps.FlowTag(want.Hash, 0x1234567890abcdef, false, 0))
		}
		checked++
	}
	if checked == 0 {
		t.Error("nothing was forwarded")
	}
}

func TestSteerWithoutSelf(t *testing.T) {
	k := mapstest.New(t)
	steered(t, k, rand.New(rand.NewPCG(5, 5)))
	if err := k.Config.SetSelf(maps.Self{}); err != nil {
		t.Fatal(err)
	}
	set, _ := k.Sets.List()
	if err := k.Rows.Write(set[0].ID, make([]maps.Row, maps.RowCount)); err != nil {
		t.Fatal(err)
	}
	dst := netip.MustParseAddrPort("192.0.2.10:443")
	want, err := k.Steer(client, dst, maps.ProtocolTCP)
	action, _ := k.Run(t, mapstest.TCP(client, dst, mapstest.SYN))
	if err != nil || want.Exit != maps.ExitDrop || mapstest.Action(action) != "drop" {
		t.Errorf("rows that name nobody: %+v, %v, %s", want, err, mapstest.Action(action))
	}
	if drops, _ := k.Stats.Drops(); drops[maps.DropNoBackend].Packets != 1 {
		t.Errorf("drops %v", drops[maps.DropNoBackend])
	}
	if _, err := k.Steer(client, netip.MustParseAddrPort("[2001:db8::1]:1"), maps.ProtocolTCP); err == nil {
		t.Error("two families were accepted")
	}
}
