package dictionary_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/bermedge/berm/userspace/cache"
	"github.com/bermedge/berm/userspace/cache/dictionary"
	"github.com/bermedge/berm/userspace/clock"
	"github.com/bermedge/berm/userspace/origin"
	"github.com/bermedge/berm/userspace/pipeline"
)

// edge is the stage between a real cache and clients over TLS, before an origin.
type edge struct {
	t     *testing.T
	stage *dictionary.Stage
	url   string
	http  *http.Client
	asked atomic.Int64 // of the origin
	coded atomic.Int64 // of those, with Accept-Encoding

	mu    sync.Mutex
	pages map[string]page
}

// page is what the origin answers.
type page struct {
	body string
	head http.Header
	half chan struct{} // not nil: the length is not said, and the second half comes when this is closed
}

const on = 64 << 20

func mustEdge(t *testing.T, cfg dictionary.Config) *edge {
	t.Helper()
	e := &edge{t: t, pages: map[string]page{}}
	from := httptest.NewServer(http.HandlerFunc(e.serve))
	t.Cleanup(from.Close)
	client, err := origin.New("edge", map[string]origin.Config{"www": func() origin.Config {
		c := origin.DefaultConfig()
		c.URLs = []string{from.URL}
		return c
	}()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	store, err := cache.New(cache.DefaultConfig(), client, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	if e.stage, err = dictionary.New(cfg); err != nil {
		t.Fatal(err)
	}
	routes, err := pipeline.NewRoutes([]pipeline.RouteConfig{{Host: "*", Path: "/", Origin: "www"}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := pipeline.New([]pipeline.Stage{pipeline.Identify{}, routes, e.stage, store, origin.Stage{Client: client}})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(p)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	e.url, e.http = srv.URL, srv.Client()
	return e
}

func (e *edge) serve(w http.ResponseWriter, r *http.Request) {
	e.asked.Add(1)
	if r.Header.Get("Accept-Encoding") != "identity" {
		e.coded.Add(1)
	}
	e.mu.Lock()
	p, ok := e.pages[r.URL.Path]
	e.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	for name, values := range p.head {
		w.Header()[name] = values
	}
	if w.Header().Get("Etag") != "" && slices.Contains(r.Header["If-None-Match"], w.Header().Get("Etag")) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	if p.half != nil {
		_, _ = io.WriteString(w, p.body[:len(p.body)/2])
		w.(http.Flusher).Flush()
		<-p.half
		p.body = p.body[len(p.body)/2:]
	} else if w.Header().Get("Content-Length") == "" {
		w.Header().Set("Content-Length", strconv.Itoa(len(p.body)))
	}
	_, _ = io.WriteString(w, p.body) // a client that left shows in the test
}

// put has the origin answer path with a body and a head: pairs of name and value.
func (e *edge) put(path, body string, head ...string) {
	p := page{body: body}
	h := http.Header{"Content-Type": {"text/javascript"}, "Cache-Control": {"public, max-age=3600"}}
	for i := 0; i < len(head); i += 2 {
		if head[i+1] == "" {
			h.Del(head[i])
		} else {
			h.Set(head[i], head[i+1])
		}
	}
	p.head = h
	e.mu.Lock()
	e.pages[path] = p
	e.mu.Unlock()
}

type answer struct {
	*http.Response
	body []byte
}

// get asks with fields of its own: pairs of name and value.
func (e *edge) get(path string, head ...string) answer {
	e.t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, e.url+path, nil)
	if err != nil {
		e.t.Fatal(err)
	}
	r.Header.Set("Accept-Encoding", "gzip, br, zstd, dcb, dcz")
	for i := 0; i < len(head); i += 2 {
		r.Header.Set(head[i], head[i+1])
	}
	res, err := e.http.Do(r)
	if err != nil {
		e.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	return answer{res, body}
}

func have(content string) string {
	sum := sha256.Sum256([]byte(content))
	return ":" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}

// decode checks the frame (RFC 9842, 5) and takes the content out of it, as a client does.
func decode(t *testing.T, a answer, dict string) string {
	t.Helper()
	sum := sha256.Sum256([]byte(dict))
	want := append([]byte{0x5e, 0x2a, 0x4d, 0x18, 0x20, 0, 0, 0}, sum[:]...)
	if a.Header.Get("Content-Encoding") != "dcz" || !bytes.HasPrefix(a.body, want) {
		t.Fatalf("not an answer in dcz with the dictionary's hash: %v, begins with %x", a.Header, a.body[:min(len(a.body), 40)])
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderDictRaw(0, []byte(dict)), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	out, err := dec.DecodeAll(a.body[len(want):], nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// script makes a text of about n bytes that is a version of others of the same seed.
func script(seed uint64, n, version int) string {
	r := rand.New(rand.NewPCG(seed, 0))
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "function f%d(a){return a*%d+%d}\n", i, r.Uint32(), r.Uint32())
		if i%100 == 50 {
			fmt.Fprintf(&b, "// version %d\n", version)
		}
	}
	return b.String()
}

const useAs = `match="/js/*"`

func TestSecondVersionIsADelta(t *testing.T) {
	e := mustEdge(t, dictionary.Config{Memory: on, MaxSize: 2 << 20})
	one, two := script(1, 200_000, 1), script(1, 200_000, 2)
	e.put("/js/app.1.js", one, "Use-As-Dictionary", useAs, "Etag", `"one"`)
	e.put("/js/app.2.js", two, "Use-As-Dictionary", useAs, "Etag", `"two"`, "Content-Digest", "sha-256=:AAAA:")

	if a := e.get("/js/app.1.js"); string(a.body) != one || a.Header.Get("Content-Encoding") != "" || a.Header.Get("Use-As-Dictionary") != useAs {
		t.Fatalf("the first version came with %v", a.Header)
	}
	for i := range 2 { // the second time from what is kept
		a := e.get("/js/app.2.js", "Available-Dictionary", have(one))
		if got := decode(t, a, one); got != two {
			t.Fatalf("decoded to %d bytes, want the %d of the second version", len(got), len(two))
		}
		if len(a.body)*20 > len(two) {
			t.Errorf("%d bytes for %d that differ in %d lines", len(a.body), len(two), strings.Count(two, "version"))
		}
		h := a.Header
		if h.Get("Etag") != `W/"two"` || h.Get("Content-Digest") != "" || h.Get("Content-Length") != fmt.Sprint(len(a.body)) {
			t.Errorf("the head is not that of the encoded answer: %v", h)
		}
		if vary := strings.Join(h["Vary"], ", "); !strings.Contains(vary, "Accept-Encoding") || !strings.Contains(vary, "Available-Dictionary") {
			t.Errorf("Vary is %q", vary)
		}
		if st := e.stage.Stats(); st.Encoded != 1 || st.Results["sent"] != uint64(i+1) || st.BytesIn != uint64((i+1)*len(two)) {
			t.Errorf("after %d answers: %+v", i+1, st)
		}
	}
	// The client confirms what it has by the tag that it got.
	a := e.get("/js/app.2.js", "Available-Dictionary", have(one), "If-None-Match", `W/"two"`)
	if a.StatusCode != http.StatusNotModified || a.Header.Get("Etag") != `W/"two"` {
		t.Errorf("a condition got %d, %v", a.StatusCode, a.Header)
	}
	// The second version was learnt although only its delta was sent.
	e.put("/js/app.3.js", script(1, 200_000, 3))
	if got := decode(t, e.get("/js/app.3.js", "Available-Dictionary", have(two)), two); got != script(1, 200_000, 3) {
		t.Error("the third version is not what the second one and the delta make")
	}
	// Others get it as it is, from the same object.
	if a := e.get("/js/app.2.js"); string(a.body) != two || !strings.Contains(a.Header.Get("Vary"), "Available-Dictionary") {
		t.Errorf("without a dictionary: %v", a.Header)
	}
}

// Whoever should get the answer as it is, does, and each time for its own reason.
func TestSentAsItIs(t *testing.T) {
	one, two := script(1, 50_000, 1), script(1, 50_000, 2)
	for _, c := range []struct {
		name    string
		head    []string // of the second version
		ask     []string // more fields of the request
		path    string   // that is asked for; default: the second version's
		body    string   // default: two
		result  string   // that is counted
		fetches int64
	}{
		{name: "private", head: []string{"Cache-Control", "private, max-age=60"}},
		{name: "no store", head: []string{"Cache-Control", "no-store"}},
		{name: "silent about caches", head: []string{"Cache-Control", ""}},
		{name: "cookie", head: []string{"Set-Cookie", "a=b"}},
		{name: "varies by cookie", head: []string{"Vary", "Cookie"}},
		{name: "authorization", ask: []string{"Authorization", "Basic YTpi"}},
		{name: "range", ask: []string{"Range", "bytes=0-9"}},
		{name: "no transform", head: []string{"Cache-Control", "public, max-age=60, no-transform"}, result: "unsuitable"},
		{name: "coded", head: []string{"Content-Encoding", "br"}, result: "unsuitable"},
		{name: "picture", head: []string{"Content-Type", "image/png"}, result: "unsuitable"},
		{name: "short", body: "x", result: "size"},
		{name: "long", body: script(2, 300_000, 1), result: "size"},
		{name: "does not accept", ask: []string{"Accept-Encoding", "gzip, zstd"}},
		{name: "refuses", ask: []string{"Accept-Encoding", "zstd, dcz;q=0"}},
		{name: "accepts all", ask: []string{"Accept-Encoding", "*"}},
		{name: "other dictionary", ask: []string{"Available-Dictionary", have("x")}, result: "unknown"},
		{name: "no hash", ask: []string{"Available-Dictionary", "one"}, result: "malformed"},
		{name: "short hash", ask: []string{"Available-Dictionary", ":AAAA:"}, result: "malformed"},
		{name: "other path", path: "/css/app.css", result: "not_for"},
		{name: "other destination", ask: []string{"Sec-Fetch-Dest", "style"}, result: "not_for"},
		{name: "other site", ask: []string{"Sec-Fetch-Site", "cross-site"}},
		{name: "sibling", ask: []string{"Sec-Fetch-Site", "same-site"}},
		{name: "not smaller", body: noise(50_000), result: "not_smaller"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := mustEdge(t, dictionary.Config{Memory: on, MaxSize: 128 << 10})
			e.put("/js/app.1.js", one, "Use-As-Dictionary", `match="/js/*", match-dest=("script" "")`)
			e.get("/js/app.1.js")
			path, body := "/js/app.2.js", two
			if c.path != "" {
				path = c.path
			}
			if c.body != "" {
				body = c.body
			}
			e.put(path, body, c.head...)
			a := e.get(path, append([]string{"Available-Dictionary", have(one), "Sec-Fetch-Site", "same-origin"}, c.ask...)...)
			if a.Header.Get("Content-Encoding") == "dcz" {
				t.Errorf("came in dcz, with %v", a.Header)
			}
			if string(a.body) != body && a.StatusCode != http.StatusPartialContent {
				t.Errorf("got %d bytes, status %d, want the %d as they are", len(a.body), a.StatusCode, len(body))
			}
			st := e.stage.Stats()
			for result, n := range st.Results {
				if want := result == c.result; (n == 1) != want || n > 1 {
					t.Errorf("counted %s %d times, want only %q", result, n, c.result)
				}
			}
			if st.Learnt != 1 {
				t.Errorf("learnt %d dictionaries, want the first version alone", st.Learnt)
			}
		})
	}
}

func noise(n int) string {
	r := rand.New(rand.NewPCG(9, 9))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// What is not to be a dictionary does not become one.
func TestNoDictionaries(t *testing.T) {
	for _, c := range []struct {
		name, use, result string
		head              []string
		body              string
	}{
		{name: "private", use: useAs, head: []string{"Cache-Control", "private"}, result: "private"},
		{name: "cookie", use: useAs, head: []string{"Set-Cookie", "a=b"}, result: "private"},
		{name: "coded", use: useAs, head: []string{"Content-Encoding", "br"}, result: "coded"},
		{name: "large", use: useAs, body: script(1, 200_000, 1), result: "too_large"},
		{name: "malformed", use: `match=`, result: "refused"},
		{name: "no match", use: `id="x"`, result: "refused"},
		{name: "match is no string", use: `match=1`, result: "refused"},
		{name: "named group", use: `match="/:name"`, result: "refused"},
		{name: "regular expression", use: `match="/(a|b)"`, result: "refused"},
		{name: "query", use: `match="/js?*"`, result: "refused"},
		{name: "other host", use: `match="https://example.com/*"`, result: "refused"},
		{name: "host without scheme", use: `match="//example.com/*"`, result: "refused"},
		{name: "relative", use: `match="js/*"`, result: "refused"},
		{name: "many stars", use: `match="/` + strings.Repeat("*a", 9) + `"`, result: "refused"},
		{name: "other type", use: useAs + ", type=zip", result: "refused"},
		{name: "destination", use: useAs + `, match-dest="script"`, result: "refused"},
		{name: "destinations", use: useAs + `, match-dest=("A B")`, result: "refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := mustEdge(t, dictionary.Config{Memory: on, MaxSize: 128 << 10})
			body := script(1, 20_000, 1)
			if c.body != "" {
				body = c.body
			}
			e.put("/js/app.js", body, append([]string{"Use-As-Dictionary", c.use}, c.head...)...)
			if a := e.get("/js/app.js"); string(a.body) != body {
				t.Errorf("got %d bytes of %d", len(a.body), len(body))
			}
			if st := e.stage.Stats(); st.Learnt != 0 || st.Dictionaries != 0 || st.Results[c.result] != 1 || st.Bytes != 0 {
				t.Errorf("want none, for being %s, have %+v", c.result, st)
			}
		})
	}
}

// A dictionary is its origin's alone: host, port and tenant.
func TestOriginsDoNotShare(t *testing.T) {
	e := mustEdge(t, dictionary.Config{Memory: on, MaxSize: 1 << 20})
	one := script(1, 20_000, 1)
	e.put("/js/app.js", one, "Use-As-Dictionary", useAs)
	e.get("/js/app.js")
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, e.url+"/js/app.js", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "other.example"
	r.Header = http.Header{"Available-Dictionary": {have(one)}, "Accept-Encoding": {"dcz"}}
	res, err := e.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.Header.Get("Content-Encoding") != "" || e.stage.Stats().Results["unknown"] != 1 {
		t.Errorf("another host's dictionary was used: %v", res.Header)
	}
}

func TestRuleMakesDictionaries(t *testing.T) {
	e := mustEdge(t, dictionary.Config{Memory: on, MaxSize: 1 << 20, Rules: []dictionary.Rule{
		{Host: "127.0.0.1", Path: "/js/app.*.js", Match: "/js/app.*.js", Destinations: []string{"script"}},
	}})
	one, two := script(1, 50_000, 1), script(1, 50_000, 2)
	e.put("/js/app.1.js", one)
	e.put("/js/app.2.js", two)
	e.put("/js/other.js", one)
	if got, want := e.get("/js/app.1.js").Header.Get("Use-As-Dictionary"), `match="/js/app.*.js", match-dest=("script")`; got != want {
		t.Errorf("Use-As-Dictionary is %q, want %q", got, want)
	}
	if got := e.get("/js/other.js").Header.Get("Use-As-Dictionary"); got != "" {
		t.Errorf("another path has Use-As-Dictionary: %q", got)
	}
	if got := decode(t, e.get("/js/app.2.js", "Available-Dictionary", have(one), "Sec-Fetch-Dest", "script"), one); got != two {
		t.Error("the second version is not what the first one and the delta make")
	}
	if n := e.coded.Load(); n != 2 {
		t.Errorf("the origin was asked for content codings %d times, want it only for the clients without a dictionary", n)
	}
}

// Memory holds whatever is learnt, and comes back.
func TestMemoryBound(t *testing.T) {
	e := mustEdge(t, dictionary.Config{Memory: on, MaxSize: 4 << 20})
	for i := range 24 {
		body := noise(3<<20 - i)
		e.put("/js/app.js", body, "Use-As-Dictionary", useAs, "Cache-Control", "public, max-age=0")
		if a := e.get("/js/app.js"); string(a.body) != body {
			t.Fatal("not the body of this time")
		}
		if st := e.stage.Stats(); st.Bytes > st.Limit {
			t.Fatalf("%d bytes held, above the limit of %d", st.Bytes, st.Limit)
		}
	}
	st := e.stage.Stats()
	if st.Learnt != 24 || st.Evicted == 0 || st.Dictionaries != int(st.Learnt-st.Evicted) {
		t.Errorf("want the oldest forgotten: %+v", st)
	}
	var kept int64 = int64(st.Dictionaries) * 3 << 20
	if st.Bytes < kept || st.Bytes > kept*11/10 {
		t.Errorf("%d dictionaries of 3 MiB are charged with %d bytes", st.Dictionaries, st.Bytes)
	}
}

// An origin that breaks off breaks the client's answer too, and teaches nothing.
func TestBrokenBody(t *testing.T) {
	e := mustEdge(t, dictionary.Config{Memory: on, MaxSize: 1 << 20})
	one := script(1, 50_000, 1)
	e.put("/js/app.1.js", one, "Use-As-Dictionary", useAs)
	e.get("/js/app.1.js")
	e.put("/js/app.2.js", one[:20_000], "Content-Length", "50000", "Use-As-Dictionary", useAs)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, e.url+"/js/app.2.js", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{"Available-Dictionary": {have(one)}, "Accept-Encoding": {"dcz"}}
	res, err := e.http.Do(r)
	if err == nil {
		defer res.Body.Close()
		if _, err = io.ReadAll(res.Body); err == nil && res.StatusCode == http.StatusOK {
			t.Error("half a body passed for a whole one")
		}
	}
	if st := e.stage.Stats(); st.Learnt != 1 || st.Results["sent"] != 0 {
		t.Errorf("want nothing learnt of it: %+v", st)
	}
}

// A body of unknown length goes on as it comes, and is encoded once the cache has all of it.
func TestUnknownLength(t *testing.T) {
	e := mustEdge(t, dictionary.Config{Memory: on, MaxSize: 1 << 20})
	one, two := script(1, 50_000, 1), script(1, 50_000, 2)
	e.put("/js/app.1.js", one, "Use-As-Dictionary", useAs)
	e.get("/js/app.1.js")
	e.put("/js/app.2.js", two)
	half := make(chan struct{})
	e.mu.Lock()
	e.pages["/js/app.2.js"] = page{two, e.pages["/js/app.2.js"].head, half}
	e.mu.Unlock()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, e.url+"/js/app.2.js", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{"Available-Dictionary": {have(one)}, "Accept-Encoding": {"dcz"}}
	res, err := e.http.Do(r)
	close(half) // the head came before the end of the body, or this test would wait for ever
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, err := io.ReadAll(res.Body); err != nil || string(body) != two || res.Header.Get("Content-Encoding") != "" {
		t.Errorf("%d bytes, %v, with %v", len(body), err, res.Header)
	}
	if got := decode(t, e.get("/js/app.2.js", "Available-Dictionary", have(one)), one); got != two {
		t.Error("from the cache came something else")
	}
}

func TestConcurrentClients(t *testing.T) {
	e := mustEdge(t, dictionary.Config{Memory: on, MaxSize: 1 << 20})
	one, two := script(1, 50_000, 1), script(1, 50_000, 2)
	e.put("/js/app.1.js", one, "Use-As-Dictionary", useAs)
	e.put("/js/app.2.js", two, "Use-As-Dictionary", useAs)
	e.get("/js/app.1.js")
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if got := decode(t, e.get("/js/app.2.js", "Available-Dictionary", have(one)), one); got != two {
				t.Error("a client got something else")
			}
		})
	}
	wg.Wait()
	if st := e.stage.Stats(); st.Results["sent"] != 16 || st.Dictionaries != 2 {
		t.Errorf("want 16 sent: %+v", st)
	}
}

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		cfg  dictionary.Config
		want string
	}{
		{dictionary.Default(), ""},
		{dictionary.Config{Memory: on, MaxSize: 4 << 20, Rules: []dictionary.Rule{{Host: "*", Path: "/a*.js", Match: "/*", Destinations: []string{"script"}}}}, ""},
		{dictionary.Config{Memory: 1 << 20, MaxSize: 1 << 20}, "memory: 1MiB is neither 0 nor at least 64MiB"},
		{dictionary.Config{MaxSize: 5 << 20}, "max_size: 5MiB is not between 512 and 4MiB"},
		{dictionary.Config{MaxSize: 1 << 20, Rules: []dictionary.Rule{{Host: "*", Path: "/", Match: "/"}}}, "rules: nothing follows them while memory is 0"},
		{dictionary.Config{Memory: on, MaxSize: 1 << 20, Rules: []dictionary.Rule{{Host: "a:1", Path: "x", Match: "/{a}", Destinations: []string{"S"}}}}, "rules[0].host"},
	} {
		err := c.cfg.Validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.cfg, err, c.want)
		}
	}
}
