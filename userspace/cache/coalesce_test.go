package cache

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bermedge/berm/userspace/pipeline"
)

// require skips a test that the machine cannot run; in CI a skip is a failure.
func require(t testing.TB, err error) {
	t.Helper()
	if err != nil && os.Getenv("BERM_NO_SKIP") != "" {
		t.Fatal("may not skip:", err)
	} else if err != nil {
		t.Skip(err)
	}
}

// Five thousand clients ask for the same uncached object at once: the origin sees one request, and everybody gets all
// of it, as it comes.
func TestFiveThousandColdRequests(t *testing.T) {
	const clients = 5000
	data := pattern(20_000)
	release := make(chan struct{})
	r := newLooseRig(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		w.Header().Set("Content-Length", "20000")
		<-release
		w.Write(data)
	})
	// net.Pipe would hide the sockets; 5,000 of them are 10,000 descriptors, so the stage is called directly.
	var wg sync.WaitGroup
	var bad, collapsed atomic.Int64
	writers := make([]*memory, clients)
	for i := range clients {
		writers[i] = &memory{h: http.Header{}}
		wg.Go(func() {
			w := writers[i]
			q, _ := http.NewRequest("GET", "http://example.com/big", nil)
			q.RemoteAddr = "192.0.2.1:1"
			r.pipe.ServeHTTP(w, q)
			if w.status != 200 || !bytes.Equal(w.b.Bytes(), data) {
				bad.Add(1)
			}
			if strings.Contains(w.h.Get("Cache-Status"), "collapsed") {
				collapsed.Add(1)
			}
		})
	}
	eventually(t, "all wait", func() bool { return r.waiting("/big") == clients })
	close(release)
	wg.Wait()
	r.origins(1)
	slices.SortFunc(writers, func(a, b *memory) int { return a.first.Compare(b.first) })
	behind := func(i int) time.Duration { return writers[i].first.Sub(writers[0].first) }
	t.Logf("behind the first of %d to get a byte: median %s, last %s", clients, behind(clients/2), behind(clients-1))
	if bad.Load() != 0 || collapsed.Load() != clients-1 {
		t.Errorf("%d wrong answers, %d collapsed of %d", bad.Load(), collapsed.Load(), clients)
	}
}

// waiting returns how many requests wait for the flight of a path.
func (r *rig) waiting(path string) int {
	key := "\x00\x00\x00\x00http://example.com" + path
	sh := r.cache.store.shard([]byte(key))
	sh.mu.Lock()
	defer sh.mu.Unlock()
	n := 0
	if res := sh.resources[key]; res != nil {
		for _, f := range res.flights {
			n += f.waiters
		}
	}
	return n
}

// memory is a ResponseWriter that keeps everything.
type memory struct {
	h      http.Header
	status int
	b      bytes.Buffer
	first  time.Time // when the first byte of the body came
}

func (m *memory) Header() http.Header    { return m.h }
func (m *memory) WriteHeader(status int) { m.status = status }
func (m *memory) Write(p []byte) (int, error) {
	if m.first.IsZero() {
		m.first = time.Now()
	}
	return m.b.Write(p)
}
func (m *memory) Flush() {}

// stream is a request whose answer is read by hand.
type stream struct {
	res    *http.Response
	cancel context.CancelFunc
	rd     *bufio.Reader
}

func (r *rig) open(path string, fields ...string) *stream {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r.t.Cleanup(cancel)
	q, err := http.NewRequestWithContext(ctx, "GET", r.edge.URL+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	q.Host = "example.com"
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		q.Header.Add(name, value)
	}
	res, err := testClient.Do(q)
	if err != nil {
		r.t.Errorf("open %s: %v", path, err)
		return nil
	}
	return &stream{res, cancel, bufio.NewReader(res.Body)}
}

// need reads exactly what is expected, without waiting for more.
func (s *stream) need(t testing.TB, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(s.rd, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes: %v, equal: %t", len(want), err, bytes.Equal(got, want))
	}
}

// steps is an origin that sends a body in steps, each when the test says so.
type steps struct {
	next chan []byte
	head []string
	gone chan struct{} // closed when the edge broke the fetch off
}

