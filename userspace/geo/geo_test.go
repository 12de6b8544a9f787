package geo

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	stdmaps "maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

func write(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustBuild(t testing.TB, c Config) (*maps.PrefixTable, Report) {
	t.Helper()
	table, report, err := Build(context.Background(), c, map[string]uint32{"slow": 3, "fast": 4})
	if err != nil {
		t.Fatal(err)
	}
	return table, report
}

// says is what a table knows about an address, in short.
func says(table *maps.PrefixTable, addr string) string {
	r := table.Lookup(netip.MustParseAddr(addr))
	return fmt.Sprintf("%s %s %d #%d", r.Country, r.ACL, r.RateClass, r.Rule)
}

func check(t *testing.T, table *maps.PrefixTable, want map[string]string) {
	t.Helper()
	for addr, w := range want {
		if got := says(table, addr); got != w {
			t.Errorf("%s: %s, want %s", addr, got, w)
		}
	}
}

const locations = `geoname_id,locale_code,continent_code,continent_name,country_iso_code,country_name,is_in_european_union
2921044,en,EU,Europe,DE,Germany,1
6255148,en,EU,Europe,,,0
3017382,en,EU,Europe,FR,"France, the",1
`

func TestCSVForms(t *testing.T) {
	blocks := write(t, "GeoLite2-Country-Blocks-IPv4.csv", `network,geoname_id,registered_country_geoname_id,represented_country_geoname_id,is_anonymous_proxy,is_satellite_provider
192.0.2.0/25,2921044,3017382,,0,0
192.0.2.128/25,,3017382,,0,0
198.51.100.0/24,6255148,,,0,0
`)
	if err := os.WriteFile(filepath.Join(filepath.Dir(blocks), "GeoLite2-Country-Locations-en.csv"), []byte(locations), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		path string
		want map[string]string
	}{
		"prefix, no heading": {write(t, "a.csv", "# ours\n192.0.2.0/25,DE\n\n192.0.2.128/25,fr\n2001:db8::/32,SE\n2001:db8:5::/48,NO\n198.51.100.9,IT\n"), map[string]string{
			"192.0.2.127": "DE none 0 #0", "192.0.2.128": "FR none 0 #0", "192.0.3.0": "-- none 0 #0",
			"2001:db8::1": "SE none 0 #0", "2001:db8:5:1::1": "NO none 0 #0", "2001:db9::": "-- none 0 #0",
			"198.51.100.9": "IT none 0 #0", "198.51.100.8": "-- none 0 #0",
		}},
		"prefix with heading": {write(t, "b.csv", "\ufeffCountry_Code,x,Network\nDE,1,192.0.2.0/24\n"), map[string]string{"192.0.2.1": "DE none 0 #0"}},
		"range": {write(t, "c.csv", "1.0.0.0,1.0.0.255,AU\n1.0.1.0,1.0.3.9,CN\n\"2001:200::\",\"2001:200:1:ffff:ffff:ffff:ffff:ffff\",\"JP\"\n"), map[string]string{
			"1.0.0.255": "AU none 0 #0", "1.0.3.9": "CN none 0 #0", "1.0.3.10": "-- none 0 #0",
			"2001:200:1:ffff::": "JP none 0 #0", "2001:200:2::": "-- none 0 #0",
		}},
		"blocks and locations": {blocks, map[string]string{
			"192.0.2.1": "DE none 0 #0", "192.0.2.200": "FR none 0 #0", "198.51.100.1": "-- none 0 #0",
		}},
		"everything": {write(t, "d.csv", "0.0.0.0/0,DE\n::/0,FR\n255.255.255.255/32,US\nffff:ffff:ffff:ffff::/64,US\n"), map[string]string{
			"0.0.0.0": "DE none 0 #0", "255.255.255.254": "DE none 0 #0", "255.255.255.255": "US none 0 #0",
			"::": "FR none 0 #0", "ffff:ffff:ffff:fffe::": "FR none 0 #0", "ffff:ffff:ffff:ffff::1": "US none 0 #0",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			table, _ := mustBuild(t, Config{Databases: []string{tt.path}})
			check(t, table, tt.want)
		})
	}
}

func mmdb(t testing.TB, typ string, networks map[string]mmdbtype.DataType) string {
	t.Helper()
	tree, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: typ, IncludeReservedNetworks: true})
	if err != nil {
		t.Fatal(err)
	}
	shortestFirst := func(a, b string) int {
		return cmp.Compare(netip.MustParsePrefix(a).Bits(), netip.MustParsePrefix(b).Bits())
	}
	for _, n := range slices.SortedFunc(stdmaps.Keys(networks), shortestFirst) { // a later one replaces what it covers
		_, network, err := net.ParseCIDR(n)
		if err != nil {
			t.Fatal(err)
		}
		if err := tree.Insert(network, networks[n]); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if _, err := tree.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return write(t, "test.mmdb", b.String())
}

