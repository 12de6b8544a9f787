package paths

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
	"github.com/bermedge/berm/test/rig/wan"
	"github.com/bermedge/berm/userspace/cache"
	"github.com/bermedge/berm/userspace/clock"
	"github.com/bermedge/berm/userspace/diagnose"
	"github.com/bermedge/berm/userspace/origin"
	"github.com/bermedge/berm/userspace/pipeline"
)

// fault is what each segment gets in addition.
const fault = 100 * time.Millisecond

// busyStage is an edge that takes its time over some requests.
type busyStage struct{}

func (busyStage) Name() string { return "busy" }

func (busyStage) Run(x *pipeline.Exchange) pipeline.Action {
	if x.R.URL.Path == "/"+diagnose.Edge {
		time.Sleep(fault) // sleep: this is the fault
	}
	return pipeline.Next
}

// recorder is the observer of one trial.
type recorder struct {
	now atomic.Pointer[diagnose.Recorder]
}

func (r *recorder) Exchange(x *pipeline.Exchange, out pipeline.Outcome) {
	r.now.Load().Exchange(x, out)
}

// mustPipeline is an edge before an origin that takes its time over some requests, and has nothing stored.
func mustPipeline(t *testing.T, r *recorder) *pipeline.Pipeline {
	t.Helper()
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/"+diagnose.Origin {
			time.Sleep(fault) // sleep: this is the fault
		}
		w.Header().Set("Cache-Control", "no-store")
		_, _ = io.WriteString(w, "here you are")
	}))
	t.Cleanup(back.Close)
	cfg := origin.DefaultConfig()
	cfg.URLs = []string{back.URL}
	fetcher, err := origin.New("edge1", map[string]origin.Config{"o": cfg})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fetcher.Close() })
	memory, err := cache.New(cache.DefaultConfig(), fetcher, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { memory.Close() })
	routes, err := pipeline.NewRoutes([]pipeline.RouteConfig{{Host: "*", Path: "/", Origin: "o"}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := pipeline.New([]pipeline.Stage{pipeline.Identify{}, busyStage{}, routes, memory, origin.Stage{Client: fetcher}}, pipeline.WithObserver(r))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Three clients are slow, each for another reason: each time the right segment is named.
func TestDiagnose(t *testing.T) {
	k := mapstest.New(t)
	mapstest.ObserveTCP(t, k)
	near, far := wan.Profile{Delay: 5 * time.Millisecond}, wan.Profile{Delay: 5*time.Millisecond + fault/2}
	edge, world := mustWorld(t, map[string]wan.Both{diagnose.Network: wan.Same(far), diagnose.Edge: wan.Same(near), diagnose.Origin: wan.Same(near)})
	var seen recorder
	seen.now.Store(diagnose.NewRecorder())
	srv := &http.Server{Handler: mustPipeline(t, &seen), ReadHeaderTimeout: time.Minute}
	ln := mustListen(t, edge)
	go func() { _ = srv.Serve(ln) }() // ends with the test
	t.Cleanup(func() { srv.Close() })

	const trials = 10
	right := map[string]int{}
	for n := range trials {
		seen.now.Store(diagnose.NewRecorder())
		var all sync.WaitGroup
		for segment, p := range world {
			all.Go(func() {
				if err := p.ask(t, segment); err != nil {
					t.Errorf("%s: %v", segment, err)
				}
			})
		}
		all.Wait()
		for segment, p := range world {
			path, err := k.Paths.Get(p.addr, maps.ProtocolTCP)
			times, ok := seen.now.Load().Get(p.addr)
			if err != nil || !ok {
				t.Fatalf("%s: %v, requests %v", segment, err, ok)
			}
			d := diagnose.Of(&path, &times)
			if d.Segment == segment {
				right[segment]++
			} else {
				t.Errorf("%s: trial %d: %+v", segment, n, d)
			}
			if n == trials-1 {
				t.Logf("%s: %s: network %s, edge %s, origin %s: %s", segment, d.Segment, d.Network, d.Edge, d.Origin, d.Why)
			}
		}
	}
	t.Logf("right of %d each: %v", trials, right)
}

// ask makes two requests over a connection of its own.
func (p *prefix) ask(t *testing.T, path string) error {
	tr := &http.Transport{DialContext: p.dial}
	defer tr.CloseIdleConnections()
	for range 2 {
		q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://edge.example/"+path, nil)
		if err != nil {
			return err
		}
		res, err := tr.RoundTrip(q)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %w", res.Status, err)
		}
	}
	return nil
}