func newSteps(head ...string) *steps {
	return &steps{make(chan []byte), head, make(chan struct{})}
}

func (s *steps) serve(w http.ResponseWriter, q *http.Request) {
	for _, f := range s.head {
		name, value, _ := strings.Cut(f, ": ")
		w.Header().Add(name, value)
	}
	w.WriteHeader(200)
	w.(http.Flusher).Flush()
	for {
		select {
		case p, ok := <-s.next:
			if !ok {
				return
			}
			w.Write(p)
			w.(http.Flusher).Flush()
		case <-q.Context().Done():
			close(s.gone)
			return
		}
	}
}

func TestBodyReachesAllWaitersAsItComes(t *testing.T) {
	o := newSteps("Cache-Control: max-age=60")
	r := newLooseRig(t, o.serve)
	data := pattern(3000)
	lead := r.open("/x") // its head is here before a byte of the body is
	follow := r.open("/x")
	for i := 0; i < 3; i++ {
		o.next <- data[i*1000 : (i+1)*1000]
		lead.need(t, data[i*1000:(i+1)*1000])
		follow.need(t, data[i*1000:(i+1)*1000])
	}
	late := r.open("/x")
	late.need(t, data)
	close(o.next)
	for _, s := range []*stream{lead, follow, late} {
		if rest, err := io.ReadAll(s.rd); len(rest) != 0 || err != nil {
			t.Errorf("after the end: %d bytes, %v", len(rest), err)
		}
	}
	if got := follow.res.Header.Get("Cache-Status"); got != "berm; fwd=miss; collapsed" {
		t.Errorf("the follower's Cache-Status is %q", got)
	}
	r.origins(1)
}

func TestLeaderLeavesAndTheOthersFinish(t *testing.T) {
	o := newSteps("Cache-Control: max-age=60")
	r := newLooseRig(t, o.serve)
	data := pattern(10_000)
	lead := r.open("/x")
	follow := r.open("/x")
	o.next <- data[:1000]
	lead.need(t, data[:1000])
	lead.cancel()
	o.next <- data[1000:]
	close(o.next)
	follow.need(t, data)
	eventually(t, "the body is whole", func() bool { return r.cache.Stats().InFlight == 0 })
	r.get("/x").want(t, "stored", 200, string(data), "hit; ttl=60")
	r.origins(1)
}

func TestLeaderLeavesBeforeTheHead(t *testing.T) {
	release := make(chan struct{})
	cut := make(chan struct{})
	r := newLooseRig(t, func(w http.ResponseWriter, q *http.Request) {
		select {
		case <-release:
		case <-q.Context().Done():
			close(cut)
			return
		}
		w.Header().Set("Cache-Control", "max-age=60")
		fmt.Fprint(w, "body")
	})
	leave := func(path string) context.CancelFunc {
		ctx, cancel := context.WithCancel(context.Background())
		q, _ := http.NewRequestWithContext(ctx, "GET", r.edge.URL+path, nil)
		q.Host = "example.com"
		go testClient.Do(q) // cancelled
		eventually(t, "it waits", func() bool { return r.waiting(path) == 1 })
		return cancel
	}
	// Somebody else waits: the fetch goes on for them.
	cancel := leave("/a")
	got := make(chan answer)
	go func() { got <- r.get("/a") }()
	eventually(t, "two wait", func() bool { return r.waiting("/a") == 2 })
	cancel()
	eventually(t, "one waits", func() bool { return r.waiting("/a") == 1 })
	close(release)
	if a := <-got; a.body != "body" {
		t.Errorf("the follower got %d %q", a.StatusCode, a.body)
	}
	r.origins(1)
	// Nobody waits: the fetch is broken off.
	release = make(chan struct{})
	leave("/b")()
	select {
	case <-cut:
	case <-time.After(10 * time.Second):
		t.Error("the fetch that nobody waits for goes on")
	}
	eventually(t, "no fetch is left", func() bool { return r.cache.Stats().InFlight == 0 })
}

