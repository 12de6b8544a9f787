package cache

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/userspace/pipeline"
)

// fields makes a header of "Name: value" lines.
func fields(lines ...string) http.Header {
	h := http.Header{}
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ": ")
		h.Add(name, value)
	}
	return h
}

func httpDate(d time.Duration) string { return epoch.Add(d).Format(http.TimeFormat) }

func TestFreshness(t *testing.T) {
	cfg := testConfig()
	cfg.DefaultTTL = 7 * time.Second
	for _, c := range []struct {
		name   string
		status int
		head   []string
		want   time.Duration // of freshness left when the head comes
	}{
		{"max-age", 200, []string{"Cache-Control: max-age=60"}, time.Minute},
		{"upper case, spaces and commas", 200, []string{"Cache-Control: ,, Public ,  MAX-AGE = 60 ,"}, time.Minute},
		{"quoted", 200, []string{`Cache-Control: max-age="60"`}, time.Minute},
		{"a quoted string hides commas", 200, []string{`Cache-Control: x="a, max-age=5", max-age=60`}, time.Minute},
		{"two lines", 200, []string{"Cache-Control: public", "Cache-Control: max-age=60"}, time.Minute},
		{"the first of two", 200, []string{"Cache-Control: max-age=60, max-age=5"}, time.Minute},
		{"s-maxage wins", 200, []string{"Cache-Control: max-age=60, s-maxage=30"}, 30 * time.Second},
		{"max-age wins over Expires", 200, []string{"Cache-Control: max-age=60", "Expires: " + httpDate(time.Hour)}, time.Minute},
		{"Expires", 200, []string{"Expires: " + httpDate(time.Minute)}, time.Minute},
		{"Expires of 0", 200, []string{"Expires: 0"}, 0},
		{"Expires in the past", 200, []string{"Expires: " + httpDate(-time.Minute)}, 0},
		{"unreadable", 200, []string{"Cache-Control: max-age=soon"}, 0},
		{"negative", 200, []string{"Cache-Control: max-age=-1"}, 0},
		{"fraction", 200, []string{"Cache-Control: max-age=1.5"}, 0},
		{"overflow", 200, []string{"Cache-Control: max-age=99999999999999999999"}, maxDelta * time.Second},
		{"Age counts", 200, []string{"Cache-Control: max-age=60", "Age: 25"}, 35 * time.Second},
		{"of two Ages the first", 200, []string{"Cache-Control: max-age=60", "Age: 25, 50"}, 35 * time.Second},
		{"Age unreadable", 200, []string{"Cache-Control: max-age=60", "Age: old"}, time.Minute},
		{"an old Date counts", 200, []string{"Cache-Control: max-age=60", "Date: " + httpDate(-20*time.Second)}, 40 * time.Second},
		{"a tenth of the object's age", 200, []string{"Last-Modified: " + httpDate(-1000*time.Second)}, 100 * time.Second},
		{"at most heuristic_limit", 200, []string{"Last-Modified: " + httpDate(-1000*time.Hour)}, time.Hour},
		{"no guess for 302", 302, []string{"Last-Modified: " + httpDate(-1000*time.Second)}, 0},
		{"but with public", 302, []string{"Cache-Control: public", "Last-Modified: " + httpDate(-1000*time.Second)}, 100 * time.Second},
		{"default_ttl", 200, nil, 7 * time.Second},
		{"CDN-Cache-Control wins", 200, []string{"CDN-Cache-Control: max-age=90", "Cache-Control: max-age=60, s-maxage=30"}, 90 * time.Second},
		{"and over Expires", 200, []string{"CDN-Cache-Control: max-age=90", "Expires: 0"}, 90 * time.Second},
		{"malformed it does not", 200, []string{"CDN-Cache-Control: max-age==90", "Cache-Control: max-age=60"}, time.Minute},
		{"empty it does not", 200, []string{"CDN-Cache-Control: ", "Cache-Control: max-age=60"}, time.Minute},
		{"it has no max-age in words", 200, []string{"CDN-Cache-Control: max-age=ten", "Cache-Control: max-age=60"}, 7 * time.Second},
	} {
		h := fields(c.head...)
		if h.Get("Date") == "" {
			h.Set("Date", httpDate(0))
		}
		rl := cfg.rule(http.Header{}, &http.Response{StatusCode: c.status, Header: h, ProtoMajor: 2}, times{epoch, epoch})
		got := rl.policy.lifetime - rl.policy.age(epoch)
		if got = max(got, 0); got != c.want {
			t.Errorf("%s: fresh for %s, want %s", c.name, got, c.want)
		}
	}
}

