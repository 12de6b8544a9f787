package maps_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// Connections begin with the profile of their longest prefix, else of their country, else with the host's parameters.
func TestCCInKernel(t *testing.T) {
	k := mapstest.New(t)
	mapstest.ObserveTCP(t, k)
	for _, p := range []maps.CCProfile{
		{Name: "slow", Controller: "reno", RTOMin: 30 * time.Millisecond, AckDelay: 20 * time.Millisecond},
		{Name: "quick", Controller: "cubic", InitialWindow: 44},
		{Name: "none"},
		{Name: "unknown", Controller: "no-such"},
	} {
		if err := k.CC.PutProfile(p); err != nil {
			t.Fatal(err)
		}
	}
	record := maps.PrefixRecord{Country: mustCountry(t, "DE"), ASN: 64500}
	if err := k.Prefixes.Swap(func(table *maps.PrefixTable) error {
		return errors.Join(
			table.Add(netip.MustParseAddr("127.0.0.0"), netip.MustParseAddr("127.255.255.255"), record),
			table.Add(netip.MustParseAddr("::"), netip.MustParseAddr("::ffff:ffff:ffff:ffff"), record))
	}); err != nil {
		t.Fatal(err)
	}
	hosts := transfer(t, "127.0.0.1:0", "127.0.0.1", 1<<20)
	if c, err := k.CC.Explain(netip.MustParseAddr("127.0.0.1")); err != nil || c.Profile != "" || c.Country.String() != "DE" {
		t.Errorf("without rules: %+v, %v", c, err)
	}
	for _, tt := range []struct {
		what      string
		rules     []maps.CCRule
		networks  map[uint32]string
		countries maps.CCCountries
		four, six string // profile
	}{
		{"country", nil, nil, maps.CCCountries{Rules: map[maps.Country]string{mustCountry(t, "DE"): "quick"}, Fallback: "slow"}, "quick", "quick"},
		{"fallback", nil, map[uint32]string{64501: "quick"}, maps.CCCountries{Rules: map[maps.Country]string{mustCountry(t, "FR"): "quick"}, Fallback: "slow"}, "slow", "slow"},
		{"prefix", []maps.CCRule{{Prefix: prefix("127.0.0.0/8"), Profile: "slow"}, {Prefix: prefix("::/120"), Profile: "slow"}}, map[uint32]string{64500: "quick"}, maps.CCCountries{Fallback: "quick"}, "slow", "slow"},
		{"longest", []maps.CCRule{
			{Prefix: prefix("127.0.0.0/8"), Profile: "slow"},
			{Prefix: prefix("127.0.0.1/32"), Profile: "quick"},
			{Prefix: prefix("::1/128"), Profile: "quick"},
		}, nil, maps.CCCountries{Fallback: "slow"}, "quick", "quick"},
		{"network", nil, map[uint32]string{64500: "quick", 64501: "none"}, maps.CCCountries{Rules: map[maps.Country]string{mustCountry(t, "DE"): "slow"}, Fallback: "slow"}, "quick", "quick"},
		{"the host's, by a network", nil, map[uint32]string{64500: ""}, maps.CCCountries{Fallback: "slow"}, "", ""},
		{"a profile that changes nothing", []maps.CCRule{{Prefix: prefix("0.0.0.0/0"), Profile: "none"}}, nil, maps.CCCountries{Fallback: "slow"}, "none", "slow"},
		{"the host's, by a rule", []maps.CCRule{{Prefix: prefix("127.0.0.0/9")}}, nil, maps.CCCountries{Fallback: "slow"}, "", "slow"},
		{"a controller that the kernel does not have", nil, nil, maps.CCCountries{Fallback: "unknown"}, "unknown", "unknown"},
	} {
		if err := errors.Join(k.CC.Replace(maps.OwnerOperator, tt.rules), k.CC.SetNetworks(tt.networks), k.CC.SetCountries(tt.countries)); err != nil {
			t.Fatalf("%s: %v", tt.what, err)
		}
		for far, want := range map[string]string{"127.0.0.1": tt.four, "::1": tt.six} {
			before := ccStats(t, k)
			end := transfer(t, netip.AddrPortFrom(netip.MustParseAddr(far), 0).String(), far, 1<<20)
			after := ccStats(t, k)
			if p, err := k.CC.Choose(netip.AddrPortFrom(netip.MustParseAddr(far), 1)); err != nil || p.Name != want {
				t.Errorf("%s, %s: the daemon chooses %q, %v, want %q", tt.what, far, p.Name, err, want)
			}
			c, err := k.CC.Explain(netip.MustParseAddr(far))
			if err != nil || c.Profile != want {
				t.Errorf("%s, %s: explained as %+v, %v, want %q", tt.what, far, c, err, want)
			}
			controller := map[string]string{"slow": "reno", "quick": "cubic"}[want]
			if controller == "" {
				controller = hosts.controller
			}
			if end.controller != controller || (end.rto < 150*time.Millisecond) != (want == "slow") {
				t.Errorf("%s, %s: %+v, want %q's", tt.what, far, end, want)
			}
			ackDelay := hosts.ackDelay
			if want == "slow" {
				ackDelay = 20 * time.Millisecond
			}
			if hosts.ackDelay != 0 && end.ackDelay != ackDelay {
				t.Errorf("%s, %s: acknowledgements may be held back for %s, want %s", tt.what, far, end.ackDelay, ackDelay)
			}
			if want == "quick" && end.window < 44 {
				t.Errorf("%s, %s: a window of %d segments, which began with 44", tt.what, far, end.window)
			}
			refused := uint64(0)
			if want == "unknown" {
				refused = 1
			}
			for name, s := range after {
				n, r := s.Connections-before[name].Connections, s.Refused-before[name].Refused
				if wantN := map[bool]uint64{true: 1}[name == want]; n != wantN || r != wantN*refused {
					t.Errorf("%s, %s: profile %q counted %d connections, %d refused", tt.what, far, name, n, r)
				}
			}
		}
	}
}

