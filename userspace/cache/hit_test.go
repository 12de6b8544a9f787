package cache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"strconv"
	"testing"

	"github.com/bermedge/berm/userspace/clock"
	"github.com/bermedge/berm/userspace/pipeline"
)

// discard is a ResponseWriter that keeps nothing and, with a limit, fails behind it.
type discard struct {
	h     http.Header
	n     int64
	limit int64
}

func (d *discard) Header() http.Header { return d.h }
func (d *discard) WriteHeader(int)     {}
func (d *discard) Flush()              {}
func (d *discard) Write(p []byte) (int, error) {
	d.n += int64(len(p))
	if d.limit > 0 && d.n > d.limit {
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}

// fetcherFunc answers fetches of /…/<n> in memory.
type fetcherFunc func(n int, res *http.Response)

func (f fetcherFunc) Fetch(_ context.Context, q *pipeline.Fetch) (*http.Response, error) {
	n, err := strconv.Atoi(path.Base(q.Target))
	if err != nil {
		return nil, err
	}
	res := &http.Response{StatusCode: 200, ProtoMajor: 2, Header: http.Header{}}
	f(n, res)
	return res, nil
}

func setBody(res *http.Response, b []byte, n int) {
	res.Header["Cache-Control"] = []string{"max-age=3600"}
	res.Header["Content-Type"] = []string{"application/octet-stream"}
	res.Header["Etag"] = []string{fmt.Sprintf("%q", strconv.Itoa(n))}
	if res.ContentLength == 0 {
		res.ContentLength = int64(len(b))
	}
	res.Body = io.NopCloser(bytes.NewReader(b))
}

// hitRig returns a pipeline with objects /0 … /(n-1) of size bytes stored.
func hitRig(t testing.TB, n, size int) *pipeline.Pipeline {
	t.Helper()
	data := pattern(size)
	f := fetcherFunc(func(n int, w *http.Response) { setBody(w, data, n) })
	c, err := New(testConfig(), f, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := pipeline.New([]pipeline.Stage{pipeline.Identify{}, c})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		w := &discard{h: http.Header{}}
		p.ServeHTTP(w, request1(i))
		if w.n != int64(size) {
			t.Fatalf("object %d: %d bytes", i, w.n)
		}
	}
	eventually(t, "all is stored", func() bool { return c.Stats().InFlight == 0 && c.Stats().Objects == int64(n) })
	return p
}

func request1(i int, fields ...string) *http.Request {
	q := httptest.NewRequest("GET", fmt.Sprintf("http://example.com/objects/%d", i), nil)
	for i := 0; i+1 < len(fields); i += 2 {
		q.Header.Set(fields[i], fields[i+1])
	}
	return q
}

// The budget of the hit path, in allocations a request, beyond what net/http takes for itself: none for a whole
// object or a 304, whatever the body's size; the head is made once a second for each object. A part takes eight: its
// spans, the body that cuts them, and three fields of its own.
func TestHitAllocations(t *testing.T) {
	for _, c := range []struct {
		name   string
		size   int
		fields []string
		most   float64
	}{
		{"1 KiB", 1 << 10, nil, 0},
		{"1 MiB", 1 << 20, nil, 0},
		{"with negotiation", 1 << 10, []string{"Accept-Encoding", "gzip, deflate, br, zstd", "User-Agent", "x"}, 0},
		{"304", 1 << 10, []string{"If-None-Match", `"0"`}, 0},
		{"one range", 1 << 10, []string{"Range", "bytes=0-99"}, 8},
	} {
		p := hitRig(t, 1, c.size)
		w, q := &discard{h: http.Header{}}, request1(0, c.fields...)
		p.ServeHTTP(w, q)
		got := testing.AllocsPerRun(2000, func() { p.ServeHTTP(w, q) })
		t.Logf("%s: %.2f allocations a hit", c.name, got)
		if got > c.most && !raceEnabled {
			t.Errorf("%s: %.2f allocations a hit, want at most %.0f", c.name, got, c.most)
		}
	}
}

func BenchmarkHit(b *testing.B) {
	for _, size := range []int{1 << 10, 100 << 10} {
		b.Run(strconv.Itoa(size>>10)+"KiB", func(b *testing.B) {
			p := hitRig(b, 64, size)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				w := &discard{h: http.Header{}}
				var qs [64]*http.Request
				for i := range qs {
					qs[i] = request1(i)
				}
				for i := 0; pb.Next(); i++ {
					p.ServeHTTP(w, qs[i%64])
				}
			})
		})
	}
}
