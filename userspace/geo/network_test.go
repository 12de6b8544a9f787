package geo

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/maxmind/mmdbwriter/mmdbtype"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

func system(number uint32) mmdbtype.DataType {
	return mmdbtype.Map{"autonomous_system_number": mmdbtype.Uint32(number), "autonomous_system_organization": mmdbtype.String("Example")}
}

// tells is what a table knows about an address, with its network.
func tells(table *maps.PrefixTable, addr string) string {
	return fmt.Sprintf("AS%d %s", table.Lookup(netip.MustParseAddr(addr)).ASN, says(table, addr))
}

func TestNetworkForms(t *testing.T) {
	for name, tt := range map[string]struct {
		path string
		want map[string]string
	}{
		"MaxMind format": {mmdb(t, "GeoLite2-ASN", map[string]mmdbtype.DataType{
			"192.0.2.0/24": system(64496), "192.0.2.128/25": system(4_200_000_000), "2001:db8::/32": system(64497),
			"198.51.100.0/24": mmdbtype.Map{"asn": mmdbtype.String("AS64498")}, "203.0.113.0/24": mmdbtype.Map{"autonomous_system_organization": mmdbtype.String("x")},
		}), map[string]string{
			"192.0.2.1": "AS64496 -- none 0 #0", "192.0.2.200": "AS4200000000 -- none 0 #0", "2001:db8:1::1": "AS64497 -- none 0 #0",
			"198.51.100.1": "AS64498 -- none 0 #0", "203.0.113.1": "AS0 -- none 0 #0",
		}},
		"prefix, no heading": {write(t, "a.csv", "192.0.2.0/24,64496\n192.0.2.64/26,0\n2001:db8::/32,AS64497\n198.51.100.9,as64498,\"Example, Inc.\"\n"), map[string]string{
			"192.0.2.1": "AS64496 -- none 0 #0", "192.0.2.65": "AS0 -- none 0 #0", "2001:db8::1": "AS64497 -- none 0 #0", "198.51.100.9": "AS64498 -- none 0 #0",
		}},
		"range, no heading": {write(t, "b.csv", "192.0.2.0,192.0.2.9,64496,Example\n"), map[string]string{"192.0.2.9": "AS64496 -- none 0 #0", "192.0.2.10": "AS0 -- none 0 #0"}},
		"heading": {write(t, "GeoLite2-ASN-Blocks-IPv4.csv", "network,autonomous_system_number,autonomous_system_organization\n192.0.2.0/24,64496,\"A, B\"\n"), map[string]string{
			"192.0.2.1": "AS64496 -- none 0 #0",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			table, report := mustBuild(t, Config{Networks: []string{tt.path}})
			for addr, want := range tt.want {
				if got := tells(table, addr); got != want {
					t.Errorf("%s: %s, want %s", addr, got, want)
				}
			}
			if report.Networks == 0 || report.Networks != report.Size.Networks {
				t.Errorf("%d networks found, %d numbered", report.Networks, report.Size.Networks)
			}
		})
	}
}

