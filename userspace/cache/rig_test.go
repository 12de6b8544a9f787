package cache

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bermedge/berm/userspace/clock"
	"github.com/bermedge/berm/userspace/pipeline"
)

// rig is a cache between real sockets: a client, an edge, and an origin whose behaviour a test sets.
type rig struct {
	t      testing.TB
	cache  *Cache
	clock  *clock.Fake
	edge   *httptest.Server
	origin *httptest.Server
	pipe   *pipeline.Pipeline

	requests atomic.Int64 // that reached the origin
	mu       sync.Mutex
	handle   http.HandlerFunc
	last     http.Header // of the last request at the origin
	loose    bool        // requests do not wait for the fetches before them
}

// epoch is where a rig's clock starts. Origins say it as their Date.
var epoch = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// direct fetches from one server as the origin package would.
type direct struct {
	base string
	rt   http.RoundTripper
}

func (d direct) Fetch(ctx context.Context, f *pipeline.Fetch) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, f.Method, d.base+f.Target, f.Body)
	if err != nil {
		return nil, err
	}
	req.Header, req.Host, req.ContentLength = f.Header, f.Host, f.Length
	res, err := d.rt.RoundTrip(req)
	if err != nil {
		return nil, &pipeline.Failure{Status: 502, Reason: "origin_broken", Err: err}
	}
	res.Header.Del("Connection")
	return res, nil
}

// through is the origin stage of a rig.
type through struct{ f pipeline.Fetcher }

func (through) Name() string { return "origin" }

func (s through) Run(x *pipeline.Exchange) pipeline.Action {
	ctx, cancel := context.WithCancel(x.R.Context())
	res, err := s.f.Fetch(ctx, pipeline.NewFetch(x))
	if err != nil {
		cancel()
		return x.Refuse(http.StatusBadGateway, ReasonOriginError)
	}
	x.OriginStatus = res.StatusCode
	x.Status, x.Head = res.StatusCode, pipeline.Fields(nil, res.Header)
	x.Body = pipeline.NewStream(ctx, res, cancel)
	return x.Answer("fetched")
}

func testConfig() Config {
	cfg := DefaultConfig()
	cfg.StaleIfError = 0
	return cfg
}

func newRig(t testing.TB, handle http.HandlerFunc, change ...func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, clock: clock.NewFake(epoch), handle: handle}
	r.origin = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.requests.Add(1)
		r.mu.Lock()
		h := r.handle
		r.last = q.Header.Clone()
		r.mu.Unlock()
		if w.Header().Get("Date") == "" {
			w.Header().Set("Date", r.clock.Now().UTC().Format(http.TimeFormat))
		}
		h(w, q)
	}))
	cfg := testConfig()
	for _, f := range change {
		f(&cfg)
	}
	tr := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}
	fetcher := direct{r.origin.URL, tr}
	c, err := New(cfg, fetcher, r.clock)
	if err != nil {
		t.Fatal(err)
	}
	r.cache = c
	r.pipe, err = pipeline.New([]pipeline.Stage{pipeline.Identify{}, c, through{fetcher}}, pipeline.WithClock(r.clock))
	if err != nil {
		t.Fatal(err)
	}
	r.edge = httptest.NewServer(r.pipe)
	t.Cleanup(func() {
		r.edge.Close()
		r.cache.Close()
		tr.CloseIdleConnections()
		r.origin.Close()
	})
	return r
}

// newLooseRig is for tests of what happens while a fetch is under way. In all others a request waits until the bodies
// before it are whole: a client has the last byte a moment before the cache knows that it was the last.
func newLooseRig(t testing.TB, handle http.HandlerFunc, change ...func(*Config)) *rig {
	t.Helper()
	r := newRig(t, handle, change...)
	r.loose = true
	return r
}

// set changes the origin's behaviour.
func (r *rig) set(h http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handle = h
}

// seen returns a field of the last request at the origin.
func (r *rig) seen(name string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.last[name], ", ")
}

// answer is a response read to its end.
type answer struct {
	*http.Response
	body string
	err  error
}

// do sends a request; fields are "Name: value".
func (r *rig) do(method, path string, fields ...string) answer {
	r.t.Helper()
	if !r.loose {
		eventually(r.t, "the fetches before are over", func() bool { return r.cache.Stats().InFlight == 0 })
	}
	req, err := http.NewRequest(method, r.edge.URL+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	req.Host = "example.com"
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		req.Header.Add(name, value)
	}
	res, err := testClient.Do(req)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return answer{res, string(b), err}
}

var testClient = &http.Client{
	Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func (r *rig) get(path string, fields ...string) answer {
	r.t.Helper()
	return r.do("GET", path, fields...)
}

// want checks an answer's status, body and the end of its Cache-Status.
func (a answer) want(t testing.TB, what string, status int, body, cacheStatus string) {
	t.Helper()
	if a.StatusCode != status || a.body != body || a.err != nil {
		t.Errorf("%s: %d %.60q (%v), want %d %.60q", what, a.StatusCode, a.body, a.err, status, body)
	}
	if got := strings.Join(a.Header["Cache-Status"], ", "); !strings.HasSuffix(got, cacheStatus) {
		t.Errorf("%s: Cache-Status %q, want %q", what, got, cacheStatus)
	}
}

// origins checks how many requests the origin has seen.
func (r *rig) origins(want int64) {
	r.t.Helper()
	if got := r.requests.Load(); got != want {
		r.t.Errorf("the origin saw %d requests, want %d", got, want)
	}
}

// eventually polls until ok, which must become true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen in 10 s: %s", what)
		}
		time.Sleep(time.Millisecond) // sleep: polls
	}
}

// page answers with fields and the body "page <n>", n counting from 1.
func page(fields ...string) http.HandlerFunc {
	var n atomic.Int64
	return func(w http.ResponseWriter, _ *http.Request) {
		for _, f := range fields {
			name, value, _ := strings.Cut(f, ": ")
			w.Header().Add(name, value)
		}
		fmt.Fprintf(w, "page %d", n.Add(1))
	}
}
