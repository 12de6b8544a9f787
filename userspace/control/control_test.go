package control_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
	"github.com/bermedge/berm/userspace/control"
)

// testDaemon is a daemon with real maps and made-up numbers.
type testDaemon struct {
	tables control.Tables
	status control.Status
	top    control.Top
	drops  control.Drops
}

func (d *testDaemon) Status(context.Context) (control.Status, error) { return d.status, nil }
func (d *testDaemon) Upgrade(context.Context) (control.Changes, error) {
	return control.Changes{Changed: []string{"process 43 serves now"}}, nil
}

func (d *testDaemon) Reload(context.Context) (control.Changes, error) {
	return control.Changes{}, &control.Error{Message: "berm.yaml:1:1: unknown key", Hint: "the old one stays"}
}

func (d *testDaemon) Purge(_ context.Context, p control.Purge) (control.Changes, error) {
	return control.Changes{Changed: []string{"forgot " + p.URL}}, nil
}

func (d *testDaemon) Order(_ context.Context, o control.Order) (control.Changes, error) {
	return control.Changes{Changed: []string{o.Backend}}, nil
}

func (d *testDaemon) Plan(_ context.Context, p control.PlanRequest) (control.Plan, error) {
	return control.Plan{Sets: []control.SetPlan{{Set: p.Remove[0]}}}, nil
}

func (d *testDaemon) Cache(context.Context) (control.Cache, error) {
	return control.Cache{Objects: 7}, nil
}

func (d *testDaemon) LiveStreams(context.Context) ([]control.LiveStream, error) {
	return []control.LiveStream{{Name: "stage", Subscribers: []control.Subscriber{{K: 20, M: 6}}}}, nil
}

func (d *testDaemon) Relays(context.Context) ([]control.Relay, error) {
	return []control.Relay{{Name: "behind", Role: "repair", Repaired: 3}}, nil
}

func (d *testDaemon) Top(_ context.Context, seconds int) (control.Top, error) {
	d.top.Seconds = float64(seconds)
	return d.top, nil
}

func (d *testDaemon) Anycast(context.Context) (control.Anycast, error) {
	return control.Anycast{Phase: "announced"}, nil
}

func (d *testDaemon) Spill(_ context.Context, s control.Spill) (control.Changes, error) {
	return control.Changes{Changed: []string{s.VIP + " spills to " + s.To}}, nil
}

func (d *testDaemon) Learning(context.Context) (control.Learning, error) {
	return control.Learning{Mode: "shadow"}, nil
}

func (d *testDaemon) SetLearning(_ context.Context, o control.LearnOrder) (control.Changes, error) {
	return control.Changes{Changed: []string{o.Mode}}, nil
}

func (d *testDaemon) Learned(_ context.Context, ip netip.Addr) (*control.Learned, error) {
	if !ip.Is4() {
		return nil, nil //nolint:nilnil // nothing is known
	}
	return &control.Learned{Prefix: netip.PrefixFrom(ip, 24).Masked(), Profile: "p"}, nil
}

func (d *testDaemon) Diagnose(_ context.Context, ip netip.Addr) (control.Diagnosis, error) {
	return control.Diagnosis{IP: ip, Segment: "edge"}, nil
}

func (d *testDaemon) OrderAnycast(_ context.Context, o control.AnycastOrder) (control.Anycast, error) {
	return control.Anycast{Command: o.Command}, nil
}

func (d *testDaemon) Series() control.Series {
	return control.Series{Requests: []float64{0, 1, 2}, Packets: []float64{1, 1}, Dropped: nil}
}
func (d *testDaemon) Drops(context.Context) (control.Drops, error) { return d.drops, nil }
func (d *testDaemon) Tables(f func(control.Tables) error) error {
	if d.tables == nil {
		return maps.ErrNotUp
	}
	return f(d.tables)
}

// mustServe runs the admin API of a daemon and returns a client.
func mustServe(t *testing.T, d control.Daemon) *control.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sub", "berm.sock")
	l, _, err := control.Listen(path, "")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: control.Handler(d), ReadHeaderTimeout: time.Second}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
	c := control.NewClient(path)
	t.Cleanup(func() { c.Close() })
	return c
}

// says fails the test unless a change was made and told in words that contain each of want.
func says(t *testing.T, c control.Changes, err error, want ...string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(c.Changed, "\n")
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not in %q", w, text)
		}
	}
}

