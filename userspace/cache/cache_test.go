package cache

import (
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
	r.clock.Advance(40 * time.Second)
	r.get("/x").want(t, "stale", 200, "page 2", "berm; fwd=stale; fwd-status=200; stored")
	r.origins(2)
}