func TestResponseDelayCountsAsAge(t *testing.T) {
	cfg := testConfig()
	h := fields("Cache-Control: max-age=60", "Age: 10", "Date: "+httpDate(0))
	rl := cfg.rule(http.Header{}, &http.Response{StatusCode: 200, Header: h, ProtoMajor: 2},
		times{epoch, epoch.Add(1500 * time.Millisecond)})
	if got := rl.policy.age(epoch.Add(1500 * time.Millisecond)); got != 11500*time.Millisecond {
		t.Errorf("age %s, want 11.5s", got)
	}
}

func TestStorable(t *testing.T) {
	const fresh = "Cache-Control: max-age=60"
	for _, c := range []struct {
		name   string
		status int
		req    []string
		head   []string
		why    pipeline.Reason // "" is stored
		share  bool
	}{
		{"fresh", 200, nil, []string{fresh}, "", true},
		{"no-store", 200, nil, []string{"Cache-Control: max-age=60, no-store"}, whyNoStore, false},
		{"no-store of the request", 200, []string{"Cache-Control: no-store"}, []string{fresh}, whyNoStore, false},
		{"must-understand lifts no-store", 200, nil, []string{"Cache-Control: max-age=60, no-store, must-understand"}, "", true},
		{"not for a status we do not understand", 418, nil, []string{"Cache-Control: max-age=60, no-store, must-understand"}, whyNoStore, false},
		{"must-understand alone", 418, nil, []string{"Cache-Control: max-age=60, must-understand"}, whyStatus, false},
		{"private", 200, nil, []string{"Cache-Control: max-age=60, private"}, whyPrivate, false},
		{"private for a field", 200, nil, []string{`Cache-Control: max-age=60, private="set-cookie"`}, whyPrivate, false},
		{"no-cache without validator", 200, nil, []string{"Cache-Control: no-cache"}, whyNoFreshness, false},
		{"no-cache with one", 200, nil, []string{"Cache-Control: no-cache", `Etag: "a"`}, "", false},
		{"max-age=0 with one", 200, nil, []string{"Cache-Control: max-age=0", `Etag: "a"`}, "", false},
		{"max-age=0 without", 200, nil, []string{"Cache-Control: max-age=0"}, whyNoFreshness, false},
		{"max-age=0 that may be stale", 200, nil, []string{"Cache-Control: max-age=0, stale-if-error=60"}, "", false},
		{"older than it is fresh", 200, nil, []string{fresh, "Age: 61", `Etag: "a"`}, "", false},
		{"nothing said", 200, nil, nil, whyNoFreshness, false},
		{"404", 404, nil, []string{fresh}, "", true},
		{"302 says nothing", 302, nil, nil, whyStatus, false},
		{"302 fresh", 302, nil, []string{fresh}, "", true},
		{"206", 206, nil, []string{fresh}, whyStatus, false},
		{"503 is shared, not kept", 503, nil, nil, whyStatus, true},
		{"503 with a freshness", 503, nil, []string{fresh}, "", true},
		{"private 503 is not shared", 503, nil, []string{"Cache-Control: private"}, whyPrivate, false},
		{"Authorization", 200, []string{"Authorization: x"}, []string{fresh}, whyAuthorized, false},
		{"Authorization and public", 200, []string{"Authorization: x"}, []string{"Cache-Control: max-age=60, public"}, "", true},
		{"Authorization and s-maxage", 200, []string{"Authorization: x"}, []string{"Cache-Control: s-maxage=60"}, "", true},
		{"Authorization and must-revalidate", 200, []string{"Authorization: x"}, []string{"Cache-Control: max-age=60, must-revalidate"}, "", true},
		{"Set-Cookie", 200, nil, []string{fresh, "Set-Cookie: a=b"}, whySetCookie, false},
		{"Set-Cookie and public", 200, nil, []string{"Cache-Control: max-age=60, public", "Set-Cookie: a=b"}, "", true},
		{"Vary: *", 200, nil, []string{fresh, "Vary: Accept, *"}, whyVary, false},
		{"Vary malformed", 200, nil, []string{fresh, "Vary: a b"}, whyVary, false},
		{"CDN-Cache-Control: no-store", 200, nil, []string{fresh, "CDN-Cache-Control: no-store"}, whyNoStore, false},
		{"CDN-Cache-Control lifts private", 200, nil, []string{"Cache-Control: private", "CDN-Cache-Control: max-age=9"}, "", true},
		{"CDN-Cache-Control false", 200, nil, []string{"CDN-Cache-Control: no-store=?0, max-age=9"}, "", true},
	} {
		h := fields(c.head...)
		h.Set("Date", httpDate(0))
		rl := testConfig().rule(fields(c.req...), &http.Response{StatusCode: c.status, Header: h, ProtoMajor: 2}, times{epoch, epoch})
		if rl.why != c.why || rl.store != (c.why == "") || rl.share != c.share {
			t.Errorf("%s: store %t (%s) share %t, want %q, share %t", c.name, rl.store, rl.why, rl.share, c.why, c.share)
		}
	}
}

