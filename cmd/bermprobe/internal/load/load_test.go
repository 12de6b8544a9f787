package load

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"
)

// edge serves one handler over h1, h2 and h3 on one port, as bermd does.
func edge(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	pc, err := net.ListenPacket("udp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	h3 := &http3.Server{Handler: h, TLSConfig: http3.ConfigureTLSConfig(&tls.Config{Certificates: srv.TLS.Certificates})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = h3.Serve(pc) })
	t.Cleanup(func() { _ = h3.Close(); _ = pc.Close(); wg.Wait() })
	return srv.URL
}

func TestProtocols(t *testing.T) {
	var mu sync.Mutex
	paths := map[string]int{}
	url := edge(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		n := paths[r.URL.Path]
		paths[r.URL.Path]++
		mu.Unlock()
		w.Header().Set("X-Proto", r.Proto)
		w.Header().Set("Cache-Status", []string{`origin; hit, edge1; fwd=uri-miss`, `origin; fwd=miss, edge1; hit; ttl=30`}[min(n, 1)])
		fmt.Fprint(w, strings.Repeat("x", 1000))
	})
	for proto, want := range map[string]string{"h1": "HTTP/1.1", "h2": "HTTP/2.0", "h3": "HTTP/3.0"} {
		t.Run(proto, func(t *testing.T) {
			clear(paths)
			o := Options{
				URL: url + "/{n}", Proto: proto, Conns: 2, Streams: 1, Requests: 60, Objects: 20, Method: "GET",
				Duration: time.Minute, Timeout: 5 * time.Second, Tally: "X-Proto",
			}
			if err := o.Validate(); err != nil {
				t.Fatal(err)
			}
			r, err := Run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if r.OK != 60 || r.Errors != 0 || r.Status["200"] != 60 || r.Bytes != 60000 || r.Unsent != 0 {
				t.Errorf("%+v", r)
			}
			if r.Protos[want] != 60 || r.Tally[want] != 60 {
				t.Errorf("protocols %v, as the server saw them %v; want %s", r.Protos, r.Tally, want)
			}
			if r.Hits != 40 || r.Cache["fwd=uri-miss"] != 20 {
				t.Errorf("hits %d, cache %v; want 40 hits and 20 misses", r.Hits, r.Cache)
			}
			mu.Lock()
			defer mu.Unlock()
			if len(paths) != 20 {
				t.Errorf("%d different objects, want 20", len(paths))
			}
		})
	}
}

func TestReconnectUsesNewConnections(t *testing.T) {
	for _, proto := range []string{"h1", "h2", "h3"} {
		var mu sync.Mutex
		remotes := map[string]bool{}
		url := edge(t, func(_ http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			remotes[r.RemoteAddr] = true
		})
		o := Options{
			URL: url, Proto: proto, Conns: 1, Streams: 1, Requests: 8, Objects: 1, Method: "GET",
			Duration: time.Minute, Timeout: 5 * time.Second, Reconnect: true,
		}
		r, err := Run(t.Context(), o)
		if err != nil || r.OK != 8 {
			t.Fatalf("%s: %v %+v", proto, err, r)
		}
		mu.Lock()
		if len(remotes) != 8 {
			t.Errorf("%s: 8 requests came over %d connections, want 8", proto, len(remotes))
		}
		mu.Unlock()
	}
}

// A server that stands still for a while must show in the latency of every request that
// was due meanwhile, not only of the one that was in flight.
func TestStallIsNotOmitted(t *testing.T) {
	var stalled atomic.Bool
	url := edge(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/50" && stalled.CompareAndSwap(false, true) {
			select {
			case <-time.After(300 * time.Millisecond): // the stall under test
			case <-r.Context().Done():
			}
		}
	})
	o := Options{
		URL: url + "/{n}", Proto: "h1", Conns: 1, Streams: 1, Requests: 200, Objects: 200, Rate: 200, Method: "GET",
		Duration: time.Minute, Timeout: 5 * time.Second,
	}
	r, err := Run(t.Context(), o)
	if err != nil || r.OK != 200 {
		t.Fatalf("%v %+v", err, r)
	}
	// 60 of 200 requests were due during the stall; the service time knows of one.
	if r.Latency.P90 < 50 {
		t.Errorf("p90 latency %.1f ms: the stall was hidden", r.Latency.P90)
	}
	if r.Service.P90 > r.Latency.P90 {
		t.Errorf("p90 service %.1f ms above latency %.1f ms", r.Service.P90, r.Latency.P90)
	}
}

func TestErrorsAreCountedByKind(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	_ = l.Close()
	o := Options{URL: url, Proto: "h1", Conns: 1, Streams: 1, Requests: 5, Objects: 1, Method: "GET", Duration: time.Minute, Timeout: time.Second}
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if r.OK != 0 || r.Errors != 5 || len(r.Failures) != 1 {
		t.Errorf("%+v", r)
	}
	for k := range r.Failures {
		if !strings.Contains(k, "connection refused") || strings.Contains(k, "127.0.0.1") {
			t.Errorf("failure %q: want the cause and no address", k)
		}
	}
}

func TestUnsent(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	url := edge(t, func(_ http.ResponseWriter, r *http.Request) {
		<-ctx.Done() // nobody is answered
	})
	defer cancel()
	o := Options{URL: url, Proto: "h1", Conns: 1, Streams: 1, Rate: 100, Objects: 1, Method: "GET", Duration: 200 * time.Millisecond, Timeout: 300 * time.Millisecond}
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if r.Errors != 1 || r.Unsent != 19 || r.Failures["timeout"] != 1 {
		t.Errorf("errors %d, unsent %d, failures %v; want 1, 19 and one timeout", r.Errors, r.Unsent, r.Failures)
	}
}

func TestHistogram(t *testing.T) {
	var h histogram
	var all []time.Duration
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		d := time.Duration(rng.ExpFloat64() * float64(3*time.Millisecond))
		h.add(d)
		all = append(all, d)
	}
	slices.Sort(all)
	for _, q := range []float64{.001, .5, .9, .99, .999, 1} {
		want := all[int(q*float64(len(all))+.5)-1]
		got := h.quantile(q)
		if diff := float64(got-want) / float64(want); diff < -.01 || diff > .02 {
			t.Errorf("quantile %g: %s, want %s", q, got, want)
		}
	}
	for _, v := range []uint64{0, 1, 127, 128, 255, 256, 257, 1 << 20, 1<<40 + 12345, 1<<63 - 1} {
		i := bucket(v)
		if upper(i) < v || i > 0 && upper(i-1) >= v {
			t.Errorf("bucket(%d) = %d, which covers (%d, %d]", v, i, upper(i-1), upper(i))
		}
	}
}

func TestValidate(t *testing.T) {
	bad := Options{URL: "ftp://x", Proto: "h1", Conns: 0, Streams: 2, Rate: -1, Duration: 0, Objects: 0, Source: "x", Header: []string{"nocolon"}}
	err := bad.Validate()
	for _, want := range []string{"URL", "--conns", "--streams", "--rate", "--duration", "--objects", "--source", "--header"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no complaint about %s in: %v", want, err)
		}
	}
}
