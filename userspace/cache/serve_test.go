package cache

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// pattern returns n bytes of which no part looks like another.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i + i/251)
	}
	return b
}

// serving answers with data and fields, honouring ranges itself.
func serving(data []byte, fields ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, q *http.Request) {
		for _, f := range fields {
			name, value, _ := strings.Cut(f, ": ")
			w.Header().Add(name, value)
		}
		http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(data))
	}
}

func TestRanges(t *testing.T) {
	data := pattern(1000)
	modified := "Last-Modified: " + httpDate(-time.Hour)
	r := newRig(t, serving(data, "Cache-Control: max-age=60", `Etag: "a"`, modified, "Content-Type: text/a"))
	whole := string(data)
	for _, c := range []struct {
		name   string
		fields []string
		status int
		body   string
		rng    string
	}{
		{"first", []string{"Range: bytes=0-9"}, 206, whole[:10], "bytes 0-9/1000"},
		{"middle", []string{"Range: bytes=500-599"}, 206, whole[500:600], "bytes 500-599/1000"},
		{"to the end", []string{"Range: bytes=990-"}, 206, whole[990:], "bytes 990-999/1000"},
		{"suffix", []string{"Range: bytes=-10"}, 206, whole[990:], "bytes 990-999/1000"},
		{"all", []string{"Range: bytes=0-"}, 206, whole, "bytes 0-999/1000"},
		{"outside", []string{"Range: bytes=1000-"}, 416, "416 Requested Range Not Satisfiable: range\n", "bytes */1000"},
		{"malformed", []string{"Range: bytes=9-0"}, 200, whole, ""},
		{"If-Range holds", []string{"Range: bytes=0-9", `If-Range: "a"`}, 206, whole[:10], "bytes 0-9/1000"},
		{"If-Range does not", []string{"Range: bytes=0-9", `If-Range: "b"`}, 200, whole, ""},
		{"If-Range is weak", []string{"Range: bytes=0-9", `If-Range: W/"a"`}, 200, whole, ""},
		{"If-Range by date", []string{"Range: bytes=0-9", "If-Range: " + httpDate(-time.Hour)}, 206, whole[:10], "bytes 0-9/1000"},
		{"If-Range by another date", []string{"Range: bytes=0-9", "If-Range: " + httpDate(0)}, 200, whole, ""},
		{"a 304 goes first", []string{"Range: bytes=0-9", `If-None-Match: "a"`}, 304, "", ""},
	} {
		for _, state := range []string{"stored", "hit; ttl=60"} {
			if state == "stored" {
				r.cache.Purge(0, "example.com/x")
			}
			a := r.get("/x", c.fields...)
			a.want(t, c.name, c.status, c.body, state)
			if got := a.Header.Get("Content-Range"); got != c.rng {
				t.Errorf("%s: Content-Range %q, want %q", c.name, got, c.rng)
			}
			if cl := a.Header.Get("Content-Length"); c.status == 206 && cl != strconv.Itoa(len(c.body)) {
				t.Errorf("%s: Content-Length %q, want %d", c.name, cl, len(c.body))
			}
		}
	}
	if r.seen("Range") != "" {
		t.Error("a range of something cacheable was passed on")
	}
}

func TestManyRanges(t *testing.T) {
	data := pattern(1000)
	r := newRig(t, serving(data, "Cache-Control: max-age=60", "Content-Type: text/a"))
	r.get("/x")
	a := r.get("/x", "Range: bytes=0-9,500-599,-1")
	kind, params, err := mime.ParseMediaType(a.Header.Get("Content-Type"))
	if a.StatusCode != 206 || kind != "multipart/byteranges" || err != nil || a.Header.Get("Content-Length") != strconv.Itoa(len(a.body)) {
		t.Fatalf("%d %v of %d bytes, %v", a.StatusCode, a.Header, len(a.body), err)
	}
	parts := multipart.NewReader(strings.NewReader(a.body), params["boundary"])
	for _, want := range []span{{0, 10}, {500, 600}, {999, 1000}} {
		p, err := parts.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(p)
		if err != nil || !bytes.Equal(b, data[want.start:want.end]) || p.Header.Get("Content-Type") != "text/a" ||
			p.Header.Get("Content-Range") != contentRange(want, 1000) {
			t.Errorf("%v: %v %q, %v", want, p.Header, b, err)
		}
	}
	if _, err := parts.NextPart(); err != io.EOF {
		t.Errorf("after the last part: %v", err)
	}
}