// What may not be shared is fetched by each, side by side: nobody queues behind the slowest.
func TestUncacheableRunsInParallel(t *testing.T) {
	const clients = 8
	for _, head := range []string{"private", "no-cache", "max-age=0"} {
		var now, most atomic.Int64
		first := make(chan struct{})
		all := make(chan struct{})
		var once sync.Once
		r := newLooseRig(t, func(w http.ResponseWriter, q *http.Request) {
			n := now.Add(1)
			defer now.Add(-1)
			for {
				m := most.Load()
				if n <= m || most.CompareAndSwap(m, n) {
					break
				}
			}
			w.Header().Set("Cache-Control", head)
			w.Header().Set("Etag", `"a"`)
			select {
			case <-first: // a later one: waits until all the others are here too
				if n == clients-1 {
					once.Do(func() { close(all) })
				}
				<-all
			default:
				for q.Context().Err() == nil { // the first one: until all wait for it
					if w := r0.Load(); w != nil && w.waiting("/x") == clients {
						break
					}
					time.Sleep(time.Millisecond) // sleep: polls
				}
				close(first)
			}
			fmt.Fprint(w, "mine")
		})
		r0.Store(r)
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				if a := r.get("/x"); a.StatusCode != 200 || a.body != "mine" {
					t.Errorf("%s: %d %q", head, a.StatusCode, a.body)
				}
			})
		}
		wg.Wait()
		r.origins(clients)
		if most.Load() < clients-1 {
			t.Errorf("%s: at most %d were at the origin at once, want %d", head, most.Load(), clients-1)
		}
	}
}

var r0 atomic.Pointer[rig]

func TestVariantsDoNotShareAFetch(t *testing.T) {
	release := make(chan struct{})
	r := newLooseRig(t, func(w http.ResponseWriter, q *http.Request) {
		<-release
		w.Header().Set("Cache-Control", "max-age=60")
		w.Header().Set("Vary", "X-A")
		fmt.Fprint(w, q.Header.Get("X-A"))
	})
	const each = 10
	var wg sync.WaitGroup
	for i := range 3 * each {
		want := fmt.Sprint("v", i%3)
		wg.Go(func() {
			if a := r.get("/x", "X-A: "+want); a.body != want {
				t.Errorf("asked for %s, got %q", want, a.body)
			}
		})
	}
	eventually(t, "all wait", func() bool { return r.waiting("/x") == 3*each })
	close(release)
	wg.Wait()
	r.origins(3)
}

func TestFailureIsSharedByAllWaiters(t *testing.T) {
	for name, fail := range map[string]func(http.ResponseWriter){
		"502 503": func(w http.ResponseWriter) { w.WriteHeader(503) },
		"502":     func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
	} {
		release := make(chan struct{})
		r := newLooseRig(t, func(w http.ResponseWriter, _ *http.Request) { <-release; fail(w) })
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if a := r.get("/x"); !strings.Contains(name, fmt.Sprint(a.StatusCode)) {
					t.Errorf("%s: %d", name, a.StatusCode)
				}
			})
		}
		eventually(t, "all wait", func() bool { return r.waiting("/x") == 20 })
		close(release)
		wg.Wait()
		r.origins(1)
		eventually(t, "nothing is kept", func() bool { s := r.cache.Stats(); return s.Bytes == 0 && s.Objects == 0 })
	}
}

func TestPurgeWhileUnderWay(t *testing.T) {
	// Before the head: the waiters get the answer, and nobody after them.
	release := make(chan struct{})
	r := newLooseRig(t, func(w http.ResponseWriter, _ *http.Request) {
		<-release
		w.Header().Set("Cache-Control", "max-age=60")
		fmt.Fprint(w, "body")
	})
	got := make(chan answer)
	go func() { got <- r.get("/x") }()
	eventually(t, "it waits", func() bool { return r.waiting("/x") == 1 })
	r.cache.Purge(0, "example.com/x")
	close(release)
	(<-got).want(t, "waiter", 200, "body", "berm; fwd=uri-miss; fwd-status=200")
	r.get("/x").want(t, "after", 200, "body", "stored")
	r.origins(2)

	// After it: who reads goes on reading.
	o := newSteps("Cache-Control: max-age=60")
	r = newLooseRig(t, o.serve)
	s := r.open("/x")
	o.next <- []byte("one ")
	s.need(t, []byte("one "))
	if n, _ := r.cache.Purge(0, "example.com/x"); n != 1 {
		t.Errorf("purged %d objects, want the one under way", n)
	}
	o.next <- []byte("two")
	close(o.next)
	s.need(t, []byte("two"))
	eventually(t, "all is released", func() bool { return r.cache.Stats().Bytes == 0 })
}

