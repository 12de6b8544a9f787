package edge

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"
)

// heart says whether requests get through this daemon: it sends one over a connection that stays open,
// through a listener and the pipeline. The self-check, which also opens a connection, comes too
// seldom for routers that watch by BFD.
type heart struct {
	e    *Edge
	last atomic.Int64 // monotonic nanoseconds since the start; 0: no beat yet
}

// A beat costs about 0.1 ms of a CPU. Missing all of them for a second is no load that passes; a
// daemon that does not run at all is noticed sooner, since then it does not speak BFD either.
const (
	beatEvery  = 100 * time.Millisecond
	beatWithin = time.Second
)

// beating reports whether a request got through lately.
func (h *heart) beating() bool {
	last := h.last.Load()
	return last != 0 && time.Since(h.e.started)-time.Duration(last) < beatWithin
}

// run beats until ctx ends, while somebody wants to know.
func (h *heart) run(ctx context.Context) {
	tr := selfTransport()
	tr.MaxIdleConns = 1
	defer tr.CloseIdleConnections()
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		if h.e.cfg.Load().Anycast.Enabled() {
			h.beat(ctx, tr)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (h *heart) beat(ctx context.Context, tr *http.Transport) {
	ctx, cancel := context.WithTimeout(ctx, beatWithin)
	defer cancel()
	if h.e.askSelf(ctx, tr) == nil {
		h.last.Store(int64(time.Since(h.e.started)))
	}
}
