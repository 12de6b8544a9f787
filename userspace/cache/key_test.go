package cache

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

func TestKeys(t *testing.T) {
	for _, c := range []struct {
		url  string
		want string
	}{
		{"http://Example.COM", "http://example.com/"},
		{"http://example.com:80/", "http://example.com/"},
		{"https://example.com:443/a", "https://example.com/a"},
		{"https://example.com:8443/a", "https://example.com:8443/a"},
		{"http://example.com/%7euser/%41%2f%e4", "http://example.com/~user/A%2F%E4"},
		{"http://example.com/a?b=%2a&c=%63", "http://example.com/a?b=%2A&c=c"},
		{"http://example.com/a?", "http://example.com/a?"},
		{"http://example.com/a//b/", "http://example.com/a//b/"},
		{"http://example.com/ä", "http://example.com/%C3%A4"},
		{"http://example.com/a#f", "http://example.com/a"},
		{"http://[2001:DB8::1]:80/", "http://[2001:db8::1]/"},
	} {
		keys, err := keysOf(7, c.url)
		if err != nil || len(keys) != 1 || keys[0] != "\x00\x00\x00\x07"+c.want {
			t.Errorf("%s: %q, %v, want %q", c.url, keys, err, c.want)
		}
	}
	keys, err := keysOf(0, "example.com/a")
	if want := []string{"\x00\x00\x00\x00http://example.com/a", "\x00\x00\x00\x00https://example.com/a"}; err != nil || !slices.Equal(keys, want) {
		t.Errorf("without a scheme: %q, %v", keys, err)
	}
	for _, bad := range []string{"ftp://example.com/", "http:///a", "http://a b/", "http://%zz/", ""} {
		if keys, err := keysOf(0, bad); err == nil {
			t.Errorf("%q is accepted as %q", bad, keys)
		}
	}
}

// Spellings that an origin may tell apart never meet in one key, and what is normal stays as it is.
func FuzzKey(f *testing.F) {
	for _, s := range []string{"/a%2fb", "/%41", "/%", "/%zz", "/a?b=%41%00", "//", "/%25%32%46"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || u.Host != "" || u.Scheme != "" {
			return
		}
		once := string(appendTarget(nil, u))
		v, err := url.ParseRequestURI(once)
		if err != nil {
			t.Fatalf("%q became %q: %v", target, once, err)
		}
		if v.Path != u.Path && u.Path != "" {
			t.Errorf("%q became %q: path %q, was %q", target, once, v.Path, u.Path)
		}
		if twice := string(appendTarget(nil, v)); twice != once {
			t.Errorf("%q became %q, then %q", target, once, twice)
		}
	})
}

func TestVaryKeys(t *testing.T) {
	key := func(names string, lines ...string) string {
		n, ok := parseVary([]string{names})
		if !ok {
			t.Fatalf("Vary %q is refused", names)
		}
		return string(appendVaryKey(nil, n, fields(lines...)))
	}
	for _, c := range []struct {
		vary string
		a, b []string
		same bool
	}{
		{"Accept-Encoding", []string{"Accept-Encoding: gzip, br"}, []string{"Accept-Encoding: br;q=0.9,GZIP;q=1, deflate"}, true},
		{"accept-encoding", []string{"Accept-Encoding: gzip"}, []string{"Accept-Encoding: gzip, br"}, false},
		{"Accept-Encoding", []string{"Accept-Encoding: gzip;q=0"}, nil, true},
		{"Accept-Encoding", []string{"Accept-Encoding: identity"}, nil, true},
		{"Accept-Encoding", []string{"Accept-Encoding: *"}, []string{"Accept-Encoding: br, gzip, zstd"}, true},
		{"Accept-Encoding", []string{"Accept-Encoding: *, br;q=0.0"}, []string{"Accept-Encoding: gzip", "Accept-Encoding: zstd"}, true},
		{"Accept-Language", []string{"Accept-Language: de, EN"}, []string{"Accept-Language: DE ,en"}, true},
		{"Accept-Language", []string{"Accept-Language: de"}, nil, false},
		{"X-A", []string{"X-A: a,  b"}, []string{"X-A: a", "X-A: b"}, true},
		{"X-A", []string{"X-A: a"}, []string{"X-A: A"}, false},
		{"X-A", []string{"X-A: "}, nil, false},
		{"X-B, X-A, x-b", []string{"X-A: 1", "X-B: 2"}, []string{"X-B: 2", "X-A: 1"}, true},
		{"X-A, X-B", []string{"X-A: 1"}, []string{"X-B: 1"}, false},
	} {
		if got := key(c.vary, c.a...) == key(c.vary, c.b...); got != c.same {
			t.Errorf("Vary %s: %q and %q are the same: %t", c.vary, c.a, c.b, got)
		}
	}
	if _, ok := parseVary([]string{strings.Repeat("a,", 3) + "b,c,d,e,f,g,h,i,j"}); ok {
		t.Error("more than maxVary names are accepted")
	}
}

func FuzzVary(f *testing.F) {
	f.Add("Accept-Encoding, X-A", "gzip;q=0.5, br", "x")
	f.Add("*", ";;q=,,", "\x00")
	f.Fuzz(func(t *testing.T, vary, encoding, other string) {
		names, ok := parseVary([]string{vary})
		if !ok {
			return
		}
		for _, n := range names {
			if !isFieldName(n) || n == "*" {
				t.Errorf("Vary %q has the name %q", vary, n)
			}
		}
		h := http.Header{"Accept-Encoding": {encoding}, "X-A": {other}}
		key := string(appendVaryKey(nil, names, h))
		// The origin is asked with the normal form: it must select the same variant.
		h["Accept-Encoding"] = []string{string(appendEncodings(nil, h["Accept-Encoding"]))}
		if again := string(appendVaryKey(nil, names, h)); again != key {
			t.Errorf("Vary %q of %q: %q, normalised %q", vary, encoding, key, again)
		}
	})
}
