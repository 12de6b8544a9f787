package steer

import (
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

// world is the configuration of an edge at a site: three sites of two edges each, of two regions.
func world(site string) Config {
	members := func(site string, n byte) []Backend {
		return []Backend{
			{Name: site + "1", Address: netip.AddrFrom4([4]byte{10, n, 0, 1})},
			{Name: site + "2", Address: netip.AddrFrom4([4]byte{10, n, 0, 2})},
		}
	}
	regions := map[string]string{"a": "us", "b": "eu", "c": "eu"}
	c := Config{
		Node: Node{Name: site + "1", Site: site, Region: regions[site]}, Sets: map[string][]Backend{}, Sites: map[string]Site{},
		SecretFile: "secret", Probe: DefaultProbe(), SecondChance: time.Hour,
	}
	for i, name := range []string{"a", "b", "c"} {
		if name == site {
			c.Sets["edges"] = members(name, byte(i))
		} else {
			c.Sites[name] = Site{Region: regions[name], Backends: map[string][]Backend{"edges": members(name, byte(i))}}
		}
	}
	return c
}

func TestSitesOf(t *testing.T) {
	for _, c := range []struct {
		site   string
		abroad Abroad
		want   maps.Sites
	}{
		// Every site is asked once, wherever the way begins.
		{"a", Abroad{Set: "edges"}, maps.Sites{Carry: "edges.b", Hops: 2}},
		{"b", Abroad{Set: "edges"}, maps.Sites{Carry: "edges.c", Hops: 2}},
		{"c", Abroad{Set: "edges"}, maps.Sites{Carry: "edges.a", Hops: 2}},
		{"a", Abroad{Set: "other"}, maps.Sites{}},
		{"a", Abroad{}, maps.Sites{}},
		{"a", Abroad{Set: "edges", Spill: Spill{To: "c", BasisPoints: 7}}, maps.Sites{Carry: "edges.b", Hops: 2, Spill: "edges.c", SpillPoints: 7}},
		{"a", Abroad{Set: "edges", Spill: Spill{To: "d", BasisPoints: 7}}, maps.Sites{Carry: "edges.b", Hops: 2}},
		// A region's sites are among themselves.
		{"b", Abroad{Set: "edges", Region: "eu", Spill: Spill{To: "a", BasisPoints: 7}}, maps.Sites{Carry: "edges.c", Hops: 1, Region: 1}},
		{"c", Abroad{Set: "edges", Region: "eu", Spill: Spill{To: "b", BasisPoints: 7}}, maps.Sites{Carry: "edges.b", Hops: 1, Region: 1, Spill: "edges.b", SpillPoints: 7}},
		{"a", Abroad{Set: "edges", Region: "us"}, maps.Sites{Region: 2}},
		{"a", Abroad{Set: "edges", Region: "eu"}, maps.Sites{Region: 1, Outside: true}},
		{"a", Abroad{Set: "edges", Region: "eu", Outside: OutsideDrop, Spill: Spill{To: "b", BasisPoints: 7}}, maps.Sites{Region: 1, Outside: true}},
		{"a", Abroad{Set: "edges", Region: "eu", Outside: OutsideCarry}, maps.Sites{Carry: "edges.b", Hops: 2, Region: 1, Outside: true}},
		{"a", Abroad{Set: "edges", Region: "mars"}, maps.Sites{Region: 2, Outside: true}},
	} {
		if got := world(c.site).SitesOf(c.abroad); got != c.want {
			t.Errorf("at site %s, %+v: %+v, want %+v", c.site, c.abroad, got, c.want)
		}
	}
}

func TestValidateSites(t *testing.T) {
	for _, site := range []string{"a", "b", "c"} {
		c := world(site)
		if err := c.Validate(); err != nil {
			t.Errorf("site %s: %v", site, err)
		}
	}
	c := world("a")
	c.SecretFile, c.Node.Site = "", ""
	c.Sites["a"] = Site{}
	c.Sites["d"] = Site{Backends: map[string][]Backend{"edges": nil, "others": {{Name: "d1", Address: addr("10.9.0.1")}}}}
	c.Sites["b"].Backends["edges"][0] = c.Sets["edges"][1]
	c.Sites["c"].Backends["edges"][1] = c.Sites["b"].Backends["edges"][1]
	c.Sets["edges.b"] = []Backend{{Name: "e9", Address: addr("10.9.0.9")}}
	c.Sites["much-too-long"] = Site{Backends: map[string][]Backend{"edges": {{Name: "l1", Address: addr("10.8.0.1")}}}}
	err := c.Validate()
	for _, want := range []string{
		"node.site: is needed", "sites: has 5, want at most 3", "steer.secret_file: is needed, because the edges of all sites",
		"sites.d.backends.edges: has no backend", "sites.d.backends.others: no backend set of this site",
		`sites.b.backends.edges[0].name: "a2" is a backend of this site`, `sites.c.backends.edges[1].name: "b2" is a backend of site "b"`,
		"sites.b.backends.edges: is called edges.b here", "sites.much-too-long.backends.edges: set and site: name",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in\n%v", want, err)
		}
	}
	c = world("a")
	c.Node.Site = "b"
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "sites.b: is this edge's own site") {
		t.Errorf("its own site: %v", err)
	}
}