func country(code string) mmdbtype.DataType {
	return mmdbtype.Map{"country": mmdbtype.Map{"iso_code": mmdbtype.String(code)}}
}

func TestMMDB(t *testing.T) {
	path := mmdb(t, "GeoLite2-Country", map[string]mmdbtype.DataType{
		"192.0.2.0/24":        country("DE"),
		"2001:db8::/32":       country("SE"),
		"2001:db8:1:2:3::/80": country("NO"),
		"198.51.100.0/24":     mmdbtype.Map{"registered_country": mmdbtype.Map{"iso_code": mmdbtype.String("FR")}},
		"203.0.113.0/24":      mmdbtype.Map{"country": mmdbtype.String("IT")},
		"203.0.112.0/24":      mmdbtype.Map{"country_code": mmdbtype.String("ES"), "country": mmdbtype.String("Spain")},
	})
	table, report := mustBuild(t, Config{Databases: []string{path}})
	check(t, table, map[string]string{
		"192.0.2.9": "DE none 0 #0", "2001:db8:9::1": "SE none 0 #0", "198.51.100.1": "FR none 0 #0",
		"203.0.113.1": "IT none 0 #0", "203.0.112.1": "ES none 0 #0", "192.0.3.0": "-- none 0 #0", "2001:db9::": "-- none 0 #0",
	})
	if f := report.Files[0]; f.Kind != "MaxMind format, GeoLite2-Country" || f.TooFine == 0 || f.Networks4 != 4 {
		t.Errorf("report %+v", f)
	}
}

func TestLayersAndOverrides(t *testing.T) {
	first := write(t, "first.csv", "10.0.0.0/8,DE\n10.1.0.0/16,FR\n2001:db8::/32,DE\n")
	second := write(t, "second.csv", "10.1.2.0/24,SE\n10.0.0.0/9,\n")
	table, _ := mustBuild(t, Config{Databases: []string{first, second}, Overrides: []Override{
		{Prefix: "10.1.0.0/16", ACL: "drop", Rate: "slow"},
		{Prefix: "10.1.2.128/25", ACL: "allow"},
		{Prefix: "10.1.2.129/32", Country: "US"},
		{Prefix: "172.16.0.0/12", Rate: "fast"},
		{Prefix: "2001:db8:1::/48", Country: "NO"},
	}})
	check(t, table, map[string]string{
		"10.0.0.1":       "DE none 0 #0", // the second file has no opinion
		"10.1.0.1":       "FR drop 3 #1",
		"10.1.2.1":       "SE drop 3 #1",
		"10.1.2.128":     "SE allow 3 #2",
		"10.1.2.129":     "US allow 3 #3",
		"10.1.3.0":       "FR drop 3 #1",
		"10.2.0.0":       "DE none 0 #0",
		"172.31.0.1":     "-- none 4 #4",
		"2001:db8:1:5::": "NO none 0 #5",
		"2001:db8:2::":   "DE none 0 #0",
	})
}

