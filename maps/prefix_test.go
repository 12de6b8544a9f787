package maps_test

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

// span is a range of numbers (addresses or /64s) with what is known about it.
type span struct {
	first, last uint64
	record      maps.PrefixRecord
}

// randomSpans are ascending, disjoint, of all sizes, often adjacent, dense in some places.
func randomSpans(r *rand.Rand, n, bits int) []span {
	points := map[uint64]bool{}
	for len(points) < 2*n {
		p := r.Uint64() >> (64 - bits)
		if r.IntN(2) == 0 { // crowd
			p = p&^(1<<(bits/2)-1)>>(bits-6)<<(bits-6) | r.Uint64N(1<<(bits/2))
		}
		if r.IntN(3) == 0 {
			p &^= 1<<r.IntN(bits) - 1
		}
		points[p] = true
	}
	var sorted []uint64
	for p := range points {
		sorted = append(sorted, p)
	}
	slices.Sort(sorted)
	var out []span
	for i := 0; i+1 < len(sorted); i++ {
		if r.IntN(4) == 0 {
			continue // a hole
		}
		out = append(out, span{sorted[i], sorted[i+1] - 1, maps.PrefixRecord{Country: maps.Country(r.IntN(5)), ACL: maps.Action(r.IntN(2)), ASN: uint32(r.IntN(2)) * 4_200_000_000}})
	}
	return out
}

func naive(spans []span, n uint64) maps.PrefixRecord {
	i, _ := slices.BinarySearchFunc(spans, n, func(s span, n uint64) int { return cmp.Compare(s.last, n) })
	if i < len(spans) && spans[i].first <= n {
		return spans[i].record
	}
	return maps.PrefixRecord{}
}

func addr4(n uint64) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	return netip.AddrFrom4(b)
}

func addr6(n uint64) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], n)
	b[15] = 1
	return netip.AddrFrom16(b)
}

func fillTable(t testing.TB, table *maps.PrefixTable, four, six []span) {
	t.Helper()
	for _, s := range four {
		if err := table.Add4(uint32(s.first), uint32(s.last), s.record); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range six {
		if err := table.Add6(s.first, s.last, s.record); err != nil {
			t.Fatal(err)
		}
	}
	if err := table.Finish(); err != nil {
		t.Fatal(err)
	}
}

// probes are the borders of spans and what lies around them, and some addresses anywhere.
func probes(r *rand.Rand, spans []span, bits int) []uint64 {
	var out []uint64
	most := ^uint64(0) >> (64 - bits)
	for _, s := range spans {
		out = append(out, s.first, s.last, (s.first-1)&most, (s.last+1)&most, s.first+r.Uint64N(s.last-s.first+1))
	}
	for range 2000 {
		out = append(out, r.Uint64()>>(64-bits))
	}
	return out
}

func TestPrefixTableAgainstNaiveSearch(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		four, six := randomSpans(r, 300, 32), randomSpans(r, 300, 64)
		table := maps.NewPrefixTable()
		fillTable(t, table, four, six)
		for _, n := range probes(r, four, 32) {
			if got, want := table.Lookup(addr4(n)), naive(four, n); got != want {
				t.Fatalf("seed %d: %s is %v, want %v", seed, addr4(n), got, want)
			}
		}
		for _, n := range probes(r, six, 64) {
			if a := addr6(n); !a.Is4In6() && table.Lookup(a) != naive(six, n) {
				t.Fatalf("seed %d: %s is %v, want %v", seed, a, table.Lookup(a), naive(six, n))
			}
		}
	}
}

// The kernel half reports the record of each packet's source in its events.
func TestPrefixTableAgainstKernel(t *testing.T) {
	k := mapstest.New(t)
	for _, v := range []maps.VIP{service("four", "192.0.2.10", 443), service("six", "2001:db8::10", 443)} {
		if _, err := k.VIPs.Put(v); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.Samples.Set(maps.DropNone, 1); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(7, 7))
	four, six := randomSpans(r, 200, 32), randomSpans(r, 200, 64)
	for i := range four {
		four[i].record.ACL = maps.ActionNone
	}
	for i := range six {
		six[i].record.ACL = maps.ActionNone
	}
	table := maps.NewPrefixTable()
	fillTable(t, table, four, six)
	for range 2 { // both copies
		if err := k.Prefixes.Install(table); err != nil {
			t.Fatal(err)
		}
	}
	records, err := k.Prefixes.Records()
	if err != nil {
		t.Fatal(err)
	}
	records = append([]maps.PrefixRecord{{}}, records...)

	check := func(src netip.Addr, dst string, want maps.PrefixRecord) {
		t.Helper()
		if got, err := k.Prefixes.Lookup(src); err != nil || got != want {
			t.Fatalf("Lookup(%s) = %v, %v, want %v", src, got, err, want)
		}
		k.Run(t, mapstest.TCP(netip.AddrPortFrom(src, 1000), netip.MustParseAddrPort(dst), mapstest.ACK))
		e := oneEvent(t, k)
		if e.Source.Addr() != src {
			t.Fatalf("event of %s, sent from %s", e.Source, src)
		}
		if e.Reason == maps.DropNone && records[e.Record] != want {
			t.Fatalf("the kernel has %v for %s, want %v", records[e.Record], src, want)
		}
	}
	for _, n := range probes(r, four, 32) {
		if a := addr4(n); a.IsGlobalUnicast() && n>>24 != 0 && n < 0xf0000000 {
			check(a, "192.0.2.10:443", naive(four, n))
		}
	}
	for _, n := range probes(r, six, 64) {
		if a := addr6(n); a.IsGlobalUnicast() && !a.Is4In6() && n != 0 {
			check(a, "[2001:db8::10]:443", naive(six, n))
		}
	}
}

