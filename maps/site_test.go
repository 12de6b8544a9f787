package maps_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

func TestSitesOfVIPs(t *testing.T) {
	k := mapstest.New(t)
	for _, set := range []string{"edges", "edges.b", "edges.c"} {
		if _, err := k.Sets.Put(maps.BackendSet{Name: set}); err != nil {
			t.Fatal(err)
		}
	}
	v := service("web", "192.0.2.10", 443)
	v.Backends = "edges"
	for points := 0; points <= maps.AllPoints; points += 1 + points/7 {
		v.Sites = maps.Sites{Carry: "edges.b", Hops: 2, Spill: "edges.c", SpillPoints: points, Region: 3, Outside: points%2 == 0}
		if _, err := k.VIPs.Put(v); err != nil {
			t.Fatal(err)
		}
		if got, err := k.VIPs.Get("web"); err != nil || got.Sites != v.Sites {
			t.Fatalf("%d basis points: %+v, %v, want %+v", points, got.Sites, err, v.Sites)
		}
	}
	for _, set := range []string{"edges.b", "edges.c"} {
		if err := k.Sets.Remove(set); !errors.Is(err, maps.ErrInUse) {
			t.Errorf("remove %s: %v, want that it is in use", set, err)
		}
	}
	v.Sites = maps.Sites{Carry: "nowhere"}
	if _, err := k.VIPs.Put(v); !errors.Is(err, maps.ErrNotFound) {
		t.Errorf("a set that nobody has: %v", err)
	}
	v.Sites = maps.Sites{Hops: 4, SpillPoints: 10_001, Outside: true}
	_, err := k.VIPs.Put(v)
	for _, want := range []string{"sites: 4 others", "spill: 10001 basis points", "spill: names no site", "outside of none"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}

func TestSpills(t *testing.T) {
	for _, c := range []struct {
		points int
		flow   uint64
		want   bool
	}{
		{0, 0, false}, {10_000, ^uint64(0), true}, {2500, 0x3fff << 48, true}, {2500, 0x4000 << 48, false}, {1, 6 << 48, true}, {1, 7 << 48, false},
	} {
		if got := (maps.Sites{SpillPoints: c.points}).Spills(c.flow); got != c.want {
			t.Errorf("%d basis points, flow %#x: %v", c.points, c.flow, got)
		}
	}
}

func TestCarries(t *testing.T) {
	k := mapstest.New(t)
	want := maps.Carry{Source: maps.CarryLimit(5000), All: maps.CarryLimit(100_000)}
	if err := k.Carries.Put(want); err != nil {
		t.Fatal(err)
	}
	if got, err := k.Carries.Get(); err != nil || got != want || got.All.Burst != 10_000 {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	if err := k.Carries.Put(maps.Carry{All: maps.Limit{PerSecond: 1 << 40, Burst: 1}}); err == nil || !strings.Contains(err.Error(), "packets") {
		t.Errorf("a limit that cannot be counted: %v", err)
	}
	if got, _ := k.Carries.Get(); got != want {
		t.Errorf("after a refused change: %+v, want %+v", got, want)
	}
	if err := k.Carries.Put(maps.Carry{}); err != nil {
		t.Error(err)
	}
	if got, err := k.Carries.Get(); err != nil || got != (maps.Carry{}) {
		t.Errorf("no bounds: %+v, %v", got, err)
	}
}

func TestRemoteBackends(t *testing.T) {
	k := mapstest.New(t)
	want := maps.Backend{Name: "b1", Address: netip.MustParseAddr("10.1.0.1"), Remote: true, Region: 2}
	for _, want.Remote = range []bool{true, false} {
		if _, err := k.Backends.Put(want); err != nil {
			t.Fatal(err)
		}
		if got, err := k.Backends.Get("b1"); err != nil || got.Remote != want.Remote || got.Region != 2 {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	}
}