func TestStorableByBody(t *testing.T) {
	cfg := testConfig()
	for _, c := range []struct {
		name string
		res  http.Response
		why  pipeline.Reason
	}{
		{"length", http.Response{ProtoMajor: 1, ContentLength: 5}, ""},
		{"chunked", http.Response{ProtoMajor: 1, ContentLength: -1, TransferEncoding: []string{"chunked"}}, ""},
		{"until the connection ends", http.Response{ProtoMajor: 1, ContentLength: -1}, whyUndelimited},
		{"h2 without a length", http.Response{ProtoMajor: 2, ContentLength: -1}, ""},
		{"max_object", http.Response{ProtoMajor: 2, ContentLength: int64(cfg.MaxObject)}, ""},
		{"above", http.Response{ProtoMajor: 2, ContentLength: int64(cfg.MaxObject) + 1}, whyTooLarge},
	} {
		c.res.StatusCode, c.res.Header = 200, fields("Cache-Control: max-age=60")
		if rl := cfg.rule(http.Header{}, &c.res, times{epoch, epoch}); rl.why != c.why {
			t.Errorf("%s: %q, want %q", c.name, rl.why, c.why)
		}
	}
}

func TestStaleness(t *testing.T) {
	cfg := testConfig()
	cfg.StaleIfError, cfg.StaleWhileRevalidate = time.Hour, time.Minute
	for _, c := range []struct {
		cc       string
		swr, sie time.Duration
	}{
		{"max-age=1", time.Minute, time.Hour},
		{"max-age=1, stale-while-revalidate=5, stale-if-error=6", 5 * time.Second, 6 * time.Second},
		{"max-age=1, must-revalidate", 0, 0},
		{"max-age=1, must-revalidate, stale-if-error=6", 0, 0},
		{"max-age=1, proxy-revalidate", 0, 0},
		{"s-maxage=1", 0, 0},
		{"s-maxage=1, stale-while-revalidate=5", 5 * time.Second, 0},
	} {
		rl := cfg.rule(http.Header{}, &http.Response{StatusCode: 200, Header: fields("Cache-Control: " + c.cc), ProtoMajor: 2}, times{epoch, epoch})
		if rl.policy.swr != c.swr || rl.policy.sie != c.sie {
			t.Errorf("%s: while revalidating %s, on errors %s, want %s and %s", c.cc, rl.policy.swr, rl.policy.sie, c.swr, c.sie)
		}
	}
}

func FuzzDirectives(f *testing.F) {
	for _, s := range []string{"max-age=60, public", `private="a,b", x`, `no-cache="`, "max-age=99999999999999999999", ",,=,\"\\"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d := parseDirectives([]string{s})
		for _, v := range []time.Duration{d.maxAge, d.sMaxAge, d.minFresh, d.maxStale, d.swr, d.sie} {
			if v != unset && (v < 0 || v > maxDelta*time.Second) {
				t.Errorf("%q gives %s", s, v)
			}
		}
		// What precedes a comma outside quotes stands by itself: no-store first is always seen.
		if !parseDirectives([]string{"no-store," + s}).noStore {
			t.Errorf("no-store is lost before %q", s)
		}
		if d, ok := parseTargeted([]string{s}); ok && d.maxAge < unset {
			t.Errorf("%q gives a targeted max-age of %s", s, d.maxAge)
		}
	})
}
