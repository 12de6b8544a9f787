package maps_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

func bits(t *testing.T, k *mapstest.Kernel) (n int) {
	t.Helper()
	var word uint64
	for i := range uint32(1 << 14) {
		if err := k.Maps[bpf.XDPMapBermVerdictBits].Lookup(i, &word); err != nil {
			t.Fatal(err)
		}
		for ; word != 0; word &= word - 1 {
			n++
		}
	}
	return n
}

func TestVerdictsInKernel(t *testing.T) {
	k := mapstest.New(t)
	for _, v := range []maps.VIP{service("web", "192.0.2.10", 443), service("shop", "192.0.2.11", 443), service("six", "2001:db8::10", 443)} {
		if _, err := k.VIPs.Put(v); err != nil {
			t.Fatal(err)
		}
	}
	fate := func(src, dst string) string {
		action, _ := k.Run(t, mapstest.TCP(netip.AddrPortFrom(netip.MustParseAddr(src), 999), netip.MustParseAddrPort(dst), mapstest.ACK))
		return mapstest.Action(action)
	}
	put := func(v maps.Verdict) {
		t.Helper()
		if err := k.Verdicts.Put(v); err != nil {
			t.Fatal(err)
		}
	}
	a, six := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:9:9::1")
	put(maps.Verdict{Source: a, Action: maps.ActionDrop, Reason: "tests", Owner: maps.OwnerGuard, Rule: 7, Evidence: 9})
	put(maps.Verdict{Source: six, Action: maps.ActionDrop})
	put(maps.Verdict{Source: a, VIP: "shop", Action: maps.ActionAllow, Expires: time.Now().Add(time.Hour)})
	got := fate("198.51.100.1", "192.0.2.10:443") + fate("198.51.100.1", "192.0.2.11:443") + fate("198.51.100.2", "192.0.2.10:443") +
		fate("2001:db8:9:9:5::5", "[2001:db8::10]:443") + fate("2001:db8:9:8::1", "[2001:db8::10]:443")
	if got != "droppasspassdroppass" {
		t.Errorf("fates %s", got)
	}
	v, err := k.Verdicts.Get(a, "")
	if err != nil || v.Hits != 1 || v.Reason != "tests" || v.Owner != maps.OwnerGuard || v.Rule != 7 || v.Evidence != 9 || !v.Expires.IsZero() {
		t.Errorf("%+v, %v", v, err)
	}
	put(maps.Verdict{Source: a, Action: maps.ActionShadow})
	if v, _ := k.Verdicts.Get(a, ""); v.Hits != 1 || v.Action != maps.ActionShadow {
		t.Errorf("after a change: %+v", v)
	}
	if v, _ := k.Verdicts.Get(a, "shop"); time.Until(v.Expires) < 59*time.Minute || time.Until(v.Expires) > time.Hour {
		t.Errorf("expires %s", v.Expires)
	}
	if list, err := k.Verdicts.List(); err != nil || len(list) != 3 {
		t.Errorf("%+v, %v", list, err)
	}

	// A service that goes takes its verdicts with it.
	if err := k.VIPs.Remove("shop"); err != nil {
		t.Fatal(err)
	}
	if list, _ := k.Verdicts.List(); len(list) != 2 {
		t.Errorf("%+v", list)
	}
	if err := k.Verdicts.Remove(six, ""); err != nil {
		t.Fatal(err)
	}
	if err := k.Verdicts.Remove(six, ""); !errors.Is(err, maps.ErrNotFound) {
		t.Errorf("second removal: %v", err)
	}
	if n := bits(t, k); n > 3 {
		t.Errorf("%d bits for one source", n)
	}
}

// Sources that share a bit do not take it from each other.
func TestVerdictBits(t *testing.T) {
	k := mapstest.New(t)
	var list []netip.Addr
	for i := range 5000 {
		a := netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})
		list = append(list, a)
		v := maps.Verdict{Source: a, Action: maps.ActionDrop}
		if i%2 == 0 {
			v.Owner = maps.OwnerGuard
		}
		if err := k.Verdicts.Put(v); err != nil {
			t.Fatal(err)
		}
	}
	if n := bits(t, k); n < 14_000 || n > 15_000 {
		t.Errorf("%d bits for 5000 sources", n)
	}
	if n, err := k.Verdicts.RemoveOwner(maps.OwnerGuard); n != 2500 || err != nil {
		t.Errorf("removed %d, %v", n, err)
	}
	seed := k.Config.Get().Seed
	var word uint64
	for i, a := range list {
		at, bits := maps.VerdictBits(seed, a)
		if err := k.Maps[bpf.XDPMapBermVerdictBits].Lookup(at, &word); err != nil {
			t.Fatal(err)
		}
		if i%2 == 1 && word&bits != bits {
			t.Fatalf("%s has a verdict and not its bits", a)
		}
	}
	// As if a writer had died after setting bits.
	for i := range uint32(100) {
		if err := k.Maps[bpf.XDPMapBermVerdictBits].Put(i, ^uint64(0)); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.Verdicts.Rebuild(); err != nil {
		t.Fatal(err)
	}
	if n := bits(t, k); n > 7500 {
		t.Errorf("%d bits for 2500 sources after Rebuild", n)
	}
}