// Networks lie beside countries, of whatever size; overrides leave them.
func TestNetworksBesideCountries(t *testing.T) {
	table, _ := mustBuild(t, Config{
		Databases: []string{write(t, "c.csv", "10.0.0.0/8,DE\n10.1.2.0/24,FR\n2001:db8::/32,DE\n")},
		Networks:  []string{write(t, "n.csv", "10.1.0.0/16,1\n2001:db8:1::/48,3\n172.16.0.0/12,2\n"), write(t, "later.csv", "10.1.3.0/24,4\n")},
		Overrides: []Override{{Prefix: "10.1.2.128/25", ACL: "drop"}, {Prefix: "10.1.0.0/17", Rate: "slow"}, {Prefix: "192.0.2.0/24", Country: "US"}},
	})
	for addr, want := range map[string]string{
		"10.0.0.1": "AS0 DE none 0 #0", "10.1.200.1": "AS1 DE none 0 #0", "10.1.1.1": "AS1 DE none 3 #2", "10.1.2.1": "AS1 FR none 3 #2",
		"10.1.2.200": "AS1 FR drop 3 #1", "10.1.3.9": "AS4 DE none 3 #2", "172.16.1.1": "AS2 -- none 0 #0", "192.0.2.1": "AS0 US none 0 #3",
		"2001:db8:1::1": "AS3 DE none 0 #0", "2001:db8:2::1": "AS0 DE none 0 #0",
	} {
		if got := tells(table, addr); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

func TestBadNetworkFiles(t *testing.T) {
	good, err := os.ReadFile(mmdb(t, "GeoLite2-ASN", map[string]mmdbtype.DataType{"192.0.2.0/24": system(64496)}))
	if err != nil {
		t.Fatal(err)
	}
	cyclic := bytes.Clone(good)
	clear(cyclic[:bytes.Index(good, make([]byte, 16))]) // the tree ends at 16 zero bytes
	for name, tt := range map[string]struct{ path, says string }{
		"missing":            {"/nowhere/asn.mmdb", "no such file"},
		"empty":              {write(t, "x", "\n"), "is empty"},
		"country database":   {mmdb(t, "GeoLite2-Country", map[string]mmdbtype.DataType{"192.0.2.0/24": country("DE")}), `is of type "GeoLite2-Country", and no record in it has the number of an autonomous system: use an ASN database`},
		"countries":          {write(t, "x", "192.0.2.0/24,DE\n"), `line 1: network "DE": want the number of an autonomous system`},
		"countries, heading": {write(t, "x", "network,country\n192.0.2.0/24,DE\n"), "lacks columns: want network (or start and end) and asn"},
		"too large":          {write(t, "x", "192.0.2.0/24,1\n192.0.3.0/24,4294967296\n"), `line 2: network "4294967296"`},
		"negative":           {write(t, "x", "192.0.2.0/24,-1\n"), `line 1: network "-1"`},
		"no network":         {write(t, "x", "192.0.2.0/24,0\n192.0.3.0/24,\n"), "says nothing about any address: no entry has the number"},
		"few columns":        {write(t, "x", "network,x,asn\n192.0.2.0/24,1\n"), "line 2: 2 columns, at least 3"},
		"prose":              {write(t, "x", "Not found, sorry\n"), `line 1: "Not found,sorry" is neither prefix,asn nor start,end,asn`},
		"contradiction":      {write(t, "x", "192.0.2.0/24,1\n192.0.2.0/24,2\n"), "lines 1 and 2 contradict each other about the same addresses: AS1 and AS2"},
		"of another type":    {mmdb(t, "T", map[string]mmdbtype.DataType{"192.0.2.0/24": mmdbtype.Map{"autonomous_system_number": mmdbtype.String("one")}}), "is damaged: autonomous_system_number"},
		"text of no number":  {mmdb(t, "T", map[string]mmdbtype.DataType{"192.0.2.0/24": mmdbtype.Map{"asn": mmdbtype.String("Example")}}), `192.0.2.0/24: network "Example"`},
		"text that is none":  {mmdb(t, "T", map[string]mmdbtype.DataType{"192.0.2.0/24": mmdbtype.Map{"asn": mmdbtype.Uint32(5)}}), "is damaged: asn"},
		"truncated":          {write(t, "x", string(good[len(good)/2:])), "is damaged"},
		"cyclic":             {write(t, "x", string(cyclic)), "is damaged: the search tree contains itself"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := Build(context.Background(), Config{Networks: []string{tt.path}}, nil)
			if err == nil || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), tt.path) {
				t.Errorf("error %v\ndoes not name the file or say %q", err, tt.says)
			}
		})
	}
	if err := (Config{Networks: []string{""}}).Validate(); err == nil || !strings.Contains(err.Error(), "geo.networks[0]: path is empty") {
		t.Error(err)
	}
}

