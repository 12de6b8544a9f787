package maps_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

func TestProbes(t *testing.T) {
	k := mapstest.New(t)
	flag := func() bool { return k.Config.Get().Flags&uint32(bpf.XDPBermConfigFlagsBERM_CONFIG_PROBES) != 0 }
	if err := k.Probes.Enable(true); err != nil || !flag() {
		t.Fatalf("enable: %v, flag %t", err, flag())
	}
	p := maps.Probe{Local: 40000, Server: netip.MustParseAddr("10.0.0.7"), Service: netip.MustParseAddr("192.0.2.10"), Port: 443, Backend: 3}
	if err := k.Probes.Put(p); err != nil {
		t.Fatal(err)
	}
	var row bpf.XDPBermProbe
	m := k.Maps[bpf.XDPMapBermProbes]
	if err := m.Lookup(uint32(40000), &row); err != nil || row.Port != 443 || row.Backend != 3 || row.Service.Octets != p.Service.As16() || row.Server.Octets != p.Server.As16() {
		t.Errorf("row %+v, %v", row, err)
	}
	row.Sent = 5 // the kernel half's
	if err := m.Put(uint32(40000), &row); err != nil {
		t.Fatal(err)
	}
	if got, n, err := k.Probes.Get(40000); err != nil || got != p || n != 5 {
		t.Errorf("%+v, sent %d, %v, want %+v and 5", got, n, err, p)
	}
	if n, err := k.Probes.Take(40000); err != nil || n != 5 {
		t.Errorf("sent %d, %v, want 5", n, err)
	}
	if n, err := k.Probes.Take(40000); !errors.Is(err, maps.ErrNotFound) {
		t.Errorf("taken again: %d, %v", n, err)
	}

	p.Service = netip.MustParseAddr("2001:db8::10")
	if err := k.Probes.Put(p); err == nil || !strings.Contains(err.Error(), "family") {
		t.Errorf("of two families: %v", err)
	}
	p.Server = netip.MustParseAddr("2001:db8::7")
	if err := k.Probes.Put(p); err != nil {
		t.Error(err)
	}
	if err := k.Probes.Enable(false); err != nil || flag() {
		t.Errorf("disable: %v, flag %t", err, flag())
	}
	if err := m.Lookup(uint32(40000), &row); err != nil || row != (bpf.XDPBermProbe{}) {
		t.Errorf("left behind: %+v, %v", row, err)
	}
}
