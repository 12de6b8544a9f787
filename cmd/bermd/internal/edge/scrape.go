package edge

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/bermedge/berm/userspace/certs"
	"github.com/bermedge/berm/userspace/observe"
	"github.com/bermedge/berm/userspace/transport"
)

// scrape is the listener of /metrics, /healthz and /readyz.
type scrape struct {
	e *Edge

	mu      sync.Mutex
	address string
	server  *http.Server
}

// apply listens on address instead of the one before; "" is none. On an error nothing changes.
func (s *scrape) apply(address string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if address == s.address {
		return nil
	}
	old := s.server
	s.server = nil
	if address != "" {
		l, err := net.Listen("tcp", address)
		if err != nil {
			s.server = old
			if errors.Is(err, syscall.EADDRINUSE) {
				return fmt.Errorf("admin.metrics: tcp %s is in use by %s: %w", address, transport.Holder("tcp", address), syscall.EADDRINUSE)
			}
			return fmt.Errorf("admin.metrics: %w", err)
		}
		s.server = &http.Server{Handler: s.e.metrics.Handler(s.e.health), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, WriteTimeout: time.Minute}
		srv := s.server
		s.e.tasks.Go(func() { s.e.ended("metrics listener", srv.Serve(l)) })
	}
	s.address = address
	if old != nil {
		return old.Close()
	}
	return nil
}

// registerMetrics tells the registry where values come from.
func (e *Edge) registerMetrics() {
	warn := func(err error) { e.log.Warn("metrics of the kernel half", "error", err) }
	e.metrics.Set("kernel", observe.Kernel(e.kernel.use, warn))
	e.metrics.Set("edge", e.emitEdge)
	e.metrics.Set("transport", e.emitTransport)
	e.metrics.Set("quic", e.emitQUIC)
	e.metrics.Set("cache", e.emitCache)
	e.metrics.Set("dictionary", e.emitDictionary)
	e.metrics.Set("origins", e.emitOrigins)
	e.metrics.Set("relays", e.emitRelays)
	e.metrics.Set("anycast", e.emitAnycast)
	e.metrics.Set("learner", e.emitLearner)
}

func (e *Edge) emitEdge(emit observe.Emit) {
	cfg := e.cfg.Load()
	emit(observe.BuildInfo, 1, e.opts.Version, runtime.Version(), cfg.Node.Name, cfg.Node.Site)
	ready := 0.0
	if e.health().Ready {
		ready = 1
	}
	emit(observe.Ready, ready)
	e.kernel.emitHealth(emit)
	emit(observe.StartTime, unixSeconds(e.started))
	emit(observe.ConfigLoaded, unixSeconds(*e.loaded.Load()))
	emit(observe.Reloads, float64(e.reloads[0].Load()), "ok")
	emit(observe.Reloads, float64(e.reloads[1].Load()), "refused")
	e.kernel.drift.emit(emit)
	emit(observe.Events, float64(e.busy.Total()))
	for name, end := range certEnds(e.certs.List()) {
		emit(observe.Certificate, unixSeconds(end), name)
	}
	emit(observe.CertProblems, float64(len(e.certs.Problems())))
	for _, c := range e.pipeline.Counts() {
		emit(observe.Stage, float64(c.N), c.Stage, c.Action.String(), string(c.Reason), strconv.FormatBool(c.Shadow))
	}
	if g := e.kernel.geoInfo(); !g.Loaded.IsZero() {
		emit(observe.GeoPrefixes, float64(g.Prefixes))
		emit(observe.GeoRecords, float64(g.Records))
		emit(observe.GeoLoaded, unixSeconds(g.Loaded))
	}
}

