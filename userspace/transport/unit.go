package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// unit is one address: a TCP listener, and for https the UDP port of the same number, where one or more workers listen.
type unit struct {
	key    unitKey
	s      *Server
	limits limits
	tcp    net.Listener
	http   *http.Server
	altSvc []string // shared by all responses: never written to

	workers   []*worker // of https
	h3        *http3.Server
	flood     flood
	leaving   atomic.Bool  // h1 connections end with their next response
	came      atomic.Int64 // when the last connection of TCP did, in Unix nanoseconds
	serving   sync.WaitGroup
	accepting sync.WaitGroup // of TCP: part of serving

	datagrams bool // connections may carry them, and sessions of WebTransport
}

// retryAbove is the rate of QUIC handshakes from which on clients have to show their address: a
// core completes about 2,000 a second.
const retryAbove = 1000

// open binds an address without serving it. Where the kernel chooses TCP's port, UDP's of the same number may be taken.
func (s *Server) open(k unitKey, cfg Config) (u *unit, err error) {
	const tries = 10
	_, port, _ := split(k.address)
	for range tries {
		if u, err = s.bind(k, cfg); port != 0 || !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return u, err
}

func (s *Server) bind(k unitKey, cfg Config) (u *unit, err error) {
	u = &unit{key: k, s: s, limits: cfg.limits(), flood: flood{limit: s.retryAbove}}
	if u.tcp, err = s.heldTCP(k); err != nil {
		return nil, fmt.Errorf("listen.%s: %w", k.scheme, err)
	}
	u.http = &http.Server{
		Handler:           http.HandlerFunc(u.serveHTTP),
		ReadHeaderTimeout: cfg.HeaderTimeout,
		IdleTimeout:       cfg.IdleTimeout,
		MaxHeaderBytes:    cfg.MaxHeader,
		ErrorLog:          slog.NewLogLogger(errorLog{s.opts.Log.Handler(), &s.stats}, slog.LevelDebug),
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: cfg.MaxStreams, MaxEncoderHeaderTableSize: cfg.HeaderTable},
		ConnState:         u.connState,
	}
	if k.scheme == "http" {
		return u, nil
	}
	u.http.TLSConfig = s.opts.TLS.Clone()
	u.http.TLSConfig.NextProtos = []string{"h2", "http/1.1"}
	if err := u.configureH2(); err != nil {
		return nil, fmt.Errorf("listen.https: %w", errors.Join(err, u.tcp.Close()))
	}
	if err := u.openQUIC(cfg); err != nil {
		return nil, fmt.Errorf("listen.https: %w", errors.Join(err, u.tcp.Close()))
	}
	return u, nil
}

// openQUIC binds the UDP port with TCP's number, also when that was chosen by the kernel.
func (u *unit) openQUIC(cfg Config) (err error) {
	host, _, err := net.SplitHostPort(u.key.address)
	if err != nil {
		return err
	}
	port := localPort(u.tcp.Addr())
	if err = u.bindWorkers(net.JoinHostPort(host, fmt.Sprint(port))); err != nil {
		return err
	}
	u.sizeBuffers()
	u.altSvc = []string{fmt.Sprintf(`h3=":%d"; ma=86400`, port)}
	qc := &quic.Config{
		HandshakeIdleTimeout: cfg.HeaderTimeout,
		MaxIdleTimeout:       cfg.IdleTimeout,
		MaxIncomingStreams:   int64(cfg.MaxStreams),
		Tracer:               headTracer(&u.s.stats.H3.HeadWire),
	}
	u.offerDatagrams(qc)
	if early, tune := u.s.opts.EarlyData, u.s.opts.Tune; early != nil || tune != nil {
		qc.GetConfigForClient = func(client *quic.ClientInfo) (*quic.Config, error) {
			own := qc.Clone()
			own.Allow0RTT = early != nil && early()
			if tune != nil {
				tune(client.RemoteAddr, own)
			}
			return own, nil
		}
	}
	u.h3 = &http3.Server{
		Handler:        http.HandlerFunc(u.serveHTTP),
		MaxHeaderBytes: cfg.MaxHeader,
		IdleTimeout:    cfg.IdleTimeout,
		ConnContext:    u.quicConnected,
	}
	u.offerWebTransport()
	for _, w := range u.workers {
		if err := w.listen(http3.ConfigureTLSConfig(u.s.opts.TLS.Clone()), qc); err != nil {
			u.closeWorkers()
			return fmt.Errorf("start QUIC on %s: %w", u.key.address, err)
		}
	}
	return nil
}