func oneEvent(t *testing.T, k *mapstest.Kernel) (e maps.Event) {
	t.Helper()
	done := errors.New("one is enough")
	if err := k.Events.Read(context.Background(), func(got maps.Event) error { e = got; return done }); !errors.Is(err, done) {
		t.Fatal(err)
	}
	return e
}

func TestPrefixTableRefusesDisorder(t *testing.T) {
	table := maps.NewPrefixTable()
	rec := maps.PrefixRecord{Country: 1}
	a := netip.MustParseAddr
	for _, ok := range [][2]string{{"192.0.2.0", "192.0.2.9"}, {"2001:db8::", "2001:db8::ffff:ffff:ffff:ffff"}} {
		if err := table.Add(a(ok[0]), a(ok[1]), rec); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range [][2]string{
		{"192.0.2.9", "192.0.2.10"},
		{"192.0.2.20", "192.0.2.19"},
		{"192.0.3.0", "2001:db8::"},
		{"2001:db8::", "2001:db8:0:1:ffff:ffff:ffff:ffff"},
		{"2001:db8:1::", "2001:db8:1::ff"},
	} {
		if err := table.Add(a(bad[0]), a(bad[1]), rec); err == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
}

// A table that does not fit leaves the live one as it is.
func TestPrefixTableFull(t *testing.T) {
	k := mapstest.New(t)
	put := func(fill func(*maps.PrefixTable) error) error { return k.Prefixes.Swap(fill) }
	if err := put(func(table *maps.PrefixTable) error {
		return table.Add4(0xc0000200, 0xc00002ff, maps.PrefixRecord{Country: 9})
	}); err != nil {
		t.Fatal(err)
	}
	for what, fill := range map[string]func(*maps.PrefixTable) error{
		"split further": func(table *maps.PrefixTable) error {
			r := rand.New(rand.NewPCG(1, 1))
			for block := range uint32(40000) {
				for i := range uint32(128) {
					n := block<<8 | i<<1
					if err := table.Add4(n, n, maps.PrefixRecord{Country: maps.Country(1 + r.IntN(600))}); err != nil {
						return err
					}
				}
			}
			return nil
		},
		"IPv4 needs more": func(table *maps.PrefixTable) error {
			r := rand.New(rand.NewPCG(1, 1))
			for n := range uint32(5 << 20) {
				if err := table.Add4(n<<8, n<<8|255, maps.PrefixRecord{Country: maps.Country(1 + r.IntN(600))}); err != nil {
					return err
				}
			}
			return nil
		},
		"different records": func(table *maps.PrefixTable) error {
			for i := range uint32(40000) {
				if err := table.Add4(i<<8, i<<8|255, maps.PrefixRecord{Rule: uint16(i + 1)}); err != nil {
					return err
				}
			}
			return nil
		},
		"different networks": func(table *maps.PrefixTable) error {
			for i := range uint32(17000) {
				if err := table.Add4(i<<8, i<<8|255, maps.PrefixRecord{ASN: i + 1}); err != nil {
					return err
				}
			}
			return nil
		},
		"trie nodes": func(table *maps.PrefixTable) error {
			r := rand.New(rand.NewPCG(1, 1))
			var starts []uint64
			for range 900000 {
				starts = append(starts, r.Uint64())
			}
			slices.Sort(starts)
			for _, n := range starts {
				if err := table.Add6(n, n, maps.PrefixRecord{Country: maps.Country(1 + r.IntN(600))}); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		err := put(fill)
		if !errors.Is(err, maps.ErrFull) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
		got, err := k.Prefixes.Lookup(netip.MustParseAddr("192.0.2.77"))
		if err != nil || got.Country != 9 {
			t.Errorf("%s: the old table now says %v, %v", what, got, err)
		}
	}
}

// A flip per table, thousands of packets meanwhile: each meets one of the two tables.
func TestPrefixSwapHasNoGap(t *testing.T) {
	k := mapstest.New(t)
	if _, err := k.VIPs.Put(service("web", "192.0.2.10", 443)); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Geo.PutPolicy(maps.GeoPolicy{Name: "p", Fallback: maps.ActionDrop, Rules: map[maps.Country]maps.Action{7: maps.ActionAllow, 8: maps.ActionAllow}}); err != nil {
		t.Fatal(err)
	}
	web := service("web", "192.0.2.10", 443)
	web.GeoPolicy = "p"
	if _, err := k.VIPs.Put(web); err != nil {
		t.Fatal(err)
	}
	install := func(c maps.Country) {
		if err := k.Prefixes.Swap(func(table *maps.PrefixTable) error {
			return table.Add4(0xc6336400, 0xc63364ff, maps.PrefixRecord{Country: c})
		}); err != nil {
			t.Error(err)
		}
	}
	install(7)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 20 {
			install(maps.Country(7 + i%2))
		}
	}()
	frame := mapstest.TCP(client, netip.MustParseAddrPort("192.0.2.10:443"), mapstest.ACK)
	for sent := 0; ; sent++ {
		if action, _ := k.Run(t, frame); mapstest.Action(action) != "pass" {
			t.Fatalf("packet %d: %s", sent, mapstest.Action(action))
		}
		select {
		case <-done:
			t.Logf("%d packets during 20 swaps", sent)
			return
		default:
		}
	}
}