// With more networks than there is room for the largest are told apart, by IPv4 addresses and IPv6 /48s.
func TestLargestNetworksAreNumbered(t *testing.T) {
	var text strings.Builder
	const all = 17_000
	slash28 := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(n >> 12), byte(n >> 4), byte(n << 4)}) }
	for n := range all { // a /28 each, and the last thousand more
		fmt.Fprintf(&text, "%s/28,%d\n", slash28(n), n+1)
		if n >= all-1000 {
			fmt.Fprintf(&text, "11.%d.%d.0/24,%d\n", n>>8, n&0xff, n+1)
		}
	}
	fmt.Fprintf(&text, "2001:db8::/40,%d\n", all+1) // 256 /48s
	table, report := mustBuild(t, Config{Networks: []string{write(t, "n.csv", text.String())}})
	if report.Networks != all+1 || report.Size.Networks != maps.PrefixNetworks {
		t.Errorf("%d networks found, %d numbered", report.Networks, report.Size.Networks)
	}
	const small = maps.PrefixNetworks - 1000 - 1 // of those with a /28 alone
	for addr, want := range map[netip.Addr]uint32{
		slash28(0): 1, slash28(small - 1): small, slash28(small): 0, slash28(all - 1001): 0, slash28(all - 1000): all - 999, slash28(all - 1): all,
		netip.MustParseAddr("11.66.103.1"): all, netip.MustParseAddr("2001:db8::1"): all + 1,
	} {
		if got := table.Lookup(addr).ASN; got != want {
			t.Errorf("%s is of AS%d, want AS%d", addr, got, want)
		}
	}
}

// Records run out before networks do where each network lies in several countries: the smallest go.
func TestRecordsLimitNetworks(t *testing.T) {
	var of, in strings.Builder
	const each = 12_000
	for n := range each { // three /26s in three countries
		for part, code := range []string{"DE", "FR", "IT"} {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), byte(part << 6)}), 26)
			fmt.Fprintf(&of, "%s,%d\n", p, n+1)
			fmt.Fprintf(&in, "%s,%s\n", p, code)
		}
	}
	table, report := mustBuild(t, Config{Networks: []string{write(t, "n.csv", of.String())}, Databases: []string{write(t, "c.csv", in.String())}})
	if want := (maps.PrefixRecords - 3) / 3; report.Networks != each || report.Size.Networks != want || report.Size.Records > maps.PrefixRecords+1 {
		t.Errorf("%d networks found, %d numbered, want %d, in %d records", report.Networks, report.Size.Networks, want, report.Size.Records)
	}
	if got := tells(table, "10.0.0.65"); got != "AS1 FR none 0 #0" {
		t.Error(got)
	}
	if got := tells(table, "10.46.223.1"); got != "AS0 DE none 0 #0" {
		t.Error(got)
	}
}

// TestApplyNetworks goes from a file to what the program does with packets, and to what it is said to know.
func TestApplyNetworks(t *testing.T) {
	k := mapstest.New(t)
	compiler := New(k.Set)
	if _, err := k.Rates.PutClass(maps.RateClass{Name: "c", Network: maps.Limits{Packets: maps.Limit{PerSecond: 1, Burst: 20}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := k.VIPs.Put(maps.VIP{Name: "web", Address: netip.MustParseAddr("192.0.2.10"), Port: 443, Protocol: maps.ProtocolTCP, RateClass: "c"}); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Networks: []string{write(t, "n.csv", "198.51.0.0/16,64496\n203.0.0.0/16,4200000000\n")}}
	for range 2 { // into both copies
		if _, err := compiler.Apply(context.Background(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	passed := func(format string) (n int) {
		for i := range 100 {
			src := netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf(format, i)), 999)
			action, _ := k.Run(t, mapstest.TCP(src, netip.MustParseAddrPort("192.0.2.10:443"), mapstest.SYN))
			if mapstest.Action(action) == "pass" {
				n++
			}
		}
		return n
	}
	// The burst, and a packet of the share of each part that has not had one: what hashes say.
	if n := passed("198.51.%d.1"); n < 20 || n > 99 {
		t.Errorf("%d of 100 of one network passed", n)
	}
	if n := passed("198.51.7.%d"); n > 2 {
		t.Errorf("%d of one part of a network that is above its limit passed", n)
	}
	if n := passed("203.0.7.%d"); n < 20 || n > 22 {
		t.Errorf("%d of 100 of one part of another network passed, want the burst and one", n)
	}
	if n := passed("8.8.%d.1"); n != 100 {
		t.Errorf("%d of 100 of no network passed", n)
	}
	for addr, want := range map[string]uint32{"198.51.7.1": 64496, "203.0.0.1": 4_200_000_000, "8.8.8.8": 0} {
		if j, err := k.Judge(netip.MustParseAddr(addr)); err != nil || j.Record.ASN != want {
			t.Errorf("%s: %+v, %v", addr, j.Record, err)
		}
	}
}
