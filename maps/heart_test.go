package maps_test

import (
	"errors"
	"testing"
	"time"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

func TestHeart(t *testing.T) {
	k := mapstest.New(t)
	read := func() (h bpf.XDPBermHeart) {
		t.Helper()
		if err := k.Maps[bpf.XDPMapBermHeart].Lookup(uint32(0), &h); err != nil {
			t.Fatal(err)
		}
		return h
	}
	for _, d := range []time.Duration{-1, time.Hour + 1} {
		if err := k.Heart.SetLimit(d); err == nil {
			t.Errorf("%s: accepted", d)
		}
	}
	units := func(n uint32) {
		t.Helper()
		if err := k.Config.Update(func(c *bpf.XDPBermConfig) { c.TickUnits = n }); err != nil {
			t.Fatal(err)
		}
	}
	units(0)
	if err := k.Heart.SetLimit(time.Second); !errors.Is(err, maps.ErrContract) {
		t.Errorf("without a tick: %v", err)
	}
	units(62500) // 4 ms
	for d, ticks := range map[time.Duration]uint32{500 * time.Millisecond: 125, 501 * time.Millisecond: 126, 0: 0, time.Hour: 900_000} {
		if err := k.Heart.SetLimit(d); err != nil {
			t.Fatal(err)
		}
		if got := read().LimitTicks; got != ticks || k.Heart.Limit() != time.Duration(ticks)*4*time.Millisecond {
			t.Errorf("%s: %d ticks, %s, want %d", d, got, k.Heart.Limit(), ticks)
		}
	}
	before := read()
	k.Heart.Beat()
	if after := read(); after.Beat != before.Beat+1 || after.LimitTicks != before.LimitTicks || after.Noted != before.Noted {
		t.Errorf("a beat made %+v of %+v", after, before)
	}
	if k.Heart.Fired() {
		t.Error("fired from the start")
	}
	h := read()
	h.Fired = 1
	if err := k.Maps[bpf.XDPMapBermHeart].Put(uint32(0), &h); err != nil {
		t.Fatal(err)
	}
	if !k.Heart.Fired() {
		t.Error("not fired")
	}
	if k.Heart.Clear(); k.Heart.Fired() || read().Beat != h.Beat {
		t.Errorf("cleared: %+v", read())
	}
}

func TestRowsKeepWhatIsWritten(t *testing.T) {
	k := mapstest.New(t)
	set, err := k.Sets.Put(maps.BackendSet{Name: "edges"})
	if err != nil {
		t.Fatal(err)
	}
	table := make([]maps.Row, maps.RowCount)
	for i := range table {
		table[i] = maps.Row{Owner: uint16(i % 4096), Second: uint16(i / 16 % 4096), Moved: i%3 == 0}
	}
	if err := k.Rows.Write(set, table); err != nil {
		t.Fatal(err)
	}
	got, err := k.Rows.Read(set)
	if err != nil {
		t.Fatal(err)
	}
	for i := range table {
		if got[i] != table[i] {
			t.Fatalf("row %d: %+v, want %+v", i, got[i], table[i])
		}
	}
}