// refused fails the test unless err is the daemon's, of this status, and contains want.
func refused(t *testing.T, err error, status int, want string) {
	t.Helper()
	var e *control.Error
	if !errors.As(err, &e) || e.Status != status || !strings.Contains(e.Error(), want) {
		t.Errorf("have %#v, want %d with %q", err, status, want)
	}
}

func TestOrdersThroughTheSocket(t *testing.T) {
	c := mustServe(t, &testDaemon{})
	on := true
	done, err := c.Order(t.Context(), control.Order{Backend: "edge2", Draining: &on})
	says(t, done, err, "edge2")
	if done, err := c.Spill(t.Context(), control.Spill{VIP: "web", To: "b", BasisPoints: 250}); err != nil || len(done.Changed) != 1 || done.Changed[0] != "web spills to b" {
		t.Errorf("spill: %v, %v", done, err)
	}
	plan, err := c.Plan(t.Context(), control.PlanRequest{Remove: []string{"edge3"}})
	if err != nil || len(plan.Sets) != 1 || plan.Sets[0].Set != "edge3" {
		t.Errorf("%+v, %v", plan, err)
	}
}

func TestLearnerThroughTheSocket(t *testing.T) {
	c := mustServe(t, &testDaemon{})
	if l, err := c.Learning(t.Context()); err != nil || l.Mode != "shadow" {
		t.Errorf("%+v, %v", l, err)
	}
	done, err := c.SetLearning(t.Context(), control.LearnOrder{Mode: "on"})
	says(t, done, err, "on")
	if l, err := c.Learned(t.Context(), netip.MustParseAddr("192.0.2.7")); err != nil || l == nil || l.Prefix.String() != "192.0.2.0/24" {
		t.Errorf("%+v, %v", l, err)
	}
	if l, err := c.Learned(t.Context(), netip.MustParseAddr("::1")); err != nil || l != nil {
		t.Errorf("of what nothing is known: %+v, %v", l, err)
	}
	if x, err := c.Diagnose(t.Context(), netip.MustParseAddr("192.0.2.7")); err != nil || x.Segment != "edge" || x.IP.String() != "192.0.2.7" {
		t.Errorf("%+v, %v", x, err)
	}
	_, err = c.Learned(t.Context(), netip.Addr{})
	refused(t, err, http.StatusBadRequest, "ip")
}

