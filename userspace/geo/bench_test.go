package geo

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/maxmind/mmdbwriter/mmdbtype"

	"github.com/bermedge/berm/maps/mapstest"
)

const many = 500_000

func someCountry(r *rand.Rand) string {
	n := r.IntN(240)
	return string([]byte{byte('A' + n/26), byte('A' + n%26)})
}

// manyIPv4 are disjoint prefixes of the lengths that country databases have: half of them /24,
// a tenth longer.
func manyIPv4(r *rand.Rand) []netip.Prefix {
	var out []netip.Prefix
	at := uint64(1 << 24)
	for len(out) < many {
		bits := 24
		switch x := r.IntN(100); {
		case x < 40:
			bits = 20 + r.IntN(4)
		case x < 50:
			bits = 25 + r.IntN(4)
		}
		size := uint64(1) << (32 - bits)
		at = (at + size - 1) &^ (size - 1)
		if r.IntN(10) == 0 { // neighbours are often apart
			at += size
		}
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(at%(223<<24)))
		out = append(out, netip.PrefixFrom(netip.AddrFrom4(b), bits))
		at += size
	}
	return out
}

// manyIPv6 are /48s: spread evenly over 2000::/3, the worst there is for a trie, or within
// 20,000 allocations of /32, as they are handed out.
func manyIPv6(r *rand.Rand, evenly bool) []netip.Prefix {
	var out []netip.Prefix
	seen := map[uint64]bool{}
	for len(out) < many {
		n := 1<<61 | r.Uint64()>>3
		if !evenly {
			n = 0x2a00<<48 | r.Uint64N(20000)*7<<36 | r.Uint64N(1<<16)<<16
		}
		n &^= 1<<16 - 1
		if seen[n] {
			continue
		}
		seen[n] = true
		var b [16]byte
		binary.BigEndian.PutUint64(b[:], n)
		out = append(out, netip.PrefixFrom(netip.AddrFrom16(b), 48))
	}
	return out
}

func csvOf(b *testing.B, r *rand.Rand, prefixes []netip.Prefix) string {
	var text strings.Builder
	for _, p := range prefixes {
		fmt.Fprintf(&text, "%s,%s\n", p, someCountry(r))
	}
	return write(b, "many.csv", text.String())
}

func mmdbOf(b *testing.B, r *rand.Rand, prefixes []netip.Prefix) string {
	networks := make(map[string]mmdbtype.DataType, len(prefixes))
	for _, p := range prefixes {
		networks[p.String()] = country(someCountry(r))
	}
	return mmdb(b, "GeoLite2-Country", networks)
}

// BenchmarkApply500k takes 500,000 prefixes from the file to effect in the kernel half: at most 2 s.
func BenchmarkApply500k(b *testing.B) {
	k := mapstest.New(b)
	r := rand.New(rand.NewPCG(5, 5))
	for _, bb := range []struct {
		name string
		path func() string
	}{
		{"ipv4-csv", func() string { return csvOf(b, r, manyIPv4(r)) }},
		{"ipv4-mmdb", func() string { return mmdbOf(b, r, manyIPv4(r)) }},
		{"ipv6-clustered-csv", func() string { return csvOf(b, r, manyIPv6(r, false)) }},
		{"ipv6-even-csv", func() string { return csvOf(b, r, manyIPv6(r, true)) }},
		{"ipv6-clustered-mmdb", func() string { return mmdbOf(b, r, manyIPv6(r, false)) }},
	} {
		path := bb.path()
		b.Run(bb.name, func(b *testing.B) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			var report Report
			for b.Loop() {
				var err error
				if report, err = New(k.Set).Apply(context.Background(), Config{Databases: []string{path}}); err != nil {
					b.Fatal(err)
				}
			}
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/float64(b.N)/(1<<20), "MiB-allocated/op")
			b.Logf("%+v, %d MiB in use at most", report.Size, peak()>>10)
		})
	}
}

// peak is the process's largest resident size in KiB.
func peak() (kib int) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	_, _ = fmt.Sscan(rest, &kib)
	return kib
}
