package pipeline_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/bermedge/berm/userspace/pipeline"
)

func TestNormalHost(t *testing.T) {
	for _, c := range []struct {
		scheme, in, want string
		ok               bool
	}{
		{"http", "Example.COM", "example.com", true},
		{"http", "example.com:80", "example.com", true},
		{"http", "example.com:443", "example.com:443", true},
		{"https", "Example.com:443", "example.com", true},
		{"https", "example.com:8443", "example.com:8443", true},
		{"https", "example.com.:8443", "example.com:8443", true},
		{"http", "example.com:", "example.com", true},
		{"http", "192.0.2.1:8080", "192.0.2.1:8080", true},
		{"https", "[2001:DB8::1]", "[2001:db8::1]", true},
		{"https", "[2001:db8::1]:443", "[2001:db8::1]", true},
		{"https", "[2001:db8::1]:8443", "[2001:db8::1]:8443", true},
		{"http", "", "", false},
		{"http", ":80", "", false},
		{"http", "a b", "", false},
		{"http", "a/b", "", false},
		{"http", "a@b", "", false},
		{"http", "a:99999", "", false},
		{"http", "a:8x", "", false},
		{"http", "[::1", "", false},
		{"http", "[fe80::1%25eth0]", "", false},
		{"http", "[192.0.2.1]", "", false},
		{"http", strings.Repeat("a", 256), "", false},
	} {
		got, ok := pipeline.NormalHost(c.scheme, c.in)
		if got != c.want || ok != c.ok {
			t.Errorf("NormalHost(%s, %q) = %q, %t, want %q, %t", c.scheme, c.in, got, ok, c.want, c.ok)
		}
	}
}

func FuzzNormalHost(f *testing.F) {
	f.Add("http", "Example.com:80")
	f.Add("https", "[::1]:443")
	f.Fuzz(func(t *testing.T, scheme, host string) {
		once, ok := pipeline.NormalHost(scheme, host)
		if !ok {
			return
		}
		if twice, ok := pipeline.NormalHost(scheme, once); !ok || twice != once {
			t.Errorf("%q became %q, then %q, %t", host, once, twice, ok)
		}
	})
}

// show answers with what the stages before it found.
var show = stage{"show", func(x *pipeline.Exchange) pipeline.Action {
	http.Error(x.W, fmt.Sprintf("%s %s %s %s %d", x.Client.Addr(), x.Scheme, x.Host, x.Origin, x.Tenant), 200)
	return x.Wrote(200, pipeline.ReasonLocal)
}}

func TestIdentifyRefuses(t *testing.T) {
	p := mustNew(t, []pipeline.Stage{pipeline.Identify{}, show})
	for _, c := range []struct {
		method, target, host string
		want                 int
	}{
		{"GET", "/a/..b/.c/d.", "example.com", 200},
		{"OPTIONS", "*", "example.com", 200},
		{"GET", "/", "exa mple", 400},
		{"GET", "/a/../b", "example.com", 400},
		{"GET", "/a/%2e%2E/b", "example.com", 400},
		{"GET", "/a/..", "example.com", 400},
		{"GET", "/a/..%2fb", "example.com", 400},
		{"GET", "/./a", "example.com", 400},
		{"CONNECT", "example.com:443", "example.com:443", 400},
	} {
		r := httptest.NewRequest(c.method, c.target, nil)
		r.Host = c.host
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%s %s of %q: %d %s, want %d", c.method, c.target, c.host, w.Code, w.Body, c.want)
		}
	}
}

// HTTP/1.0 names no host, HTTP/1.1 must.
func TestOldClients(t *testing.T) {
	srv := httptest.NewServer(mustNew(t, []pipeline.Stage{pipeline.Identify{}, show}))
	defer srv.Close()
	addr := srv.Listener.Addr().String()
	for request, want := range map[string]string{
		"GET / HTTP/1.0\r\n\r\n":                    "HTTP/1.0 200 OK 127.0.0.1 http " + addr + "  0\n",
		"GET / HTTP/1.0\r\nHost: a.example\r\n\r\n": "HTTP/1.0 200 OK 127.0.0.1 http a.example  0\n",
		"GET / HTTP/1.1\r\n\r\n":                    "HTTP/1.1 400 Bad Request: missing required Host header 400 Bad Request: missing required Host header",
	} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%q: %v", request, err)
		}
		body, err := io.ReadAll(res.Body)
		if got := fmt.Sprintf("%s %s %s", res.Proto, res.Status, body); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", request, got, err, want)
		}
	}
}

// Over h3 no GET says how long its body is; nearly all have none.
func TestBodiesOfUnknownLength(t *testing.T) {
	body := stage{"show", func(x *pipeline.Exchange) pipeline.Action {
		b, err := io.ReadAll(x.R.Body)
		fmt.Fprintf(x.W, "%d %s %v", x.R.ContentLength, b, err)
		return x.Wrote(200, pipeline.ReasonLocal)
	}}
	p := mustNew(t, []pipeline.Stage{pipeline.Identify{}, body})
	for _, c := range []struct{ method, body, want string }{
		{"GET", "", "0  <nil>"}, {"HEAD", "", "0  <nil>"}, {"GET", "abc", "-1 abc <nil>"}, {"POST", "", "-1  <nil>"},
	} {
		r := httptest.NewRequest(c.method, "/", io.MultiReader(strings.NewReader(c.body)))
		if r.ContentLength != -1 {
			t.Fatalf("the length is known: %d", r.ContentLength)
		}
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		if w.Body.String() != c.want {
			t.Errorf("%s %q: %q, want %q", c.method, c.body, w.Body, c.want)
		}
	}
}

