package maps_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

// driftEdge is a kernel half with something in each table that is watched.
func driftEdge(t *testing.T) *mapstest.Kernel {
	t.Helper()
	k := mapstest.New(t)
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(k.Rates.PutClass(maps.RateClass{Name: "slow", Packets: maps.Limit{PerSecond: 10, Burst: 10}}))
	must(k.Geo.PutPolicy(maps.GeoPolicy{Name: "home", Fallback: maps.ActionAllow}))
	id, err := k.Sets.Put(maps.BackendSet{Name: "edges"})
	must(nil, err)
	must(k.Backends.Put(maps.Backend{Name: "edge2", Address: netip.MustParseAddr("10.0.0.2")}))
	must(nil, k.Rows.Write(id, make([]maps.Row, maps.RowCount)))
	must(nil, k.Peers.Replace(map[netip.Addr]uint32{netip.MustParseAddr("10.0.0.2"): 1}))
	web := service("web", "192.0.2.10", 443)
	web.Gate.Cookies = maps.GateOn
	must(k.VIPs.Put(web))
	must(nil, k.Carries.Put(maps.Carry{Source: maps.CarryLimit(1000), All: maps.CarryLimit(1000)}))
	must(nil, k.Verdicts.Put(maps.Verdict{Source: netip.MustParseAddr("198.51.100.7"), Action: maps.ActionDrop, Reason: "old"}))
	must(nil, k.WatchDrift())
	return k
}

func TestDriftOfOthers(t *testing.T) {
	k := driftEdge(t)
	put := func(name string, key, value any) {
		t.Helper()
		if err := k.Maps[name].Put(key, value); err != nil {
			t.Fatal(err)
		}
	}
	source := func(a string) bpf.XDPBermVerdictKey {
		key := bpf.XDPBermVerdictKey{}
		key.Source.Octets = netip.MustParseAddr(a).As16()
		return key
	}
	for _, tc := range []struct {
		name   string
		change func()
		want   string
	}{
		{"observe only", func() {
			c := k.Config.Get()
			c.Flags = 1
			put(bpf.XDPMapBermConfig, uint32(0), &c)
		}, "berm_config[0]: flags is 1, was 0"},
		{"secret", func() {
			c := k.Config.Get()
			c.Secret[0]++
			put(bpf.XDPMapBermConfig, uint32(0), &c)
		}, "berm_config[0]: secret is another"},
		{"VIP", func() {
			var v bpf.XDPBermVip
			if err := k.Maps[bpf.XDPMapBermVips].Lookup(uint32(1), &v); err != nil {
				t.Fatal(err)
			}
			v.Flags |= 2
			v.Name[3] = '2'
			put(bpf.XDPMapBermVips, uint32(1), &v)
		}, `berm_vips[1]: flags is 259, was 257; name is "web2", was "web"`},
		{"gate", func() { put(bpf.XDPMapBermGates, uint32(1), &bpf.XDPBermGate{}) }, "berm_gates[1]: syns is 0 a second, was 10000 a second; cookies is 0, was 2"},
		{"gate's cookies", func() { put(bpf.XDPMapBermGates, uint32(1), &bpf.XDPBermGate{Cookies: 2}) }, "berm_gates[1]: cookies is 2, was 0"},
		{"format of connection IDs", func() { put(bpf.XDPMapBermCids, uint32(1), &bpf.XDPBermCid{Flags: 1, Key: [16]uint8{9}}) }, "berm_cids[1]: flags is 1, was 0; key is another"},
		{"carrying", func() { put(bpf.XDPMapBermCarry, uint32(0), &bpf.XDPBermCarry{}) }, "berm_carry[0]: source is 0 a second, was 1000 a second"},
		{"index", func() { put(bpf.XDPMapBermVipSlots, uint32(5), uint64(9)) }, "berm_vip_slots[5]: 0x9, was 0x"},
		{"seeds", func() { put(bpf.XDPMapBermVipSeeds, uint32(7), uint64(1)) }, "berm_vip_seeds[7]: 0x1, was 0x"},
		{"geo rule", func() {
			put(bpf.XDPMapBermGeoRules, uint32(1024+84), &bpf.XDPBermGeoRule{Action: 2})
		}, "berm_geo_rules[1108]: 0x2, was 0x1"},
		{"geo policy", func() { put(bpf.XDPMapBermGeoPolicies, uint32(9), &bpf.XDPBermGeoPolicy{Used: 1}) }, "berm_geo_policies[9]: used is 1, was 0"},
		{"rate class", func() { put(bpf.XDPMapBermRateClasses, uint32(1), &bpf.XDPBermRateClass{}) }, "berm_rate_classes[1]: packets is 0 a second, was 10 a second"},
		{"record", func() { put(bpf.XDPMapBermPrefixRecords, uint32(3), &bpf.XDPBermPrefixRecord{Acl: 2}) }, "berm_prefix_records[3]: 0x20000, was 0x0"},
		{"network", func() { put(bpf.XDPMapBermNetworks, uint32(3), uint64(64496)) }, "berm_networks[3]: 0xfbf0, was 0x0"},
		{"set", func() { put(bpf.XDPMapBermSets, uint32(9), &bpf.XDPBermSet{Owner: 1}) }, "berm_sets[9]: owner is 1, was 0"},
		{"rows", func() {
			for i := range uint32(20) {
				put(bpf.XDPMapBermRows, 32769+i, uint64(1))
			}
		}, "berm_rows[32769]: 0x1, was 0x0"},
		{"backend", func() {
			var b bpf.XDPBermBackend
			if err := k.Maps[bpf.XDPMapBermBackends].Lookup(uint32(1), &b); err != nil {
				t.Fatal(err)
			}
			b.Addr.Octets = netip.MustParseAddr("10.0.0.9").As16()
			put(bpf.XDPMapBermBackends, uint32(1), &b)
		}, "berm_backends[1]: addr is 10.0.0.9, was 10.0.0.2"},
		{"peer", func() {
			a := bpf.XDPBermAddr{Octets: netip.MustParseAddr("10.0.0.3").As16()}
			put(bpf.XDPMapBermPeers, &a, uint64(1))
		}, "berm_peers[all]: 2 entries, there were 1"},
		{"verdict added", func() {
			key := source("203.0.113.9")
			put(bpf.XDPMapBermVerdicts, &key, &bpf.XDPBermVerdict{Action: 2})
			bits := make([]byte, 8)
			for i := range bits {
				bits[i] = 0xff
			}
			for i := range uint32(1 << 14) {
				put(bpf.XDPMapBermVerdictBits, i, bits)
			}
		}, "berm_verdicts[203.0.113.9]: added: action drop"},
		{"verdict changed", func() {
			key := source("198.51.100.7")
			put(bpf.XDPMapBermVerdicts, &key, &bpf.XDPBermVerdict{Action: 1, Reason: [16]int8{'o', 'l', 'd'}})
		}, "berm_verdicts[198.51.100.7]: action is 1, was 2"},
		{"bits", func() {
			for i := range uint32(1 << 14) {
				put(bpf.XDPMapBermVerdictBits, i, uint64(0))
			}
		}, "berm_verdict_bits[all]: 2 verdicts are not looked for"},
		{"verdict removed", func() {
			key := source("198.51.100.7")
			if err := k.Maps[bpf.XDPMapBermVerdicts].Delete(&key); err != nil {
				t.Fatal(err)
			}
		}, `berm_verdicts[198.51.100.7]: removed: action allow, reason "old"`},
	} {
		tc.change()
		found, err := k.Drift()
		if err != nil || !strings.Contains(fmt.Sprint(found), tc.want) {
			t.Errorf("%s: %v, %v; want %s", tc.name, found, err, tc.want)
		}
		if tc.name == "rows" && (len(found) != 9 || found[8].Change != "12 other entries changed") {
			t.Errorf("many rows: %v", found)
		}
		if found, err := k.Drift(); err != nil || len(found) > 0 {
			t.Errorf("%s is told twice: %v, %v", tc.name, found, err)
		}
	}
}

