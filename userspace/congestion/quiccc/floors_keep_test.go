package quiccc

import (
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/userspace/congestion"
	"github.com/bermedge/berm/userspace/congestion/controller"
)

// lossy tells of clients of a prefix that each lost a share of their packets.
func (f *floors) lossy(share float64, clients ...string) {
	for _, of := range clients {
		a := netip.MustParseAddr(of)
		l := f.by[netip.PrefixFrom(a, 24).Masked()]
		if l == nil {
			l = &controller.FloorLearner{}
			f.by[netip.PrefixFrom(a, 24).Masked()] = l
		}
		l.Learn(time.Since(f.begun), f.hash(source(a)), 10_000, share)
		f.dirty = true
	}
}

// Floors outlive the process, and a client that comes again counts once.
func TestFloorsOutlive(t *testing.T) {
	dir := t.TempDir()
	was := New(Options{})
	was.floors.lossy(0.04, "192.0.2.1", "192.0.2.2", "192.0.2.3")
	was.floors.lossy(0.02, "198.51.100.1")
	if err := was.SaveFloors(dir); err != nil {
		t.Fatal(err)
	}
	is := New(Options{})
	is.floors.lossy(0, "198.51.100.7") // before it has read the file
	if err := is.LoadFloors(dir); err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr("192.0.2.9")
	if got, want := is.Floor(a), was.Floor(a); want < 0.02 || math.Abs(got-want) > 1e-9 {
		t.Errorf("a floor of %v, was %v", got, want)
	}
	if got := is.Floor(netip.MustParseAddr("198.51.100.1")); got != 0 {
		t.Errorf("what was told since the start is overwritten: %v", got)
	}
	before := is.Floor(a)
	is.floors.lossy(0.04, "192.0.2.1")
	if n := len(is.floors.by[netip.MustParsePrefix("192.0.2.0/24")].Sources(time.Since(is.floors.begun))); n != 3 || is.Floor(a) < before {
		t.Errorf("%d clients, want 3", n)
	}
	if err := New(Options{}).LoadFloors(t.TempDir()); err != nil {
		t.Errorf("without a file: %v", err)
	}
	old := floorsState{Key: make([]byte, floorsKey), Prefixes: []floorState{{netip.MustParsePrefix("192.0.2.0/24"), []clientState{{1, 1000, 40, time.Now().Add(-2 * time.Hour)}}}}}
	if err := congestion.Keep(filepath.Join(dir, floorsFile), old); err != nil {
		t.Fatal(err)
	}
	late := New(Options{})
	if err := late.LoadFloors(dir); err != nil || late.Floor(a) != 0 {
		t.Errorf("what is too old: %v, %v", late.Floor(a), err)
	}
}

func TestFloorsDamaged(t *testing.T) {
	for says, body := range map[string]any{
		"not one of ours":  map[string]any{"key": "AAAA"},
		"is no prefix":     map[string]any{"key": make([]byte, 16), "prefixes": []any{map[string]any{"prefix": "192.0.2.0/20"}}},
		"connection meets": floorsState{Key: make([]byte, 16), Prefixes: []floorState{{netip.MustParsePrefix("192.0.2.0/24"), []clientState{{1, 10, 11, time.Now()}}}}},
		"has places":       floorsState{Key: make([]byte, 16), Prefixes: []floorState{{netip.MustParsePrefix("192.0.2.0/24"), make([]clientState, 33)}}},
	} {
		dir := t.TempDir()
		if err := congestion.Keep(filepath.Join(dir, floorsFile), body); err != nil {
			t.Fatal(err)
		}
		c := New(Options{})
		if err := c.LoadFloors(dir); err == nil || !strings.Contains(err.Error(), says) || len(c.floors.by) != 0 {
			t.Errorf("%q: %v, %d prefixes", says, err, len(c.floors.by))
		}
		if _, err := os.Stat(filepath.Join(dir, floorsFile+".refused")); err != nil {
			t.Errorf("%q: it was not set aside: %v", says, err)
		}
	}
}
