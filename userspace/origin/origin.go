// Package origin gets originals: per origin a pool of servers with their health, connections, timeouts and bounded
// retries. Client is what the cache fetches through; Stage passes on what the cache does not handle.
package origin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bermedge/berm/userspace/pipeline"
)

// Reasons for which a fetch fails.
const (
	ReasonUnknown     pipeline.Reason = "origin_unknown"     // no origin of that name: 502
	ReasonUnhealthy   pipeline.Reason = "origin_unhealthy"   // none of its servers is well: 503
	ReasonBusy        pipeline.Reason = "origin_busy"        // max_pending reached: 503
	ReasonUnreachable pipeline.Reason = "origin_unreachable" // no connection: 502
	ReasonTimeout     pipeline.Reason = "origin_timeout"     // connect, header or total: 504
	ReasonBroken      pipeline.Reason = "origin_broken"      // the connection broke, or the answer is no HTTP: 502
	ReasonLoop        pipeline.Reason = "loop"               // the request has been here before: 508
	ReasonCancelled   pipeline.Reason = "client_gone"        // nobody waits any more
	ReasonUpload      pipeline.Reason = "request_body"       // the client's, malformed or cut short: 400, or too slow: 408
)

// Client gets originals. It is a pipeline.Fetcher.
type Client struct {
	name  string // of this edge, in Via and CDN-Loop
	pools map[string]*pool
	stop  context.CancelFunc
	wait  sync.WaitGroup
}

// pool is one origin.
type pool struct {
	name      string
	cfg       Config
	servers   []*server
	transport *http.Transport
	pending   atomic.Int64
	turn      atomic.Uint64
	stats     counters
}

// New makes a client of the named origins and starts their probes. name is this edge's, a token. Close ends them.
func New(name string, origins map[string]Config) (*Client, error) {
	ctx, stop := context.WithCancel(context.Background())
	c := &Client{name: name, pools: map[string]*pool{}, stop: stop}
	var errs []error
	for key, cfg := range origins {
		p, err := newPool(key, cfg)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.pools[key] = p
	}
	if err := errors.Join(errs...); err != nil {
		stop()
		return nil, err
	}
	for _, p := range c.pools {
		if p.cfg.Probe.Path == "" {
			continue
		}
		for _, s := range p.servers {
			c.wait.Go(func() { p.probe(ctx, s) })
		}
	}
	return c, nil
}

// Close ends the probes, waits for them, and closes unused connections. Fetches under way go on.
func (c *Client) Close() error {
	c.stop()
	c.wait.Wait()
	for _, p := range c.pools {
		p.transport.CloseIdleConnections()
	}
	return nil
}

func newPool(name string, cfg Config) (*pool, error) {
	cfg = cfg.WithDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("origins.%s.%w", name, err)
	}
	conf, err := cfg.TLS.config()
	if err != nil {
		return nil, fmt.Errorf("origins.%s.tls: %w", name, err)
	}
	dialer := &net.Dialer{Timeout: cfg.ConnectTimeout, KeepAlive: 30 * time.Second}
	p := &pool{name: name, cfg: cfg}
	p.transport = &http.Transport{
		DialContext:            dialer.DialContext,
		TLSClientConfig:        conf,
		TLSHandshakeTimeout:    cfg.ConnectTimeout,
		ResponseHeaderTimeout:  cfg.HeaderTimeout,
		IdleConnTimeout:        cfg.KeepAlive,
		MaxIdleConnsPerHost:    cfg.MaxIdle,
		MaxResponseHeaderBytes: 256 << 10,
		DisableCompression:     true, // bodies are passed on and kept as the origin made them
		ForceAttemptHTTP2:      true,
		WriteBufferSize:        16 << 10,
		ReadBufferSize:         32 << 10,
	}
	for _, raw := range cfg.URLs {
		u, err := parseURL(raw)
		if err != nil {
			return nil, fmt.Errorf("origins.%s.urls: %w", name, err)
		}
		p.servers = append(p.servers, newServer(u, cfg))
	}
	return p, nil
}

// config returns the crypto/tls configuration.
func (t TLS) config() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName, InsecureSkipVerify: t.Insecure} // asked for, for labs
	if t.CA == "" {
		return conf, nil
	}
	pem, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	conf.RootCAs = x509.NewCertPool()
	if !conf.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("ca: %s holds no certificate in PEM form", t.CA)
	}
	return conf, nil
}