// TestDriftIsNotOurs: what this process writes, and what the kernel half counts, is no drift; but what
// others wrote is not lost when we write over it.
func TestDriftIsNotOurs(t *testing.T) {
	k := driftEdge(t)
	still := func(what string) {
		t.Helper()
		if found, err := k.Drift(); err != nil || len(found) > 0 {
			t.Errorf("%s: %v, %v", what, found, err)
		}
	}
	do := func(what string, _ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		still(what)
	}
	id, err := k.VIPs.Put(service("shop", "192.0.2.11", 443))
	do("VIP", id, err)
	id, err = k.Rates.PutClass(maps.RateClass{Name: "fast", Packets: maps.Limit{PerSecond: 1000, Burst: 10}})
	do("class", id, err)
	id, err = k.Geo.PutPolicy(maps.GeoPolicy{Name: "away", Fallback: maps.ActionDrop})
	do("policy", id, err)
	do("prefixes", nil, k.Prefixes.Swap(func(p *maps.PrefixTable) error {
		return p.Add4(1<<24, 1<<24|255, maps.PrefixRecord{ACL: maps.ActionDrop})
	}))
	id, err = k.Sets.Put(maps.BackendSet{Name: "others"})
	do("set", id, err)
	do("rows", nil, k.Rows.Write(id, make([]maps.Row, maps.RowCount)))
	do("next hop", nil, k.Backends.SetNextHop(1, maps.NextHop{Ready: true, Interface: 3}))
	do("heartbeat", nil, k.Backends.Beat(1))
	do("peers", nil, k.Peers.Replace(nil))
	do("config", nil, k.Config.SetMTU(1400))
	do("samples", nil, k.Samples.Set(maps.DropGeo, 4))
	v := maps.Verdict{Source: netip.MustParseAddr("2001:db8::1"), VIP: "shop", Action: maps.ActionDrop, Expires: time.Now().Add(time.Hour)}
	do("verdict", nil, k.Verdicts.Put(v))
	errs, err := k.Verdicts.Change([]maps.VerdictChange{{Verdict: maps.Verdict{Source: netip.MustParseAddr("10.1.1.1"), Action: maps.ActionDrop}}})
	do("verdicts", errs, err)
	do("a verdict's end", nil, k.Verdicts.Remove(netip.MustParseAddr("10.1.1.1"), ""))
	k.Run(t, mapstest.TCP(netip.MustParseAddrPort("198.51.100.7:9"), netip.MustParseAddrPort("192.0.2.10:443"), mapstest.SYN))
	still("a packet that meets a verdict")
	do("VIP's end, and its verdicts'", nil, k.VIPs.Remove("shop"))

	if err := k.Maps[bpf.XDPMapBermSets].Put(uint32(30), &bpf.XDPBermSet{Owner: 2}); err != nil {
		t.Fatal(err)
	}
	if err := k.Config.SetMTU(1500); err != nil {
		t.Fatal(err)
	}
	found, err := k.Drift()
	if err != nil || len(found) != 1 || found[0].String() != "berm_sets[30]: owner is 2, was 0" {
		t.Errorf("%v, %v: want the set that another wrote before us", found, err)
	}
	began := time.Now()
	still("nothing")
	t.Logf("a look at all tables took %s", time.Since(began))
}
