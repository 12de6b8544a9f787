package origin

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/bermedge/berm/userspace/pipeline"
)

func mustClient(t testing.TB, cfg Config) *Client {
	t.Helper()
	c, err := New("edge1", map[string]Config{"o": cfg})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func quick(urls ...string) Config {
	c := DefaultConfig()
	c.URLs = urls
	return c
}

func get(target string) *pipeline.Fetch {
	return &pipeline.Fetch{
		Origin: "o", Method: "GET", Target: target, Host: "example.com", Scheme: "https", Proto: "HTTP/2.0",
		Client: netip.MustParseAddr("192.0.2.7"), Header: http.Header{},
	}
}

// read returns a response's status and body.
func read(t testing.TB, res *http.Response, err error) (int, string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// fails checks that err has a status and a reason.
func fails(t testing.TB, err error, status int, why pipeline.Reason) {
	t.Helper()
	var f *pipeline.Failure
	if !errors.As(err, &f) || f.Status != status || f.Reason != why {
		t.Errorf("%v, want %d %s", err, status, why)
	}
}

// closedPort returns a URL that refuses connections.
func closedPort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

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

func TestHeadersAreTheEdgesOwn(t *testing.T) {
	var got *http.Request
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Clone(context.Background())
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "1")
		w.Header().Set("Keep-Alive", "timeout=5")
		w.Header().Set("X-End", "1")
	}))
	defer srv.Close()
	c := mustClient(t, quick(srv.URL+"/base/"))
	f := get("/a%2Fb?c=%41")
	f.Header = http.Header{
		"Connection": {"close, X-Mine, Cookie"}, "X-Mine": {"1"}, "Cookie": {"a=b"}, "Te": {"trailers"},
		"X-Forwarded-For": {"198.51.100.1"}, "Forwarded": {"for=198.51.100.1"}, "Proxy-Authorization": {"x"}, "Upgrade": {"websocket"},
		"Expect": {"100-continue"}, "Via": {"1.1 other"}, "Accept": {"text/plain"},
	}
	res, err := c.Fetch(context.Background(), f)
	read(t, res, err)
	if got.RequestURI != "/base/a%2Fb?c=%41" || got.Host != "example.com" {
		t.Errorf("asked for %s of %s", got.RequestURI, got.Host)
	}
	want := map[string]string{
		"X-Mine": "", "Cookie": "a=b", "Te": "trailers", "X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https",
		"X-Forwarded-Host": "example.com", "Forwarded": "for=192.0.2.7;proto=https;host=example.com", "Proxy-Authorization": "",
		"Upgrade": "", "Expect": "", "Via": "1.1 other, 2 edge1", "Cdn-Loop": "edge1", "Accept": "text/plain", "User-Agent": "", "Accept-Encoding": "",
	}
	for name, value := range want {
		if v := strings.Join(got.Header[name], "|"); v != value {
			t.Errorf("%s: %q, want %q", name, v, value)
		}
	}
	for _, name := range []string{"Connection", "X-Hop", "Keep-Alive"} {
		if res.Header[name] != nil {
			t.Errorf("the answer still has %s", name)
		}
	}
	if res.Header.Get("X-End") != "1" {
		t.Error("the answer lost X-End")
	}
	f = get("/")
	f.Client, f.Host = netip.MustParseAddr("2001:db8::1"), "example.com:8443"
	res, err = c.Fetch(context.Background(), f)
	read(t, res, err)
	if v := got.Header.Get("Forwarded"); v != `for="[2001:db8::1]";proto=https;host="example.com:8443"` {
		t.Errorf("Forwarded: %s", v)
	}
}

func TestHostOfTheFileWins(t *testing.T) {
	var host string
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { host = r.Host }))
	defer srv.Close()
	cfg := quick(srv.URL)
	cfg.Host = "origin.example"
	res, err := mustClient(t, cfg).Fetch(context.Background(), get("/"))
	read(t, res, err)
	if host != "origin.example" {
		t.Errorf("Host %s", host)
	}
}

