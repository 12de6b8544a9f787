package geo

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/maxmind/mmdbwriter/mmdbtype"

	"github.com/bermedge/berm/maps"
)

// FuzzCSV looks for text that the reader panics on, or that gives a layer out of order.
func FuzzCSV(f *testing.F) {
	for _, s := range []string{
		"192.0.2.0/24,DE\n2001:db8::/32,FR\n", "network,country\n192.0.2.0/24,DE\n", "1.0.0.0,1.0.0.255,AU\n",
		"\ufeffstart_ip,end_ip,x,country_code\n::,::ffff:ffff:ffff:ffff,y,DE\n", "192.0.2.0/24,\"DE\n", "network,geoname_id\n1.1.1.1,5\n",
		"2001:db8::1,2001:db8:0:2::,DE\n", "0.0.0.0/0,DE\n255.255.255.255,FR\n", "::ffff:1.2.3.0/120,DE\n",
		"192.0.2.0/24,64496\n2001:db8::/32,AS4200000000\n", "network,autonomous_system_number,autonomous_system_organization\n192.0.2.0/24,64496,\"x, y\"\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range []subject{countries, networks} {
			l, _, err := readCSV("/nonexistent/GeoLite2-Country-Blocks-IPv4.csv", []byte(text), s)
			if err != nil {
				continue
			}
			if err := l.settle(&FileReport{}, s); err != nil {
				continue
			}
			for _, family := range [][]entry{l.four, l.six} {
				for i, e := range family {
					if e.last < e.first || i > 0 && e.first <= family[i-1].last {
						t.Fatalf("entry %d of %+v is out of order", i, family)
					}
				}
			}
		}
	})
}

// FuzzCompile reads prefixes and overrides out of bytes, and compares the table with a search
// through lists.
func FuzzCompile(f *testing.F) {
	f.Add([]byte{0, 24, 1, 0, 28, 2, 1, 32, 3, 1, 48, 1}, uint8(2))
	f.Add([]byte{0, 0, 1, 0, 32, 2, 1, 0, 3, 1, 64, 1}, uint8(1))
	f.Fuzz(func(t *testing.T, data []byte, overrides uint8) {
		var base, top []known
		for i := 0; i+3 <= len(data) && i < 300; i += 3 {
			k := known{fuzzPrefix(data[i], data[i+1]), maps.Country(data[i+2] % 4)}
			if len(top) < int(overrides%8) {
				k.country = max(k.country, 1)
				top = appendNew(top, k)
			} else {
				base = appendNew(base, k)
			}
		}
		table, ok := fuzzTable(t, base, top)
		if !ok {
			return
		}
		for _, k := range append(base, top...) {
			for _, a := range []netip.Addr{k.prefix.Addr(), k.prefix.Addr().Prev(), lastOf(k.prefix), lastOf(k.prefix).Next()} {
				if !a.IsValid() || a.Is4In6() {
					continue
				}
				want := longest(top, a).country
				if want == 0 {
					want = longest(base, a).country
				}
				if got := table.Lookup(a).Country; got != want {
					t.Fatalf("%s is in %s, want %s\nbase %v\ntop %v", a, got, want, base, top)
				}
			}
		}
	})
}

func fuzzTable(t *testing.T, base, top []known) (*maps.PrefixTable, bool) {
	var text strings.Builder
	for _, k := range base {
		fmt.Fprintf(&text, "%s,%s\n", k.prefix, k.country)
	}
	var c Config
	for _, k := range top {
		c.Overrides = append(c.Overrides, Override{Prefix: k.prefix.String(), Country: k.country.String()})
	}
	if len(base) > 0 {
		c.Databases = []string{write(t, "db.csv", text.String())}
	}
	table, _, err := Build(t.Context(), c, nil)
	if err != nil && !strings.Contains(err.Error(), "says nothing about any address") {
		t.Fatal(err)
	}
	return table, err == nil
}

func appendNew(list []known, k known) []known {
	for _, x := range list {
		if x.prefix == k.prefix {
			return list
		}
	}
	return append(list, k)
}

// fuzzPrefix makes prefixes that often contain each other.
func fuzzPrefix(where, bits byte) netip.Prefix {
	x := where >> 1
	if where&1 == 0 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, x << 7, x & 0xfe, x << 2}), int(bits)%33).Masked()
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, x & 1, x & 2, x, x << 4, x, x << 1}), int(bits)%65).Masked()
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < p.Addr().BitLen(); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// FuzzMMDB looks for damaged databases that the reader panics on or does not come back from.
func FuzzMMDB(f *testing.F) {
	raw, err := os.ReadFile(mmdb(f, "GeoLite2-Country", map[string]mmdbtype.DataType{
		"192.0.2.0/24": country("DE"), "2001:db8::/32": country("SE"), "198.51.100.0/25": mmdbtype.Map{"country": mmdbtype.String("IT")},
	}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	if raw, err = os.ReadFile(mmdb(f, "GeoLite2-ASN", map[string]mmdbtype.DataType{"192.0.2.0/24": system(64496), "198.51.100.0/25": mmdbtype.Map{"asn": mmdbtype.String("AS1")}})); err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, s := range []subject{countries, networks} {
			l, _, err := readMMDB(raw, s)
			if err == nil && len(l.four)+len(l.six) == 0 {
				t.Fatal("no entries and no error")
			}
		}
	})
}