func TestRangeOfTheUncacheableIsPassedOn(t *testing.T) {
	data := pattern(1000)
	for _, c := range []struct {
		name   string
		origin http.HandlerFunc
		change func(*Config)
	}{
		{"private", serving(data, "Cache-Control: private"), func(*Config) {}},
		{"too large", serving(data, "Cache-Control: max-age=60"), func(c *Config) { c.MaxObject = 999 }},
	} {
		r := newRig(t, c.origin, c.change)
		for range 2 {
			a := r.get("/x", "Range: bytes=10-19")
			a.want(t, c.name, 206, string(data[10:20]), "berm; fwd=uri-miss; fwd-status=206")
			if r.seen("Range") != "bytes=10-19" {
				t.Errorf("%s: the origin was asked for %q", c.name, r.seen("Range"))
			}
		}
		r.origins(3) // the first one asked for the whole before it knew
	}
}

// A range is cut from a body under way: the client gets it as soon as its bytes have come.
func TestRangeOfABodyUnderWay(t *testing.T) {
	data := pattern(1000)
	more := make(chan struct{})
	r := newLooseRig(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		w.Header().Set("Content-Length", "1000")
		w.Write(data[:500])
		w.(http.Flusher).Flush()
		<-more
		w.Write(data[500:])
	})
	r.get("/x", "Range: bytes=100-199").want(t, "what has come", 206, string(data[100:200]), "berm; fwd=uri-miss; fwd-status=200; stored")
	r.get("/x", "Range: bytes=200-299").want(t, "joined", 206, string(data[200:300]), "collapsed")
	later := make(chan answer)
	go func() { later <- r.get("/x", "Range: bytes=-100") }()
	close(more)
	a := <-later
	if a.StatusCode != 206 || a.body != string(data[900:]) {
		t.Errorf("what was still to come: %d, %d bytes", a.StatusCode, len(a.body))
	}
	r.origins(1)
}

func TestLargeBodies(t *testing.T) {
	for _, n := range []int{0, 1, chunkFirst - 1, chunkFirst, chunkFirst + 1, chunkMost, chunkMost + 1, 3*chunkMost + 5} {
		for _, known := range []bool{true, false} {
			data := pattern(n)
			r := newRig(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Cache-Control", "max-age=60")
				if known {
					w.Header().Set("Content-Length", strconv.Itoa(n))
				} else {
					w.(http.Flusher).Flush()
				}
				w.Write(data)
			})
			name := fmt.Sprintf("%d bytes, length known: %t", n, known)
			r.get("/x").want(t, name, 200, string(data), "stored")
			eventually(t, "the body is whole", func() bool { return r.cache.Stats().InFlight == 0 })
			a := r.get("/x")
			a.want(t, name, 200, string(data), "hit; ttl=60")
			if a.Header.Get("Content-Length") != strconv.Itoa(n) {
				t.Errorf("%s: Content-Length %q", name, a.Header.Get("Content-Length"))
			}
			if s := r.cache.Stats(); s.Bytes < int64(n) || s.Bytes > int64(n)+int64(n)/4+8<<10 {
				t.Errorf("%s: charged %d bytes", name, s.Bytes)
			}
			r.cache.PurgeTenant(0)
			eventually(t, "nothing is left after the purge", func() bool { return r.cache.Stats().Bytes == 0 })
		}
	}
}

// curl is what people try first: it must agree about ranges and conditions.
func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	require(t, err)
	r := newRig(t, serving(pattern(100000), "Cache-Control: max-age=60", `Etag: "a"`))
	for _, c := range []struct{ args, want string }{
		{"-r 0-99", "206 100"},
		{"-r -5", "206 5"},
		{"-r 99990-", "206 10"},
		{"-r 200000-", "416"},
		{"-z 20300101 -H If-None-Match:\"a\"", "304 0"},
		{"-I", "200 0"},
		{"--compressed", "200 100000"},
	} {
		args := append(strings.Fields(c.args), "-s", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", r.edge.URL+"/x")
		out, err := exec.Command(curl, args...).CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), c.want) {
			t.Errorf("curl %s: %s, %v, want %s", c.args, out, err, c.want)
		}
	}
	r.origins(1)
}