func TestLoopIsRefused(t *testing.T) {
	c := mustClient(t, quick(closedPort(t)))
	f := get("/")
	f.Header["Cdn-Loop"] = []string{"other; x=1, Edge1;v=2"}
	_, err := c.Fetch(context.Background(), f)
	fails(t, err, http.StatusLoopDetected, ReasonLoop)
}

func TestRequestBodyStreams(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rd := bufio.NewReader(r.Body)
		line, _ := rd.ReadString('\n')
		w.WriteHeader(200)
		http.NewResponseController(w).EnableFullDuplex()
		fmt.Fprint(w, "got ", line)
		w.(http.Flusher).Flush()
		rest, _ := io.ReadAll(rd)
		fmt.Fprintf(w, "%d more", len(rest))
	}))
	defer srv.Close()
	c := mustClient(t, quick(srv.URL))
	pr, pw := io.Pipe()
	f := get("/")
	f.Method, f.Body, f.Length = "POST", pr, -1
	go func() {
		io.WriteString(pw, "first\n")
		io.WriteString(pw, strings.Repeat("x", 100_000))
		pw.Close()
	}()
	res, err := c.Fetch(context.Background(), f)
	if _, body := read(t, res, err); body != "got first\n100000 more" {
		t.Errorf("%.60q", body)
	}
}

func TestRetryOnTheNextServer(t *testing.T) {
	var n atomic.Int64
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { n.Add(1); fmt.Fprint(w, "ok") }))
	defer good.Close()
	broken := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer broken.Close()
	for _, c := range []struct {
		name, method, body, bad string
		ok                      bool
	}{
		{"refused", "GET", "", closedPort(t), true},
		{"refused, POST without a body", "POST", "", closedPort(t), true},
		{"refused, POST", "POST", "x", closedPort(t), false},
		{"broken", "GET", "", broken.URL, true},
		{"broken, DELETE", "DELETE", "", broken.URL, true},
		{"broken, POST without a body", "POST", "", broken.URL, false},
		{"broken, PUT", "PUT", "x", broken.URL, false},
	} {
		cfg := quick(c.bad, good.URL)
		cfg.Balance, cfg.Ejection = RoundRobin, 0
		client := mustClient(t, cfg)
		for range 4 { // two begin with the bad one
			f := get("/")
			f.Method = c.method
			if c.body != "" {
				f.Body, f.Length = io.NopCloser(strings.NewReader(c.body)), int64(len(c.body))
			}
			res, err := client.Fetch(context.Background(), f)
			if err == nil {
				res.Body.Close()
			} else if c.ok {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		s := client.Stats()[0]
		if c.ok && (s.Retried != 2 || s.Failed != 0) || !c.ok && (s.Retried != 0 || s.Failed != 2) {
			t.Errorf("%s: stats %+v", c.name, s)
		}
		if s.Pending != 0 || s.Servers[0].Pending != 0 || s.Servers[1].Pending != 0 {
			t.Errorf("%s: still pending: %+v", c.name, s)
		}
	}
}

func TestRetriesAreBounded(t *testing.T) {
	cfg := quick(closedPort(t), closedPort(t), closedPort(t), closedPort(t))
	c := mustClient(t, cfg)
	_, err := c.Fetch(context.Background(), get("/"))
	fails(t, err, 502, ReasonUnreachable)
	if s := c.Stats()[0]; s.Retried != 1 {
		t.Errorf("retried %d times, want 1", s.Retried)
	}
}

func TestTimeouts(t *testing.T) {
	hang := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/body" {
			fmt.Fprint(w, "begin")
			w.(http.Flusher).Flush()
		}
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	}))
	defer srv.Close()
	defer close(hang)
	for _, c := range []struct {
		name, path string
		set        func(*Config)
		inBody     bool
	}{
		{"header", "/", func(c *Config) { c.HeaderTimeout = 50 * time.Millisecond }, false},
		{"total", "/", func(c *Config) { c.Timeout = 50 * time.Millisecond }, false},
		{"total, in the body", "/body", func(c *Config) { c.Timeout = 200 * time.Millisecond }, true},
		{"idle", "/body", func(c *Config) { c.IdleTimeout = 50 * time.Millisecond }, true},
	} {
		cfg := quick(srv.URL)
		c.set(&cfg)
		client := mustClient(t, cfg)
		res, err := client.Fetch(context.Background(), get(c.path))
		if !c.inBody {
			fails(t, err, 504, ReasonTimeout)
		} else if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else {
			b, err := io.ReadAll(res.Body)
			if string(b) != "begin" || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %q, %v", c.name, b, err)
			}
			res.Body.Close()
		}
		if s := client.Stats()[0]; s.Pending != 0 {
			t.Errorf("%s: still pending: %+v", c.name, s)
		}
	}
}