func ccStats(t testing.TB, k *mapstest.Kernel) map[string]maps.CCStats {
	t.Helper()
	s, err := k.CC.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustCountry(t *testing.T, s string) maps.Country {
	t.Helper()
	c, err := maps.ParseCountry(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCCTables(t *testing.T) {
	k := mapstest.New(t)
	for _, name := range []string{"a", "b"} {
		if err := k.CC.PutProfile(maps.CCProfile{Name: name, Controller: "bbr", Owner: maps.OwnerFile, InitialWindow: 32, RTOMin: 100 * time.Millisecond, AckDelay: 8 * time.Millisecond}); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.CC.PutProfile(maps.CCProfile{Name: "b", Controller: "cubic"}); err != nil {
		t.Fatal(err)
	}
	list, err := k.CC.ListProfiles()
	want := []maps.CCProfile{{ID: 1, Name: "a", Owner: maps.OwnerFile, Controller: "bbr", InitialWindow: 32, RTOMin: 100 * time.Millisecond, AckDelay: 8 * time.Millisecond}, {ID: 2, Name: "b", Controller: "cubic"}}
	if err != nil || len(list) != 2 || list[0] != want[0] || list[1] != want[1] {
		t.Errorf("%+v, %v, want %+v", list, err, want)
	}
	file := []maps.CCRule{{Prefix: prefix("2001:db8::/32"), Profile: "a"}, {Prefix: prefix("192.0.2.0/24"), Profile: "b"}}
	own := maps.CCRule{Prefix: prefix("192.0.2.7/32"), Profile: "a"}
	if err := errors.Join(k.CC.Replace(maps.OwnerFile, file), k.CC.PutRule(own), k.CC.Replace(maps.OwnerFile, file[:1])); err != nil {
		t.Fatal(err)
	}
	rules, err := k.CC.ListRules()
	file[0].Owner = maps.OwnerFile
	if err != nil || len(rules) != 2 || rules[0] != own || rules[1] != file[0] {
		t.Errorf("rules %+v, %v", rules, err)
	}
	if err := k.CC.Replace(maps.OwnerFile, []maps.CCRule{own}); !errors.Is(err, maps.ErrOverlap) {
		t.Errorf("an operator's prefix in the file: %v", err)
	}
	if err := k.CC.RemoveProfile("a"); !errors.Is(err, maps.ErrInUse) || !strings.Contains(err.Error(), "192.0.2.7/32") {
		t.Errorf("remove a profile in use: %v", err)
	}
	if err := k.CC.SetCountries(maps.CCCountries{Rules: map[maps.Country]string{mustCountry(t, "JP"): "b"}}); err != nil {
		t.Fatal(err)
	}
	if err := k.CC.RemoveProfile("b"); !errors.Is(err, maps.ErrInUse) || !strings.Contains(err.Error(), "JP") {
		t.Errorf("remove a profile in use: %v", err)
	}
	if got, err := k.CC.Countries(); err != nil || got.Fallback != "" || len(got.Rules) != 1 || got.Profile(mustCountry(t, "JP")) != "b" {
		t.Errorf("countries %+v, %v", got, err)
	}
	if err := errors.Join(k.CC.SetCountries(maps.CCCountries{}), k.CC.SetNetworks(map[uint32]string{64500: "b", 64501: ""})); err != nil {
		t.Fatal(err)
	}
	if got, err := k.CC.Networks(); err != nil || len(got) != 2 || got[64500] != "b" {
		t.Errorf("networks %v, %v", got, err)
	}
	if err := k.CC.RemoveProfile("b"); !errors.Is(err, maps.ErrInUse) || !strings.Contains(err.Error(), "AS64500") {
		t.Errorf("a network has it: %v", err)
	}
	if err := k.CC.SetNetworks(map[uint32]string{64500: "no-such"}); !errors.Is(err, maps.ErrNotFound) {
		t.Errorf("a network without a profile: %v", err)
	}
	if err := errors.Join(k.CC.SetNetworks(nil), k.CC.RemoveProfile("b")); err != nil {
		t.Error(err)
	}
	if err := k.CC.SetCountries(maps.CCCountries{Fallback: "b"}); !errors.Is(err, maps.ErrNotFound) {
		t.Errorf("countries with a profile that does not exist: %v", err)
	}
	if err := k.CC.PutRule(maps.CCRule{Prefix: prefix("192.0.2.0/24"), Profile: "b"}); !errors.Is(err, maps.ErrNotFound) {
		t.Errorf("rule with a profile that does not exist: %v", err)
	}
	if err := k.CC.RemoveRule(prefix("192.0.2.0/24")); !errors.Is(err, maps.ErrNotFound) {
		t.Errorf("remove a rule that does not exist: %v", err)
	}
}

func TestCCErrors(t *testing.T) {
	for says, p := range map[string]maps.CCProfile{
		"name is empty":                {},
		"controller: name":             {Name: "x", Controller: "a controller"},
		"initial_window: 1001 is":      {Name: "x", InitialWindow: 1001},
		"rto_min: 1s is not between":   {Name: "x", RTOMin: time.Second},
		"rto_min: 10µs is not between": {Name: "x", RTOMin: 10 * time.Microsecond},
		"ack_delay: 1s is not":         {Name: "x", AckDelay: time.Second},
		"ack_delay: 10µs is not":       {Name: "x", AckDelay: 10 * time.Microsecond},
	} {
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v, want %q", p, err, says)
		}
	}
	for says, p := range map[string]netip.Prefix{
		"is no prefix":     {},
		"bits behind":      netip.PrefixFrom(netip.MustParseAddr("192.0.2.1"), 24),
		"v4-mapped":        prefix("::ffff:192.0.2.0/120"),
		"IPv4's prefix to": prefix("::/0"),
	} {
		if err := maps.CheckCCPrefix(p); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", p, err, says)
		}
	}
}