// Fetch sends f to a server of its origin. Connection errors move a request that may be repeated to the next server.
// The caller closes the body of the response; until then the request counts as pending.
func (c *Client) Fetch(ctx context.Context, f *pipeline.Fetch) (*http.Response, error) {
	p := c.pools[f.Origin]
	if p == nil {
		return nil, &pipeline.Failure{Status: http.StatusBadGateway, Reason: ReasonUnknown, Err: fmt.Errorf("no origin is named %q", f.Origin)}
	}
	if c.looped(f.Header) {
		return nil, &pipeline.Failure{
			Status: http.StatusLoopDetected, Reason: ReasonLoop,
			Err: fmt.Errorf("origin %s leads back to this edge, %s", p.name, c.name),
		}
	}
	if !p.admit() {
		p.stats.refused.Add(1)
		return nil, &pipeline.Failure{
			Status: http.StatusServiceUnavailable, Reason: ReasonBusy,
			Err: fmt.Errorf("origin %s: %d requests are under way", p.name, p.cfg.MaxPending),
		}
	}
	c.prepare(f)
	p.stats.requests.Add(1)
	res, err := p.try(ctx, f)
	if err != nil {
		p.pending.Add(-1)
		if !clientsFault(err) {
			p.stats.failed.Add(1)
		}
	}
	return res, err
}

// admit takes a place among the pending requests.
func (p *pool) admit() bool {
	if n := p.pending.Add(1); p.cfg.MaxPending > 0 && n > int64(p.cfg.MaxPending) {
		p.pending.Add(-1)
		return false
	}
	return true
}

// try sends f to one server after the other, until one answers or no further attempt is allowed.
func (p *pool) try(ctx context.Context, f *pipeline.Fetch) (*http.Response, error) {
	var tried []*server
	var last error
	turn := p.turn.Add(1) // one a request, whatever it retries: else retries move everybody's turn
	for range p.cfg.Retries + 1 {
		s := p.pick(turn, tried)
		if s == nil {
			break
		}
		tried = append(tried, s)
		if len(tried) > 1 {
			p.stats.retried.Add(1)
		}
		res, err := p.send(ctx, s, f)
		if err == nil {
			return res, nil
		}
		last = fmt.Errorf("origin %s, %s: %w", p.name, s.url, err)
		if ctx.Err() != nil || !repeatable(f, err) {
			break
		}
	}
	if last == nil {
		return nil, &pipeline.Failure{
			Status: http.StatusServiceUnavailable, Reason: ReasonUnhealthy,
			Err: fmt.Errorf("origin %s: none of %d servers is healthy", p.name, len(p.servers)),
		}
	}
	return nil, classify(ctx, last)
}

// repeatable reports whether f may go to another server after err. A body has been read by now and is gone; and only
// what is idempotent by definition may run twice. A timeout has used up the client's patience.
func repeatable(f *pipeline.Fetch, err error) bool {
	var timeout net.Error
	idempotent := slices.Contains([]string{"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"}, f.Method)
	if dialFailed(err) { // nothing has been sent
		return f.Body == nil
	}
	return idempotent && f.Body == nil && !(errors.As(err, &timeout) && timeout.Timeout())
}

// dialFailed reports whether there never was a connection.
func dialFailed(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// clientsFault reports whether a failure says nothing about the origin.
func clientsFault(err error) bool {
	var f *pipeline.Failure
	return errors.As(err, &f) && (f.Reason == ReasonUpload || f.Reason == ReasonCancelled)
}

// classify turns an error of the transport into a failure with a status and a reason.
func classify(ctx context.Context, err error) error {
	var timeout net.Error
	var upload *uploadError
	switch {
	case errors.As(err, &upload) && errors.Is(err, os.ErrDeadlineExceeded):
		return &pipeline.Failure{Status: http.StatusRequestTimeout, Reason: ReasonUpload, Err: err}
	case errors.As(err, &upload):
		return &pipeline.Failure{Status: http.StatusBadRequest, Reason: ReasonUpload, Err: err}
	case errors.Is(context.Cause(ctx), context.Canceled):
		return &pipeline.Failure{Status: http.StatusBadGateway, Reason: ReasonCancelled, Err: err}
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return &pipeline.Failure{Status: http.StatusGatewayTimeout, Reason: ReasonTimeout, Err: err}
	case dialFailed(err):
		return &pipeline.Failure{Status: http.StatusBadGateway, Reason: ReasonUnreachable, Err: err}
	}
	return &pipeline.Failure{Status: http.StatusBadGateway, Reason: ReasonBroken, Err: err}
}
