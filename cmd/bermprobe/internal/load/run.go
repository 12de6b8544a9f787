package load

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunglas/httpsfv"
)

// plan hands out request numbers and the time each is due.
type plan struct {
	next  atomic.Int64
	start time.Time
	end   time.Time
	limit int64         // number of requests; 0 = none
	gap   time.Duration // between two due times; 0 = closed loop
}

// take returns the next request's number and due time; ok is false when all is sent.
// Numbers are handed out in order, so that due times are too.
func (p *plan) take(now time.Time) (i int64, due time.Time, ok bool) {
	if !now.Before(p.end) {
		return 0, now, false
	}
	i = p.next.Add(1) - 1
	if p.limit > 0 && i >= p.limit {
		return i, now, false
	}
	if p.gap == 0 {
		return i, now, true
	}
	due = p.start.Add(time.Duration(i) * p.gap)
	return i, due, due.Before(p.end)
}

// scheduled is how many requests an open loop should have sent by at; 0 for a closed loop.
func (p *plan) scheduled(at time.Time) int64 {
	if p.gap == 0 {
		return 0
	}
	at = minTime(at, p.end)
	n := int64((at.Sub(p.start)-1)/p.gap) + 1
	if p.limit > 0 {
		n = min(n, p.limit)
	}
	return max(n, 0)
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// Run sends until the plan is done or ctx ends, and reports what was seen.
func Run(ctx context.Context, o Options) (*Report, error) {
	p := &plan{start: time.Now(), limit: o.Requests}
	p.end = p.start.Add(o.Duration)
	if o.Rate > 0 {
		p.gap = time.Duration(float64(time.Second) / o.Rate)
	}
	header := make(http.Header)
	for _, h := range o.Header {
		k, v, _ := strings.Cut(h, ":")
		header.Add(strings.TrimSpace(k), strings.TrimSpace(v))
	}
	var (
		wg      sync.WaitGroup
		workers []*worker
	)
	for range o.Conns {
		c := o.dial()
		defer func() { c.close() }()
		for range o.Streams {
			w := &worker{o: &o, plan: p, conn: c, header: header, result: newResult(p.start)}
			workers = append(workers, w)
			wg.Go(func() { w.run(ctx) })
		}
	}
	wg.Wait()
	all := newResult(p.start)
	for _, w := range workers {
		all.merge(w.result)
	}
	end := time.Now()
	return all.report(&o, end.Sub(p.start), p.scheduled(end)), nil
}

// worker is one request in flight at a time.
type worker struct {
	o      *Options
	plan   *plan
	conn   *connection
	header http.Header
	result *result
}

func (w *worker) run(ctx context.Context) {
	buf := make([]byte, 64<<10)
	for ctx.Err() == nil {
		i, due, ok := w.plan.take(time.Now())
		if !ok || !sleepUntil(ctx, due) {
			return
		}
		sent := time.Now()
		a := w.ask(ctx, i, buf)
		if ctx.Err() != nil && a.err != nil {
			return // cut off by the caller, not by the edge
		}
		a.latency, a.service, a.due = time.Since(due), time.Since(sent), due
		w.result.add(a)
		if w.o.Streams == 1 && (w.o.Reconnect || a.err != nil) {
			w.conn.renew()
		}
	}
}

// answer is what became of one request.
type answer struct {
	err     error
	status  int
	bytes   int64
	cache   string
	proto   string
	tally   string
	due     time.Time
	latency time.Duration // since the request was due
	service time.Duration // since it was sent
}

func (w *worker) ask(ctx context.Context, i int64, buf []byte) (a answer) {
	ctx, cancel := context.WithTimeout(ctx, w.o.Timeout)
	defer cancel()
	url := w.o.URL
	if strings.Contains(url, "{n}") {
		url = strings.ReplaceAll(url, "{n}", strconv.FormatInt(i%w.o.Objects, 10))
	}
	req, err := http.NewRequestWithContext(ctx, w.o.Method, url, nil)
	if err != nil {
		return answer{err: err}
	}
	req.Header = w.header.Clone()
	if h := req.Header.Get("Host"); h != "" {
		req.Host = h
		req.Header.Del("Host")
	}
	resp, err := w.conn.rt.RoundTrip(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	a = answer{status: resp.StatusCode, proto: resp.Proto, cache: cacheStatus(resp.Header)}
	if w.o.Tally != "" {
		a.tally = resp.Header.Get(w.o.Tally)
	}
	// The body's own Read, not io.Copy: some bodies bring a writer that allocates.
	for a.err == nil {
		var n int
		n, a.err = resp.Body.Read(buf)
		a.bytes += int64(n)
	}
	if errors.Is(a.err, io.EOF) {
		a.err = nil
	}
	return a
}

// cacheStatus reduces the last member of Cache-Status (RFC 9211: the cache nearest to us)
// to "hit", or to "fwd=reason"; "" without the header.
func cacheStatus(h http.Header) string {
	v := h.Values("Cache-Status")
	if len(v) == 0 {
		return ""
	}
	list, err := httpsfv.UnmarshalList(v)
	if err != nil || len(list) == 0 {
		return "malformed"
	}
	item, ok := list[len(list)-1].(httpsfv.Item)
	if !ok {
		return "malformed"
	}
	if hit, ok := item.Params.Get("hit"); ok && hit == true {
		return "hit"
	}
	if fwd, ok := item.Params.Get("fwd"); ok {
		return fmt.Sprint("fwd=", fwd)
	}
	return "none"
}

// sleepUntil waits for t; false when ctx ended first.
func sleepUntil(ctx context.Context, t time.Time) bool {
	d := time.Until(t)
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// kind names an error in few words, so that equal failures count together: addresses and
// ports of one connection must not make two errors different.
func kind(err error) string {
	var op *net.OpError
	var cert *tls.CertificateVerificationError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.As(err, &cert):
		return "certificate: " + cert.Err.Error()
	case errors.As(err, &op):
		return op.Op + ": " + op.Err.Error()
	}
	return err.Error()
}
