package control_test

import (
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
	"github.com/bermedge/berm/userspace/control"
)

// TestPromotion: each kind of rule is listed with what it would drop; after one command the same
// packets are dropped, and as many of them.
func TestPromotion(t *testing.T) {
	k := mapstest.New(t)
	c := mustServe(t, &testDaemon{tables: control.NewLocal(k.Set, nil)})
	ctx := t.Context()
	must := func(_ control.Changes, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.SetGeoPolicy(ctx, control.GeoPolicy{Name: "home", Fallback: "allow", Shadow: []string{"XX"}}))
	must(c.SetGeoPolicy(ctx, control.GeoPolicy{Name: "none", Fallback: "shadow"}))
	must(c.SetRate(ctx, control.RateClass{Name: "slow", RateLimits: control.RateLimits{Packets: 1, PacketsBurst: 1}, Shadow: true}))
	xx, _ := maps.ParseCountry("XX")
	err := k.Prefixes.Swap(func(p *maps.PrefixTable) error {
		return p.Add4(203<<24, 203<<24|0xffffff, maps.PrefixRecord{Country: xx})
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range []control.VIP{{Name: "geo", Geo: "home"}, {Name: "fallback", Geo: "none"}, {Name: "rate", Rate: "slow"}, {Name: "plain"}, {Name: "vip", Shadow: true}, {Name: "strict", Strict: true}} {
		v.Address, v.Port, v.Protocol = netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 443, "tcp"
		must(c.AddVIP(ctx, v))
	}
	must(c.AddVerdict(ctx, control.Verdict{Source: netip.MustParseAddr("198.51.100.1"), Action: "shadow"}))
	must(c.AddVerdict(ctx, control.Verdict{Source: netip.MustParseAddr("198.51.100.2"), VIP: "plain", Action: "shadow", Seconds: 60}))
	must(c.AddVerdict(ctx, control.Verdict{Source: netip.MustParseAddr("198.51.100.5"), VIP: "vip", Action: "drop"}))
	must(c.SetShadow(ctx, control.ShadowChange{Rule: "reason/no_service", Shadow: true}))

	send := func(src, dst string) (dropped, shadowed uint64) {
		t.Helper()
		total := func() (d, s uint64) {
			drops, err := c.Drops(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range drops.Drops {
				d, s = d+r.Dropped.Packets, s+r.Shadowed.Packets
			}
			return d, s
		}
		d0, s0 := total()
		for range 5 {
			k.Run(t, mapstest.TCP(netip.MustParseAddrPort(src+":999"), netip.MustParseAddrPort(dst), mapstest.ACK))
		}
		d1, s1 := total()
		return d1 - d0, s1 - s0
	}
	for _, tc := range []struct {
		rule, src, dst string
		drops          uint64 // of five packets
	}{
		{"geo/home/XX", "203.0.113.7", "192.0.2.1:443", 5},
		{"geo/none/fallback", "198.51.100.50", "192.0.2.2:443", 5},
		{"rate/slow", "198.51.100.51", "192.0.2.3:443", 3}, // more or less: it is refilled meanwhile
		{"verdict/198.51.100.1", "198.51.100.1", "192.0.2.4:443", 5},
		{"verdict/198.51.100.2/plain", "198.51.100.2", "192.0.2.4:443", 5},
		{"vip/vip", "198.51.100.5", "192.0.2.5:443", 5},
		{"reason/no_service", "198.51.100.6", "192.0.2.6:444", 5},
	} {
		find := func() (control.ShadowRule, bool) {
			rules, err := c.ShadowRules(ctx)
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(rules, func(r control.ShadowRule) bool { return r.Rule == tc.rule })
			if i < 0 {
				return control.ShadowRule{}, false
			}
			return rules[i], true
		}
		d, s := send(tc.src, tc.dst)
		if r, ok := find(); !ok || d != 0 || s < tc.drops || r.WouldDrop.Packets < tc.drops || r.What == "" || r.Owner == "" {
			t.Errorf("%s in shadow: %d dropped, %d shadowed, listed %v %+v", tc.rule, d, s, ok, r)
		}
		done, err := c.SetShadow(ctx, control.ShadowChange{Rule: tc.rule})
		says(t, done, err, "is enforced from now on")
		d, s = send(tc.src, tc.dst)
		if _, ok := find(); ok || d < tc.drops || s != 0 {
			t.Errorf("%s promoted: %d dropped, %d shadowed, still listed %v", tc.rule, d, s, ok)
		}
		done, err = c.SetShadow(ctx, control.ShadowChange{Rule: tc.rule, Shadow: true})
		says(t, done, err, "is only counted from now on")
		if _, ok := find(); !ok {
			t.Errorf("%s put back in shadow is not listed", tc.rule)
		}
	}
	v, err := k.Verdicts.Get(netip.MustParseAddr("198.51.100.2"), "plain")
	if err != nil || v.Expires.IsZero() || v.Action != maps.ActionShadow {
		t.Errorf("%+v, %v: want its end to have stayed", v, err)
	}
	done, err := c.SetShadow(ctx, control.ShadowChange{Rule: "observe_only", Shadow: true})
	says(t, done, err, "is only counted")
	if rules, err := c.ShadowRules(ctx); err != nil || rules[0].Rule != "observe_only" || rules[0].WouldDrop.Packets == 0 {
		t.Errorf("%+v, %v", rules, err)
	}
	for rule, want := range map[string]string{"nonsense": "berm shadow list", "vip/nowhere": "not found", "rate/none": "not found", "geo/nowhere/XX": "not found", "geo/home/DEU": "ISO", "verdict/x": "unable to parse", "verdict/198.51.100.9": "not found", "reason/none": "drop reason", "override/3": "compiled from the file"} {
		if _, err := c.SetShadow(ctx, control.ShadowChange{Rule: rule}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", rule, err, want)
		}
	}
	// What lets packets in is no shadow, and never becomes a drop.
	must(c.AddVerdict(ctx, control.Verdict{Source: netip.MustParseAddr("198.51.100.3"), VIP: "plain", Action: "allow"}))
	must(c.SetGeoPolicy(ctx, control.GeoPolicy{Name: "open", Fallback: "allow", Mark: []string{"YY"}}))
	for rule, instead := range map[string]string{
		"geo/open/fallback": "berm geo policy open --fallback drop", "geo/open/DE": "berm geo policy open --drop DE", "geo/open/YY": "berm geo policy open --drop YY",
		"verdict/198.51.100.3/plain": "berm verdict add 198.51.100.3 --action drop --vip plain",
	} {
		for _, shadow := range []bool{true, false} {
			_, err := c.SetShadow(ctx, control.ShadowChange{Rule: rule, Shadow: shadow})
			refused(t, err, http.StatusBadRequest, "nothing to enforce")
			if told := (*control.Error)(nil); !errors.As(err, &told) || !shadow && !strings.Contains(told.Hint, instead) {
				t.Errorf("%s: %+v, want %s", rule, err, instead)
			}
		}
	}
	if p, err := k.Geo.GetPolicy("open"); err != nil || p.Fallback != maps.ActionAllow || len(p.Rules) != 1 {
		t.Errorf("policy %+v, %v", p, err)
	}
	if v, err := k.Verdicts.Get(netip.MustParseAddr("198.51.100.3"), "plain"); err != nil || v.Action != maps.ActionAllow {
		t.Errorf("verdict %+v, %v", v, err)
	}
	_, err = c.SetShadow(ctx, control.ShadowChange{Rule: "nonsense"})
	refused(t, err, http.StatusNotFound, "nonsense")
}
