package observe

import (
	"context"
	"log/slog"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bermedge/berm/userspace/pipeline"
)

// Access counts finished requests, and logs some of them. It is the pipeline's observer.
type Access struct {
	log     *slog.Logger
	metrics *Metrics
	one     atomic.Int64 // one in so many is logged; 0 none
	n       atomic.Int64

	byClass [3][6]atomic.Uint64 // protocol, status / 100
	bytes   [3]atomic.Uint64
	cut     [3]atomic.Uint64
	stages  sync.Map // stage's name → prometheus.Observer: finding it in the vector costs more than observing
}

// protocols are the names of the first index above.
var protocols = [3]string{"h1", "h2", "h3"}

// NewAccess returns an observer that counts into m.
func NewAccess(log *slog.Logger, m *Metrics) *Access {
	a := &Access{log: log, metrics: m}
	m.Set("access", a.emit)
	return a
}

// Sample logs one in every requests; 0 logs none.
func (a *Access) Sample(every int) { a.one.Store(int64(every)) }

// Total returns how many requests were answered.
func (a *Access) Total() (n uint64) {
	for p := range a.byClass {
		for c := range a.byClass[p] {
			n += a.byClass[p][c].Load()
		}
	}
	return n
}

// Exchange is told about every finished request, on its goroutine. It allocates nothing unless
// the request is logged.
func (a *Access) Exchange(x *pipeline.Exchange, out pipeline.Outcome) {
	p := min(max(x.R.ProtoMajor-1, 0), 2)
	a.byClass[p][min(max(out.Status/100, 0), 5)].Add(1)
	a.bytes[p].Add(uint64(max(out.Bytes, 0)))
	if out.Err != nil {
		a.cut[p].Add(1)
	}
	o, ok := a.stages.Load(out.Stage)
	if !ok {
		o, _ = a.stages.LoadOrStore(out.Stage, a.metrics.latency.WithLabelValues(out.Stage))
	}
	o.(prometheus.Observer).Observe(out.Elapsed.Seconds())
	if one := a.one.Load(); one > 0 && (out.Status >= 500 || a.n.Add(1)%one == 0) {
		a.write(x, out, p)
	}
}

// write logs a request without what may be secret: the query, credentials and cookies stay out.
func (a *Access) write(x *pipeline.Exchange, out pipeline.Outcome, p int) {
	path := (&url.URL{Path: x.R.URL.Path}).EscapedPath() // no control characters in a log
	attrs := []slog.Attr{
		slog.String("client", x.Client.Addr().String()), slog.String("protocol", protocols[p]),
		slog.String("method", x.R.Method), slog.String("host", x.Host), slog.String("path", path),
		slog.Int("status", out.Status), slog.Int64("bytes", out.Bytes), slog.Duration("took", out.Elapsed),
		slog.String("stage", out.Stage), slog.String("reason", string(out.Reason)),
	}
	if x.CacheStatus != "" {
		attrs = append(attrs, slog.String("cache", x.CacheStatus))
	}
	if out.Err != nil {
		attrs = append(attrs, slog.String("error", out.Err.Error()))
	}
	a.log.LogAttrs(context.Background(), slog.LevelInfo, "request", attrs...)
}

func (a *Access) emit(emit Emit) {
	for p, name := range protocols {
		for c := range a.byClass[p] {
			if n := a.byClass[p][c].Load(); n > 0 {
				emit(Requests, float64(n), name, strconv.Itoa(c)+"xx")
			}
		}
		emit(SentBytes, float64(a.bytes[p].Load()), name)
		emit(CutResponses, float64(a.cut[p].Load()), name)
	}
}
