package pipeline

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"sync"
)

// Fetch is one request to an origin.
type Fetch struct {
	Origin string // its name in the file
	Method string
	Target string // path and query as they go on the wire
	Host   string
	Scheme string // the client's
	Proto  string // the client's protocol, "HTTP/2.0"
	Client netip.Addr
	// Header is the fetch's own: the origin's client changes it.
	Header http.Header
	Body   io.ReadCloser // nil for none
	Length int64         // of Body, -1 when unknown
}

// Fetcher gets originals. An error is a *Failure when it has a status to answer with.
type Fetcher interface {
	Fetch(ctx context.Context, f *Fetch) (*http.Response, error)
}

// Failure is an error with the status and reason to answer with.
type Failure struct {
	Status int
	Reason Reason
	Err    error
}

// Error tells the reason and what is behind it.
func (f *Failure) Error() string { return fmt.Sprintf("%s: %v", f.Reason, f.Err) }

// Unwrap returns what is behind the failure.
func (f *Failure) Unwrap() error { return f.Err }

// NewFetch returns the fetch that passes x on as it is. It copies the header, so that the fetch may outlive x.
func NewFetch(x *Exchange) *Fetch {
	f := &Fetch{
		Origin: x.Origin, Method: x.R.Method, Target: x.R.URL.RequestURI(), Host: x.R.Host, Scheme: x.Scheme,
		Proto: x.R.Proto, Client: x.Client.Addr(), Header: x.R.Header.Clone(), Length: x.R.ContentLength,
	}
	if x.R.Body != nil && x.R.Body != http.NoBody {
		f.Body = x.R.Body
	}
	if f.Header == nil {
		f.Header = http.Header{}
	}
	return f
}

// Fields appends the fields of h to dst.
func Fields(dst []Field, h http.Header) []Field {
	for name, values := range h {
		dst = append(dst, Field{name, values})
	}
	return dst
}

// copyBufs holds the buffers of streams: 32 KiB is what one read of a TLS or h2 connection yields at most, twice.
var copyBufs = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// Stream is a Body that is read while it is sent and kept by nobody.
type Stream struct {
	res    *http.Response
	cancel context.CancelFunc
	stop   func() bool
}

// NewStream returns the body of res. cancel, which may be nil, ends the fetch behind it: Close calls it, and the end
// of ctx, the client's, so that nobody waits for bytes that nobody wants.
func NewStream(ctx context.Context, res *http.Response, cancel context.CancelFunc) *Stream {
	s := &Stream{res: res, cancel: cancel}
	if cancel != nil {
		s.stop = context.AfterFunc(ctx, cancel)
	}
	return s
}

// Send copies the body, and flushes whenever the source has no more at hand.
func (s *Stream) Send(x *Exchange) (sent int64, err error) {
	buf := copyBufs.Get().(*[]byte)
	defer copyBufs.Put(buf)
	for {
		n, rerr := s.res.Body.Read(*buf)
		if n > 0 {
			w, werr := x.W.Write((*buf)[:n])
			sent += int64(w)
			if werr != nil {
				return sent, fmt.Errorf("send to the client: %w", werr)
			}
		}
		switch {
		case rerr == io.EOF:
			s.trailer(x)
			return sent, nil
		case rerr != nil:
			return sent, fmt.Errorf("read from the origin: %w", rerr)
		case n < len(*buf):
			x.Flush()
		}
	}
}

// trailer passes on what followed the body.
func (s *Stream) trailer(x *Exchange) {
	for name, values := range s.res.Trailer {
		x.W.Header()[http.TrailerPrefix+name] = values
	}
}

// Close ends the fetch.
func (s *Stream) Close() {
	if s.cancel != nil {
		s.stop()
		s.cancel()
	}
	s.res.Body.Close() // nothing was written to it
}

// Flush pushes what has been written so far out to the client.
func (x *Exchange) Flush() {
	if f, ok := x.W.(http.Flusher); ok {
		f.Flush()
		return
	}
	// The error says that the writer cannot flush; then it has its own rule.
	_ = http.NewResponseController(x.W).Flush()
}