func TestBadFiles(t *testing.T) {
	good, err := os.ReadFile(mmdb(t, "T", map[string]mmdbtype.DataType{"192.0.2.0/24": country("DE")}))
	if err != nil {
		t.Fatal(err)
	}
	cyclic := bytes.Clone(good)
	clear(cyclic[:bytes.Index(good, make([]byte, 16))]) // the tree ends at 16 zero bytes
	dir := t.TempDir()
	for name, tt := range map[string]struct{ path, says string }{
		"missing":         {filepath.Join(dir, "no.csv"), "no such file"},
		"directory":       {dir, "is not a file"},
		"empty":           {write(t, "x", " \n"), "is empty"},
		"only a heading":  {write(t, "x", "network,country\n"), "has no entries"},
		"no country":      {write(t, "x", "192.0.2.0/24,\n"), "says nothing about any address"},
		"gzip":            {write(t, "x", "\x1f\x8b\x08zzz"), "unpack it first"},
		"zip":             {write(t, "x", "PK\x03\x04zzz"), "unpack it first"},
		"binary":          {write(t, "x", "\x7fELF\x00\x00"), "of another kind"},
		"prose":           {write(t, "x", "Not found, sorry\n"), "line 1: \"Not found,sorry\" is neither"},
		"html":            {write(t, "x", "<!doctype html>\n<p>404</p>\n"), "line 1:"},
		"bad prefix":      {write(t, "x", "192.0.2.0/24,DE\n192.0.2.0/33,DE\n"), `line 2: "192.0.2.0/33" is not a prefix`},
		"host bits":       {write(t, "x", "192.0.2.1/24,DE\n"), "line 1: prefix 192.0.2.1/24: bits are set behind its length (perhaps 192.0.2.0/24"},
		"bad country":     {write(t, "x", "192.0.2.0/24,DE\n192.0.3.0/24,Germany\n"), `line 2: country "Germany"`},
		"few columns":     {write(t, "x", "192.0.2.0/24,DE\n192.0.3.0/24\n"), "line 2: 1 columns, at least 2"},
		"backwards":       {write(t, "x", "192.0.2.9,192.0.2.1,DE\n"), "line 1: 192.0.2.9 to 192.0.2.1 is not a range"},
		"mixed":           {write(t, "x", "192.0.2.9,2001:db8::,DE\n"), "line 1:"},
		"overlap":         {write(t, "x", "192.0.2.0,192.0.2.9,DE\n192.0.2.5,192.0.2.20,FR\n"), "lines 1 and 2 overlap in part"},
		"contradiction":   {write(t, "x", "192.0.2.0/24,DE\n\n192.0.2.0/24,FR\n"), "lines 1 and 3 contradict each other about the same addresses: DE and FR"},
		"open quote":      {write(t, "x", "192.0.2.0/24,\"DE\n"), "line"},
		"strange heading": {write(t, "x", "network,asn\n"), "lacks columns"},
		"blocks alone":    {write(t, "GeoLite2-Country-Blocks-IPv4.csv", "network,geoname_id\n192.0.2.0/24,1\n"), "its locations: open"},
		"blocks renamed":  {write(t, "b.csv", "network,geoname_id\n192.0.2.0/24,1\n"), "keep MaxMind's file names"},
		"ASN database":    {mmdb(t, "GeoLite2-ASN", map[string]mmdbtype.DataType{"192.0.2.0/24": mmdbtype.Map{"autonomous_system_number": mmdbtype.Uint32(64496)}}), `is of type "GeoLite2-ASN", and no record in it has a country`},
		"truncated mmdb":  {write(t, "x", string(good[len(good)/2:])), "is damaged"},
		"cyclic mmdb":     {write(t, "x", string(cyclic)), "is damaged: the search tree contains itself at node 0"},
		"only the marker": {write(t, "x", "xx\xab\xcd\xefMaxMind.com"), "is damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := Build(context.Background(), Config{Databases: []string{tt.path}}, nil)
			if err == nil || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), tt.path) {
				t.Errorf("error %v\ndoes not name the file or say %q", err, tt.says)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	c := Config{
		Databases: []string{""},
		Policies: map[string]Policy{
			"a name": {}, "eu": {Fallback: "explode", Drop: []string{"DEU", "FR"}, Allow: []string{"FR"}},
		},
		Overrides: []Override{
			{Prefix: "nonsense", ACL: "perhaps", Country: "XYZ"}, // each of its mistakes
			{Prefix: "192.0.2.0/24"},
			{Prefix: "192.0.2.0/24", ACL: "mark"},
			{Prefix: "2001:db8::/65", ACL: "drop"},
			{Prefix: "192.0.2.0/24", Country: "X"},
			{Prefix: "192.0.3.0/24", ACL: "drop"},
			{Prefix: "192.0.3.0/24", Rate: "slow"},
		},
	}
	err := c.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"geo.databases[0]: path is empty", `geo.policies.a name: name "a name"`, `geo.policies.eu.fallback: "explode"`,
		`geo.policies.eu.drop: country "DEU"`, "geo.policies.eu.drop: country FR is also in allow",
		`geo.overrides[0]: prefix "nonsense"`, `geo.overrides[0]: acl "perhaps"`, `geo.overrides[0]: country "XYZ"`, "geo.overrides[1]: prefix 192.0.2.0/24: nothing is set", `geo.overrides[2]: acl "mark"`,
		"geo.overrides[3]: prefix 2001:db8::/65: IPv6 sources are told apart by /64", `geo.overrides[4]: country "X"`,
		"geo.overrides[6]: prefix 192.0.3.0/24 is also that of overrides[5]",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("does not say %q:\n%v", want, err)
		}
	}
	if err := (Config{}).Validate(); err != nil {
		t.Error("the empty section:", err)
	}
	_, _, err = Build(context.Background(), Config{Overrides: []Override{{Prefix: "192.0.2.0/24", Rate: "none"}}}, nil)
	if !errors.Is(err, maps.ErrNotFound) || !strings.Contains(err.Error(), `geo.overrides[0]: rate class "none"`) {
		t.Errorf("unknown class: %v", err)
	}
}