func TestRoutes(t *testing.T) {
	routes, err := pipeline.NewRoutes([]pipeline.RouteConfig{
		{Host: "*", Path: "/", Origin: "any"},
		{Host: "www.example.com", Path: "/", Origin: "www"},
		{Host: "www.example.com", Path: "/api", Origin: "api", Tenant: 7},
		{Host: "*.example.com", Path: "/", Origin: "star"},
		{Host: "*.b.example.com", Path: "/only/", Origin: "deep"},
	})
	if err != nil {
		t.Fatal(err)
	}
	p := mustNew(t, []pipeline.Stage{pipeline.Identify{}, routes, show})
	for _, c := range []struct{ url, want string }{
		{"http://www.example.com/", "www.example.com www 0"},
		{"http://WWW.example.com:80/api/x", "www.example.com api 7"},
		{"http://www.example.com:8080/api", "www.example.com:8080 api 7"},
		{"http://www.example.com/apix", "www.example.com www 0"},
		{"http://a.example.com/", "a.example.com star 0"},
		{"http://x.b.example.com/only/1", "x.b.example.com deep 0"},
		{"http://x.b.example.com/else", "x.b.example.com star 0"},
		{"http://example.com/", "example.com any 0"},
		{"http://[2001:db8::1]/", "[2001:db8::1] any 0"},
	} {
		w := httptest.NewRecorder()
		p.ServeHTTP(w, httptest.NewRequest("GET", c.url, nil))
		if got := strings.TrimSpace(w.Body.String()); got != "192.0.2.1 http "+c.want {
			t.Errorf("%s: %q, want %q", c.url, got, c.want)
		}
	}
}

func TestNoRoute(t *testing.T) {
	routes, err := pipeline.NewRoutes([]pipeline.RouteConfig{{Host: "a.example", Path: "/x", Origin: "o"}})
	if err != nil {
		t.Fatal(err)
	}
	p := mustNew(t, []pipeline.Stage{pipeline.Identify{}, routes, show})
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest("GET", "http://a.example/", nil))
	if w.Code != 404 || w.Body.String() != "404 Not Found: no_route\n" {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

func TestRouteConfigMistakes(t *testing.T) {
	_, err := pipeline.NewRoutes([]pipeline.RouteConfig{
		{},
		{Host: "a:80", Path: "/", Origin: "o"},
		{Host: "*", Path: "x", Origin: "o"},
		{Host: "b", Path: "/p", Origin: "o"},
		{Host: "B", Path: "/p/", Origin: "o"},
	})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"routes[0]: host: must be set", "origin: must name", `routes[1]: host: "a:80"`,
		`routes[2]: path: "x" must begin with /`, "routes[4]: B/p/ is given twice",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in:\n%v", want, err)
		}
	}
}

func TestLocal(t *testing.T) {
	closed := 0
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(418) })
	loopback := func(x *pipeline.Exchange) bool { return x.Client.Addr().IsLoopback() }
	p := mustNew(t, []pipeline.Stage{
		pipeline.Identify{},
		pipeline.Local{Prefix: "/.berm/", Handler: page, Allow: loopback},
		answer(text{"", nil, &closed}),
	})
	for _, c := range []struct {
		path, from string
		want       int
	}{{"/.berm/x", "127.0.0.1:1", 418}, {"/.berm/x", "192.0.2.1:1", 200}, {"/berm", "127.0.0.1:1", 200}} {
		r := httptest.NewRequest("GET", c.path, nil)
		r.RemoteAddr = c.from
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%s from %s: %d, want %d", c.path, c.from, w.Code, c.want)
		}
	}
}

func TestTraceIsRefused(t *testing.T) {
	p := mustNew(t, []pipeline.Stage{pipeline.Identify{}, stage{"origin", func(*pipeline.Exchange) pipeline.Action {
		t.Error("TRACE was passed on")
		return pipeline.Next
	}}})
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest(http.MethodTrace, "/", nil))
	if w.Code != http.StatusMethodNotAllowed || w.Body.String() != "405 Method Not Allowed: trace\n" {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

// An answer without a Content-Type goes out without one: a guess would turn a text that begins like a page into one.
func TestNoContentTypeIsInvented(t *testing.T) {
	closed := 0
	for _, secure := range []bool{false, true} {
		srv := httptest.NewUnstartedServer(mustNew(t, []pipeline.Stage{answer(text{s: "<html>", closed: &closed})}))
		srv.EnableHTTP2 = secure
		if secure {
			srv.StartTLS()
		} else {
			srv.Start()
		}
		defer srv.Close()
		res, err := srv.Client().Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if got, ok := res.Header["Content-Type"]; ok {
			t.Errorf("%s: Content-Type %q", res.Proto, got)
		}
	}
}
