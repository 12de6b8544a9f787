package demo_test

import (
	"bytes"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/userspace/clock"
	"github.com/bermedge/berm/userspace/demo"
)

func TestAnswers(t *testing.T) {
	clk := clock.NewFake(time.Unix(1_800_000_000, 0))
	o := demo.New(clk)
	for _, c := range []struct {
		path, field    string
		status         int
		control, inner string
	}{
		{"/", "", 200, "max-age=60", "through Berm"},
		{"/objects/7", "", 200, "max-age=3600", ""},
		{"/objects/7?ttl=5", "", 200, "max-age=5", ""},
		{"/objects/7", "Range: bytes=0-9", 206, "max-age=3600", ""},
		{"/objects/7", `If-None-Match: "7-1024"`, 304, "max-age=3600", ""},
		{"/objects/x", "", 404, "", "number"},
		{"/objects/1?size=-1", "", 400, "", "size"},
		{"/objects/1?size=9999999999", "", 400, "", "size"},
		{"/objects/1?ttl=x", "", 400, "", "ttl"},
		{"/slow?ms=1", "", 200, "max-age=10", "after 1 ms"},
		{"/slow?ms=60000", "", 400, "", "ms"},
		{"/uncacheable", "", 200, "private, no-store", "request"},
		{"/live", "", 200, "max-age=1", "2027-01-15T08:00:00Z"},
		{"/status/503", "", 503, "no-store", ""},
		{"/status/1", "", 400, "", "status"},
		{"/healthz", "", 200, "no-store", "ok"},
		{"/else", "", 404, "", ""},
	} {
		w, r := httptest.NewRecorder(), httptest.NewRequest("GET", c.path, nil)
		if name, value, ok := strings.Cut(c.field, ": "); ok {
			r.Header.Set(name, value)
		}
		o.ServeHTTP(w, r)
		if w.Code != c.status || !strings.HasPrefix(w.Header().Get("Cache-Control"), c.control) || !strings.Contains(w.Body.String(), c.inner) {
			t.Errorf("%s %s: %d %v %.80q", c.path, c.field, w.Code, w.Header(), w.Body)
		}
	}
	w := httptest.NewRecorder()
	o.ServeHTTP(w, httptest.NewRequest("GET", "/count", nil))
	if got := strings.TrimSpace(w.Body.String()); got != strconv.FormatUint(o.Served(), 10) || got != "16" {
		t.Errorf("count %s, served %d, want 16", got, o.Served())
	}
}

func TestObjectBytes(t *testing.T) {
	o := demo.New(clock.System{})
	get := func(path, rng string) []byte {
		w, r := httptest.NewRecorder(), httptest.NewRequest("GET", path, nil)
		if rng != "" {
			r.Header.Set("Range", rng)
		}
		o.ServeHTTP(w, r)
		return w.Body.Bytes()
	}
	whole := get("/objects/3?size=100000", "")
	if len(whole) != 100000 {
		t.Fatalf("%d bytes", len(whole))
	}
	if part := get("/objects/3?size=100000", "bytes=70000-70999"); !bytes.Equal(part, whole[70000:71000]) {
		t.Error("a part differs from the whole")
	}
	if bytes.Equal(whole, get("/objects/4?size=100000", "")) || bytes.Equal(whole[:251], whole[251:502]) {
		t.Error("objects or offsets look alike")
	}
}

func TestLiveChanges(t *testing.T) {
	clk := clock.NewFake(time.Unix(1_800_000_000, 0))
	o := demo.New(clk)
	tag := func() string {
		w := httptest.NewRecorder()
		o.ServeHTTP(w, httptest.NewRequest("GET", "/live", nil))
		return w.Header().Get("Etag")
	}
	a := tag()
	clk.Advance(time.Second)
	if b := tag(); a == b {
		t.Errorf("the tag stayed %s after a second", a)
	}
}
