package bench

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/bermedge/berm/maps"
)

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("BERM_NO_SKIP") != "" {
		t.Fatal("may not skip: needs root, to load programs")
	}
	t.Skip("needs root, to load programs")
}

// Every case takes the way that it is named after, in both families. Figures are not looked at.
func TestCases(t *testing.T) {
	requireRoot(t)
	seen := map[string]int{}
	err := Run(t.Context(), Options{Flows: []int{1, 1024}, Runs: 1}, func(r Result) error {
		seen[r.Case]++
		if r.Runs != 1 || r.Spread != 0 {
			t.Errorf("%+v", r)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"floor_encap", "pass_foreign", "prefix_lookup", "drop_geo", "drop_rate", "drop_verdict", "lb_tcp", "lb_udp", "lb_quic", "lb_quic_encrypted", "lb_syn_new",
		"lb_aggregate", "icmp_quote", "second_chance", "syn_cookie",
	} {
		if seen[name] != 4 {
			t.Errorf("case %s ran %d times, want once for each of two families and numbers of flows", name, seen[name])
		}
	}
}

// Every way to drop drops what is sent to it. Figures are not looked at.
func TestLive(t *testing.T) {
	requireRoot(t)
	var seen []string
	err := RunLive(t.Context(), LiveOptions{Flows: 64, Runs: 1}, func(r LiveResult) error {
		seen = append(seen, r.Case)
		if r.Flows != 64 || r.Runs != 1 || r.Spread != 0 {
			t.Errorf("%+v", r)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"xdp_floor", "drop_geo", "drop_rate", "nft_ingress", "nft_raw", "nft_input"}; !slices.Equal(seen, want) {
		t.Errorf("cases %v, want %v", seen, want)
	}
}

func TestOptions(t *testing.T) {
	for want, o := range map[string]Options{
		`case "lb" is unknown`: {Cases: []string{"lb"}},
		"family 5":             {Families: []int{5}},
		"3 flows":              {Flows: []int{3}},
		"2097152 flows":        {Flows: []int{2 << 20}},
		"want at least 1":      {Runs: -1},
	} {
		if err := Run(t.Context(), o, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", o, err, want)
		}
	}
}

func TestCancel(t *testing.T) {
	requireRoot(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, Options{}, func(Result) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
}

// The table that is measured has as many prefixes as it says, and sources hit them.
func TestPrefixes(t *testing.T) {
	table := maps.NewPrefixTable()
	if err := fill(table); err != nil {
		t.Fatal(err)
	}
	if err := table.Finish(); err != nil {
		t.Fatal(err)
	}
	hits := map[bool]int{}
	for n := range uint32(10_000) {
		for _, a := range []netip.Addr{source4(n), source6(n)} {
			if table.Lookup(a) != (maps.PrefixRecord{}) {
				hits[a.Is4()]++
			}
		}
	}
	if hits[true] < 1000 || hits[false] < 500 {
		t.Errorf("of 10,000 sources %d IPv4 and %d IPv6 ones have a record", hits[true], hits[false])
	}
}