func TestTablesThroughTheSocket(t *testing.T) {
	k := mapstest.New(t)
	c := mustServe(t, &testDaemon{tables: control.NewLocal(k.Set, nil)})
	ctx := t.Context()

	bbr := control.CCRule{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Profile: "p"}
	_, err := c.SetCC(ctx, bbr)
	refused(t, err, http.StatusNotFound, `profile "p"`)
	_, err = c.SetCCProfile(ctx, control.CCProfile{Name: "p", Controller: "no-such"})
	refused(t, err, http.StatusNotFound, "this host has")
	_, err = c.SetCCProfile(ctx, control.CCProfile{Name: "p", InitialWindow: 1 << 20})
	refused(t, err, http.StatusUnprocessableEntity, "initial_window")
	done, err := c.SetCCProfile(ctx, control.CCProfile{Name: "p", Controller: "reno", RTOMin: 0.05})
	says(t, done, err, "profile p added", "reno, a retransmission timeout of 50ms at least")
	done, err = c.SetCC(ctx, bbr)
	says(t, done, err, "begin with profile p")
	choice, err := c.ExplainCC(ctx, netip.MustParseAddr("192.0.2.7"))
	if err != nil || choice.Profile.Controller != "reno" || choice.By != "prefix" || choice.Path != nil {
		t.Errorf("%+v, %v", choice, err)
	}
	all, err := c.CC(ctx)
	if err != nil || len(all.Profiles) != 1 || len(all.Prefixes) != 1 || all.Prefixes[0].Owner != "operator" {
		t.Errorf("%+v, %v", all, err)
	}
	done, err = c.RemoveCC(ctx, bbr.Prefix)
	says(t, done, err, "no profile of its own any more")

	_, err = c.AddVIP(ctx, control.VIP{Name: "web", Address: netip.MustParseAddr("192.0.2.1"), Port: 80, Protocol: "tcp", Rate: "slow"})
	refused(t, err, http.StatusNotFound, "slow")
	done, err = c.SetRate(ctx, control.RateClass{Name: "slow", RateLimits: control.RateLimits{Packets: 10, PacketsBurst: 20}})
	says(t, done, err, "rate class slow added", "10 packets a second (20 at once)")
	both := control.RateClass{Name: "both", RateLimits: control.RateLimits{Initials: 3, InitialsBurst: 9}, Aggregate: control.RateLimits{SYNs: 50, SYNsBurst: 60}, Network: control.RateLimits{Bytes: 7000, BytesBurst: 8000}}
	done, err = c.SetRate(ctx, both)
	says(t, done, err, "3 Initials a second (9 at once), all of its /24 or IPv6 /48: 50 SYNs a second (60 at once), all of its network: 7000 bytes a second (8000 at once)")
	both.Owner = "operator"
	if rates, err := c.Rates(ctx); err != nil || !slices.Contains(rates, both) {
		t.Errorf("classes %+v, %v; want among them %+v", rates, err, both)
	}
	done, err = c.SetGeoPolicy(ctx, control.GeoPolicy{Name: "home", Fallback: "drop", Allow: []string{"DE", "at"}, Shadow: []string{"FR"}})
	says(t, done, err, "geo policy home added", "allow AT DE, shadow FR, drop every other source")
	vip := control.VIP{Name: "web", Address: netip.MustParseAddr("192.0.2.1"), Port: 80, Protocol: "tcp", Rate: "slow", Geo: "home", Shadow: true}
	done, err = c.AddVIP(ctx, vip)
	says(t, done, err, "VIP web (192.0.2.1:80/tcp) added", "geo policy home", "rate class slow", "in shadow")
	if done, err = c.AddVIP(ctx, vip); err != nil || len(done.Changed) != 0 {
		t.Errorf("the same again: %v %v", done, err)
	}
	vip.Shadow = false
	done, err = c.AddVIP(ctx, vip)
	says(t, done, err, "changed")
	vip.Name = "other"
	_, err = c.AddVIP(ctx, vip)
	refused(t, err, http.StatusConflict, "already taken")
	vip.Name, vip.Protocol = "bad", "sctp"
	_, err = c.AddVIP(ctx, vip)
	refused(t, err, http.StatusUnprocessableEntity, "want tcp or udp")

	k.Run(t, mapstest.TCP(netip.MustParseAddrPort("198.51.100.7:1234"), netip.MustParseAddrPort("192.0.2.1:80"), mapstest.SYN))
	list, err := c.VIPs(ctx)
	if err != nil || len(list) != 1 || list[0].Geo != "home" || list[0].Owner != "operator" || list[0].Counters.In.Packets != 1 || list[0].Counters.Dropped.Packets != 1 {
		t.Errorf("%+v %v", list, err)
	}
	drops, err := c.Drops(ctx)
	if err != nil || len(drops.Drops) == 0 || drops.Drops[maps.DropGeo-1].Reason != "geo" || drops.Drops[maps.DropGeo-1].Dropped.Packets != 1 {
		t.Errorf("%+v %v", drops, err)
	}
	policies, err := c.GeoPolicies(ctx)
	if err != nil || len(policies) != 1 || strings.Join(policies[0].Allow, " ") != "AT DE" || policies[0].Fallback != "drop" {
		t.Errorf("%+v %v", policies, err)
	}
	rates, err := c.Rates(ctx)
	if err != nil || len(rates) != 2 || rates[0].Packets != 10 || rates[0].PacketsBurst != 20 {
		t.Errorf("%+v %v", rates, err)
	}
	_, err = c.SetRate(ctx, control.RateClass{Name: "x", RateLimits: control.RateLimits{Packets: 0, PacketsBurst: 5}})
	refused(t, err, http.StatusUnprocessableEntity, "without a rate")
	_, err = c.SetGeoPolicy(ctx, control.GeoPolicy{Name: "x", Fallback: "allow", Drop: []string{"DE", "XYZ"}, Mark: []string{"DE"}})
	refused(t, err, http.StatusUnprocessableEntity, "already under drop")

	done, err = c.RemoveVIP(ctx, "web")
	says(t, done, err, "removed")
	_, err = c.RemoveVIP(ctx, "web")
	refused(t, err, http.StatusNotFound, "not found")
	_, err = c.LoadGeo(ctx, control.GeoLoad{})
	refused(t, err, http.StatusUnprocessableEntity, "no compiler")
}

