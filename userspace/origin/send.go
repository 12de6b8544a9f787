package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bermedge/berm/userspace/pipeline"
)

// errTotal and errIdle end a fetch from within.
var (
	errTotal = fmt.Errorf("the exchange took longer than timeout: %w", context.DeadlineExceeded)
	errIdle  = fmt.Errorf("the body fell silent for longer than idle_timeout: %w", context.DeadlineExceeded)
)

// send sends f to one server.
func (p *pool) send(ctx context.Context, s *server, f *pipeline.Fetch) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var total *time.Timer
	if p.cfg.Timeout > 0 {
		total = time.AfterFunc(p.cfg.Timeout, func() { cancel(errTotal) })
	}
	end := func() {
		if total != nil {
			total.Stop()
		}
		cancel(context.Canceled)
	}
	req, err := s.request(ctx, p.cfg, f)
	if err != nil {
		end()
		return nil, err
	}
	upload, _ := req.Body.(*upload)
	s.pending.Add(1)
	res, err := p.transport.RoundTrip(req)
	if err != nil {
		s.pending.Add(-1)
		if cause := context.Cause(ctx); cause != nil && errors.Is(cause, errTotal) {
			err = cause
		}
		switch broke := upload.broke(); {
		case broke != nil: // nothing that the server could have helped
			err = broke
		case context.Cause(ctx) == nil || errors.Is(err, errTotal): // else the client's end
			s.noteFailure(p.cfg)
		}
		end()
		return nil, err
	}
	s.noteAnswer(res.StatusCode, p.cfg)
	dropHopByHop(res.Header)
	res.Body = &answerBody{
		src: res.Body, ctx: ctx, end: end, cancel: cancel, idle: p.cfg.IdleTimeout,
		done: func() { s.pending.Add(-1); p.pending.Add(-1) },
	}
	return res, nil
}

// request makes the request for one server.
func (s *server) request(ctx context.Context, cfg Config, f *pipeline.Fetch) (*http.Request, error) {
	path, query, hasQuery := strings.Cut(f.Target, "?")
	u := &url.URL{Scheme: s.url.Scheme, Host: s.url.Host, RawQuery: query, ForceQuery: hasQuery && query == ""}
	if f.Target != "*" {
		path = s.prefix + path
	}
	var err error
	if u.Path, err = url.PathUnescape(path); err != nil {
		return nil, fmt.Errorf("path %q: %w", path, err)
	}
	u.RawPath = path
	req := (&http.Request{
		Method: f.Method, URL: u, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: f.Header, Host: f.Host,
	}).WithContext(ctx)
	if cfg.Host != "" {
		req.Host = cfg.Host
	}
	if f.Body != nil {
		req.Body, req.ContentLength = &upload{ReadCloser: f.Body}, f.Length
	}
	return req, nil
}

// upload is the body of a request. It remembers how reading it from the client failed: malformed chunks, a client that
// left or fell silent. The transport's error does not tell that from a server that broke, and a client must not be able
// to have servers ejected.
type upload struct {
	io.ReadCloser
	closed atomic.Bool
	err    atomic.Pointer[uploadError]
}

// uploadError is why a request's body ended early.
type uploadError struct{ err error }

// Error tells what happened.
func (e *uploadError) Error() string { return "the request's body: " + e.err.Error() }

// Unwrap returns what is behind it.
func (e *uploadError) Unwrap() error { return e.err }

// Read reads from the client.
func (u *upload) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && !u.closed.Load() { // after Close, an error is only its echo
		u.err.CompareAndSwap(nil, &uploadError{err})
	}
	return n, err
}

// Close ends the body.
func (u *upload) Close() error {
	u.closed.Store(true)
	return u.ReadCloser.Close()
}

// broke returns how the client's side failed, or nil. u may be nil: no body.
func (u *upload) broke() error {
	if u == nil || u.err.Load() == nil {
		return nil
	}
	return u.err.Load()
}

// answerBody is the body of an answer: it watches for silence, and gives back the request's place when it is closed.
type answerBody struct {
	src    io.ReadCloser
	ctx    context.Context
	end    func()
	cancel context.CancelCauseFunc
	idle   time.Duration
	watch  *time.Timer
	done   func()
	once   sync.Once
}

// Read reads; the watch runs only while it does, since a slow client is no fault of the origin's.
func (b *answerBody) Read(p []byte) (int, error) {
	if b.idle > 0 {
		if b.watch == nil {
			b.watch = time.AfterFunc(b.idle, func() { b.cancel(errIdle) })
		} else {
			b.watch.Reset(b.idle)
		}
		defer b.watch.Stop()
	}
	n, err := b.src.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

// Close gives the connection back, or closes it when the body was not read to its end.
func (b *answerBody) Close() error {
	var err error
	b.once.Do(func() {
		err = b.src.Close()
		b.end()
		b.done()
	})
	return err
}
