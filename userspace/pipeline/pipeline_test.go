package pipeline_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/userspace/clock"
	"github.com/bermedge/berm/userspace/pipeline"
)

// stage is a stage made of a function.
type stage struct {
	name string
	run  func(x *pipeline.Exchange) pipeline.Action
}

func (s stage) Name() string                             { return s.name }
func (s stage) Run(x *pipeline.Exchange) pipeline.Action { return s.run(x) }
func next(name string) stage {
	return stage{name, func(*pipeline.Exchange) pipeline.Action { return pipeline.Next }}
}

func refuse(name string, status int, why pipeline.Reason) stage {
	return stage{name, func(x *pipeline.Exchange) pipeline.Action { return x.Refuse(status, why) }}
}

// text answers with a body that notes whether it was closed.
type text struct {
	s      string
	err    error
	closed *int
}

func (b text) Send(x *pipeline.Exchange) (int64, error) {
	n, err := io.WriteString(x.W, b.s)
	return int64(n), errors.Join(err, b.err)
}
func (b text) Close() { *b.closed++ }

func answer(b text) stage {
	return stage{"origin", func(x *pipeline.Exchange) pipeline.Action {
		x.Status, x.Body = 200, b
		x.Head = []pipeline.Field{{Name: "X-Head", Values: []string{"head"}}, {Name: "X-Both", Values: []string{"head"}}}
		x.SetExtra("X-Both", "extra")
		return x.Answer("fetched")
	}}
}

func mustNew(t testing.TB, stages []pipeline.Stage, opts ...pipeline.Option) *pipeline.Pipeline {
	t.Helper()
	p, err := pipeline.New(stages, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

type recorder struct{ out []pipeline.Outcome }

func (r *recorder) Exchange(_ *pipeline.Exchange, out pipeline.Outcome) { r.out = append(r.out, out) }

func TestFirstVerdictWinsAndIsCountedOnce(t *testing.T) {
	var rec recorder
	clk := clock.NewFake(time.Unix(1_800_000_000, 0))
	slow := stage{"identify", func(*pipeline.Exchange) pipeline.Action { clk.Advance(3 * time.Millisecond); return pipeline.Next }}
	p := mustNew(t, []pipeline.Stage{slow, refuse("guard", 403, "banned"), refuse("late", 500, "never")},
		pipeline.WithObserver(&rec), pipeline.WithClock(clk))

	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))

	if w.Code != 403 || w.Body.String() != "403 Forbidden: banned\n" || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("got %d %q %v", w.Code, w.Body, w.Header())
	}
	want := pipeline.Outcome{
		Stage: "guard", Action: pipeline.Refuse, Reason: "banned", Status: 403,
		Bytes: int64(w.Body.Len()), Head: 3 * time.Millisecond, Elapsed: 3 * time.Millisecond,
	}
	if len(rec.out) != 1 || rec.out[0] != want {
		t.Errorf("outcomes %+v, want one %+v", rec.out, want)
	}
	if c := p.Counts(); len(c) != 1 || c[0] != (pipeline.Count{Stage: "guard", Action: pipeline.Refuse, Reason: "banned", N: 1}) {
		t.Errorf("counts %+v", c)
	}
}

func TestShadowCountsAndGoesOn(t *testing.T) {
	closed := 0
	p := mustNew(t, []pipeline.Stage{refuse("guard", 403, "banned"), answer(text{"hello", nil, &closed})})
	if err := p.SetShadow("guard", true); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if w.Code != 200 || w.Body.String() != "hello" || w.Header().Get("Cache-Control") != "" {
		t.Errorf("shadow was enforced: %d %q %v", w.Code, w.Body, w.Header())
	}
	want := []pipeline.Count{
		{Stage: "guard", Action: pipeline.Refuse, Reason: "banned", Shadow: true, N: 1},
		{Stage: "origin", Action: pipeline.Answer, Reason: "fetched", N: 1},
	}
	got := p.Counts()
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("counts %+v, want %+v", got, want)
	}
	if err := p.SetShadow("nobody", true); err == nil || !strings.Contains(err.Error(), `"nobody"`) {
		t.Errorf("unknown stage: %v", err)
	}
}

