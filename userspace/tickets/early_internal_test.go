package tickets

import (
	"bytes"
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bermedge/berm/userspace/pipeline"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newRegister() *register {
	r := &register{}
	r.reset()
	r.enabled.Store(true)
	return r
}

func TestStrike(t *testing.T) {
	r := newRegister()
	want := func(what string, extra [][]byte, at time.Time, result earlyResult) {
		t.Helper()
		if got := r.strike(extra, at); got != result {
			t.Errorf("%s: %s, want %s", what, earlyResults[got], earlyResults[result])
		}
	}
	ticket := func() [][]byte { return [][]byte{[]byte("quic-go's"), r.issue(noon)} }
	a, b := ticket(), ticket()
	want("new", a, noon, earlyAccepted)
	want("again", a, noon, earlyReplayed)
	want("another", b, noon.Add(earlyLife), earlyAccepted)
	want("another again", b, noon, earlyReplayed)
	want("an hour old", ticket(), noon.Add(earlyLife+time.Second), earlyOld)
	want("of the future", ticket(), noon.Add(-2*time.Minute), earlyOld)
	want("without our mark", [][]byte{[]byte("quic-go's")}, noon, earlyElsewhere)
	other := newRegister()
	want("another register's", [][]byte{other.issue(noon)}, noon, earlyElsewhere)
	c := ticket()
	want("cut short", [][]byte{c[1][:len(c[1])-1]}, noon, earlyElsewhere)
	d := ticket()
	r.enabled.Store(false)
	want("off", d, noon, earlyOff)
	r.enabled.Store(true)
	want("on again, and not yet used", d, noon, earlyAccepted)
	r.reset()
	want("before a reset", c, noon, earlyElsewhere)
}

// When more tickets were given out than the register has bits, the oldest are refused: none is accepted twice.
func TestStrikeWhenFull(t *testing.T) {
	r := newRegister()
	used, unused := r.issue(noon), r.issue(noon)
	if r.strike([][]byte{used}, noon) != earlyAccepted {
		t.Fatal("the first ticket was refused")
	}
	r.next = window - 64 // as if so many had been given out
	if got := r.strike([][]byte{used}, noon); got != earlyReplayed {
		t.Error("the last in the window that was used:", earlyResults[got])
	}
	for range 63 { // its bits are the next to go
		r.issue(noon)
	}
	for what, b := range map[string][]byte{"used": used, "unused": unused} {
		if got := r.strike([][]byte{b}, noon); got != earlyOld {
			t.Errorf("%s, behind the window: %s", what, earlyResults[got])
		}
	}
	r.issue(noon)
	fresh := r.issue(noon) // has the bits of the first ones
	if got := r.strike([][]byte{fresh}, noon); got != earlyAccepted {
		t.Error("fresh:", earlyResults[got])
	}
	if len(r.bits)*8 != 512<<10 {
		t.Errorf("the register has %d bytes", len(r.bits)*8)
	}
}

func TestStrikeOnceAmongMany(t *testing.T) {
	r := newRegister()
	var wg sync.WaitGroup
	var accepted atomic.Int64
	b := [][]byte{r.issue(noon)}
	for range 50 {
		wg.Go(func() {
			r.issue(noon)
			if r.strike(b, noon) == earlyAccepted {
				accepted.Add(1)
			}
		})
	}
	wg.Wait()
	if n := accepted.Load(); n != 1 {
		t.Errorf("one ticket was accepted %d times", n)
	}
}

func FuzzStrike(f *testing.F) {
	r := newRegister()
	good := r.issue(noon)
	f.Add(good)
	f.Add(good[:len(good)-8])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newRegister()
		first := r.strike([][]byte{b}, noon)
		if first == earlyAccepted {
			t.Error("a ticket that was never given out was accepted")
		}
		r.issue(noon)
		if r.strike([][]byte{b}, noon) == earlyAccepted && !bytes.Contains(b, r.id[:]) {
			t.Error("a ticket without this register's name was accepted")
		}
	})
}

func TestEarlyStage(t *testing.T) {
	s := &EarlyStage{}
	s.Apply(Early{Queries: []string{"/search", "/deep/er/"}})
	for _, c := range []struct {
		method, target string
		body           string
		done           bool
		action         pipeline.Action
		mark           string
	}{
		{"GET", "/", "", false, pipeline.Next, "1"},
		{"HEAD", "/", "", false, pipeline.Next, "1"},
		{"OPTIONS", "/", "", false, pipeline.Next, "1"},
		{"POST", "/", "", false, pipeline.Refuse, ""},
		{"GET", "/", "x", false, pipeline.Refuse, ""},
		{"GET", "/?", "", false, pipeline.Refuse, ""},
		{"GET", "/?q", "", false, pipeline.Refuse, ""},
		{"GET", "/search?q", "", false, pipeline.Next, "1"},
		{"GET", "/deep/er?q", "", false, pipeline.Next, "1"},
		{"GET", "/deep/er/est?q", "", false, pipeline.Next, "1"},
		{"GET", "/deep?q", "", false, pipeline.Refuse, ""},
		{"GET", "/searching?q", "", false, pipeline.Refuse, ""},
		{"POST", "/search?q", "", false, pipeline.Refuse, ""},
		{"POST", "/", "x", true, pipeline.Next, ""},
		{"GET", "/?q", "", true, pipeline.Next, ""},
	} {
		x := &pipeline.Exchange{R: httptest.NewRequest(c.method, c.target, strings.NewReader(c.body))}
		x.R.TLS = &tls.ConnectionState{HandshakeComplete: c.done}
		act := s.Run(x)
		if act != c.action || x.R.Header.Get("Early-Data") != c.mark {
			t.Errorf("%s %s, handshake done %v: %s, marked %q", c.method, c.target, c.done, act, x.R.Header.Get("Early-Data"))
		}
		if act == pipeline.Refuse && (x.Status != http.StatusTooEarly || x.Reason != ReasonTooEarly) {
			t.Errorf("%s %s: refused with %d %s", c.method, c.target, x.Status, x.Reason)
		}
	}
	if n := s.Passed.Load(); n != 6 {
		t.Errorf("%d passed", n)
	}
	if act := s.Run(&pipeline.Exchange{R: httptest.NewRequest("POST", "/", nil)}); act != pipeline.Next {
		t.Error("a request in the clear:", act)
	}
}

func TestEarlyValidate(t *testing.T) {
	if err := (Early{Queries: []string{"/a"}}).Validate(); err != nil {
		t.Error(err)
	}
	err := Early{Queries: []string{"/ok", "search", "/a?b"}}.Validate()
	if err == nil || !strings.Contains(err.Error(), `queries[1]: "search" is no path`) || !strings.Contains(err.Error(), "queries[2]") {
		t.Error(err)
	}
}

func TestForgetEarly(t *testing.T) {
	k, err := Open(Default(), "", clockAt(noon))
	if err != nil {
		t.Fatal(err)
	}
	k.ForgetEarly() // off: nothing to forget
	k.ApplyEarly(Early{Enabled: true})
	b := [][]byte{k.early.issue(noon)}
	k.ApplyEarly(Early{Enabled: true}) // a reload that changes nothing
	if got := k.early.strike(b, noon); got != earlyAccepted {
		t.Error("after a reload:", earlyResults[got])
	}
	b = [][]byte{k.early.issue(noon)}
	k.ForgetEarly()
	if got := k.early.strike(b, noon); got != earlyElsewhere {
		t.Error("forgotten:", earlyResults[got])
	}
}

type clockAt time.Time

func (c clockAt) Now() time.Time { return time.Time(c) }