func TestConnectTimeout(t *testing.T) {
	// A listener whose queue is full answers no SYN: fill it.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tls := "https" + strings.TrimPrefix("http://"+l.Addr().String(), "http") // accepts, and never shakes hands
	cfg := quick(tls)
	cfg.ConnectTimeout = 50 * time.Millisecond
	_, err = mustClient(t, cfg).Fetch(context.Background(), get("/"))
	fails(t, err, 504, ReasonTimeout)
}

func TestClientGone(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer srv.Close()
	cfg := quick(srv.URL)
	cfg.Ejection = 1
	c := mustClient(t, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { _, err := c.Fetch(ctx, get("/")); done <- err }()
	eventually(t, "it is under way", func() bool { return c.Stats()[0].Servers[0].Pending == 1 })
	cancel()
	fails(t, <-done, 502, ReasonCancelled)
	if s := c.Stats()[0].Servers[0]; !s.Healthy {
		t.Error("the client's leaving was held against the server")
	}
}

func TestMaxPending(t *testing.T) {
	hang := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	defer srv.Close()
	cfg := quick(srv.URL)
	cfg.MaxPending = 2
	c := mustClient(t, cfg)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if res, err := c.Fetch(context.Background(), get("/")); err == nil {
				res.Body.Close()
			}
		})
	}
	eventually(t, "two are under way", func() bool { return c.Stats()[0].Servers[0].Pending == 2 })
	_, err := c.Fetch(context.Background(), get("/"))
	fails(t, err, 503, ReasonBusy)
	close(hang)
	wg.Wait()
	res, err := c.Fetch(context.Background(), get("/"))
	read(t, res, err)
	if s := c.Stats()[0]; s.Refused != 1 || s.Pending != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestLeastPending(t *testing.T) {
	hang := make(chan struct{})
	var slow, fast atomic.Int64
	a := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { slow.Add(1); <-hang }))
	defer a.Close()
	b := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { fast.Add(1) }))
	defer b.Close()
	c := mustClient(t, quick(a.URL, b.URL))
	var wg sync.WaitGroup
	for n := int64(1); slow.Load() == 0; n++ { // until one request hangs
		wg.Go(func() {
			if res, err := c.Fetch(context.Background(), get("/")); err == nil {
				res.Body.Close()
			}
		})
		eventually(t, "it has arrived", func() bool { return slow.Load()+fast.Load() >= n })
	}
	eventually(t, "only that one is pending", func() bool { return c.Stats()[0].Pending == 1 })
	before := fast.Load()
	for range 10 {
		res, err := c.Fetch(context.Background(), get("/"))
		read(t, res, err)
	}
	if fast.Load()-before != 10 || slow.Load() < 1 {
		t.Errorf("%d of 10 went to the server with nothing to do", fast.Load()-before)
	}
	close(hang)
	wg.Wait()
}

