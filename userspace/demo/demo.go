// Package demo is an origin to try an edge with: pages and objects that are fresh for long, for a second, or never.
// It serves `make run` and the labs, and needs no files.
package demo

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/bermedge/berm/userspace/clock"
)

// The limits of what a request may ask for, so that a demo left running is no weapon.
const (
	maxSize  = 4 << 30
	maxSlow  = 30 * time.Second
	size     = 1 << 10 // of an object that names none
	maxAge   = 365 * 24 * 3600
	objectOK = "max-age=3600, stale-while-revalidate=60, stale-if-error=86400"
)

//go:embed index.html
var index string

// modified is when everything here was last changed: a constant, so that validators agree on all edges.
var modified = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// Origin is the demo origin. It is an http.Handler.
type Origin struct {
	mux    *http.ServeMux
	clock  clock.Clock
	served atomic.Uint64
}

// New makes a demo origin.
func New(clk clock.Clock) *Origin {
	o := &Origin{mux: http.NewServeMux(), clock: clk}
	o.mux.HandleFunc("GET /{$}", o.page)
	o.mux.HandleFunc("GET /objects/{n}", o.object)
	o.mux.HandleFunc("GET /slow", o.slow)
	o.mux.HandleFunc("GET /uncacheable", o.uncacheable)
	o.mux.HandleFunc("GET /live", o.live)
	o.mux.HandleFunc("GET /status/{code}", o.status)
	o.mux.HandleFunc("GET /count", o.count)
	o.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		fmt.Fprintln(w, "ok")
	})
	return o
}

// ServeHTTP answers, and counts the requests for everything but /count and /healthz.
func (o *Origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/count" && r.URL.Path != "/healthz" {
		o.served.Add(1)
	}
	o.mux.ServeHTTP(w, r)
}

// Served returns how many requests have reached the origin.
func (o *Origin) Served() uint64 { return o.served.Load() }

func (o *Origin) page(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "max-age=60")
	serve(w, r, "index", int64(len(index)), func(p []byte, off int64) { copy(p, index[off:]) })
}

// object serves /objects/<n>?size=&ttl=: bytes that follow from n, so that a client can check any part of them.
func (o *Origin) object(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseUint(r.PathValue("n"), 10, 32)
	if err != nil {
		http.Error(w, "object: the number must be between 0 and 4294967295", http.StatusNotFound)
		return
	}
	length, err := number(r, "size", size, maxSize)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ttl, err := number(r, "ttl", -1, maxAge)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", objectOK)
	if ttl >= 0 {
		w.Header().Set("Cache-Control", "max-age="+strconv.FormatInt(ttl, 10))
	}
	serve(w, r, fmt.Sprintf("%d-%d", n, length), length, func(p []byte, off int64) { Fill(p, n, off) })
}

// slow waits before it answers: /slow?ms=.
func (o *Origin) slow(w http.ResponseWriter, r *http.Request) {
	ms, err := number(r, "ms", 1000, int64(maxSlow/time.Millisecond))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	select {
	case <-time.After(time.Duration(ms) * time.Millisecond):
	case <-r.Context().Done():
		return
	}
	w.Header().Set("Cache-Control", "max-age=10")
	fmt.Fprintf(w, "answered after %d ms\n", ms)
}

// uncacheable says something else each time, to nobody but this client.
func (o *Origin) uncacheable(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "private, no-store")
	fmt.Fprintf(w, "request %d, %s\n", o.served.Load(), o.clock.Now().UTC().Format(time.RFC3339Nano))
}

// live changes every second and is fresh for one.
func (o *Origin) live(w http.ResponseWriter, r *http.Request) {
	now := o.clock.Now().UTC().Truncate(time.Second)
	w.Header().Set("Cache-Control", "max-age=1")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	text := now.Format(time.RFC3339) + "\n"
	serve(w, r, strconv.FormatInt(now.Unix(), 10), int64(len(text)), func(p []byte, off int64) { copy(p, text[off:]) })
}

// status answers with any status: /status/503.
func (o *Origin) status(w http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(r.PathValue("code"))
	if err != nil || code < 200 || code > 599 {
		http.Error(w, "status: must be between 200 and 599", http.StatusBadRequest)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
}

// count tells how many requests have reached the origin: what a cache saves is the difference.
func (o *Origin) count(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	fmt.Fprintln(w, o.served.Load())
}

// number returns a parameter between 0 and most, or unset when it is not given.
func number(r *http.Request, name string, unset, most int64) (int64, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return unset, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > most {
		return 0, fmt.Errorf("%s: %q must be a number between 0 and %d", name, s, most)
	}
	return n, nil
}

// serve answers with a made body: validators, ranges and conditions are net/http's.
func serve(w http.ResponseWriter, r *http.Request, tag string, length int64, fill func(p []byte, off int64)) {
	w.Header().Set("Etag", `"`+tag+`"`)
	http.ServeContent(w, r, "", modified, &made{length: length, fill: fill})
}

// Fill writes the bytes of object n from offset off: byte i is the low byte of n + i + i/251, so that neither an
// offset nor another object looks alike.
func Fill(p []byte, n uint64, off int64) {
	for i := range p {
		at := uint64(off) + uint64(i)
		p[i] = byte(n + at + at/251)
	}
}

// made is a body of any length that takes no memory.
type made struct {
	length, pos int64
	fill        func(p []byte, off int64)
}

// Read makes the next bytes.
func (m *made) Read(p []byte) (int, error) {
	if m.pos >= m.length {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), m.length-m.pos)]
	m.fill(p, m.pos)
	m.pos += int64(len(p))
	return len(p), nil
}

// Seek moves the place of the next Read.
func (m *made) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += m.pos
	case io.SeekEnd:
		offset += m.length
	}
	if offset < 0 {
		return 0, errors.New("seek before the beginning")
	}
	m.pos = offset
	return offset, nil
}
