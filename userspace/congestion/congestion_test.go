package congestion

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

// Average windows of RFC 9438, tables 2 and 3, with C = 0.4.
func TestCubicWindow(t *testing.T) {
	for _, c := range []struct {
		rtt        time.Duration
		loss, want float64
	}{
		{100 * time.Millisecond, 1e-2, 12},
		{100 * time.Millisecond, 1e-3, 38},
		{100 * time.Millisecond, 1e-4, 187},
		{100 * time.Millisecond, 1e-5, 1054},
		{100 * time.Millisecond, 1e-8, 187400},
		{10 * time.Millisecond, 1e-2, 12},
		{10 * time.Millisecond, 1e-4, 120},
		{10 * time.Millisecond, 1e-8, 33325},
	} {
		if got := CubicWindow(c.loss, c.rtt); math.Abs(got-c.want) > 1 && math.Abs(got/c.want-1) > 0.03 {
			t.Errorf("loss %g, %s: %.0f segments, want %.0f", c.loss, c.rtt, got, c.want)
		}
	}
	if r := CubicRate(0, time.Second, 1448); !math.IsInf(r, 1) {
		t.Errorf("without loss: %v", r)
	}
}

func TestConfigErrors(t *testing.T) {
	for says, c := range map[string]Config{
		`cc.default: there is no profile "x"`:               {Default: "x"},
		`cc.countries.DE: there is no profile "x"`:          {Countries: map[string]string{"DE": "x"}},
		"cc.countries.D: country":                           {Countries: map[string]string{"D": ""}},
		`cc.networks.AS1: there is no profile "x"`:          {Networks: map[string]string{"AS1": "x"}},
		"cc.networks.ASX: network":                          {Networks: map[string]string{"ASX": ""}},
		"cc.networks.AS0: networks that are not known":      {Networks: map[string]string{"AS0": ""}},
		"is the same network as":                            {Networks: map[string]string{"AS1": "", "1": ""}},
		"cc.countries.--: countries that are not known":     {Countries: map[string]string{"--": ""}},
		"cc.prefixes[0].prefix: 192.0.2.1/24 has bits":      {Prefixes: []Prefix{{Prefix: netip.MustParsePrefix("192.0.2.1/24")}}},
		`cc.prefixes[0].profile: there is no profile "x"`:   {Prefixes: []Prefix{{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Profile: "x"}}},
		"cc.prefixes[1].prefix: 192.0.2.0/24 is also that":  {Prefixes: []Prefix{{Prefix: netip.MustParsePrefix("192.0.2.0/24")}, {Prefix: netip.MustParsePrefix("192.0.2.0/24")}}},
		"cc.profiles: 32 with those that are there without": {Profiles: many(29)},
		"cc.profiles.a.initial_window: 5000":                {Profiles: map[string]Profile{"a": {InitialWindow: 5000}}},
	} {
		c.Learn = DefaultLearn()
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v, want %q", c, err, says)
		}
	}
}

func many(n int) map[string]Profile {
	all := map[string]Profile{}
	for i := range n {
		all[fmt.Sprintf("p%d", i)] = Profile{}
	}
	return all
}