func (u *unit) verifySource(net.Addr) bool {
	flooded := u.flood.tooMany(time.Now()) // always asked, since it counts
	if ask := u.s.opts.VerifyClients; !flooded && (ask == nil || !ask()) {
		return false
	}
	u.s.stats.Retries.Add(1)
	return true
}

func (u *unit) quicConnected(ctx context.Context, c *quic.Conn) context.Context {
	p := &u.s.stats.H3
	p.Accepted.Add(1)
	p.Open.Add(1)
	context.AfterFunc(c.Context(), func() { p.Open.Add(-1) })
	if u.datagrams {
		ctx = context.WithValue(ctx, connKey{}, c)
	}
	return ctx
}

func (u *unit) connState(_ net.Conn, st http.ConnState) {
	p := &u.s.stats.H1
	switch st {
	case http.StateNew:
		u.came.Store(time.Now().UnixNano())
		p.Accepted.Add(1)
		p.Open.Add(1)
	case http.StateClosed, http.StateHijacked:
		p.Open.Add(-1)
	case http.StateActive, http.StateIdle:
	}
}

// boundSegments bounds the segments of connections that are accepted from now on. A listener of
// both families has one bound for both.
func (u *unit) boundSegments(mss [2]uint16) {
	family, _, err := split(u.key.address)
	if err != nil {
		return // it is open, so it is an address
	}
	most := mss[1] // IPv6's is the smaller one
	if family == "4" {
		most = mss[0]
	}
	if err := setMaxSegment(u.tcp, most); err != nil {
		u.s.opts.Log.Warn("bound the segments of new connections", "address", u.key.address, "bytes", most, "error", err)
	}
}

// abandon closes what was opened and never served.
func (u *unit) abandon() {
	_ = u.tcp.Close()
	u.closeWorkers()
}

// serve accepts clients until drain.
func (u *unit) serve() {
	u.accepting.Add(1)
	u.serving.Go(func() {
		defer u.accepting.Done()
		l := stallListener{u.tcp, u.limits.stall, u.key.scheme == "https"}
		if u.key.scheme == "http" {
			u.ended("h1", u.http.Serve(l))
		} else {
			u.ended("h1 and h2", u.http.ServeTLS(l, "", ""))
		}
	})
	for _, w := range u.workers {
		u.serving.Go(func() { u.ended("h3", u.h3.ServeListener(w.in)) })
	}
}

// ended reports a listener that broke by itself.
func (u *unit) ended(what string, err error) {
	if err == nil || errors.Is(err, http.ErrServerClosed) || errors.Is(err, quic.ErrServerClosed) || u.leaving.Load() && errors.Is(err, net.ErrClosed) {
		return
	}
	u.s.opts.Failed(fmt.Errorf("%s on %s stopped: %w", what, u.key.address, err))
}

// lastCall is how long h1 connections get to end by themselves, with a response that says so: closing one that waits
// for a request may cross with it, and the client cannot know whether it was heard. Busy ones, and those that were
// accepted a moment ago, need a round trip.
const lastCall = 250 * time.Millisecond

// leave accepts no more and lets connections end by themselves. net/http's Shutdown alone closes also those that were just
// accepted and whose request is on its way. Clients whose SYN was answered are accepted until they had time for their ACK,
// unless another process does so: they would wait in the socket until there is one.
func (u *unit) leave(ctx context.Context, handed bool) {
	wait := u.s.lastCall
	if end, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(end)/4)
	}
	u.leaving.Store(true)
	if !handed {
		within(ctx, wait, func() bool { return time.Since(time.Unix(0, u.came.Load())) >= wait })
	}
	_ = u.tcp.Close()  // a copy may be kept for the next process
	u.accepting.Wait() // all are known now
	within(ctx, wait, func() bool { return u.s.stats.H1.Open.Load() == 0 })
}

