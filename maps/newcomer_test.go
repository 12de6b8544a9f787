package maps_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

// TestNewcomers has the real program note a flow, and finds it.
func TestNewcomers(t *testing.T) {
	k := mapstest.New(t)
	addr, must := netip.MustParseAddr, func(id uint32, err error) uint32 {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	one := must(k.Backends.Put(maps.Backend{Name: "one", Address: addr("192.0.2.1"), Via: maps.ViaGUE, Port: 6080}))
	two := must(k.Backends.Put(maps.Backend{Name: "two", Address: addr("192.0.2.2"), Via: maps.ViaL2}))
	for _, id := range []uint32{one, two} {
		must(0, k.Backends.SetNextHop(id, maps.NextHop{Ready: true, MAC: maps.MAC{2, 0, 0, 0, 0, byte(id)}}))
	}
	set := must(k.Sets.Put(maps.BackendSet{Name: "servers"}))
	rows := make([]maps.Row, maps.RowCount)
	for i := range rows {
		rows[i] = maps.Row{Owner: uint16(one), Second: uint16(two), Moved: true, Newcomers: true}
	}
	must(0, k.Rows.Write(set, rows))
	if got, err := k.Rows.Read(set); err != nil || got[7] != rows[7] {
		t.Fatalf("row %+v, %v, want %+v", got[7], err, rows[7])
	}
	src, dst := netip.MustParseAddrPort("198.51.100.7:4000"), netip.MustParseAddrPort("203.0.113.1:443")
	must(k.VIPs.Put(maps.VIP{Name: "web", Address: dst.Addr(), Port: dst.Port(), Protocol: maps.ProtocolTCP, Backends: "servers"}))
	must(0, k.Config.SetSelf(maps.Self{Address4: addr("192.0.2.9")}))

	flow := maps.FlowHash(k.Config.Secrets().Flow, src, dst, maps.ProtocolTCP)
	if n, ok := k.Newcomers.Find(flow); ok || k.Newcomers.Count() != 0 {
		t.Fatalf("found %+v in an empty table", n)
	}
	for i, flags := range []byte{mapstest.SYN, mapstest.ACK} {
		k.Run(t, mapstest.TCP(src, dst, flags))
		want := maps.Newcomer{Backend: one, Open: i == 1}
		if n, ok := k.Newcomers.Find(flow); !ok || n != want || k.Newcomers.Count() != 1 {
			t.Errorf("after %d packets: %+v, %t, of %d; want %+v", i+1, n, ok, k.Newcomers.Count(), want)
		}
	}
	stats, err := k.Stats.VIPs()
	if err != nil || stats[0].Newcomer.Packets+stats[1].Newcomer.Packets != 2 {
		t.Errorf("counters %+v, %v", stats, err)
	}
	must(0, k.Newcomers.Forget(two))
	if k.Newcomers.Count() != 1 {
		t.Error("forgot another backend's flow")
	}
	must(0, k.Newcomers.Forget(one))
	if n, ok := k.Newcomers.Find(flow); ok {
		t.Errorf("not forgotten: %+v", n)
	}
}

func TestBackendVia(t *testing.T) {
	k := mapstest.New(t)
	b := maps.Backend{Name: "one", Address: netip.MustParseAddr("192.0.2.1")}
	for _, bad := range []struct {
		via  maps.Via
		port uint16
	}{{maps.ViaGUE, 0}, {maps.ViaL2, 6080}, {maps.ViaL2 + 1, 0}} {
		b.Via, b.Port = bad.via, bad.port
		if _, err := k.Backends.Put(b); err == nil || !strings.Contains(err.Error(), "want a port for gue") {
			t.Errorf("via %s, port %d: %v", bad.via, bad.port, err)
		}
	}
	b.Via, b.Port = maps.ViaGUE, 6080
	id, err := k.Backends.Put(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Backends.SetNextHop(id, maps.NextHop{Ready: true}); err != nil {
		t.Fatal(err)
	}
	if got, err := k.Backends.ByID(id); err != nil || got.Via != maps.ViaGUE || got.Port != 6080 || !got.NextHop.Ready {
		t.Errorf("%+v, %v", got, err)
	}
	b.Via, b.Port = maps.ViaL2, 0
	if _, err := k.Backends.Put(b); err != nil {
		t.Fatal(err)
	}
	// A next hop may be a router, which takes tunnels on and not frames for others.
	if got, err := k.Backends.ByID(id); err != nil || got.NextHop.Ready {
		t.Errorf("another way keeps the next hop: %+v, %v", got, err)
	}
}
