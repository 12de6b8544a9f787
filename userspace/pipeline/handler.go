package pipeline

import (
	"net/http"
	"strings"
)

// ReasonLocal is given when a handler of the edge itself answered.
const ReasonLocal Reason = "local"

// Local is a stage that gives the paths under Prefix to a handler of the edge's own, a status page for instance.
type Local struct {
	Prefix  string // "/.berm/"
	Handler http.Handler
	// Allow says who may see it; nil allows everyone. Others go on to the next stage as if it were not there.
	Allow func(x *Exchange) bool
}

// Name returns "local".
func (Local) Name() string { return "local" }

// Run serves the handler's own paths.
func (s Local) Run(x *Exchange) Action {
	if !strings.HasPrefix(x.R.URL.Path, s.Prefix) || s.Allow != nil && !s.Allow(x) {
		return Next
	}
	w := statusWriter{ResponseWriter: x.W, status: http.StatusOK}
	s.Handler.ServeHTTP(&w, x.R)
	return x.Wrote(w.status, ReasonLocal)
}

// statusWriter remembers the status that a handler chose.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader remembers and passes on the status.
func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
