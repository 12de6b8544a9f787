package observe_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
	"github.com/bermedge/berm/userspace/clock"
	"github.com/bermedge/berm/userspace/observe"
	"github.com/bermedge/berm/userspace/pipeline"
)

func TestLogFollowsItsConfig(t *testing.T) {
	var out bytes.Buffer
	l := observe.NewLog(observe.Default(), &out)
	derived := l.With("a", 1).WithGroup("g").With("b", 2)
	derived.Debug("hidden")
	derived.Info("shown", "c", 3)
	if s := out.String(); strings.Contains(s, "hidden") || !strings.Contains(s, `msg=shown a=1 g.b=2 g.c=3`) || !strings.HasPrefix(s, "time=") {
		t.Errorf("text: %q", s)
	}
	out.Reset()
	l.Apply(observe.Config{Level: "DEBUG", Format: "json"})
	derived.Debug("now", "c", 3)
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got["msg"] != "now" || got["g"].(map[string]any)["c"] != 3.0 {
		t.Errorf("json: %q %v", out.String(), err)
	}
}

func TestLogForTheJournal(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "8:1")
	var out bytes.Buffer
	l := observe.NewLog(observe.Config{Level: "debug", Format: "text"}, &out)
	l.Debug("d")
	l.Info("i")
	l.Warn("w")
	l.Error("e", "k", "v")
	if got, want := out.String(), "<7>msg=d\n<6>msg=i\n<4>msg=w\n<3>msg=e k=v\n"; got != want {
		t.Errorf("have %q, want %q", got, want)
	}
}

func TestConfigMistakes(t *testing.T) {
	if err := observe.Default().Validate(); err != nil {
		t.Error(err)
	}
	err := observe.Config{Level: "loud", Format: "xml", Access: -1}.Validate()
	for _, want := range []string{`level: "loud"`, `format: "xml"`, "access: -1"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}

// scrapeOf returns the lines of /metrics.
func scrapeOf(t *testing.T, m *observe.Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler(func() observe.Health { return observe.Health{} }).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// Every metric of the catalogue can be scraped, and has a name and help that convention asks for.
func TestCatalogue(t *testing.T) {
	m := observe.NewMetrics()
	seen := map[string]bool{}
	for _, x := range observe.Catalogue() {
		if seen[x.Name] {
			t.Errorf("%s stands twice", x.Name)
		}
		seen[x.Name] = true
		if !strings.HasPrefix(x.Name, "berm_") || strings.HasSuffix(x.Name, "_total") == x.Gauge || !strings.HasSuffix(x.Help, ".") {
			t.Errorf("%s (gauge %t): %q", x.Name, x.Gauge, x.Help)
		}
	}
	m.Set("test", func(emit observe.Emit) { emit(observe.Drops, 3, "geo"); emit(observe.Ready, 1) })
	out := scrapeOf(t, m)
	for _, want := range []string{"# TYPE berm_drops_total counter\nberm_drops_total{reason=\"geo\"} 3", "# TYPE berm_ready gauge\nberm_ready 1", "go_goroutines", "process_open_fds"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in the scrape", want)
		}
	}
}

func TestKernelMetrics(t *testing.T) {
	k := mapstest.New(t)
	if _, err := k.VIPs.Put(maps.VIP{Name: "web", Address: netip.MustParseAddr("192.0.2.1"), Port: 80, Protocol: maps.ProtocolTCP}); err != nil {
		t.Fatal(err)
	}
	m := observe.NewMetrics()
	up := true
	m.Set("kernel", observe.Kernel(func(f func(*maps.Set) error) error {
		if !up {
			return maps.ErrNotUp
		}
		return f(k.Set)
	}, func(err error) { t.Error(err) }))
	out := scrapeOf(t, m)
	for d := range maps.AllDrops() {
		if !strings.Contains(out, fmt.Sprintf("berm_drops_total{reason=%q} 0", d)) || !strings.Contains(out, fmt.Sprintf("berm_shadow_drops_total{reason=%q} 0", d)) {
			t.Errorf("drop reason %s is not exported", d)
		}
	}
	for _, want := range []string{"berm_kernel_up 1", `berm_map_entries{table="vips"} 1`, `berm_vip_packets_total{address="192.0.2.1:80",fate="in",protocol="tcp",vip="web"} 0`} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in the scrape", want)
		}
	}
	up = false
	if out := scrapeOf(t, m); !strings.Contains(out, "berm_kernel_up 0") || strings.Contains(out, "berm_drops_total") {
		t.Error("values without a kernel half")
	}
}

