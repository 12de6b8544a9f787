package edge

import (
	"testing"
	"time"
)

func TestHeart(t *testing.T) {
	e := &Edge{started: time.Now().Add(-time.Hour)}
	h := heart{e: e}
	if h.beating() {
		t.Error("it beats before the first answer")
	}
	h.last.Store(int64(time.Hour))
	if !h.beating() {
		t.Error("it does not beat right after an answer")
	}
	h.last.Store(int64(time.Hour - beatWithin))
	if h.beating() {
		t.Error("it beats after a second without an answer")
	}
}