func TestVerdictsAndGeoTest(t *testing.T) {
	k := mapstest.New(t)
	c := mustServe(t, &testDaemon{tables: control.NewLocal(k.Set, nil)})
	ctx := t.Context()
	if _, err := c.SetGeoPolicy(ctx, control.GeoPolicy{Name: "p", Fallback: "allow", Drop: []string{"DE"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.SetRate(ctx, control.RateClass{Name: "greedy", RateLimits: control.RateLimits{Packets: 5, PacketsBurst: 5}}); err != nil {
		t.Fatal(err)
	}
	ids, err := k.Rates.IDs()
	if err != nil {
		t.Fatal(err)
	}
	de, _ := maps.ParseCountry("DE")
	err = k.Prefixes.Swap(func(p *maps.PrefixTable) error {
		return p.Add4(198<<24|51<<16|100<<8, 198<<24|51<<16|100<<8|255, maps.PrefixRecord{Country: de, ACL: maps.ActionShadow, RateClass: uint8(ids["greedy"]), Rule: 3})
	})
	if err != nil {
		t.Fatal(err)
	}
	source := netip.MustParseAddr("198.51.100.7")
	done, err := c.AddVerdict(ctx, control.Verdict{Source: source, Action: "drop", Reason: "test", Seconds: 60})
	says(t, done, err, "drop packets from 198.51.100.7 at every VIP for 1m0s")
	done, err = c.AddVerdict(ctx, control.Verdict{Source: netip.MustParseAddr("2001:db8::1"), Action: "allow"})
	says(t, done, err, "allow 2001:db8::/64 at every VIP until it is removed")
	_, err = c.AddVerdict(ctx, control.Verdict{Source: source, Action: "punish"})
	refused(t, err, http.StatusUnprocessableEntity, `action "punish"`)
	_, err = c.AddVerdict(ctx, control.Verdict{Source: source, Action: "drop", VIP: "nowhere"})
	refused(t, err, http.StatusNotFound, "nowhere")

	g, err := c.TestGeo(ctx, source)
	if err != nil || g.Country != "DE" || g.ACL != "shadow" || g.RateClass != "greedy" || g.Rule != 3 || g.Policies["p"] != "drop" {
		t.Errorf("%+v %v", g, err)
	}
	if len(g.Verdicts) != 1 || g.Verdicts[0].Reason != "test" || g.Verdicts[0].Seconds < 50 || g.Verdicts[0].Seconds > 60 {
		t.Errorf("%+v", g.Verdicts)
	}
	list, err := c.Verdicts(ctx)
	if err != nil || len(list) != 2 {
		t.Errorf("%+v %v", list, err)
	}
	done, err = c.RemoveVerdict(ctx, source, "")
	says(t, done, err, "removed")
	_, err = c.RemoveVerdict(ctx, source, "")
	refused(t, err, http.StatusNotFound, "not found")
}

// What explain says is what the program does.
func TestExplainAgreesWithTheKernel(t *testing.T) {
	k := mapstest.New(t)
	l := control.NewLocal(k.Set, nil)
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	set, err := k.Sets.Put(maps.BackendSet{Name: "edges"})
	must(nil, err)
	me, err := k.Backends.Put(maps.Backend{Name: "me", Address: netip.MustParseAddr("10.0.0.1")})
	must(nil, err)
	you, err := k.Backends.Put(maps.Backend{Name: "you", Address: netip.MustParseAddr("10.0.0.2")})
	must(nil, err)
	lost, err := k.Backends.Put(maps.Backend{Name: "lost", Address: netip.MustParseAddr("10.0.0.3")})
	must(nil, err)
	must(nil, k.Backends.SetNextHop(you, maps.NextHop{Ready: true, MAC: maps.MAC{2, 0, 0, 0, 0, 2}, SourceMAC: maps.MAC{2, 0, 0, 0, 0, 1}}))
	must(nil, k.Config.SetSelf(maps.Self{Backend: me, Address4: netip.MustParseAddr("10.0.0.1")}))
	rows := make([]maps.Row, maps.RowCount)
	for i := range rows { // every combination of owner, second and whether it moved
		pick := []uint32{me, you, lost, 0}
		rows[i] = maps.Row{Owner: uint16(pick[i%4]), Second: uint16(pick[i/4%4]), Moved: i/16%2 == 1}
	}
	must(nil, k.Rows.Write(set, rows))
	must(k.VIPs.Put(maps.VIP{Name: "web", Address: netip.MustParseAddr("192.0.2.1"), Port: 80, Protocol: maps.ProtocolTCP, Backends: "edges"}))
	must(k.VIPs.Put(maps.VIP{Name: "here", Address: netip.MustParseAddr("192.0.2.2"), Port: 80, Protocol: maps.ProtocolTCP}))
	must(k.VIPs.Put(maps.VIP{Name: "strict", Address: netip.MustParseAddr("192.0.2.3"), Port: 80, Protocol: maps.ProtocolTCP, Strict: true}))

	seen := map[string]bool{}
	check := func(src, dst netip.AddrPort) {
		t.Helper()
		s, err := l.ExplainSteer(t.Context(), control.Flow{Protocol: "tcp", Source: src, Destination: dst})
		if err != nil {
			t.Fatal(err)
		}
		seen[s.Delivery] = true
		if s.Set != "" && s.Row >= 0 {
			row := rows[s.Row]
			if named := s.Previous != ""; row.Moved != named && row.Second != 0 && s.Owner == "lost" {
				t.Errorf("row %+v: previous %q, heir %q", row, s.Previous, s.Heir)
			}
		}
		before, _ := k.Stats.Stages()
		k.Run(t, mapstest.TCP(src, dst, mapstest.SYN))
		after, err := k.Stats.Stages()
		must(nil, err)
		exits := map[string]bool{}
		for at, n := range after {
			if n != before[at] {
				exits[at.Exit.String()] = true
			}
		}
		if !exits[s.Delivery] || len(s.Steps) == 0 {
			t.Errorf("%s → %s: explained as %s, the kernel counted %v; %q", src, dst, s.Delivery, exits, s.Steps)
		}
	}
	for port := range uint16(200) {
		check(netip.AddrPortFrom(netip.MustParseAddr("198.51.100.7"), 1024+port), netip.MustParseAddrPort("192.0.2.1:80"))
	}
	from := netip.MustParseAddrPort("198.51.100.7:999")
	for _, dst := range []string{"192.0.2.2:80", "192.0.2.2:81", "192.0.2.3:81", "192.0.2.9:80"} {
		check(from, netip.MustParseAddrPort(dst))
	}
	for _, want := range []string{"local", "forward", "fail_open", "drop", "foreign"} {
		if !seen[want] {
			t.Errorf("no flow was explained as %s", want)
		}
	}
	list, err := control.Backends(k.Set)
	if err != nil || len(list) != 3 || !list[0].Self || list[0].Rows != (maps.RowCount+3)/4 || list[1].Name != "you" || !list[1].Ready || list[2].Ready {
		t.Errorf("%+v %v", list, err)
	}
}

func TestFileAndOperator(t *testing.T) {
	k := mapstest.New(t)
	l := control.NewLocal(k.Set, nil)
	ctx := t.Context()
	vip := func(name string, port uint16, class string) maps.VIP {
		return maps.VIP{Name: name, Address: netip.MustParseAddr("192.0.2.1"), Port: port, Protocol: maps.ProtocolTCP, RateClass: class}
	}
	class := func(name string, n uint64) maps.RateClass {
		return maps.RateClass{Name: name, Packets: maps.Limit{PerSecond: n, Burst: n}}
	}
	apply := func(w control.Wanted) error {
		return errors.Join(control.ApplyRates(k.Set, w), control.ApplyVIPs(k.Set, w))
	}
	first := control.Wanted{Rates: []maps.RateClass{class("a", 10), class("b", 20)}, VIPs: []maps.VIP{vip("one", 80, "a"), vip("two", 81, "b")}, ObserveOnly: true}
	if err := apply(first); err != nil {
		t.Fatal(err)
	}
	if !k.Config.ObserveOnly() {
		t.Error("observe_only is not in force")
	}
	done, err := l.SetRate(ctx, control.RateClass{Name: "a", RateLimits: control.RateLimits{Packets: 99, PacketsBurst: 99}})
	says(t, done, err, "the file wrote it, and decides again at the next reload")
	done, err = l.AddVIP(ctx, control.VIP{Name: "mine", Address: netip.MustParseAddr("192.0.2.1"), Port: 90, Protocol: "tcp", Rate: "b"})
	says(t, done, err, "added")
	second := control.Wanted{Rates: []maps.RateClass{class("a", 10)}, VIPs: []maps.VIP{vip("one", 80, "a")}}
	if err := apply(second); err != nil {
		t.Fatal(err)
	}
	kept, err := control.TidyRates(k.Set, second)
	if err != nil || len(kept) != 1 || !strings.Contains(kept[0], "rate class b") {
		t.Errorf("an operator's VIP still needs b: %v %v", kept, err)
	}
	c, err := k.Rates.GetClass("a")
	if err != nil || c.Packets.PerSecond != 10 {
		t.Errorf("the file did not win: %+v %v", c, err)
	}
	list, err := l.VIPs(ctx)
	if err != nil || len(list) != 2 || k.Config.ObserveOnly() {
		t.Errorf("%+v %v", list, err)
	}
	if _, err := l.RemoveVIP(ctx, "mine"); err != nil {
		t.Fatal(err)
	}
	if kept, err = control.TidyRates(k.Set, second); err != nil || len(kept) != 0 {
		t.Errorf("%v %v", kept, err)
	}
	if _, err := k.Rates.GetClass("b"); !errors.Is(err, maps.ErrNotFound) {
		t.Errorf("class b stays: %v", err)
	}
	if _, err := l.SetRate(ctx, control.RateClass{Name: "own", RateLimits: control.RateLimits{Packets: 1, PacketsBurst: 1}}); err != nil {
		t.Fatal(err)
	}
	if err := control.ApplyRates(k.Set, control.Wanted{Rates: []maps.RateClass{class("own", 2)}}); !errors.Is(err, maps.ErrOverlap) {
		t.Errorf("the file took an operator's class: %v", err)
	}
}

func TestDaemonCalls(t *testing.T) {
	c := mustServe(t, &testDaemon{status: control.Status{Node: "edge1"}})
	ctx := t.Context()
	if s, err := c.Status(ctx); err != nil || s.Node != "edge1" {
		t.Errorf("%+v %v", s, err)
	}
	if s, err := c.LiveStreams(ctx); err != nil || len(s) != 1 || len(s[0].Subscribers) != 1 || s[0].Subscribers[0].M != 6 {
		t.Errorf("streams %+v, %v", s, err)
	}
	if r, err := c.Relays(ctx); err != nil || len(r) != 1 || r[0].Repaired != 3 {
		t.Errorf("relays %+v, %v", r, err)
	}
	if s, err := c.Cache(ctx); err != nil || s.Objects != 7 {
		t.Errorf("%+v %v", s, err)
	}
	if s, err := c.Top(ctx, 7); err != nil || s.Seconds != 7 {
		t.Errorf("%+v %v", s, err)
	}
	if s, err := c.Anycast(ctx); err != nil || s.Phase != "announced" {
		t.Errorf("%+v %v", s, err)
	}
	if s, err := c.OrderAnycast(ctx, control.AnycastOrder{Command: "drain"}); err != nil || s.Command != "drain" {
		t.Errorf("%+v %v", s, err)
	}
	_, err := c.Top(ctx, 61)
	refused(t, err, http.StatusBadRequest, "not between 1 and 60")
	done, err := c.Purge(ctx, control.Purge{URL: "http://a/"})
	says(t, done, err, "forgot http://a/")
	_, err = c.Reload(ctx)
	refused(t, err, http.StatusUnprocessableEntity, "unknown key")
	_, err = c.VIPs(ctx)
	refused(t, err, http.StatusServiceUnavailable, "not pinned")
}

func TestBadRequests(t *testing.T) {
	srv := httptest.NewServer(control.Handler(&testDaemon{tables: control.NewLocal(nil, nil)}))
	defer srv.Close()
	for _, x := range []struct {
		method, path, body string
		want               int
	}{
		{"POST", "/v1/purge", `{"url": `, 400},
		{"POST", "/v1/purge", `{"uri": "x"}`, 400},
		{"POST", "/v1/anycast", `{"order": "x"}`, 400},
		{"POST", "/v1/purge", strings.Repeat(" ", 2<<20), 400},
		{"GET", "/v1/geo/test?ip=nonsense", "", 400},
		{"GET", "/v1/steer/explain?source=a", "", 400},
		{"DELETE", "/v1/verdicts?source=", "", 400},
		{"GET", "/v2/status", "", 404},
		{"GET", "/", "", 404},
	} {
		req, _ := http.NewRequest(x.method, srv.URL+x.path, strings.NewReader(x.body))
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var e control.Error
		if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || resp.StatusCode != x.want || e.Message == "" {
			t.Errorf("%s %s: %s, %+v, %v", x.method, x.path, resp.Status, e, err)
		}
		resp.Body.Close()
	}
}

func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "berm.sock")
	if _, err := control.NewClient(path).Status(t.Context()); !errors.Is(err, control.ErrDown) || !strings.Contains(err.Error(), path) {
		t.Errorf("no socket: %v", err)
	}
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if _, err := control.NewClient(path).Status(t.Context()); !errors.Is(err, control.ErrDown) {
		t.Errorf("a socket that a dead daemon left: %v", err)
	}
	l, note, err := control.Listen(path, "no-such-group")
	if err != nil || !strings.Contains(note, "no-such-group") {
		t.Fatalf("%q %v", note, err)
	}
	defer l.Close()
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("%v %v", fi.Mode(), err)
	}
	if _, _, err := control.Listen(path, ""); err == nil || !strings.Contains(err.Error(), "another bermd answers") {
		t.Errorf("a second daemon: %v", err)
	}
}