// rawOrigin speaks HTTP by hand: it sends each answer and closes.
func rawOrigin(t *testing.T, answers ...string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for i := 0; ; i++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			http.ReadRequest(bufio.NewReader(c)) // whatever it is
			io.WriteString(c, answers[min(i, len(answers)-1)])
			c.Close()
		}
	}()
	return "http://" + l.Addr().String()
}

func TestCutBodiesAreNotKept(t *testing.T) {
	for _, c := range []struct{ name, first string }{
		{"short of its length", "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 100\r\n\r\nonly this"},
		{"chunked, cut in a chunk", "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n20\r\nonly this"},
		{"chunked, without the last chunk", "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nonly\r\n"},
	} {
		r := newLooseRig(t, nil)
		base := rawOrigin(t, c.first, "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 5\r\n\r\nwhole")
		r.cache.origin = direct{base, &http.Transport{DisableKeepAlives: true}}
		if res, err := testClient.Get(r.edge.URL + "/x"); err == nil { // or the head was not even sent
			if b, err := io.ReadAll(res.Body); err == nil && res.StatusCode != http.StatusBadGateway {
				t.Errorf("%s: the client took %q for whole", c.name, b)
			}
			res.Body.Close()
		}
		eventually(t, "it is forgotten", func() bool { s := r.cache.Stats(); return s.Objects == 0 && s.Bytes == 0 && s.Incomplete == 1 })
		r.get("/x").want(t, c.name+", again", 200, "whole", "stored")
	}
	// Ended by the connection alone: passed on, never kept.
	r := newLooseRig(t, nil)
	base := rawOrigin(t, "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n\r\nwhole or not")
	r.cache.origin = direct{base, &http.Transport{DisableKeepAlives: true}}
	r.get("/x").want(t, "undelimited", 200, "whole or not", "berm; fwd=uri-miss; fwd-status=200")
	if s := r.cache.Stats(); s.NotStored[whyUndelimited] != 1 {
		t.Errorf("stats %+v", s)
	}
}

// A request that comes to a body when that is known to be cut gets an error that says so, instead of a broken answer.
func TestCutBodyIsRefused(t *testing.T) {
	r := newLooseRig(t, nil)
	o := &object{status: http.StatusOK, body: newBody(&r.cache.store.bank, 100)}
	if err := o.body.finish(nil); err == nil {
		t.Fatal("a body without its bytes is whole")
	}
	x := &pipeline.Exchange{}
	act := r.cache.finish(x, o, &head{status: "berm; fwd=miss"}, ReasonCollapsed)
	if act != pipeline.Refuse || x.Status != http.StatusBadGateway || x.Reason != ReasonOriginError || x.Header("Cache-Status") != "berm; fwd=miss" {
		t.Errorf("%v, status %d (%s), Cache-Status %q", act, x.Status, x.Reason, x.Header("Cache-Status"))
	}
	if s := r.cache.Stats(); s.Failed != 1 || s.Bytes != 0 {
		t.Errorf("stats %+v", s)
	}
}