// certEnds tells when the last certificate of each name ends; certificates without a name go by their path.
func certEnds(list []certs.Info) map[string]time.Time {
	ends := map[string]time.Time{}
	for _, c := range list {
		name := c.Path
		if len(c.Names) > 0 {
			name = c.Names[0]
		}
		if c.NotAfter.After(ends[name]) {
			ends[name] = c.NotAfter
		}
	}
	return ends
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func (e *Edge) emitTransport(emit observe.Emit) {
	st := e.server.Stats()
	emit(observe.Connections, float64(st.H1.Accepted.Load()), "tcp")
	emit(observe.Connections, float64(st.H3.Accepted.Load()), "quic")
	emit(observe.OpenConns, float64(st.H1.Open.Load()), "tcp")
	emit(observe.OpenConns, float64(st.H3.Open.Load()), "quic")
	emit(observe.InFlight, float64(st.H1.InFlight.Load()), "h1")
	emit(observe.InFlight, float64(st.H2.InFlight.Load()), "h2")
	emit(observe.InFlight, float64(st.H3.InFlight.Load()), "h3")
	for protocol, p := range map[string]*transport.ProtocolStats{"h2": &st.H2, "h3": &st.H3} {
		emit(observe.HeadRaw, float64(p.HeadRaw.Load()), protocol)
		emit(observe.HeadWire, float64(p.HeadWire.Load()), protocol)
	}
	emit(observe.DietFields, float64(e.diet.Dropped.Load()))
	emit(observe.TLSFailures, float64(st.TLSFailures.Load()))
	emit(observe.QUICRetries, float64(st.Retries.Load()))
	for _, h := range e.tickets.Stats().Handshakes() {
		emit(observe.TLSHandshakes, float64(h.N), h.Transport, h.Session, h.Group)
	}
	for result, n := range e.tickets.EarlyResults() {
		emit(observe.EarlyTickets, float64(n), result)
	}
	emit(observe.EarlyRequests, float64(e.early.Passed.Load()))
}

func (e *Edge) emitCache(emit observe.Emit) {
	s := e.content.cache.get().Stats()
	emit(observe.CacheRequests, float64(s.Hits), "hit")
	emit(observe.CacheRequests, float64(s.Misses), "miss")
	emit(observe.CacheRequests, float64(s.Collapsed), "collapsed")
	emit(observe.CacheRequests, float64(s.Passed), "pass")
	emit(observe.CacheStale, float64(s.StaleHits), "revalidate")
	emit(observe.CacheStale, float64(s.StaleErrors), "error")
	emit(observe.CacheFetches, float64(s.Fetches))
	emit(observe.CacheStored, float64(s.Stored))
	emit(observe.CacheEvicted, float64(s.Evicted))
	emit(observe.CachePurged, float64(s.Purged))
	emit(observe.CacheBroken, float64(s.Incomplete))
	emit(observe.CacheHitBytes, float64(s.HitBytes))
	emit(observe.CacheObjects, float64(s.Objects))
	emit(observe.CacheBytes, float64(s.Bytes))
	emit(observe.CacheLimit, float64(s.Limit))
	for why, n := range s.NotStored {
		emit(observe.CacheNotStored, float64(n), string(why))
	}
}

func (e *Edge) emitDictionary(emit observe.Emit) {
	s := e.content.dictionary.get().Stats()
	for result, n := range s.Results {
		emit(observe.DictionaryAnswers, float64(n), result)
	}
	emit(observe.DictionaryBytes, float64(s.BytesIn), "raw")
	emit(observe.DictionaryBytes, float64(s.BytesOut), "wire")
	emit(observe.DictionaryEncoded, float64(s.Encoded))
	emit(observe.DictionaryLearnt, float64(s.Learnt))
	emit(observe.DictionaryEvicted, float64(s.Evicted))
	emit(observe.Dictionaries, float64(s.Dictionaries))
	emit(observe.DictionaryHeld, float64(s.Bytes))
}

func (e *Edge) emitOrigins(emit observe.Emit) {
	for _, o := range e.content.client.now.Load().Stats() {
		emit(observe.OriginRequests, float64(o.Requests), o.Name)
		emit(observe.OriginFailures, float64(o.Failed), o.Name)
		emit(observe.OriginRefused, float64(o.Refused), o.Name)
		emit(observe.OriginRetried, float64(o.Retried), o.Name)
		emit(observe.OriginInFlight, float64(o.Pending), o.Name)
		for _, s := range o.Servers {
			up := 0.0
			if s.Healthy {
				up = 1
			}
			emit(observe.OriginHealthy, up, o.Name, s.URL)
		}
	}
}

// summary is the line that systemctl status shows.
func (e *Edge) summary() string {
	text := "serving"
	for _, a := range e.server.Addresses() {
		text += fmt.Sprintf(" %s/%s", a.Address, a.Network)
	}
	if e.kernel.problem() != nil {
		text += ", without the kernel half"
	}
	return text
}