// mobile, fixed and datacentre are there without the file: what it writes takes their place, and so does what an operator has.
func TestBuiltIn(t *testing.T) {
	k := mapstest.New(t)
	if err := k.CC.PutProfile(maps.CCProfile{Name: "datacentre", Controller: "reno"}); err != nil {
		t.Fatal(err)
	}
	c := Default()
	c.Profiles = map[string]Profile{"fixed": {InitialWindow: 12}}
	c.Countries = map[string]string{"IN": "mobile"}
	c.Prefixes = []Prefix{{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Profile: "mobile"}, {Prefix: netip.MustParsePrefix("198.51.100.0/24"), Profile: "fixed"}}
	c.Learn.Arms = []string{"mobile", "fixed"}
	if err := errors.Join(c.Validate(), c.Apply(k.CC)); err != nil {
		t.Fatal(err)
	}
	if kept, err := c.Tidy(k.CC); err != nil || len(kept) != 0 {
		t.Errorf("%v, %v", kept, err)
	}
	list, err := k.CC.ListProfiles()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]maps.CCProfile{}
	for _, p := range list {
		p.ID = 0
		got[p.Name] = p
	}
	want := map[string]maps.CCProfile{
		"mobile":     {Name: "mobile", Owner: maps.OwnerFile, Controller: "bbr", InitialWindow: 32, AckDelay: 40 * time.Millisecond},
		"fixed":      {Name: "fixed", Owner: maps.OwnerFile, InitialWindow: 12},
		"datacentre": {Name: "datacentre", Owner: maps.OwnerOperator, Controller: "reno"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if p := c.Choose(netip.MustParseAddr("192.0.2.1")); p.Controller != "bbr" || p.Name != "mobile" {
		t.Errorf("by the file alone: %+v", p)
	}
	for name, p := range builtIn() {
		if err := errors.Join(p.profile(name).Validate(), errors.Join(p.QUIC.mistakes()...)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestApply(t *testing.T) {
	k := mapstest.New(t)
	one := Config{
		Profiles:  map[string]Profile{"lossy": {Controller: "bbr", InitialWindow: 32}, "clean": {Controller: "cubic"}},
		Default:   "clean",
		Countries: map[string]string{"IN": "lossy"},
		Networks:  map[string]string{"AS64500": "lossy"},
		Prefixes:  []Prefix{{Prefix: netip.MustParsePrefix("203.0.113.0/24"), Profile: "lossy"}, {Prefix: netip.MustParsePrefix("198.51.100.0/24")}},
	}
	mine := maps.CCRule{Prefix: netip.MustParsePrefix("203.0.113.7/32"), Profile: "clean"}
	if err := errors.Join(one.Apply(k.CC), k.CC.PutRule(mine)); err != nil {
		t.Fatal(err)
	}
	for a, want := range map[string]string{"203.0.113.9": "lossy", "203.0.113.7": "clean", "192.0.2.1": "clean", "198.51.100.1": ""} {
		if c, err := k.CC.Explain(netip.MustParseAddr(a)); err != nil || c.Profile != want {
			t.Errorf("%s: %+v, %v, want %q", a, c, err, want)
		}
	}
	two := Config{Profiles: map[string]Profile{"lossy": {Controller: "reno"}}}
	kept, err := two.Tidy(k.CC)
	if err != nil || len(kept) != 1 || !strings.Contains(kept[0], "profile clean") {
		t.Errorf("before it is applied: %v, %v", kept, err)
	}
	if err := two.Apply(k.CC); err != nil {
		t.Fatal(err)
	}
	if kept, err = two.Tidy(k.CC); err != nil || len(kept) != 1 || !strings.Contains(kept[0], "203.0.113.7/32") {
		t.Errorf("an operator's prefix still has it: %v, %v", kept, err)
	}
	if c, err := k.CC.Explain(netip.MustParseAddr("203.0.113.9")); err != nil || c.Profile != "" {
		t.Errorf("%+v, %v", c, err)
	}
	if err := k.CC.RemoveRule(mine.Prefix); err != nil {
		t.Fatal(err)
	}
	if kept, err = two.Tidy(k.CC); err != nil || len(kept) != 0 {
		t.Errorf("%v, %v", kept, err)
	}
	list, err := k.CC.ListProfiles()
	list = slices.DeleteFunc(list, func(p maps.CCProfile) bool { _, ok := builtIn()[p.Name]; return ok })
	if err != nil || len(list) != 1 || list[0].Controller != "reno" || list[0].InitialWindow != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	if err := errors.Join(k.CC.PutProfile(maps.CCProfile{Name: "own"}), k.CC.PutRule(maps.CCRule{Prefix: mine.Prefix, Profile: "own"})); err != nil {
		t.Fatal(err)
	}
	if err := (Config{Profiles: map[string]Profile{"own": {}}}).Apply(k.CC); !errors.Is(err, maps.ErrOverlap) {
		t.Errorf("the file took an operator's profile: %v", err)
	}
	if err := (Config{Prefixes: []Prefix{{Prefix: mine.Prefix}}}).Apply(k.CC); !errors.Is(err, maps.ErrOverlap) {
		t.Errorf("the file took an operator's prefix: %v", err)
	}
}
