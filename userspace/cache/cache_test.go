package cache

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestMissThenHit(t *testing.T) {
	r := newRig(t, page("Cache-Control: max-age=60", `Etag: "a"`))
	a := r.get("/x")
	a.want(t, "first", 200, "page 1", "berm; fwd=uri-miss; fwd-status=200; stored")
	r.clock.Advance(20 * time.Second)
	a = r.get("/x")
	a.want(t, "second", 200, "page 1", "berm; hit; ttl=40")
	if a.Header.Get("Age") != "20" || a.Header.Get("Content-Length") != "6" || a.Header.Get("Etag") != `"a"` {
		t.Errorf("header %v", a.Header)
	}
	if got, want := a.Header.Get("Date"), epoch.Format(http.TimeFormat); got != want {
		t.Errorf("Date %s, want the origin's %s", got, want)
	}
	r.clock.Advance(40 * time.Second)
	r.get("/x").want(t, "stale", 200, "page 2", "berm; fwd=stale; fwd-status=200; stored")
	r.origins(2)
	if s := r.cache.Stats(); s.Hits != 1 || s.Misses != 2 || s.Stored != 2 || s.Objects != 1 || s.Bytes <= 0 || s.InFlight != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestSubSecondFreshness(t *testing.T) {
	r := newRig(t, page("Cache-Control: max-age=1"))
	r.clock.Advance(900 * time.Millisecond)
	r.get("/live")
	r.clock.Advance(950 * time.Millisecond)
	r.get("/live").want(t, "after 950 ms", 200, "page 1", "berm; hit; ttl=1")
	r.clock.Advance(50 * time.Millisecond)
	r.get("/live").want(t, "after a second", 200, "page 2", "fwd=stale; fwd-status=200; stored")
}

func TestKeyedBySpelling(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		fmt.Fprint(w, q.URL.EscapedPath()+"?"+q.URL.RawQuery)
	})
	r.get("/%7ea/%2f?x=%41").want(t, "first", 200, "/~a/%2F?x=A", "stored")
	r.get("/~a/%2F?x=A").want(t, "same", 200, "/~a/%2F?x=A", "berm; hit; ttl=60")
	r.get("/~a//?x=A").want(t, "other", 200, "/~a//?x=A", "stored")
}

func TestHeadFromGet(t *testing.T) {
	r := newRig(t, page("Cache-Control: max-age=60"))
	r.do("HEAD", "/x").want(t, "uncached", 200, "", "berm; fwd=uri-miss; fwd-status=200")
	r.get("/x").want(t, "GET", 200, "page 2", "stored")
	a := r.do("HEAD", "/x")
	a.want(t, "cached", 200, "", "berm; hit; ttl=60")
	if a.Header.Get("Content-Length") != "6" {
		t.Errorf("Content-Length %q, want 6", a.Header.Get("Content-Length"))
	}
	r.origins(2)
}