func TestValidateAbroad(t *testing.T) {
	homeless := world("a")
	homeless.Node.Region = ""
	for _, c := range []struct {
		cfg    Config
		abroad Abroad
		want   string // "" = fine
	}{
		{world("a"), Abroad{Set: "edges"}, ""},
		{world("a"), Abroad{Set: "edges", Spill: Spill{To: "b", BasisPoints: 250}}, ""},
		{world("a"), Abroad{Set: "edges", Region: "eu", Outside: "carry"}, ""},
		{world("a"), Abroad{Set: "edges", Spill: Spill{BasisPoints: 250}}, "spill.to: names no site"},
		{world("a"), Abroad{Set: "edges", Spill: Spill{To: "x", BasisPoints: 250}}, `spill.to: no site is called "x" (sites: [b c])`},
		{world("a"), Abroad{Set: "other", Spill: Spill{To: "b", BasisPoints: 250}}, `has no backends of the set "other"`},
		{world("b"), Abroad{Set: "edges", Region: "eu", Spill: Spill{To: "a", BasisPoints: 250}}, `site "a" is of region "us"`},
		{world("a"), Abroad{Set: "edges", Spill: Spill{To: "b", BasisPoints: -1}}, "spill.basis_points: -1"},
		{world("a"), Abroad{Set: "edges", Spill: Spill{To: "b", BasisPoints: 10_001}}, "spill.basis_points: 10001"},
		{world("a"), Abroad{Set: "edges", Region: "eu", Outside: "eat"}, `outside: "eat": want drop or carry`},
		{world("a"), Abroad{Set: "edges", Outside: "drop"}, "outside: is drop, but the service has no region"},
		{homeless, Abroad{Set: "edges", Region: "eu"}, "node.region does not say"},
		{world("a"), Abroad{Set: "edges", Region: "mars", Outside: "carry"}, `no site of region "mars" has backends`},
	} {
		err := c.cfg.ValidateAbroad(c.abroad)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.abroad, err, c.want)
		}
	}
}

func TestFarProbesTakeLonger(t *testing.T) {
	p := DefaultProbe().far()
	if p.Interval != time.Second || p.Timeout != 750*time.Millisecond || p.Validate() != nil {
		t.Errorf("%+v, %v", p, p.Validate())
	}
	p = Probe{Port: 1, Interval: time.Second, Timeout: time.Second, Failures: 1, Successes: 1}.far()
	if err := p.Validate(); err != nil {
		t.Error(err)
	}
}

