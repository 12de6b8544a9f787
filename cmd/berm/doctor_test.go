package main

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/bermedge/berm/cmd/berm/internal/doctor"
	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

// TestDoctorAsksAboutTheLost: whoever does not answer has lost its rows, and is whom the doctor is asked about.
func TestDoctorAsksAboutTheLost(t *testing.T) {
	k := mapstest.New(t)
	var ids []uint32
	for i, name := range []string{"edge1", "edge2"} {
		id, err := k.Backends.Put(maps.Backend{Name: name, Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	set, err := k.Sets.Put(maps.BackendSet{Name: "edges"})
	if err != nil {
		t.Fatal(err)
	}
	self := k.Config.Self()
	self.Backend = ids[0]
	if err := k.Config.SetSelf(self); err != nil {
		t.Fatal(err)
	}
	if err := k.Rows.Write(set, slices.Repeat([]maps.Row{{Owner: uint16(ids[0])}}, maps.RowCount)); err != nil {
		t.Fatal(err)
	}
	if _, err := k.VIPs.Put(maps.VIP{Name: "web", Address: netip.MustParseAddr("192.0.2.10"), Port: 443, Protocol: maps.ProtocolTCP, Backends: "edges"}); err != nil {
		t.Fatal(err)
	}

	var e doctor.Edge
	why := doctor.Silence{Probe: "udp 9191", Why: "i/o timeout"}
	if err := fromTables(k.Set, map[string]doctor.Silence{"edge2": why}, &e); err != nil {
		t.Fatal(err)
	}
	if len(e.Backends) != 1 || e.Backends[0] != (doctor.Backend{Name: "edge2", Address: netip.MustParseAddr("10.0.0.2"), Silence: why}) {
		t.Errorf("backends %+v", e.Backends)
	}
	if len(e.VIPs) != 1 || !e.VIPs[0].Local {
		t.Errorf("VIPs %+v", e.VIPs)
	}
}