func TestVerdictExpiry(t *testing.T) {
	k := mapstest.New(t)
	for i := range byte(4) {
		v := maps.Verdict{Source: netip.AddrFrom4([4]byte{192, 0, 2, i + 1}), Action: maps.ActionDrop}
		if i < 2 {
			v.Expires = time.Now().Add(20 * time.Millisecond)
		}
		if err := k.Verdicts.Put(v); err != nil {
			t.Fatal(err)
		}
	}
	swept := 0
	for deadline := time.Now().Add(5 * time.Second); swept < 2 && time.Now().Before(deadline); {
		n, err := k.Verdicts.Sweep()
		if err != nil {
			t.Fatal(err)
		}
		swept += n
	}
	if list, _ := k.Verdicts.List(); swept != 2 || len(list) != 2 || bits(t, k) > 6 {
		t.Errorf("swept %d, left %v", swept, list)
	}
}

// A full table gives up what has expired, then refuses: what was decided is never thrown out for something newer.
func TestVerdictsFull(t *testing.T) {
	k := mapstest.New(t)
	table := k.Maps[bpf.XDPMapBermVerdicts]
	source := func(i uint32) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
	fill := make([]maps.VerdictChange, table.MaxEntries())
	for i := range fill {
		fill[i].Verdict = maps.Verdict{Source: source(uint32(i)), Action: maps.ActionDrop}
	}
	errs, err := k.Verdicts.Change(fill)
	if err := errors.Join(append(errs, err)...); err != nil {
		t.Fatal(err)
	}
	more := maps.Verdict{Source: source(table.MaxEntries()), Action: maps.ActionDrop}
	one := []maps.VerdictChange{{Verdict: more}}
	for what, err := range map[string]error{
		"one": k.Verdicts.Put(more),
		"many": func() error {
			errs, err := k.Verdicts.Change(one)
			return errors.Join(append(errs, err)...)
		}(),
	} {
		if !errors.Is(err, maps.ErrFull) || !strings.Contains(err.Error(), "remove some") {
			t.Errorf("%s more than fit: %v", what, err)
		}
	}
	if v, err := k.Verdicts.Get(source(0), ""); err != nil || v.Action != maps.ActionDrop {
		t.Errorf("the first: %v, %v", v, err)
	}
	// Replacing one takes no room; one that has expired leaves some.
	short := maps.Verdict{Source: source(7), Action: maps.ActionShadow, Expires: time.Now().Add(time.Millisecond)}
	if err := k.Verdicts.Put(short); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; {
		if err = k.Verdicts.Put(more); !errors.Is(err, maps.ErrFull) || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		t.Error(err)
	}
	if v, err := k.Verdicts.Get(source(7), ""); !errors.Is(err, maps.ErrNotFound) {
		t.Errorf("what has expired: %v, %v", v, err)
	}
}

func TestVerdictErrors(t *testing.T) {
	k := mapstest.New(t)
	a := netip.MustParseAddr("192.0.2.1")
	for says, v := range map[string]maps.Verdict{
		"source is missing":     {Action: maps.ActionDrop},
		"action none":           {Source: a},
		"at most 15 fit":        {Source: a, Action: maps.ActionDrop, Reason: "sixteen letters!"},
		"expired 1m":            {Source: a, Action: maps.ActionDrop, Expires: time.Now().Add(-time.Minute)},
		`VIP "none": not found`: {Source: a, Action: maps.ActionDrop, VIP: "none"},
	} {
		if err := k.Verdicts.Put(v); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v, want %q", v, err, says)
		}
	}
	if list, _ := k.Verdicts.List(); len(list) != 0 || bits(t, k) != 0 {
		t.Error(fmt.Sprint("left behind: ", list))
	}
}
