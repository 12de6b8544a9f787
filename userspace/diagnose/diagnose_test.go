package diagnose

import (
	"net/netip"
	"testing"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/pipeline"
)

func exchange(client string, origin time.Duration) *pipeline.Exchange {
	return &pipeline.Exchange{Client: netip.AddrPortFrom(netip.MustParseAddr(client), 1), OriginWait: origin, Start: time.Now()}
}

func TestRecorder(t *testing.T) {
	r := NewRecorder()
	r.Exchange(&pipeline.Exchange{}, pipeline.Outcome{}) // a client that is not known
	for range 50 {
		r.Exchange(exchange("192.0.2.7", 90*time.Millisecond), pipeline.Outcome{Head: 100 * time.Millisecond})
	}
	r.Exchange(exchange("::ffff:192.0.2.200", 0), pipeline.Outcome{Head: 2 * time.Millisecond})
	got, ok := r.Get(netip.MustParseAddr("192.0.2.1"))
	near := func(d, want time.Duration) bool { return d > want-time.Millisecond && d < want+time.Millisecond }
	if !ok || got.Requests != 51 || got.Fetched != 50 || !near(got.Edge, 9*time.Millisecond) || !near(got.Origin, 79*time.Millisecond) {
		t.Errorf("%+v, %v", got, ok)
	}
	if _, ok := r.Get(netip.MustParseAddr("2001:db8::1")); ok {
		t.Error("it knows what it has not seen")
	}
	x, out := exchange("198.51.100.7", 0), pipeline.Outcome{Head: time.Millisecond}
	r.Exchange(x, out)
	if n := testing.AllocsPerRun(100, func() { r.Exchange(x, out) }); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}

// However many networks clients come from, the memory stays.
func TestRecorderBound(t *testing.T) {
	r := NewRecorder()
	for i := range 2 * Prefixes {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1})
		r.Exchange(exchange(a.String(), 0), pipeline.Outcome{Head: time.Millisecond})
	}
	n := 0
	for i := range r.shards {
		n += len(r.shards[i].of)
	}
	if n > Prefixes || n < Prefixes/2 {
		t.Errorf("%d prefixes are known, at most %d may be", n, Prefixes)
	}
}

func TestOf(t *testing.T) {
	ms := time.Millisecond
	path := func(rtt, least time.Duration) *maps.Path {
		return &maps.Path{RTT: rtt, MinRTT: least, Delivered: 99, Lost: 1}
	}
	for _, tt := range []struct {
		path  *maps.Path
		times *Times
		want  string
	}{
		{nil, nil, Unknown},
		{path(20*ms, 10*ms), nil, Network},
		{path(120*ms, 20*ms), &Times{Edge: ms, Origin: 20 * ms}, Network},
		{path(20*ms, 20*ms), &Times{Edge: 100 * ms, Origin: 20 * ms}, Edge},
		{path(20*ms, 20*ms), &Times{Edge: ms, Origin: 120 * ms}, Origin},
		{nil, &Times{Edge: ms}, Edge},
	} {
		d := Of(tt.path, tt.times)
		if d.Segment != tt.want || d.Why == "" {
			t.Errorf("%+v, %+v: %+v, want %s", tt.path, tt.times, d, tt.want)
		}
		if tt.path != nil && (d.Loss != 0.01 || d.Queues != tt.path.RTT-tt.path.MinRTT) {
			t.Errorf("%+v", d)
		}
	}
}
