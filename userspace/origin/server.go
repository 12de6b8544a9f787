package origin

import (
	"context"
	"fmt"
	"io"
	"math/bits"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// server is one URL of an origin.
type server struct {
	url     *url.URL
	prefix  string // of every path, without a final slash
	pending atomic.Int64

	mu       sync.Mutex
	probes   uint64 // the last 64 results, newest in bit 0
	failures int    // failed requests in a row
	ejected  time.Time
	down     bool   // by probes
	why      string // the last probe's or request's trouble
}

func newServer(u *url.URL, cfg Config) *server {
	s := &server{url: u, prefix: strings.TrimRight(u.EscapedPath(), "/")}
	s.probes = 1<<cfg.Probe.Window - 1 // well until proven otherwise: the edge serves from its first second on
	return s
}

// healthy reports whether the server may get requests at now.
func (s *server) healthy(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.down && !now.Before(s.ejected)
}

// noteFailure counts a request that got no answer.
func (s *server) noteFailure(cfg Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures++
	if cfg.Ejection > 0 && s.failures >= cfg.Ejection {
		s.ejected = time.Now().Add(cfg.EjectionTime)
		s.why = fmt.Sprintf("%d requests failed in a row", s.failures)
	}
}

// noteAnswer counts an answer: 502, 503 and 504 say that the server cannot do its work.
func (s *server) noteAnswer(status int, cfg Config) {
	if status >= 502 && status <= 504 {
		s.noteFailure(cfg)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures, s.ejected = 0, time.Time{}
}

// pick returns a healthy server that has not been tried, or nil. When none at all is healthy by ejections alone, they
// are set aside: an origin whose every server stumbles is still worth asking.
func (p *pool) pick(turn uint64, tried []*server) *server {
	now := time.Now()
	s := p.choose(turn, func(s *server) bool { return s.healthy(now) && !slices.Contains(tried, s) })
	if s == nil {
		s = p.choose(turn, func(s *server) bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return !s.down && !slices.Contains(tried, s)
		})
	}
	return s
}

// choose picks among the servers that ok takes, looking first at the one whose turn it is.
func (p *pool) choose(turn uint64, ok func(*server) bool) *server {
	var best *server
	start := int(turn % uint64(len(p.servers)))
	for i := range p.servers {
		s := p.servers[(start+i)%len(p.servers)]
		if !ok(s) {
			continue
		}
		if p.cfg.Balance == RoundRobin {
			return s
		}
		if best == nil || s.pending.Load() < best.pending.Load() {
			best = s
		}
	}
	return best
}

// probe asks s for its health until ctx ends.
func (p *pool) probe(ctx context.Context, s *server) {
	client := &http.Client{
		Transport: p.transport, Timeout: p.cfg.Probe.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	// The first one at once, the others of a site's edges spread over the interval.
	wait := time.NewTimer(0)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
		err := p.probeOnce(ctx, client, s)
		if ctx.Err() != nil {
			return
		}
		s.noteProbe(err, p.cfg.Probe)
		wait.Reset(p.cfg.Probe.Interval*9/10 + rand.N(p.cfg.Probe.Interval/5+1))
	}
}

func (p *pool) probeOnce(ctx context.Context, client *http.Client, s *server) error {
	u := *s.url
	u.Path, u.RawPath = "", ""
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String()+s.prefix+p.cfg.Probe.Path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "berm-probe")
	if host := p.cfg.Probe.Host; host != "" {
		req.Host = host
	} else if p.cfg.Host != "" {
		req.Host = p.cfg.Host
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)); err != nil {
		return fmt.Errorf("read the answer to a probe: %w", err)
	}
	if want := p.cfg.Probe.Status; want != 0 && res.StatusCode != want || want == 0 && (res.StatusCode < 200 || res.StatusCode > 399) {
		return fmt.Errorf("the probe of %s was answered with %d", p.cfg.Probe.Path, res.StatusCode)
	}
	return nil
}

// noteProbe takes a result into the window. A good probe also ends an ejection.
func (s *server) noteProbe(err error, cfg Probe) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.probes <<= 1
	if err == nil {
		s.probes |= 1
		s.failures, s.ejected = 0, time.Time{}
	} else {
		s.why = err.Error()
	}
	window := s.probes & (1<<cfg.Window - 1) // a shift by 64 gives all ones
	s.down = bits.OnesCount64(window) < cfg.Threshold
}