func TestClientDirectives(t *testing.T) {
	for _, c := range []struct {
		name, cc string
		after    time.Duration
		status   int
		body, cs string
	}{
		{"none", "", 10 * time.Second, 200, "page 1", "hit; ttl=50"},
		{"no-cache", "no-cache", 0, 200, "page 2", "fwd=request; fwd-status=200; stored"},
		{"max-age above the age", "max-age=10", 10 * time.Second, 200, "page 1", "hit; ttl=50"},
		{"max-age below", "max-age=9", 10 * time.Second, 200, "page 2", "fwd=request; fwd-status=200; stored"},
		{"min-fresh that is left", "min-fresh=50", 10 * time.Second, 200, "page 1", "hit; ttl=50"},
		{"min-fresh that is not", "min-fresh=51", 10 * time.Second, 200, "page 2", "fwd=request; fwd-status=200; stored"},
		{"max-stale that reaches", "max-stale=10", 70 * time.Second, 200, "page 1", "hit; ttl=-10"},
		{"max-stale that does not", "max-stale=9", 70 * time.Second, 200, "page 2", "fwd=stale; fwd-status=200; stored"},
		{"any max-stale", "max-stale", 7000 * time.Second, 200, "page 1", "hit; ttl=-6940"},
		{"only-if-cached and it is", "only-if-cached", 10 * time.Second, 200, "page 1", "hit; ttl=50"},
		{"only-if-cached but stale", "only-if-cached", 70 * time.Second, 504, "504 Gateway Timeout: only_if_cached\n", "berm; detail=only_if_cached"},
	} {
		r := newRig(t, page("Cache-Control: max-age=60"))
		r.get("/x")
		r.clock.Advance(c.after)
		r.get("/x", "Cache-Control: "+c.cc).want(t, c.name, c.status, c.body, c.cs)
	}
	r := newRig(t, page("Cache-Control: max-age=60, must-revalidate"))
	r.get("/x", "Cache-Control: only-if-cached").want(t, "only-if-cached, nothing", 504, "504 Gateway Timeout: only_if_cached\n", "")
	r.origins(0)
	r.get("/x")
	r.clock.Advance(70 * time.Second)
	r.get("/x", "Cache-Control: max-stale").want(t, "max-stale against must-revalidate", 200, "page 2", "fwd=stale; fwd-status=200; stored")

	r = newRig(t, page("Cache-Control: max-age=60"), func(c *Config) { c.IgnoreClient = true })
	r.get("/x")
	r.get("/x", "Cache-Control: no-cache, no-store").want(t, "ignore_client", 200, "page 1", "hit; ttl=60")
}

func TestVariants(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		w.Header().Set("Vary", "Accept-Encoding, Accept-Language")
		fmt.Fprint(w, q.Header.Get("Accept-Encoding")+" "+q.Header.Get("Accept-Language"))
	})
	r.get("/x", "Accept-Encoding: gzip", "Accept-Language: de").want(t, "1", 200, "gzip de", "fwd=uri-miss; fwd-status=200; stored")
	r.get("/x", "Accept-Encoding: br", "Accept-Language: de").want(t, "2", 200, "br de", "fwd=vary-miss; fwd-status=200; stored")
	r.get("/x", "Accept-Language: de").want(t, "3", 200, "identity de", "fwd=vary-miss; fwd-status=200; stored")
	r.get("/x", "Accept-Encoding: GZIP;q=0.5,deflate", "Accept-Language: DE").want(t, "1 again", 200, "gzip de", "hit; ttl=60")
	r.get("/x", "Accept-Encoding: br;q=1", "Accept-Language: de").want(t, "2 again", 200, "br de", "hit; ttl=60")
	r.get("/x", "Accept-Encoding: identity", "Accept-Language: de").want(t, "3 again", 200, "identity de", "hit; ttl=60")
	r.origins(3)
	if n, err := r.cache.Purge(0, "http://example.com/x"); n != 3 || err != nil {
		t.Errorf("purged %d, %v, want all 3 variants", n, err)
	}
	eventually(t, "nothing is left", func() bool { s := r.cache.Stats(); return s.Bytes == 0 && s.Objects == 0 })
}

func TestVariantsAreBounded(t *testing.T) {
	r := newRig(t, page("Cache-Control: max-age=60", "Vary: X-A"))
	for i := range 3 * maxVariants {
		r.get("/x", fmt.Sprintf("X-A: %d", i))
	}
	if s := r.cache.Stats(); s.Objects != maxVariants {
		t.Errorf("%d variants are kept, want %d", s.Objects, maxVariants)
	}
	r.get("/x", fmt.Sprintf("X-A: %d", 3*maxVariants-1)).want(t, "the last one", 200, fmt.Sprintf("page %d", 3*maxVariants), "hit; ttl=60")
}