// TestApply goes from files to what the program does with packets.
func TestApply(t *testing.T) {
	k := mapstest.New(t)
	ctx := context.Background()
	compiler := New(k.Set)
	db := write(t, "db.csv", "198.51.100.0/24,XX\n203.0.113.0/24,YY\n")
	cfg := Config{Databases: []string{db}, Policies: map[string]Policy{"default": {Drop: []string{"XX"}}, "old": {}}}
	if _, err := compiler.Apply(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	vip := maps.VIP{Name: "web", Address: netip.MustParseAddr("192.0.2.10"), Port: 443, Protocol: maps.ProtocolTCP, GeoPolicy: "default"}
	if _, err := k.VIPs.Put(vip); err != nil {
		t.Fatal(err)
	}
	fate := func(src string) string {
		action, _ := k.Run(t, mapstest.TCP(netip.AddrPortFrom(netip.MustParseAddr(src), 999), netip.MustParseAddrPort("192.0.2.10:443"), mapstest.SYN))
		return mapstest.Action(action)
	}
	if got := fate("198.51.100.1") + fate("203.0.113.1") + fate("8.8.8.8"); got != "droppasspass" {
		t.Errorf("XX, YY and unknown: %s", got)
	}

	broken := cfg
	broken.Databases = []string{db, write(t, "bad.csv", "198.51.100.0/24,YY\ngarbage,YY\n")}
	broken.Policies = map[string]Policy{"default": {Drop: []string{"YY"}}}
	if _, err := compiler.Apply(ctx, broken); err == nil {
		t.Error("a broken file was accepted")
	}
	if got := fate("198.51.100.1") + fate("203.0.113.1"); got != "droppass" {
		t.Errorf("after the broken file: %s", got)
	}

	cfg.Overrides = []Override{{Prefix: "198.51.100.7/32", ACL: "allow"}, {Prefix: "8.8.8.0/24", ACL: "drop"}}
	delete(cfg.Policies, "old")
	if _, err := compiler.Apply(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	if err := compiler.Prune(cfg); err != nil {
		t.Fatal(err)
	}
	if got := fate("198.51.100.1") + fate("198.51.100.7") + fate("8.8.8.8"); got != "droppassdrop" {
		t.Errorf("with overrides: %s", got)
	}
	if list, _ := k.Geo.ListPolicies(); len(list) != 1 || list[0].Name != "default" {
		t.Errorf("policies after Prune: %+v", list)
	}
	if err := compiler.Prune(Config{}); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Geo.GetPolicy("default"); err != nil {
		t.Error("a policy that a VIP names was pruned")
	}
	j, err := k.Judge(netip.MustParseAddr("198.51.100.1"))
	if err != nil || j.Services[0].Drop != maps.DropGeo || j.Record.Country.String() != "XX" {
		t.Errorf("Judge: %+v, %v", j, err)
	}
}

func TestApplyKeepsOperatorsPolicy(t *testing.T) {
	k := mapstest.New(t)
	if _, err := k.Geo.PutPolicy(maps.GeoPolicy{Name: "z", Fallback: maps.ActionDrop}); err != nil {
		t.Fatal(err)
	}
	_, err := New(k.Set).Apply(context.Background(), Config{Policies: map[string]Policy{"a": {}, "z": {}}})
	if !errors.Is(err, maps.ErrOverlap) {
		t.Fatal(err)
	}
	if list, _ := k.Geo.ListPolicies(); len(list) != 1 || list[0].Fallback != maps.ActionDrop {
		t.Errorf("policies after the refusal: %+v", list)
	}
}

// randomPrefixes are nested, crowded and sometimes repeated.
func randomPrefixes(r *rand.Rand, n int) []netip.Prefix {
	var out []netip.Prefix
	seen := map[netip.Prefix]bool{}
	for len(out) < n {
		var p netip.Prefix
		if r.IntN(2) == 0 {
			p = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(r.IntN(3)), byte(r.IntN(4)), byte(r.Uint32())}), r.IntN(33)).Masked()
		} else {
			p = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(r.IntN(3)), byte(r.Uint32()), byte(r.IntN(3)), byte(r.Uint32())}), r.IntN(65)).Masked()
		}
		if !seen[p] {
			seen[p] = true
			out = append(out, p)
		}
	}
	return out
}