func TestExtraWinsOverHeadAndBodyIsClosed(t *testing.T) {
	for _, method := range []string{"GET", "HEAD"} {
		closed := 0
		p := mustNew(t, []pipeline.Stage{answer(text{"hello", nil, &closed})})
		w := httptest.NewRecorder()
		p.ServeHTTP(w, httptest.NewRequest(method, "/", nil))
		if w.Header().Get("X-Both") != "extra" || w.Header().Get("X-Head") != "head" {
			t.Errorf("%s: header %v", method, w.Header())
		}
		if wantBody := map[string]string{"GET": "hello", "HEAD": ""}[method]; w.Body.String() != wantBody {
			t.Errorf("%s: body %q", method, w.Body)
		}
		if closed != 1 {
			t.Errorf("%s: body closed %d times", method, closed)
		}
	}
}

func TestCutBodyBreaksTheConnection(t *testing.T) {
	closed := 0
	var rec recorder
	cut := errors.New("origin went away")
	p := mustNew(t, []pipeline.Stage{answer(text{"hel", cut, &closed})}, pipeline.WithObserver(&rec))
	srv := httptest.NewServer(p)
	res, err := http.Get(srv.URL)
	if err == nil {
		_, err = io.ReadAll(res.Body)
		res.Body.Close()
	}
	srv.Close() // waits for the handler
	if err == nil {
		t.Error("the client saw a whole response")
	}
	if len(rec.out) != 1 || !errors.Is(rec.out[0].Err, cut) || closed != 1 {
		t.Errorf("outcomes %+v, closed %d", rec.out, closed)
	}
}

func TestOnAnswerSeesTheLaterStage(t *testing.T) {
	closed := 0
	watch := stage{"cache", func(x *pipeline.Exchange) pipeline.Action {
		x.OnAnswer(func(x *pipeline.Exchange) { x.SetExtra("X-Seen", x.Header("X-Both"), string(x.Reason)) })
		return pipeline.Next
	}}
	p := mustNew(t, []pipeline.Stage{watch, answer(text{"", nil, &closed})})
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if got := w.Header()["X-Seen"]; len(got) != 2 || got[0] != "extra" || got[1] != "fetched" {
		t.Errorf("X-Seen %q", got)
	}
}

func TestNobodyAnswers(t *testing.T) {
	p := mustNew(t, []pipeline.Stage{next("a")})
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if w.Code != 404 || !strings.Contains(w.Body.String(), "unanswered") {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

func TestNamesAreUnique(t *testing.T) {
	if _, err := pipeline.New([]pipeline.Stage{next("a"), next("a")}); err == nil {
		t.Error("two stages of one name were accepted")
	}
}

func TestActionNames(t *testing.T) {
	for a := pipeline.Next; a <= pipeline.Wrote; a++ {
		if s := a.String(); s == "" || strings.HasPrefix(s, "action(") {
			t.Errorf("action %d has no name", a)
		}
	}
}

// A pass through the list itself costs no allocation: what remains is the recorder's and the answer's own.
func TestPassAllocatesNothing(t *testing.T) {
	answer := stage{"cache", func(x *pipeline.Exchange) pipeline.Action { x.Status = 204; return x.Answer("hit") }}
	p := mustNew(t, []pipeline.Stage{pipeline.Identify{}, next("guard"), answer})
	r := httptest.NewRequest("GET", "http://example.com/a/b", nil)
	w := discard{http.Header{}}
	p.ServeHTTP(w, r)
	if n := testing.AllocsPerRun(1000, func() { p.ServeHTTP(w, r) }); n > 0 && !raceEnabled {
		t.Errorf("%.1f allocations a request, want 0", n)
	}
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

func BenchmarkPass(b *testing.B) {
	answer := stage{"cache", func(x *pipeline.Exchange) pipeline.Action { x.Status = 204; return x.Answer("hit") }}
	p := mustNew(b, []pipeline.Stage{pipeline.Identify{}, next("guard"), answer})
	r := httptest.NewRequest("GET", "http://example.com/a/b", nil)
	w := discard{http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		p.ServeHTTP(w, r)
	}
}