func TestConfigMistakes(t *testing.T) {
	if err := control.Default().Validate(); err != nil {
		t.Error(err)
	}
	if err := (control.Config{Socket: "/run/x.sock", Metrics: ""}).Validate(); err != nil {
		t.Error("no metrics listener: ", err)
	}
	err := control.Config{Socket: "relative", Metrics: "localhost"}.Validate()
	for _, want := range []string{`socket: "relative"`, `metrics: "localhost"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}

func TestPageEscapesAndConfines(t *testing.T) {
	evil := `<script>alert(1)</script>`
	d := &testDaemon{
		status: control.Status{
			Node: evil, Ready: true, Problems: []string{evil}, Config: control.ConfigInfo{Error: evil},
			VIPs:    []control.VIP{{Name: evil, Address: netip.MustParseAddr("192.0.2.1"), Port: 80, Protocol: "tcp"}},
			Origins: []control.Origin{{Origin: evil, URL: "javascript:" + evil, Error: evil}},
			Kernel:  control.KernelInfo{Attached: true, Self: evil},
		},
		top: control.Top{
			Sources: []control.TopSource{{Source: netip.MustParseAddr("192.0.2.7"), Reason: evil}},
			VIPs:    []control.TopVIP{{Name: evil, In: control.Rate{Packets: 1234567}}},
		},
		drops: control.Drops{Drops: []control.Drop{{Reason: "geo", Number: uint32(maps.DropGeo), Dropped: control.Counter{Packets: 42}}, {Reason: "acl"}}},
	}
	h := control.Page(d)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/.berm/", nil))
	body := w.Body.String()
	if w.Code != 200 || strings.Contains(body, evil) || strings.Count(body, "<script>") != 1 {
		t.Errorf("%d: markup from a name got through", w.Code)
	}
	script := regexp.MustCompile(`(?s)<script>(.*)</script>`).FindStringSubmatch(body)
	if script == nil {
		t.Fatal("no script")
	}
	sum := sha256.Sum256([]byte(script[1]))
	policy := w.Header().Get("Content-Security-Policy")
	if !strings.Contains(policy, "script-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'") || !strings.Contains(policy, "default-src 'none'") {
		t.Errorf("the policy does not fit the script: %s", policy)
	}
	if strings.Contains(body, "http://") || strings.Contains(body, "https://") {
		t.Error("the page names something outside")
	}
	for _, want := range []string{"1\u202f234\u202f567", "geo", ">42<", "192.0.2.1:80/tcp", `class="chart up"`} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is not on the page", want)
		}
	}
	if strings.Contains(body, ">acl<") {
		t.Error("a reason that never happened is listed")
	}
	for path, want := range map[string]int{"/.berm/status.json": 200, "/.berm/else": 404} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		var s control.Status
		if w.Code != want || want == 200 && (json.Unmarshal(w.Body.Bytes(), &s) != nil || s.Node != evil) {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

// An error's advice is told apart from it; of several errors each keeps its own.
func TestHints(t *testing.T) {
	one := errors.New("no geo policy \"eu\" (there is none yet)")
	two := errors.New("no rate class \"slow\" (there are a, b)")
	if e := control.AsError(one); e.Message != `no geo policy "eu"` || e.Hint != "there is none yet" {
		t.Errorf("%+v", e)
	}
	if e := control.AsError(errors.Join(one, two)); e.Message != one.Error()+"\n"+two.Error() || e.Hint != "" {
		t.Errorf("%+v", e)
	}
}
