package scenario

import (
	"context"
	"io"
	"maps"
	"math"
	"strings"
	"testing"
)

func TestCacheStatus(t *testing.T) {
	for _, c := range []struct {
		in   []string
		edge string
		hit  bool
	}{
		{[]string{"edge1; hit; ttl=30"}, "edge1", true},
		{[]string{`"edge1";fwd=uri-miss;stored`}, "edge1", false},
		{[]string{"shield; hit, edge2; fwd=miss"}, "edge2", false},
		{[]string{"shield; fwd=miss", "edge2;hit"}, "edge2", true},
		{[]string{"edge1; fwd=stale; detail=hit"}, "edge1", false},
		{nil, "", false},
	} {
		if edge, hit := cacheStatus(c.in); edge != c.edge || hit != c.hit {
			t.Errorf("cacheStatus(%q) = %q, %v; want %q, %v", c.in, edge, hit, c.edge, c.hit)
		}
	}
}

func TestParseGTLS(t *testing.T) {
	got := parseGTLS(`QUIC handshake has completed
http: stream 0x4 response headers started
http: stream 0x4 [:status: 200]
http: stream 0x4 [cache-status: edge2; fwd=uri-miss; stored]
http: stream 0x10 [:status: 404]
http: stream 0x10 [date: Tue, 24 Nov 2026 02:02:22 GMT]
[:method: GET]
`)
	if len(got) != 2 || got[4][":status"] != "200" || got[4]["cache-status"] != "edge2; fwd=uri-miss; stored" ||
		got[16][":status"] != "404" || got[16]["date"] != "Tue, 24 Nov 2026 02:02:22 GMT" {
		t.Errorf("parsed %v", got)
	}
}

func TestParseWrk(t *testing.T) {
	const out = "  30023 requests in 6.01s, 9.16MB read\n"
	if n, failed, err := parseWrk(out); n != 30023 || len(failed) != 0 || err != nil {
		t.Errorf("parseWrk = %d, %v, %v", n, failed, err)
	}
	n, failed, err := parseWrk(out + "  Socket errors: connect 1, read 20, write 300, timeout 4000\n  Non-2xx or 3xx responses: 50000\n")
	want := map[string]uint64{"connect": 1, "read": 20, "write": 300, "timeout": 4000, "not 2xx or 3xx": 50000}
	if n != 30023 || !maps.Equal(failed, want) || err != nil {
		t.Errorf("parseWrk = %d, %v, %v", n, failed, err)
	}
	if _, _, err := parseWrk("unable to connect"); err == nil || !strings.Contains(err.Error(), "unable to connect") {
		t.Errorf("parseWrk of nonsense: %v", err)
	}
}

func TestChecksCanFail(t *testing.T) {
	r := &Recorder{}
	r.Equal("equal", 1, 2, "")
	r.AtMost("at most", 1, 1.5, "")
	r.AtMost("not a number", 1, math.NaN(), "")
	r.AtLeast("at least", 2, 1.5, "")
	r.Near("near, above", 1000, 0.02, 1021, "")
	r.Near("near, below", 1000, 0.02, 979, "")
	r.Same("same", "a", "b", "")
	for _, c := range r.Checks() {
		if c.OK {
			t.Errorf("%s holds: got %s, want %s", c.Name, c.Got, c.Want)
		}
	}
	ok := &Recorder{}
	ok.Equal("equal", 2, 2, "")
	ok.AtMost("at most", 1, 1, "")
	ok.AtLeast("at least", 2, 2, "")
	ok.Near("near", 1000, 0.02, 1020, "")
	ok.Same("same", "a", "a", "")
	for _, c := range ok.Checks() {
		if !c.OK {
			t.Errorf("%s fails: got %s, want %s", c.Name, c.Got, c.Want)
		}
	}
	if NewReport("x", nil).OK || NewReport("x", append(ok.Checks(), r.Checks()[0])).OK || !NewReport("x", ok.Checks()).OK {
		t.Error("a report is ok exactly when it has checks and all hold")
	}
}

type bare struct{ Topology }

func (bare) Explain(context.Context) string { return "" }

func TestTimedChecksAreRepeated(t *testing.T) {
	for _, c := range []struct {
		name        string
		run         func(attempt int, r *Recorder) error
		runs, wrong int
	}{
		{"late once", func(i int, r *Recorder) error {
			r.Equal("count", 1, 1, "")
			r.Timed().AtMost("ms", 10, float64(20/i), "")
			return nil
		}, 2, 0},
		{"always late", func(_ int, r *Recorder) error { r.Timed().AtMost("ms", 10, 20, ""); return nil }, attempts, 1},
		{"late and wrong", func(_ int, r *Recorder) error {
			r.Timed().AtMost("ms", 10, 20, "")
			r.Equal("count", 1, 2, "")
			return nil
		}, 1, 2},
		{"late and broken off", func(_ int, r *Recorder) error { r.Timed().AtMost("ms", 10, 20, ""); return io.EOF }, 1, 2},
		{"right", func(_ int, r *Recorder) error { r.Equal("count", 1, 1, ""); return nil }, 1, 0},
	} {
		runs, rec := 0, &Recorder{}
		step := Step{Name: c.name, Loud: true, Run: func(_ context.Context, r *Recorder) error { runs++; return c.run(runs, r) }}
		RunStep(t.Context(), bare{}, step, Options{}, rec)
		wrong := 0
		for _, k := range rec.Checks() {
			if !k.OK {
				wrong++
			}
		}
		if runs != c.runs || wrong != c.wrong {
			t.Errorf("%s: %d runs and %d failed checks, want %d and %d", c.name, runs, wrong, c.runs, c.wrong)
		}
	}
}

func TestMove(t *testing.T) {
	quiet := []float64{1, 1.01, 1.02, 1.03, 9, 1, 1.01, 30}
	loud := make([]float64, len(quiet))
	for i, v := range quiet {
		loud[i] = 1.2 * v
	}
	if got := move(quiet, loud); math.Abs(got-0.2) > 1e-9 {
		t.Errorf("every window 20 %% slower moves by %v", got)
	}
	if got := move(quiet, []float64{40, 1, 50, 1.02, 60, 1.01, 70, 1}); math.Abs(got) > 0.02 {
		t.Errorf("half of the windows disturbed by others: %v", got)
	}
	if got := moveError(quiet, quiet); got != 0 {
		t.Errorf("error of a ratio that is 1 in all pairs: %v", got)
	}
	noisy := []float64{1, 9, 2, 7, 1, 8, 3, 6}
	if small, large := moveError(quiet, loud), moveError(quiet, noisy); small > 0.01 || large < 0.1 {
		t.Errorf("errors %v of steady and %v of noisy windows", small, large)
	}
}

func TestFigure(t *testing.T) {
	for v, want := range map[float64]string{3: "3", 0.123456: "0.1235", 41.6667: "41.67", 9999.8: "10000", 12345.6: "12346", 5e15: "5e+15"} {
		if got := figure(v); got != want {
			t.Errorf("%v is %s, want %s", v, got, want)
		}
	}
}
