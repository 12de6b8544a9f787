package control_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
	"github.com/bermedge/berm/userspace/control"
)

// What is explained of other sites is what the kernel half does: with what begins a flow, and with what nobody knows.
func TestExplainSitesAgreesWithTheKernel(t *testing.T) {
	k := mapstest.New(t)
	l := control.NewLocal(k.Set, nil)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const here, there = 1, 2 // regions
	put := func(name, addr string, remote bool) uint16 {
		b := maps.Backend{Name: name, Address: netip.MustParseAddr(addr), Remote: remote, Region: here}
		if remote {
			b.Region = there
		}
		id, err := k.Backends.Put(b)
		must(err)
		must(k.Backends.SetNextHop(id, maps.NextHop{Ready: name != "lost", MAC: maps.MAC{2, 0, 0, 0, 0, byte(id)}, SourceMAC: maps.MAC{2, 0, 0, 0, 0, 1}}))
		return uint16(id)
	}
	me, you := put("me", "10.0.0.1", false), put("you", "10.0.0.2", false)
	far, further, lost := put("far", "10.1.0.1", true), put("further", "10.1.0.2", true), put("lost", "10.1.0.3", true)
	must(k.Config.SetSelf(maps.Self{Backend: uint32(me), Address4: netip.MustParseAddr("10.0.0.1")}))
	for name, members := range map[string][]uint16{"edges": {me, you}, "edges.b": {far, further, lost}, "edges.c": {lost}} {
		set, err := k.Sets.Put(maps.BackendSet{Name: name})
		must(err)
		rows := make([]maps.Row, maps.RowCount)
		for i := range rows {
			rows[i] = maps.Row{Owner: members[i%len(members)], Second: members[i/7%len(members)]}
		}
		must(k.Rows.Write(set, rows))
	}
	vips := map[string]maps.Sites{
		"192.0.2.1": {},
		"192.0.2.2": {Carry: "edges.b", Hops: 1},
		"192.0.2.3": {Carry: "edges.b", Hops: 1, Spill: "edges.b", SpillPoints: 5000},
		"192.0.2.4": {Carry: "edges.c", Hops: 1, Spill: "edges.c", SpillPoints: 10_000},
		"192.0.2.5": {Region: there, Outside: true},
		"192.0.2.6": {Carry: "edges.b", Hops: 1, Region: there, Outside: true},
		"192.0.2.7": {Carry: "edges.b", Hops: 1, Region: here, Spill: "edges.b", SpillPoints: 10_000},
	}
	for addr, sites := range vips {
		_, err := k.VIPs.Put(maps.VIP{Name: "at" + addr, Address: netip.MustParseAddr(addr), Port: 80, Protocol: maps.ProtocolTCP, Backends: "edges", Sites: sites})
		must(err)
	}
	list, err := k.Backends.List()
	must(err)
	name := func(frame []byte) string {
		outer := netip.AddrFrom4([4]byte(frame[14+16:]))
		return list[slices.IndexFunc(list, func(b maps.Backend) bool { return b.Address == outer })].Name
	}
	seen := map[string]int{}
	for port := range uint16(30) {
		for addr := range vips {
			src := netip.AddrPortFrom(netip.MustParseAddr("198.51.100.7"), 1000+port)
			for dport, flags := range map[uint16][]byte{80: {mapstest.SYN, mapstest.ACK}, 81: {mapstest.ACK}} {
				dst := netip.AddrPortFrom(netip.MustParseAddr(addr), dport)
				s, err := l.ExplainSteer(t.Context(), control.Flow{Protocol: "tcp", Source: src, Destination: dst})
				must(err)
				for _, f := range flags {
					want, to := s.Delivery, s.Owner
					switch {
					case want == "drop":
					case want == "carry":
						to = s.Carry
					case f == mapstest.SYN && s.Spill != "":
						want, to = "spill", s.Spill
					case f == mapstest.ACK && s.Carry != "" && want == "local":
						want, to = "carry", s.Carry
					}
					before, err := k.Stats.Stages()
					must(err)
					action, out := k.Run(t, mapstest.TCP(src, dst, f))
					after, err := k.Stats.Stages()
					must(err)
					got := exitBetween(before, after)
					if got != want || mapstest.Action(action) == "tx" && name(out) != to {
						t.Fatalf("%s → %s, flags %#x: %s %s, want %s to %q: %+v", src, dst, f, got, mapstest.Action(action), want, to, s)
					}
					seen[got]++
				}
			}
		}
	}
	for _, exit := range []string{"local", "forward", "carry", "spill", "drop"} {
		if seen[exit] == 0 {
			t.Errorf("no packet ended as %s: %v", exit, seen)
		}
	}
}

// exitBetween is how the one packet counted between two readings ended.
func exitBetween(before, after map[maps.StageExit]maps.Counter) string {
	for at, n := range after {
		if n != before[at] {
			return at.Exit.String()
		}
	}
	return "nothing"
}