// within returns when it is so, or no longer to be waited for.
func within(ctx context.Context, wait time.Duration, so func() bool) {
	over := time.After(wait)
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for !so() {
		select {
		case <-look.C:
		case <-over:
			return
		case <-ctx.Done():
			return
		}
	}
}

// lastHandshake is how long a QUIC handshake may take that began before another process got the socket's new
// connections: closing the listener refuses those that are under way.
const lastHandshake = 2 * time.Second

// awaitHandshakes returns when QUIC handshakes under way have ended, or are given up.
func awaitHandshakes(ctx context.Context) {
	wait := lastHandshake
	if end, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(end)/4)
	}
	select {
	case <-time.After(wait): // quic-go tells nobody of them
	case <-ctx.Done():
	}
}

// drain ends the unit: gracefully until ctx ends, and then at once. The error says that requests
// were cut.
func (u *unit) drain(ctx context.Context, handed bool) error {
	var wg sync.WaitGroup
	var errTCP, errQUIC error
	wg.Go(func() {
		u.leave(ctx, handed)
		if errTCP = u.http.Shutdown(ctx); errTCP != nil {
			_ = u.http.Close()
		}
	})
	if u.h3 != nil {
		wg.Go(func() {
			if handed {
				awaitHandshakes(ctx)
			}
			// The listeners go first: http3's Shutdown closes only those it made itself.
			for _, w := range u.workers {
				_ = w.in.Close()
			}
			if errQUIC = u.h3.Shutdown(ctx); errQUIC != nil {
				_ = u.h3.Close()
			}
			u.closeWorkers()
		})
	}
	wg.Wait()
	u.serving.Wait()
	if err := errors.Join(errTCP, errQUIC); err != nil {
		return fmt.Errorf("requests on %s were cut: %w", u.key.address, err)
	}
	return nil
}

var closing = []string{"close"} // shared by all responses: never written to

// serveHTTP is the way of every request from its protocol to the pipeline.
func (u *unit) serveHTTP(w http.ResponseWriter, r *http.Request) {
	p := &u.s.stats.H1
	switch r.ProtoMajor {
	case 2:
		p = &u.s.stats.H2
	case 3:
		p = &u.s.stats.H3
	}
	p.InFlight.Add(1)
	defer func() { // a handler that panics to cut its response is counted too
		p.InFlight.Add(-1)
		p.Requests.Add(1)
	}()
	if r.ProtoMajor == 1 && u.leaving.Load() {
		w.Header()["Connection"] = closing
	}
	if u.altSvc != nil && r.ProtoMajor < 3 {
		w.Header()["Alt-Svc"] = u.altSvc
	}
	if u.datagrams && IsWebTransport(r) { // a session has no body that could stall
		u.s.opts.Handler.ServeHTTP(w, r)
		return
	}
	if r.ProtoMajor == 3 && r.ContentLength < 0 && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		// quic-go cannot know whether a body follows. One of a GET means nothing (RFC 9110, 9.3.1),
		// and a GET that might have one could never be answered from a cache.
		r.ContentLength = 0
	}
	if r.ContentLength == 0 {
		r.Body = http.NoBody
	} else {
		body := newStallBody(r.Body, w, u.limits.stall)
		defer body.stall.close()
		// A copy: net/http looks at the Body of its own request to see whether what remains on the connection
		// can be another request. With ours in its place it would read on behind a body that is malformed.
		r = r.WithContext(r.Context())
		r.Body = body
	}
	if r.ProtoMajor >= 2 {
		sw := newStallWriter(w, u.limits.stall, &p.HeadRaw)
		defer sw.finish()
		w = sw
	}
	u.s.opts.Handler.ServeHTTP(w, r)
}

// errorLog counts what net/http only logs.
type errorLog struct {
	slog.Handler
	stats *Stats
}

// Handle counts failed handshakes, and passes the record on.
func (h errorLog) Handle(ctx context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "TLS handshake error") {
		h.stats.TLSFailures.Add(1)
	}
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// Enabled is always true: Handle has to count.
func (h errorLog) Enabled(context.Context, slog.Level) bool { return true }