func TestHealth(t *testing.T) {
	h := observe.Health{Healthy: true, Problems: []string{"starting"}}
	srv := observe.NewMetrics().Handler(func() observe.Health { return h })
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 503, "/else": 404} {
		w := httptest.NewRecorder()
		srv.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != want || want == 503 && !strings.Contains(w.Body.String(), "starting") {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

func exchange(target string) (*pipeline.Exchange, pipeline.Outcome) {
	r := httptest.NewRequest("GET", target, nil)
	r.Header.Set("Authorization", "Bearer topsecret")
	r.Header.Set("Cookie", "session=topsecret")
	return &pipeline.Exchange{R: r, Host: "www.example.com", Client: netip.MustParseAddrPort("192.0.2.7:1")},
		pipeline.Outcome{Stage: "cache", Reason: "hit", Status: 200, Bytes: 1000, Elapsed: time.Millisecond}
}

func TestAccessCountsAndSamples(t *testing.T) {
	var out bytes.Buffer
	m := observe.NewMetrics()
	a := observe.NewAccess(slog.New(slog.NewTextHandler(&out, nil)), m)
	x, o := exchange("/a%0ab?token=topsecret")
	a.Exchange(x, o)
	if out.Len() > 0 {
		t.Error("logged without being asked: ", out.String())
	}
	a.Sample(10)
	for range 20 {
		a.Exchange(x, o)
	}
	bad := o
	bad.Status, bad.Err = 502, errors.New("origin went away")
	a.Exchange(x, bad)
	log := out.String()
	if n := strings.Count(log, "msg=request"); n != 3 {
		t.Errorf("%d lines, want two of twenty and the failure:\n%s", n, log)
	}
	if strings.Contains(log, "topsecret") || strings.Count(log, "\n") != 3 {
		t.Errorf("the log holds secrets or broken lines:\n%s", log)
	}
	if a.Total() != 22 {
		t.Errorf("%d requests counted", a.Total())
	}
	got := scrapeOf(t, m)
	for _, want := range []string{
		`berm_requests_total{code="2xx",protocol="h1"} 21`, `berm_requests_total{code="5xx",protocol="h1"} 1`,
		`berm_response_body_bytes_total{protocol="h1"} 22000`, `berm_responses_cut_total{protocol="h1"} 1`, `berm_request_seconds_count{stage="cache"} 22`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in the scrape", want)
		}
	}
	a.Sample(0)
	if n := testing.AllocsPerRun(100, func() { a.Exchange(x, o) }); n > 0 {
		t.Errorf("%.0f allocations a request, want none", n)
	}
}

func event(source string, length uint32, reason maps.Drop, weight uint32) maps.Event {
	return maps.Event{Source: netip.AddrPortFrom(netip.MustParseAddr(source), 1), Length: length, Reason: reason, Weight: weight}
}

func TestBusySources(t *testing.T) {
	clk := clock.NewFake(time.Unix(1_000_000, 0))
	b := observe.NewBusy(clk)
	b.Add(event("192.0.2.1", 100, maps.DropNone, 64))
	b.Add(event("192.0.2.1", 100, maps.DropGeo, 36))
	b.Add(event("2001:db8::1", 40, maps.DropNone, 1))
	b.Add(event("2001:db8::2", 40, maps.DropNone, 1))
	if top := b.Top(10, 10); len(top) != 0 {
		t.Errorf("the second that is not over shows: %+v", top)
	}
	clk.Advance(time.Second)
	top := b.Top(10, 10)
	want := []observe.BusySource{
		{Source: netip.MustParseAddr("192.0.2.1"), Packets: 10, Bytes: 1000, Dropped: 3.6, Reason: maps.DropGeo},
		{Source: netip.MustParseAddr("2001:db8::"), Packets: 0.2, Bytes: 8},
	}
	if len(top) != 2 || top[0] != want[0] || top[1] != want[1] {
		t.Errorf("have %+v, want %+v", top, want)
	}
	clk.Advance(10 * time.Second)
	if top := b.Top(10, 10); len(top) != 0 {
		t.Errorf("shown for too long: %+v", top)
	}
	clk.Advance(2 * time.Minute)
	if top := b.Top(60, 10); len(top) != 0 {
		t.Errorf("never forgotten: %+v", top)
	}
}

// A flood of spoofed sources neither grows the view nor hides who is really busy.
func TestBusyUnderAFlood(t *testing.T) {
	clk := clock.NewFake(time.Unix(1_000_000, 0))
	b := observe.NewBusy(clk)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 200_000 {
		if i%50 == 0 {
			b.Add(event("192.0.2.66", 60, maps.DropRatePackets, 1))
		}
		var a [4]byte
		for j := range a {
			a[j] = byte(rng.Uint32())
		}
		b.Add(maps.Event{Source: netip.AddrPortFrom(netip.AddrFrom4(a), 1), Length: 60, Weight: 1})
	}
	clk.Advance(time.Second)
	top := b.Top(1, 2000)
	if len(top) != 1024 {
		t.Errorf("%d sources held", len(top))
	}
	if top[0].Source.String() != "192.0.2.66" || top[0].Packets < 4000 || top[0].Reason != maps.DropRatePackets {
		t.Errorf("the busy one is not first: %+v", top[0])
	}
}

func TestHistory(t *testing.T) {
	var h observe.History
	if _, _, ok := h.Over(1); ok {
		t.Error("rates from nothing")
	}
	for i := range 100 {
		h.Add(observe.Snapshot{Requests: uint64(i)})
	}
	if n := len(h.Series()); n != 61 {
		t.Errorf("%d snapshots kept", n)
	}
	for seconds, want := range map[int]uint64{0: 98, 1: 98, 5: 94, 60: 39, 1000: 39} {
		if from, to, ok := h.Over(seconds); !ok || to.Requests != 99 || from.Requests != want {
			t.Errorf("over %d s: %d to %d, want from %d", seconds, from.Requests, to.Requests, want)
		}
	}
}

// samples are Samples in memory.
type samples map[maps.Drop]uint64

func (s samples) Set(d maps.Drop, every uint64) error { s[d] = every; return nil }
func (s samples) Get(d maps.Drop) uint64              { return s[d] }

func TestSamplingFollowsTheTraffic(t *testing.T) {
	s := samples{}
	now := observe.Snapshot{Time: time.Unix(1000, 0), Drops: map[maps.Drop]maps.Counter{}, Shadows: map[maps.Drop]maps.Counter{}, VIPs: []maps.VIPStats{{ID: 1}}}
	step := func(in, geo, shadow uint64) {
		next := observe.Snapshot{
			Time:    now.Time.Add(time.Second),
			Drops:   map[maps.Drop]maps.Counter{maps.DropGeo: {Packets: now.Drops[maps.DropGeo].Packets + geo}},
			Shadows: map[maps.Drop]maps.Counter{maps.DropACL: {Packets: now.Shadows[maps.DropACL].Packets + shadow}},
			VIPs:    []maps.VIPStats{{ID: 1, In: maps.Counter{Packets: now.VIPs[0].In.Packets + in}}},
		}
		if err := observe.Tune(s, now, next); err != nil {
			t.Fatal(err)
		}
		now = next
	}
	step(100, 10, 0)
	if s[maps.DropNone] != 1 || s[maps.DropGeo] != 1 || s[maps.DropACL] != 1 {
		t.Errorf("a trickle is not seen whole: %v", s)
	}
	step(3_000_000, 1_000_000, 2_000)
	if s[maps.DropGeo] != 4096 || s[maps.DropNone] != 8192 || s[maps.DropACL] != 8 {
		t.Errorf("a flood: %v", s)
	}
	step(0, 0, 0)
	if s[maps.DropGeo] != 2048 {
		t.Errorf("after the flood it fell to %d at once", s[maps.DropGeo])
	}
	for range 12 {
		step(0, 0, 0)
	}
	if s[maps.DropGeo] != 1 || s[maps.DropNone] != 1 {
		t.Errorf("it never comes down: %v", s)
	}
	old := now
	now.VIPs = []maps.VIPStats{{ID: 1, In: maps.Counter{Packets: 5}}} // loaded anew: from zero
	now.Time = old.Time.Add(time.Second)
	if err := observe.Tune(s, old, now); err != nil || s[maps.DropNone] != 1 {
		t.Errorf("a kernel half that was loaded anew: %v %v", s, err)
	}
}