func TestEjection(t *testing.T) {
	var sick atomic.Bool
	var hits atomic.Int64
	sick.Store(true)
	a := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		hits.Add(1)
		if sick.Load() {
			w.WriteHeader(503)
		}
	}))
	defer a.Close()
	b := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer b.Close()
	cfg := quick(a.URL, b.URL)
	cfg.Balance, cfg.Ejection, cfg.EjectionTime = RoundRobin, 3, 100*time.Millisecond
	c := mustClient(t, cfg)
	for range 20 {
		res, err := c.Fetch(context.Background(), get("/"))
		read(t, res, err)
	}
	if hits.Load() != 3 {
		t.Errorf("the sick server got %d requests, want 3", hits.Load())
	}
	if s := c.Stats()[0].Servers[0]; s.Healthy || !strings.Contains(s.Why, "3 requests failed") {
		t.Errorf("stats %+v", s)
	}
	sick.Store(false)
	eventually(t, "it is asked again", func() bool {
		res, err := c.Fetch(context.Background(), get("/"))
		read(t, res, err)
		return hits.Load() > 3
	})
}

func TestProbes(t *testing.T) {
	var sick atomic.Bool
	var probes, hits atomic.Int64
	a := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" {
			probes.Add(1)
			if sick.Load() {
				w.WriteHeader(500)
			}
			return
		}
		hits.Add(1)
	}))
	defer a.Close()
	b := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer b.Close()
	cfg := quick(a.URL, b.URL)
	cfg.Probe = Probe{Path: "/health", Interval: 5 * time.Millisecond, Timeout: 5 * time.Millisecond, Window: 4, Threshold: 3}
	c := mustClient(t, cfg)
	healthy := func() bool { return c.Stats()[0].Servers[0].Healthy }
	eventually(t, "it was probed", func() bool { return probes.Load() > 4 && healthy() })
	sick.Store(true)
	eventually(t, "it is out", func() bool { return !healthy() })
	before := hits.Load()
	for range 10 {
		res, err := c.Fetch(context.Background(), get("/"))
		read(t, res, err)
	}
	if hits.Load() != before {
		t.Error("a server that fails its probes got requests")
	}
	// A busy machine's first probes may have been late instead.
	eventually(t, "why it is out", func() bool { return strings.Contains(c.Stats()[0].Servers[0].Why, "answered with 500") })
	sick.Store(false)
	eventually(t, "it is back", healthy)
}

func TestAllServersDown(t *testing.T) {
	cfg := quick(closedPort(t))
	cfg.Probe = Probe{Path: "/", Interval: 5 * time.Millisecond, Timeout: 5 * time.Millisecond, Window: 1, Threshold: 1}
	c := mustClient(t, cfg)
	eventually(t, "it is out", func() bool { return !c.Stats()[0].Servers[0].Healthy })
	_, err := c.Fetch(context.Background(), get("/"))
	fails(t, err, 503, ReasonUnhealthy)
	f := get("/")
	f.Origin = "nobody"
	_, err = c.Fetch(context.Background(), f)
	fails(t, err, 502, ReasonUnknown)
}

// M of N: one failed probe in a window does not take a server out, and one good one does not bring it back.
func TestProbeWindow(t *testing.T) {
	cfg := Config{URLs: []string{"http://a"}, Probe: Probe{Path: "/", Window: 5, Threshold: 3}}.WithDefaults()
	u, _ := parseURL("http://a")
	s := newServer(u, cfg)
	for i, step := range "1010110011000111" {
		var err error
		if step == '0' {
			err = errors.New("no")
		}
		s.noteProbe(err, cfg.Probe)
		window := "11111" + "1010110011000111"[:i+1]
		window = window[len(window)-5:]
		want := strings.Count(window, "1") >= 3
		if got := s.healthy(time.Now()); got != want {
			t.Errorf("after %s: healthy %t", window, got)
		}
	}
}

func TestHTTP2ToHTTPS(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) }))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := quick(srv.URL)
	cfg.TLS.CA = ca
	res, err := mustClient(t, cfg).Fetch(context.Background(), get("/"))
	if _, body := read(t, res, err); body != "HTTP/2.0" {
		t.Errorf("spoke %s", body)
	}
	// Without the authority the certificate is refused.
	_, err = mustClient(t, quick(srv.URL)).Fetch(context.Background(), get("/"))
	fails(t, err, 502, ReasonBroken)
	var unknown x509.UnknownAuthorityError
	if !errors.As(err, &unknown) {
		t.Errorf("%v does not say why", err)
	}
}