func TestValidation(t *testing.T) {
	for _, c := range []struct{ validator, asked, value string }{
		{`Etag: "a"`, "If-None-Match", `"a"`},
		{`Etag: W/"a"`, "If-None-Match", `W/"a"`},
		{"Last-Modified: " + httpDate(-time.Hour), "If-Modified-Since", httpDate(-time.Hour)},
	} {
		r := newRig(t, page("Cache-Control: max-age=60", c.validator, "X-Old: 1", "Content-Type: text/a"))
		r.get("/x")
		r.set(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Cache-Control", "max-age=30")
			w.Header().Set("X-New", "2")
			w.WriteHeader(304)
		})
		r.clock.Advance(70 * time.Second)
		a := r.get("/x")
		a.want(t, c.asked, 200, "page 1", "berm; fwd=stale; fwd-status=304; stored")
		if r.seen(c.asked) != c.value {
			t.Errorf("the origin was asked with %s %q, want %q", c.asked, r.seen(c.asked), c.value)
		}
		if a.Header.Get("X-Old") != "1" || a.Header.Get("X-New") != "2" || a.Header.Get("Content-Type") != "text/a" || a.Header.Get("Age") != "0" {
			t.Errorf("the head was not brought up to date: %v", a.Header)
		}
		r.clock.Advance(29 * time.Second)
		r.get("/x").want(t, "fresh again", 200, "page 1", "berm; hit; ttl=1")
		r.origins(2)
		if s := r.cache.Stats(); s.Revalidated != 1 || s.Objects != 1 {
			t.Errorf("stats %+v", s)
		}
	}
}

func TestValidationOfSomethingElse(t *testing.T) {
	r := newRig(t, page("Cache-Control: max-age=60", `Etag: "a"`))
	r.get("/x")
	r.set(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Etag", `"b"`)
		w.Header().Set("Cache-Control", "max-age=60")
		if q.Header.Get("If-None-Match") != "" {
			w.WriteHeader(304) // about a "b" that we do not have
			return
		}
		fmt.Fprint(w, "new")
	})
	r.clock.Advance(70 * time.Second)
	r.get("/x").want(t, "mismatched 304", 200, "new", "fwd=stale; fwd-status=200; stored")
	r.origins(3)
}

func TestValidationThatForbidsKeeping(t *testing.T) {
	r := newRig(t, page("Cache-Control: max-age=60", `Etag: "a"`))
	r.get("/x")
	r.set(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(304)
	})
	r.clock.Advance(70 * time.Second)
	r.get("/x").want(t, "304 with no-store", 200, "page 1", "fwd=stale; fwd-status=304")
	eventually(t, "nothing is left", func() bool { s := r.cache.Stats(); return s.Bytes == 0 && s.Objects == 0 })
}

func TestNoCacheIsValidatedEachTime(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("Etag", `"a"`)
		if q.Header.Get("If-None-Match") != "" {
			w.WriteHeader(304)
			return
		}
		fmt.Fprint(w, "body")
	})
	r.get("/x").want(t, "first", 200, "body", "fwd=uri-miss; fwd-status=200; stored")
	for range 3 {
		r.get("/x").want(t, "again", 200, "body", "fwd=stale; fwd-status=304; stored")
	}
	r.origins(4)
}

func TestClientConditions(t *testing.T) {
	r := newRig(t, page("Cache-Control: max-age=60", `Etag: "a"`, "Last-Modified: "+httpDate(-time.Hour), "Content-Type: text/a"))
	for _, state := range []string{"stored", "hit; ttl=60"} {
		for _, c := range []struct {
			name, field string
			status      int
		}{
			{"same tag", `If-None-Match: "a"`, 304},
			{"weakly the same", `If-None-Match: "x", W/"a"`, 304},
			{"any", "If-None-Match: *", 304},
			{"another tag", `If-None-Match: "b"`, 200},
			{"not since", "If-Modified-Since: " + httpDate(-time.Hour), 304},
			{"since", "If-Modified-Since: " + httpDate(-2*time.Hour), 200},
			{"unreadable date", "If-Modified-Since: now", 200},
		} {
			if state == "stored" {
				r.cache.Purge(0, "example.com/x")
				r.set(page("Cache-Control: max-age=60", `Etag: "a"`, "Last-Modified: "+httpDate(-time.Hour), "Content-Type: text/a"))
			}
			body := "page 1"
			if c.status == 304 {
				body = ""
			}
			a := r.get("/x", c.field)
			a.want(t, c.name+", "+state, c.status, body, state)
			if a.Header.Get("Etag") != `"a"` || a.Header.Get("Cache-Control") == "" || a.Header.Get("Date") == "" || a.Header.Get("Age") == "" ||
				c.status == 304 && a.Header.Get("Content-Type") != "" {
				t.Errorf("%s, %s: header %v", c.name, state, a.Header)
			}
			if r.seen("If-None-Match") != "" || r.seen("If-Modified-Since") != "" {
				t.Errorf("%s: the client's condition reached the origin", c.name)
			}
		}
	}
	// The tag has precedence over the date.
	r.get("/x", `If-None-Match: "b"`, "If-Modified-Since: "+httpDate(0)).want(t, "both", 200, "page 1", "hit; ttl=60")
	// Conditions about the state of the origin are the origin's.
	r.get("/x", `If-Match: "a"`).want(t, "If-Match", 200, "page 2", "berm; fwd=bypass; fwd-status=200")
}