// An edge knows whose a flow is at another site as that site's own edges do.
func TestControllerAtSites(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(strings.Repeat("0123456789abcdef", 2)), 0o600); err != nil {
		t.Fatal(err)
	}
	apply := func(site string) (*mapstest.Kernel, *Controller) {
		k := mapstest.New(t)
		c, err := New(k.Set, slog.New(slog.NewTextHandler(io.Discard, nil)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		cfg := world(site)
		cfg.SecretFile, cfg.Carry = secret, Carry{Packets: 1000, SourcePackets: 10}
		cfg.Probe.Interval = time.Hour // nobody is found dead
		cfg.CIDs = []maps.CIDFormat{{ID: 0, ServerIDLen: 2, NonceLen: 6}}
		if _, err := c.Apply(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		return k, c
	}
	owners := func(k *mapstest.Kernel, set string) (names []string) {
		byID := map[uint32]string{}
		list, err := k.Backends.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range list {
			byID[b.ID] = b.Name
		}
		for _, r := range rowsAt(t, k, set) {
			names = append(names, byID[uint32(r.Owner)])
		}
		return names
	}
	atA, c := apply("a")
	atB, _ := apply("b")
	if !slices.Equal(owners(atA, "edges.b"), owners(atB, "edges")) || !slices.Equal(owners(atB, "edges.a"), owners(atA, "edges")) {
		t.Error("the sites' edges disagree about each other's rows")
	}
	for name, remote := range map[string]bool{"a1": false, "a2": false, "b1": true, "c2": true} {
		b, err := atA.Backends.Get(name)
		if err != nil || b.Remote != remote || b.Region != map[bool]uint8{true: 1, false: 2}[remote] {
			t.Errorf("%s at site a: %+v, %v", name, b, err)
		}
		// Connection IDs of packets for this site's set name the edges of all sites.
		s, err := atA.CIDs.Server(Backend{Name: name}.Server())
		set := setID(t, atA, "edges")
		if err != nil || s.Backend != b.ID || !slices.Contains(s.Sets, set) {
			t.Errorf("server ID of %s: %+v, %v, want backend %d of set %d", name, s, err, b.ID, set)
		}
	}
	if peers, err := atA.Peers.List(); err != nil || len(peers) != 5 {
		t.Errorf("peers of site a's edge: %v, %v, want 5", peers, err)
	}
	if got, err := atA.Carries.Get(); err != nil || got.All.PerSecond != 1000 || got.Source.PerSecond != 10 {
		t.Errorf("bounds: %+v, %v", got, err)
	}
	status, err := c.Status()
	if err != nil || len(status) != 6 || status[2].Site != "b" || status[2].Set != "edges.b" || status[0].Site != "" {
		t.Errorf("status: %+v, %v", status, err)
	}

	// Of a site where nobody answers, nothing is expected; of one's own, one goes on.
	c.turned("b1", result{changed: true, err: os.ErrDeadlineExceeded}, false)
	if n := owners(atA, "edges.b"); slices.Contains(n, "b1") || !slices.Contains(n, "b2") {
		t.Error("rows of an edge that does not answer")
	}
	c.turned("b2", result{changed: true, err: os.ErrDeadlineExceeded}, false)
	for _, r := range rowsAt(t, atA, "edges.b") {
		if r != (maps.Row{}) {
			t.Fatalf("a row of a site that does not answer: %+v", r)
		}
	}
	c.turned("b2", result{changed: true, alive: true}, true)
	if n := owners(atA, "edges.b"); slices.Contains(n, "") || slices.Contains(n, "b1") {
		t.Error("rows of a site that answers again")
	}

	// A plan for this site's edges leaves the others' alone.
	plans, err := c.Plan(Change{Add: []Backend{{Name: "a3"}}})
	if err != nil || len(plans) != 3 {
		t.Fatalf("plan: %+v, %v", plans, err)
	}
	for _, p := range plans {
		if (p.Moved > 0) != (p.Set == "edges") {
			t.Errorf("an edge is added here: %+v", p)
		}
	}
}

func setID(t *testing.T, k *mapstest.Kernel, name string) uint32 {
	t.Helper()
	list, err := k.Sets.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.Name == name {
			return s.ID
		}
	}
	t.Fatalf("no set %s", name)
	return 0
}

func rowsAt(t *testing.T, k *mapstest.Kernel, set string) []maps.Row {
	t.Helper()
	rows, err := k.Rows.Read(setID(t, k, set))
	if err != nil {
		t.Fatal(err)
	}
	return rows
}