func TestConfigMistakes(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "urls: must name"},
		{quick("ftp://a"), "urls[0]: \"ftp://a\" must begin"},
		{quick("http://"), "names no host"},
		{quick("http://a?b"), "nothing but"},
		{quick("http://a\x7f"), "urls[0]"},
		{quick("http://a", "http://a"), "urls[1]: \"http://a\" is given twice"},
		{Config{URLs: []string{"http://a"}, Balance: "random"}, "balance"},
		{Config{URLs: []string{"http://a"}, IdleTimeout: -1}, "idle_timeout"},
		{Config{URLs: []string{"http://a"}, Retries: -1}, "retries"},
		{Config{URLs: []string{"http://a"}, Probe: Probe{Window: 3}}, "probe.path: must be set"},
		{Config{URLs: []string{"http://a"}, Probe: Probe{Path: "x"}}, "probe.path: \"x\" must begin"},
		{Config{URLs: []string{"http://a"}, Probe: Probe{Path: "/", Interval: 1, Timeout: 2}}, "probe.timeout"},
		{Config{URLs: []string{"http://a"}, Probe: Probe{Path: "/", Window: 65}}, "probe.window"},
		{Config{URLs: []string{"http://a"}, Probe: Probe{Path: "/", Window: 2, Threshold: 3}}, "probe.threshold"},
		{Config{URLs: []string{"http://a"}, Probe: Probe{Path: "/", Status: 1000}}, "probe.status"},
		{Config{URLs: []string{"http://a"}, TLS: TLS{CA: "/nonexistent"}}, "origins.o.tls: ca"},
		{Config{URLs: []string{"http://a"}, TLS: TLS{CA: "origin_test.go"}}, "no certificate"},
	} {
		_, err := New("edge1", map[string]Config{"o": c.cfg})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.cfg, err, c.want)
		}
	}
	if err := quick("http://a", "https://[2001:db8::1]:8443/base").Validate(); err != nil {
		t.Error(err)
	}
}

// What a client does wrong with its own body is not held against the server.
func TestBrokenUploadIsTheClients(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			w.WriteHeader(204)
		}
	}))
	defer srv.Close()
	cfg := quick(srv.URL)
	cfg.Ejection = 1
	c := mustClient(t, cfg)
	for _, bad := range []struct {
		err    error
		status int
	}{
		{errors.New("invalid byte in chunk length"), 400},
		{io.ErrUnexpectedEOF, 400},
		{fmt.Errorf("read: %w", os.ErrDeadlineExceeded), 408},
	} {
		f := get("/")
		f.Method, f.Length = "POST", -1
		f.Body = io.NopCloser(io.MultiReader(strings.NewReader("some"), iotest.ErrReader(bad.err)))
		_, err := c.Fetch(context.Background(), f)
		fails(t, err, bad.status, ReasonUpload)
		if !errors.Is(err, bad.err) {
			t.Errorf("%v does not tell of %v", err, bad.err)
		}
	}
	if s := c.Stats()[0]; !s.Servers[0].Healthy || s.Failed != 0 || s.Pending != 0 {
		t.Errorf("stats %+v", s)
	}
}

// A server that breaks while it is sent a body is at fault, whatever reading on from the client then says.
func TestServerThatBreaksDuringAnUpload(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer srv.Close()
	cfg := quick(srv.URL)
	cfg.Ejection = 1
	c := mustClient(t, cfg)
	f := get("/")
	f.Method, f.Length = "POST", 5
	f.Body = io.NopCloser(strings.NewReader("whole"))
	_, err := c.Fetch(context.Background(), f)
	fails(t, err, 502, ReasonBroken)
	if s := c.Stats()[0]; s.Servers[0].Healthy || s.Failed != 1 {
		t.Errorf("stats %+v", s)
	}
}
