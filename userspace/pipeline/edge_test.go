package pipeline_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/bermedge/berm/userspace/cache"
	"github.com/bermedge/berm/userspace/clock"
	"github.com/bermedge/berm/userspace/demo"
	"github.com/bermedge/berm/userspace/origin"
	"github.com/bermedge/berm/userspace/pipeline"
)

// edge is the whole list as the daemon puts it together, between the demo origin and an h1 and an h2 listener.
type edge struct {
	cache  *cache.Cache
	origin *origin.Client
	demo   *demo.Origin
	pipe   *pipeline.Pipeline
	h1, h2 *httptest.Server
}

func newEdge(t testing.TB, opts ...pipeline.Option) *edge {
	t.Helper()
	e := &edge{demo: demo.New(clock.System{})}
	back := httptest.NewServer(e.demo)
	cfg := origin.DefaultConfig()
	cfg.URLs = []string{back.URL}
	var err error
	if e.origin, err = origin.New("edge1", map[string]origin.Config{"demo": cfg}); err != nil {
		t.Fatal(err)
	}
	if e.cache, err = cache.New(cache.DefaultConfig(), e.origin, clock.System{}); err != nil {
		t.Fatal(err)
	}
	routes, err := pipeline.NewRoutes([]pipeline.RouteConfig{{Host: "*", Path: "/", Origin: "demo"}})
	if err != nil {
		t.Fatal(err)
	}
	e.pipe = mustNew(t, []pipeline.Stage{pipeline.Identify{}, routes, e.cache, origin.Stage{Client: e.origin}}, opts...)
	e.h1 = httptest.NewServer(e.pipe)
	e.h2 = httptest.NewUnstartedServer(e.pipe)
	e.h2.EnableHTTP2 = true
	e.h2.StartTLS()
	t.Cleanup(func() {
		e.h1.Close()
		e.h2.Close()
		e.cache.Close()
		e.origin.Close()
		back.Close()
	})
	return e
}

// A thousand objects over h1 and h2, each asked for several times in any order by many clients at once: every byte is
// right, and the origin is asked once for each object.
func TestEdgeServesAThousandObjects(t *testing.T) {
	const clients = 3
	objects := 1000
	if raceEnabled { // ten times slower: the same in small
		objects = 200
	}
	e := newEdge(t)
	for _, srv := range []*httptest.Server{e.h1, e.h2} {
		client := srv.Client()
		if tr, ok := client.Transport.(*http.Transport); ok {
			tr.MaxIdleConnsPerHost = clients
		}
		var wg sync.WaitGroup
		for c := range clients {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(c), 1))
				for _, n := range r.Perm(objects) {
					size := 100 + n*37
					res, err := client.Get(fmt.Sprintf("%s/objects/%d?size=%d", srv.URL, n, size))
					if err != nil {
						t.Error(err)
						return
					}
					got, err := io.ReadAll(res.Body)
					res.Body.Close()
					want := make([]byte, size)
					demo.Fill(want, uint64(n), 0)
					if err != nil || res.StatusCode != 200 || !bytes.Equal(got, want) {
						t.Errorf("object %d: %d, %d bytes of %d, %v", n, res.StatusCode, len(got), size, err)
					}
				}
			})
		}
		wg.Wait()
	}
	// http and https URLs are different resources.
	if got := e.demo.Served(); got != uint64(2*objects) {
		t.Errorf("the origin served %d requests, want %d", got, 2*objects)
	}
	s := e.cache.Stats()
	if asked := uint64(2 * clients * objects); s.Hits+s.Collapsed+s.Misses != asked || s.Misses != uint64(2*objects) {
		t.Errorf("%d hits, %d collapsed, %d misses of %d", s.Hits, s.Collapsed, s.Misses, asked)
	}
}

func TestEdgeAnswersOverEachProtocol(t *testing.T) {
	e := newEdge(t)
	get := func(srv *httptest.Server, method, path string, fields ...string) *http.Response {
		q, _ := http.NewRequest(method, srv.URL+path, strings.NewReader(""))
		for i := 0; i+1 < len(fields); i += 2 {
			q.Header.Set(fields[i], fields[i+1])
		}
		res, err := srv.Client().Do(q)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if err != nil {
			t.Error(err)
		}
		return res
	}
	for _, c := range []struct {
		srv   *httptest.Server
		proto string
	}{{e.h1, "HTTP/1.1"}, {e.h2, "HTTP/2.0"}} {
		for _, want := range []struct {
			method, path string
			fields       []string
			status       int
			cacheStatus  string
		}{
			{"GET", "/", nil, 200, "berm; fwd=uri-miss; fwd-status=200; stored"},
			{"GET", "/", nil, 200, "berm; hit; ttl=60"},
			{"HEAD", "/", nil, 200, "berm; hit; ttl=60"},
			{"GET", "/", []string{"Range", "bytes=0-9"}, 206, "berm; hit; ttl=60"},
			{"GET", "/", []string{"If-None-Match", `"index"`}, 304, "berm; hit; ttl=60"},
			{"GET", "/uncacheable", nil, 200, "berm; fwd=uri-miss; fwd-status=200"},
			{"GET", "/uncacheable", nil, 200, "berm; fwd=uri-miss; fwd-status=200"}, // passed on, by the mark
			{"POST", "/", nil, 405, "berm; fwd=method; fwd-status=405"},
			{"GET", "/status/500", nil, 500, "berm; fwd=uri-miss; fwd-status=500"},
		} {
			res := get(c.srv, want.method, want.path, want.fields...)
			got := res.Header.Get("Cache-Status")
			// A second may have passed since the object was stored.
			ok := got == want.cacheStatus || strings.HasSuffix(want.cacheStatus, "ttl=60") && strings.HasPrefix(got, "berm; hit; ttl=5")
			if res.Proto != c.proto || res.StatusCode != want.status || !ok {
				t.Errorf("%s %s %s: %s %d %q, want %d %q", c.proto, want.method, want.path, res.Proto, res.StatusCode, got, want.status, want.cacheStatus)
			}
		}
	}
}

func TestEdgeRefusesALoop(t *testing.T) {
	e := newEdge(t)
	q, _ := http.NewRequest("GET", e.h1.URL+"/x", nil)
	q.Header.Set("CDN-Loop", "edge1")
	res, err := e.h1.Client().Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusLoopDetected {
		t.Errorf("%d", res.StatusCode)
	}
}

// BenchmarkEdgeHit is a hit through a real listener and net/http's client, both in this process.
func BenchmarkEdgeHit(b *testing.B) {
	e := newEdge(b)
	for name, srv := range map[string]*httptest.Server{"h1": e.h1, "h2": e.h2} {
		for _, size := range []int{1 << 10, 100 << 10} {
			b.Run(name+"/"+strconv.Itoa(size>>10)+"KiB", func(b *testing.B) {
				url := fmt.Sprintf("%s/objects/1?size=%d", srv.URL, size)
				tr := srv.Client().Transport.(*http.Transport)
				tr.MaxIdleConnsPerHost = 64
				if tr.TLSClientConfig != nil { // of h1 in the clear there is none
					tr.TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(1)
				}
				b.SetParallelism(16)
				b.SetBytes(int64(size))
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						res, err := srv.Client().Get(url)
						if err != nil {
							b.Error(err)
							return
						}
						io.Copy(io.Discard, res.Body)
						res.Body.Close()
					}
				})
			})
		}
	}
}