func TestStaleWhileRevalidate(t *testing.T) {
	r := newRig(t, page("Cache-Control: max-age=60, stale-while-revalidate=30"))
	r.get("/x")
	r.clock.Advance(70 * time.Second)
	r.get("/x").want(t, "stale", 200, "page 1", "berm; hit; ttl=-10")
	eventually(t, "the object is fetched anew", func() bool { return r.requests.Load() == 2 && r.cache.Stats().InFlight == 0 })
	r.get("/x").want(t, "fresh", 200, "page 2", "berm; hit; ttl=60")
	r.clock.Advance(100 * time.Second)
	r.get("/x").want(t, "too stale", 200, "page 3", "fwd=stale; fwd-status=200; stored")
	if s := r.cache.Stats(); s.StaleHits != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestStaleIfError(t *testing.T) {
	for _, name := range []string{"status", "connection"} {
		r := newRig(t, page("Cache-Control: max-age=60, stale-if-error=30"))
		r.get("/x")
		want := ""
		switch name {
		case "status":
			r.set(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
			want = "berm; fwd=stale; fwd-status=503; detail=stale_if_error"
		case "connection":
			r.set(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
			want = "berm; fwd=stale; detail=stale_if_error"
		}
		r.clock.Advance(70 * time.Second)
		r.get("/x").want(t, name, 200, "page 1", want)
		before := r.requests.Load()
		r.get("/x").want(t, name+", at once", 200, "page 1", "berm; hit; ttl=-10")
		r.origins(before) // is left alone for a second
		r.clock.Advance(2 * time.Second)
		r.get("/x").want(t, name+", later", 200, "page 1", want)
		r.clock.Advance(25 * time.Second)
		a := r.get("/x")
		if a.StatusCode < 502 {
			t.Errorf("%s: beyond stale-if-error: %d %q", name, a.StatusCode, a.body)
		}
		if s := r.cache.Stats(); s.StaleErrors != 2 {
			t.Errorf("stats %+v", s)
		}
	}
}

func TestUnsafeMethodsInvalidate(t *testing.T) {
	r := newRig(t, page("Cache-Control: max-age=60"))
	answer := func(status int, fields ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for _, f := range fields {
				name, value, _ := strings.Cut(f, ": ")
				w.Header().Set(name, value)
			}
			w.WriteHeader(status)
		}
	}
	cached := page("Cache-Control: max-age=60")
	for _, c := range []struct {
		name, method string
		answer       http.HandlerFunc
		gone         string // paths
	}{
		{"POST", "POST", answer(200), "/x"},
		{"DELETE", "DELETE", answer(204), "/x"},
		{"unknown", "FROB", answer(200), "/x"},
		{"redirect", "POST", answer(303, "Location: /y"), "/x /y"},
		{"created", "PUT", answer(201, "Content-Location: http://example.com/z"), "/x /z"},
		{"another host's", "PUT", answer(201, "Location: http://example.org/y"), "/x"},
		{"error", "POST", answer(500), ""},
		{"OPTIONS", "OPTIONS", answer(200), ""},
	} {
		r.set(cached)
		for _, p := range []string{"/x", "/y", "/z"} {
			r.get(p)
		}
		r.set(c.answer)
		a := r.do(c.method, "/x")
		if !strings.HasPrefix(a.Header.Get("Cache-Status"), "berm; fwd=method") {
			t.Errorf("%s: Cache-Status %q", c.name, a.Header.Get("Cache-Status"))
		}
		r.set(cached)
		for _, p := range []string{"/x", "/y", "/z"} {
			hit := strings.Contains(r.get(p).Header.Get("Cache-Status"), "hit")
			if gone := strings.Contains(c.gone, p); hit == gone {
				t.Errorf("%s: %s is a hit: %t, want %t", c.name, p, hit, !gone)
			}
		}
	}
}

func TestAuthorization(t *testing.T) {
	r := newRig(t, page("Cache-Control: max-age=60"))
	r.get("/x", "Authorization: me").want(t, "first", 200, "page 1", "berm; fwd=uri-miss; fwd-status=200")
	r.get("/x", "Authorization: me").want(t, "second", 200, "page 2", "berm; fwd=uri-miss; fwd-status=200")
	r.get("/x").want(t, "anonymous", 200, "page 3", "stored")
	r.get("/x", "Authorization: me").want(t, "not answered from what is everybody's", 200, "page 4", "berm; fwd=bypass; fwd-status=200")
	r.get("/x").want(t, "which stays", 200, "page 3", "hit; ttl=60")

	r = newRig(t, page("Cache-Control: max-age=60, public"))
	r.get("/x", "Authorization: me").want(t, "public", 200, "page 1", "stored")
	r.get("/x", "Authorization: you").want(t, "public again", 200, "page 1", "hit; ttl=60")
}

func TestPurge(t *testing.T) {
	r := newRig(t, page("Cache-Control: max-age=60"))
	r.get("/a%2fb?c=%41")
	if n, err := r.cache.Purge(0, "HTTP://EXAMPLE.com:80/a%2Fb?c=A"); n != 1 || err != nil {
		t.Errorf("purged %d, %v", n, err)
	}
	r.get("/a%2Fb?c=A").want(t, "after", 200, "page 2", "stored")
	if n, _ := r.cache.Purge(1, "http://example.com/a%2Fb?c=A"); n != 0 {
		t.Errorf("another tenant purged %d objects", n)
	}
	if n, _ := r.cache.Purge(0, "http://example.com/else"); n != 0 {
		t.Errorf("purged %d of nothing", n)
	}
	if _, err := r.cache.Purge(0, "ftp://example.com/"); err == nil {
		t.Error("ftp is accepted")
	}
	r.get("/b")
	if n := r.cache.PurgeTenant(1); n != 0 {
		t.Errorf("tenant 1 had %d objects", n)
	}
	if n := r.cache.PurgeTenant(0); n != 2 {
		t.Errorf("tenant 0 had %d objects, want 2", n)
	}
	eventually(t, "nothing is left", func() bool { s := r.cache.Stats(); return s.Purged == 3 && s.Bytes == 0 && s.Objects == 0 })
}

func TestUpstreamCacheStatusIsKept(t *testing.T) {
	r := newRig(t, page("Cache-Control: max-age=60", "Cache-Status: shield; hit; ttl=9"))
	for _, want := range []string{"berm; fwd=uri-miss; fwd-status=200; stored", "berm; hit; ttl=60"} {
		got := r.get("/x").Header["Cache-Status"]
		if len(got) != 2 || got[0] != "shield; hit; ttl=9" || got[1] != want {
			t.Errorf("Cache-Status %q", got)
		}
	}
	a := r.do("POST", "/x")
	if got := a.Header["Cache-Status"]; len(got) != 2 || got[1] != "berm; fwd=method; fwd-status=200" {
		t.Errorf("POST: Cache-Status %q", got)
	}
}

func TestOriginFails(t *testing.T) {
	r := newRig(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	r.get("/x").want(t, "aborted", 502, "502 Bad Gateway: origin_broken\n", "berm; fwd=uri-miss; detail=origin_broken")
	if s := r.cache.Stats(); s.Failed != 1 || s.Objects != 0 {
		t.Errorf("stats %+v", s)
	}
}

// What is passed on past the cache says what became of it, too.
func TestPassedOnSaysWhatBecameOfIt(t *testing.T) {
	r := newRig(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	r.do("POST", "/x").want(t, "POST", 502, "502 Bad Gateway: origin_error\n", "berm; fwd=method; detail=origin_error")
}