// A body that turns out larger than max_object streams through to all who wait, without being kept and without more
// memory than its window.
func TestTooLargeForKeeping(t *testing.T) {
	const n = 8 << 20
	data := pattern(n)
	for _, known := range []bool{true, false} {
		r := newLooseRig(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Cache-Control", "max-age=60")
			if known {
				w.Header().Set("Content-Length", fmt.Sprint(n))
			}
			w.Write(data)
		}, func(c *Config) { c.MaxObject = 1 << 20 })
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if a := r.get("/x"); a.body != string(data) || a.err != nil {
					t.Errorf("length known: %t: %d bytes, %v", known, len(a.body), a.err)
				}
			})
		}
		wg.Wait()
		eventually(t, "the fetches are over", func() bool { return r.cache.Stats().InFlight == 0 })
		s := r.cache.Stats()
		if s.NotStored[whyTooLarge] == 0 || s.Bytes > 64<<10 {
			t.Errorf("length known: %t: stats %+v", known, s)
		}
	}
}

// A slow reader of a body that is not kept holds the origin back instead of filling the memory.
func TestWindowHoldsTheOriginBack(t *testing.T) {
	var sent atomic.Int64
	const n = 64 << 20
	r := newLooseRig(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		p := pattern(64 << 10)
		for range n / len(p) {
			if _, err := w.Write(p); err != nil {
				return
			}
			sent.Add(int64(len(p)))
		}
	}, func(c *Config) { c.MaxObject = 1 << 20 })
	s := r.open("/x")
	s.need(t, pattern(64 << 10)[:1000])
	last, still := int64(-1), 0
	eventually(t, "the origin stands still", func() bool {
		now := sent.Load()
		if now == last {
			still++
		} else {
			still = 0
		}
		last = now
		time.Sleep(time.Millisecond) // sleep: polls
		return still > 100
	})
	if st := r.cache.Stats(); sent.Load() == n || st.Bytes > 4<<20 {
		t.Errorf("the origin sent %d MiB to a reader that stands still, %d KiB are charged", sent.Load()>>20, st.Bytes>>10)
	}
	got, err := io.Copy(io.Discard, s.rd)
	if err != nil || got != n-1000 {
		t.Errorf("then the reader got %d bytes, %v", got, err)
	}
}

// One of two who share the fetch of a body that is not kept stands still: the other gets all of it meanwhile, and so does
// the first once it reads on, whether or not the origin gives parts.
func TestSlowReaderHoldsUpNobody(t *testing.T) {
	const n = 8 << 20
	data := pattern(n)
	for _, parts := range []bool{true, false} {
		start := make(chan struct{})
		var asked atomic.Int64 // for the rest
		r := newLooseRig(t, func(w http.ResponseWriter, q *http.Request) {
			<-start
			w.Header().Set("Cache-Control", "max-age=60")
			w.Header().Set("Etag", `"one"`)
			if q.Header.Get("If-Range") == `"one"` {
				asked.Add(1)
				if parts {
					http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(data))
					return
				}
			}
			w.(http.Flusher).Flush() // so that its length is unknown
			w.Write(data)
		}, func(c *Config) { c.MaxObject = 1 << 20 })
		slow, fast := make(chan *stream), make(chan *stream)
		go func() { slow <- r.open("/x") }()
		go func() { fast <- r.open("/x") }()
		eventually(t, "both wait", func() bool { return r.waiting("/x") == 2 })
		close(start)
		s, f := <-slow, <-fast
		s.need(t, data[:1000])
		f.need(t, data)
		s.need(t, data[1000:])
		for _, x := range []*stream{s, f} {
			if rest, err := io.ReadAll(x.rd); len(rest) != 0 || err != nil {
				t.Errorf("after the end: %d bytes, %v", len(rest), err)
			}
		}
		if asked.Load() != 1 {
			t.Errorf("parts: %t: the origin was asked for the rest %d times", parts, asked.Load())
		}
		eventually(t, "all is released", func() bool { st := r.cache.Stats(); return st.InFlight == 0 && st.Bytes == 0 })
	}
}

// What is no rest would end a body of unknown length too early.
func TestIsRest(t *testing.T) {
	for contentRange, want := range map[string]bool{
		"bytes 100-199/200": true, "bytes 100-198/200": false, "bytes 99-199/200": false, "bytes 100-199/*": false, "bytes */200": false, "": false,
	} {
		if isRest(contentRange, 100) != want {
			t.Errorf("%q", contentRange)
		}
	}
}