type known struct {
	prefix  netip.Prefix
	country maps.Country
}

func longest(list []known, a netip.Addr) (best known) {
	for _, k := range list {
		if k.prefix.Contains(a) && (!best.prefix.IsValid() || k.prefix.Bits() > best.prefix.Bits()) {
			best = k
		}
	}
	return best
}

// TestAgainstLongestPrefixList compares tables of two random files and random overrides with a
// search through lists.
func TestAgainstLongestPrefixList(t *testing.T) {
	for seed := range uint64(15) {
		r := rand.New(rand.NewPCG(seed, 3))
		var files [2][]known
		var c Config
		for i := range files {
			var text strings.Builder
			for _, p := range randomPrefixes(r, 150) {
				k := known{p, maps.Country(r.IntN(4))}
				files[i] = append(files[i], k)
				fmt.Fprintf(&text, "%s,%s\n", p, k.country)
			}
			c.Databases = append(c.Databases, write(t, "db.csv", text.String()))
		}
		var overrides []known
		for _, p := range randomPrefixes(r, 20) {
			k := known{p, maps.Country(1 + r.IntN(3))}
			overrides = append(overrides, k)
			c.Overrides = append(c.Overrides, Override{Prefix: p.String(), Country: k.country.String()})
		}
		table, _ := mustBuild(t, c)
		for _, list := range [][]known{files[0], files[1], overrides} {
			for _, k := range list {
				for _, a := range around(k.prefix, r) {
					want := longest(overrides, a).country
					for i := len(files) - 1; i >= 0 && want == 0; i-- {
						want = longest(files[i], a).country
					}
					if got := table.Lookup(a).Country; got != want {
						t.Fatalf("seed %d: %s is in %s, want %s", seed, a, got, want)
					}
				}
			}
		}
	}
}

// around are addresses at the borders of a prefix, outside and within.
func around(p netip.Prefix, r *rand.Rand) []netip.Addr {
	first := p.Addr()
	b := first.AsSlice()
	for i := p.Bits(); i < first.BitLen(); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	for i := p.Bits(); i < first.BitLen(); i++ {
		if r.IntN(2) == 0 {
			b[i/8] &^= 0x80 >> (i % 8)
		}
	}
	inside, _ := netip.AddrFromSlice(b)
	out := []netip.Addr{first, last, inside}
	for _, a := range []netip.Addr{first.Prev(), last.Next()} {
		if a.IsValid() && !a.Is4In6() {
			out = append(out, a)
		}
	}
	return out
}
