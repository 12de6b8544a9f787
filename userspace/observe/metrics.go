package observe

import (
	"encoding/json"
	"net/http"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Emit gives one value of a metric, with its labels' values in the metric's order.
type Emit func(m *Metric, value float64, labels ...string)

// Source emits the values of some metrics when they are asked for.
type Source func(emit Emit)

// Metrics is the registry. Values are read when a scrape asks: nothing is counted twice.
type Metrics struct {
	registry *prometheus.Registry
	descs    map[*Metric]*prometheus.Desc
	latency  *prometheus.HistogramVec

	mu      sync.Mutex
	sources map[string]Source
}

// NewMetrics returns a registry with Go's and the process's metrics.
func NewMetrics() *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), descs: map[*Metric]*prometheus.Desc{}, sources: map[string]Source{}}
	for _, x := range catalogue {
		m.descs[x] = prometheus.NewDesc(x.Name, x.Help, x.Labels, nil)
	}
	m.latency = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "berm_request_seconds",
		Help:    "Time from a request's head to the last byte handed to the kernel, by the stage that answered.",
		Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
	}, []string{"stage"})
	m.registry.MustRegister(m, m.latency,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Set makes s the source of a name: the one before, if any, is no longer asked.
func (m *Metrics) Set(name string, s Source) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sources[name] = s
}

// Describe tells the registry which metrics may come.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, x := range catalogue {
		ch <- m.descs[x]
	}
}

// Collect asks every source.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sources {
		s(func(x *Metric, value float64, labels ...string) {
			kind := prometheus.CounterValue
			if x.Gauge {
				kind = prometheus.GaugeValue
			}
			c, err := prometheus.NewConstMetric(m.descs[x], kind, value, labels...)
			if err != nil {
				c = prometheus.NewInvalidMetric(m.descs[x], err)
			}
			ch <- c
		})
	}
}

// Health is what a health check asks for. Healthy means that the process works; ready, that it
// should get traffic. Problems say why not, or what is missing.
type Health struct {
	Healthy  bool     `json:"healthy"`
	Ready    bool     `json:"ready"`
	Problems []string `json:"problems"`
}

// Handler serves /metrics, /healthz and /readyz.
func (m *Metrics) Handler(health func() Health) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	answer := func(good func(Health) bool) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			h := health()
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Cache-Control", "no-store")
			if !good(h) {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			_ = json.NewEncoder(w).Encode(h) // a prober that hung up needs no answer
		}
	}
	mux.Handle("GET /healthz", answer(func(h Health) bool { return h.Healthy }))
	mux.Handle("GET /readyz", answer(func(h Health) bool { return h.Ready }))
	return mux
}
