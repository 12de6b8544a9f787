package load

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"
)

// result is what one worker saw.
type result struct {
	start    time.Time
	latency  histogram
	service  histogram
	errors   int64
	bytes    int64
	status   map[int]int64
	cache    map[string]int64
	failures map[string]int64
	protos   map[string]int64
	tally    map[string]int64
	seconds  []Second
}

func newResult(start time.Time) *result {
	return &result{
		start: start, status: map[int]int64{}, cache: map[string]int64{},
		failures: map[string]int64{}, protos: map[string]int64{}, tally: map[string]int64{},
	}
}

func (r *result) add(a answer) {
	s := r.second(int(a.due.Sub(r.start) / time.Second))
	s.MaxMs = max(s.MaxMs, ms(a.latency))
	r.bytes += a.bytes
	if a.err != nil {
		r.errors++
		s.Errors++
		r.failures[kind(a.err)]++
		return
	}
	s.OK++
	r.latency.add(a.latency)
	r.service.add(a.service)
	r.status[a.status]++
	r.protos[a.proto]++
	if a.cache != "" {
		r.cache[a.cache]++
	}
	if a.tally != "" {
		r.tally[a.tally]++
	}
}

func (r *result) second(i int) *Second {
	for len(r.seconds) <= i {
		r.seconds = append(r.seconds, Second{Second: len(r.seconds)})
	}
	return &r.seconds[i]
}

func (r *result) merge(o *result) {
	r.latency.merge(&o.latency)
	r.service.merge(&o.service)
	r.errors += o.errors
	r.bytes += o.bytes
	addTo(r.status, o.status)
	addTo(r.cache, o.cache)
	addTo(r.failures, o.failures)
	addTo(r.protos, o.protos)
	addTo(r.tally, o.tally)
	for i, s := range o.seconds {
		t := r.second(i)
		t.OK += s.OK
		t.Errors += s.Errors
		t.MaxMs = max(t.MaxMs, s.MaxMs)
	}
}

func addTo[K comparable](to, from map[K]int64) {
	for k, n := range from {
		to[k] += n
	}
}

// Report is what a run printed; the JSON names are stable.
type Report struct {
	URL      string           `json:"url"`
	Proto    string           `json:"proto"`
	Conns    int              `json:"conns"`
	Streams  int              `json:"streams"`
	Rate     float64          `json:"rate"` // asked for; 0 = closed loop
	Seconds  float64          `json:"seconds"`
	Requests int64            `json:"requests"` // answered or failed
	OK       int64            `json:"ok"`       // answered in full, whatever the status
	Errors   int64            `json:"errors"`
	Unsent   int64            `json:"unsent"` // due, but every connection was busy until the end
	RPS      float64          `json:"rps"`
	Bytes    int64            `json:"bytes"` // of bodies
	Latency  Latency          `json:"latency_ms"`
	Service  Latency          `json:"service_ms"` // from sending; below latency when connections were busy
	Status   map[string]int64 `json:"status"`
	Cache    map[string]int64 `json:"cache"` // Cache-Status of the nearest cache: hit, fwd=miss …
	Hits     int64            `json:"hits"`
	HitRatio float64          `json:"hit_ratio"`
	Protos   map[string]int64 `json:"protos"`
	Failures map[string]int64 `json:"failures"`
	Tally    map[string]int64 `json:"tally,omitempty"`
	Timeline []Second         `json:"timeline,omitempty"`
}

// Latency is a distribution in milliseconds.
type Latency struct {
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
}

// Second is one second of a run, by the time requests were due.
type Second struct {
	Second int     `json:"second"`
	OK     int64   `json:"ok"`
	Errors int64   `json:"errors"`
	MaxMs  float64 `json:"max_ms"`
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (h *histogram) latency() Latency {
	l := Latency{P50: ms(h.quantile(.5)), P90: ms(h.quantile(.9)), P99: ms(h.quantile(.99)), P999: ms(h.quantile(.999)), Max: ms(h.max)}
	if h.n > 0 {
		l.Mean = ms(h.sum / time.Duration(h.n))
	}
	return l
}

func (r *result) report(o *Options, took time.Duration, scheduled int64) *Report {
	rep := &Report{
		URL: o.URL, Proto: o.Proto, Conns: o.Conns, Streams: o.Streams, Rate: o.Rate,
		Seconds: took.Seconds(), OK: int64(r.latency.n), Errors: r.errors, Bytes: r.bytes,
		Latency: r.latency.latency(), Service: r.service.latency(),
		Status: map[string]int64{}, Cache: r.cache, Protos: r.protos, Failures: r.failures,
		Hits: r.cache["hit"],
	}
	rep.Requests = rep.OK + rep.Errors
	rep.Unsent = max(scheduled-rep.Requests, 0)
	rep.RPS = float64(rep.OK) / took.Seconds()
	if rep.OK > 0 {
		rep.HitRatio = float64(rep.Hits) / float64(rep.OK)
	}
	for code, n := range r.status {
		rep.Status[strconv.Itoa(code)] = n
	}
	if o.Tally != "" {
		rep.Tally = r.tally
	}
	if o.Timeline {
		rep.Timeline = r.seconds
	}
	return rep
}

// Text prints the report for people.
func (r *Report) Text(w io.Writer) {
	fmt.Fprintf(w, "%s over %s, %d connections x %d, %.1fs\n", r.URL, r.Proto, r.Conns, r.Streams, r.Seconds)
	fmt.Fprintf(w, "  requests  %d answered, %d failed, %.1f/s", r.OK, r.Errors, r.RPS)
	if r.Rate > 0 {
		fmt.Fprintf(w, " of %g/s asked for", r.Rate)
	}
	if r.Unsent > 0 {
		fmt.Fprintf(w, ", %d due but never sent (raise --conns or lower --rate)", r.Unsent)
	}
	fmt.Fprintf(w, "\n  bytes     %d, %.1f Mbit/s\n", r.Bytes, float64(r.Bytes)*8/1e6/r.Seconds)
	fmt.Fprintf(w, "  latency   p50 %.3fms  p90 %.3fms  p99 %.3fms  p99.9 %.3fms  max %.3fms\n",
		r.Latency.P50, r.Latency.P90, r.Latency.P99, r.Latency.P999, r.Latency.Max)
	counts(w, "status", r.Status)
	if len(r.Cache) > 0 {
		counts(w, "cache", r.Cache)
		fmt.Fprintf(w, "  hits      %.2f %%\n", 100*r.HitRatio)
	}
	counts(w, "tally", r.Tally)
	counts(w, "failures", r.Failures)
	for _, s := range r.Timeline {
		fmt.Fprintf(w, "  %4ds     %d ok, %d failed, max %.1fms\n", s.Second, s.OK, s.Errors, s.MaxMs)
	}
}

func counts(w io.Writer, name string, m map[string]int64) {
	if len(m) == 0 {
		return
	}
	fmt.Fprintf(w, "  %-9s", name)
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			fmt.Fprint(w, ",")
		}
		fmt.Fprintf(w, " %s: %d", k, m[k])
	}
	fmt.Fprintln(w)
}
