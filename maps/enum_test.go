package maps

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/bermedge/berm/bpf"
)

// TestEnumNames compares every enum value of the committed programs with its name here.
func TestEnumNames(t *testing.T) {
	spec, err := bpf.LoadXDP()
	if err != nil {
		t.Fatal(err)
	}
	for enum, tt := range map[string]struct {
		prefix string
		name   func(uint8) string
		known  int
	}{
		"berm_drop":      {"BERM_DROP_", func(v uint8) string { return Drop(v).String() }, len(dropNames)},
		"berm_stage":     {"BERM_STAGE_", func(v uint8) string { return Stage(v).String() }, len(stageNames)},
		"berm_exit":      {"BERM_EXIT_", func(v uint8) string { return Exit(v).String() }, len(exitNames)},
		"berm_action":    {"BERM_ACTION_", func(v uint8) string { return Action(v).String() }, len(actionNames)},
		"berm_gate_mode": {"BERM_GATE_", func(v uint8) string { return GateMode(v).String() }, len(gateNames)},
		"berm_via":       {"BERM_VIA_", func(v uint8) string { return Via(v).String() }, len(viaNames)},
		"berm_owner":     {"BERM_OWNER_", func(v uint8) string { return Owner(v).String() }, len(ownerNames)},
	} {
		t.Run(enum, func(t *testing.T) {
			var e *btf.Enum
			if err := spec.Types.TypeByName(enum, &e); err != nil {
				t.Fatal(err)
			}
			named := 0
			for _, v := range e.Values {
				want := strings.ToLower(strings.TrimPrefix(v.Name, tt.prefix))
				if want == "max" {
					if int(v.Value) != tt.known {
						t.Errorf("%d values, %d names", v.Value, tt.known)
					}
					continue
				}
				named++
				if got := tt.name(uint8(v.Value)); got != want {
					t.Errorf("%s is called %q, want %q", v.Name, got, want)
				}
			}
			if named != tt.known {
				t.Errorf("%d values, %d names", named, tt.known)
			}
		})
	}
}

func TestNamesRoundTrip(t *testing.T) {
	for d := range AllDrops() {
		if got, err := ParseDrop(d.String()); err != nil || got != d {
			t.Errorf("ParseDrop(%q) = %v, %v", d, got, err)
		}
		if d.Meaning() == "" {
			t.Errorf("%s has no meaning", d)
		}
	}
	if _, err := ParseDrop("none"); err == nil {
		t.Error("none is not a reason")
	}
	for a := range upTo(0, actionMax) {
		if got, err := ParseAction(a.String()); err != nil || got != a {
			t.Errorf("ParseAction(%q) = %v, %v", a, got, err)
		}
	}
	if _, err := ParseAction("explode"); err == nil || !strings.Contains(err.Error(), "want one of none, allow") {
		t.Errorf("error of an unknown action: %v", err)
	}
	for m := range upTo(0, gateMax) {
		var got GateMode
		if text, err := m.MarshalText(); err != nil || got.UnmarshalText(text) != nil || got != m {
			t.Errorf("mode %s does not come back: %s, %v", m, got, err)
		}
	}
	if _, err := ParseGateMode("ajar"); err == nil || !strings.Contains(err.Error(), "want one of off, auto, on") {
		t.Errorf("error of an unknown mode: %v", err)
	}
	for v := range upTo(0, viaMax) {
		var got Via
		if text, err := v.MarshalText(); err != nil || got.UnmarshalText(text) != nil || got != v {
			t.Errorf("via %s does not come back: %s, %v", v, got, err)
		}
	}
	if err := new(Via).UnmarshalText([]byte("vxlan")); err == nil || !strings.Contains(err.Error(), "want one of edge, ipip, gue, l2") {
		t.Errorf("error of an unknown way: %v", err)
	}
	if got := Drop(200).String() + Stage(200).String(); got != "drop_200stage_200" {
		t.Errorf("values of a newer kernel half read %q", got)
	}
}

func TestCountries(t *testing.T) {
	seen := map[Country]bool{}
	for a := 'A'; a <= 'Z'; a++ {
		for b := 'A'; b <= 'Z'; b++ {
			code := fmt.Sprintf("%c%c", a, b)
			c, err := ParseCountry(strings.ToLower(code))
			if err != nil || c == 0 || c >= countries || seen[c] || c.String() != code {
				t.Fatalf("%s → %d %q, %v", code, c, c, err)
			}
			seen[c] = true
		}
	}
	for _, bad := range []string{"D", "DEU", "1A", "D[", "ÄÖ", "{}"} {
		if c, err := ParseCountry(bad); err == nil {
			t.Errorf("ParseCountry(%q) = %s", bad, c)
		}
	}
	if c, err := ParseCountry("--"); c != 0 || err != nil {
		t.Error("-- is the unknown country")
	}
}

// TestLimits compares the limits that the layouts here rely on with the committed maps.
func TestLimits(t *testing.T) {
	spec, err := bpf.LoadXDP()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint32{
		bpf.XDPMapBermVipSeeds:      2 * vipBuckets,
		bpf.XDPMapBermVips:          vips,
		bpf.XDPMapBermVipSlots:      2 * vipSlots,
		bpf.XDPMapBermPrefix4:       2 * prefix4Cells,
		bpf.XDPMapBermPrefix4Leaves: 2 * prefix4Leaves / 4,
		bpf.XDPMapBermPrefix4Blocks: 2 * prefix4Blocks * blockSize / 4,
		bpf.XDPMapBermPrefix6Root:   2 * prefix6Root,
		bpf.XDPMapBermPrefix6Nodes:  2 * prefix6Nodes,
		bpf.XDPMapBermPrefix6Leaves: 2 * prefix6Leaves / 4,
		bpf.XDPMapBermPrefixRecords: 2 * prefixRecords,
		bpf.XDPMapBermNetworks:      2 * prefixNetworks,
		bpf.XDPMapBermVerdictBits:   verdictWords,
		bpf.XDPMapBermGeoRules:      256 * countries,
		bpf.XDPMapBermRows:          64 * rowCells,
		bpf.XDPMapBermNewcomers:     1 << 16,
		bpf.XDPMapBermCids:          cidFormats + 1,
		bpf.XDPMapBermSids:          smallSIDs,
		bpf.XDPMapBermStun:          stunSets,
		bpf.XDPMapBermProbes:        probePorts,
		bpf.XDPMapBermDrops:         uint32(dropMax),
		bpf.XDPMapBermStageStats:    uint32(stageMax) * uint32(exitMax),
		bpf.XDPMapBermCcCountries:   countries,
		bpf.XDPMapBermCcProfiles:    CCProfiles,
		bpf.XDPMapBermCcNetworks:    CCNetworks,
		bpf.XDPMapBermCcStats:       CCProfiles,
		bpf.XDPMapBermCcResults:     ccResults,

		bpf.XDPMapBermGenerationSockets: generationPorts * GenerationSlots * Workers,
	} {
		if got := spec.Maps[name].MaxEntries; got != want {
			t.Errorf("%s has %d entries, the layout here %d", name, got, want)
		}
	}
	for _, name := range names {
		if spec.Maps[name] == nil {
			t.Errorf("%s is not in the programs", name)
		}
	}
	for name := range spec.Maps {
		// Others are the programs' own: constants and scratch.
		if strings.HasPrefix(name, "berm_") && !slices.Contains(names, name) {
			t.Errorf("%s is not named here", name)
		}
	}
}
