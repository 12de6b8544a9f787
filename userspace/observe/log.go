// Package observe is what operators see of an edge: logs, metrics, and who is busy right now.
package observe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
)

// Config is the section log.
type Config struct {
	Level  string `yaml:"level"`  // debug, info, warn or error
	Format string `yaml:"format"` // text or json
	// Access logs one in so many answered requests, and every one that failed by the edge's or the
	// origin's fault (5xx); 0 logs none.
	Access int `yaml:"access"`
}

// Default is what an empty section means.
func Default() Config { return Config{Level: "info", Format: "text"} }

// Validate reports everything wrong with the section.
func (c Config) Validate() error {
	var errs []error
	if _, err := level(c.Level); err != nil {
		errs = append(errs, fmt.Errorf("level: %w", err))
	}
	if c.Format != "text" && c.Format != "json" {
		errs = append(errs, fmt.Errorf("format: %q is neither text nor json", c.Format))
	}
	if c.Access < 0 {
		errs = append(errs, fmt.Errorf("access: %d is below 0 (1 logs every request, 100 one in a hundred, 0 none)", c.Access))
	}
	return errors.Join(errs...)
}

func level(s string) (slog.Level, error) {
	for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if strings.EqualFold(l.String(), s) {
			return l, nil
		}
	}
	return 0, fmt.Errorf("%q is none of debug, info, warn, error", s)
}

// Log is a logger whose level and format follow the configuration while it runs.
type Log struct {
	*slog.Logger
	sink *sink
}

// NewLog returns a logger that writes to w. When w is the journal's (JOURNAL_STREAM is set), the
// journal's own time and priority are used: lines carry no time, and begin with <priority>.
func NewLog(cfg Config, w io.Writer) *Log {
	s := &sink{w: w, journal: os.Getenv("JOURNAL_STREAM") != ""}
	l := &Log{slog.New(handler{sink: s}), s}
	l.Apply(cfg)
	return l
}

// Apply changes level and format. cfg is valid.
func (l *Log) Apply(cfg Config) {
	lev, err := level(cfg.Level)
	if err != nil {
		lev = slog.LevelInfo
	}
	l.sink.mu.Lock()
	defer l.sink.mu.Unlock()
	l.sink.level.Set(lev)
	l.sink.json = cfg.Format == "json"
}

// sink is where all handlers derived from one logger write.
type sink struct {
	level slog.LevelVar

	mu      sync.Mutex
	w       io.Writer
	journal bool
	json    bool
	buf     bytes.Buffer
}

// handler writes records through a text or JSON handler of the standard library, which it builds
// anew when the format changes.
type handler struct {
	sink  *sink
	steps []func(slog.Handler) slog.Handler // attributes and groups, in order
}

// Enabled reports whether a level is logged.
func (h handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.sink.level.Level() }

// WithAttrs returns a handler that adds attributes.
func (h handler) WithAttrs(a []slog.Attr) slog.Handler {
	return h.with(func(x slog.Handler) slog.Handler { return x.WithAttrs(a) })
}

// WithGroup returns a handler that opens a group.
func (h handler) WithGroup(name string) slog.Handler {
	return h.with(func(x slog.Handler) slog.Handler { return x.WithGroup(name) })
}

func (h handler) with(step func(slog.Handler) slog.Handler) slog.Handler {
	return handler{h.sink, append(h.steps[:len(h.steps):len(h.steps)], step)}
}

// Handle writes a record as one line. Logging is rare; what is frequent is counted instead.
func (h handler) Handle(ctx context.Context, r slog.Record) error {
	s := h.sink
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf.Reset()
	opts := &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: s.shape}
	var out slog.Handler = slog.NewTextHandler(&s.buf, opts)
	if s.json {
		out = slog.NewJSONHandler(&s.buf, opts)
	}
	for _, step := range h.steps {
		out = step(out)
	}
	if s.journal {
		s.buf.WriteString(priority(r.Level))
	}
	if err := out.Handle(ctx, r); err != nil {
		return err
	}
	_, err := s.w.Write(s.buf.Bytes())
	return err
}

// shape leaves out what the journal notes itself.
func (s *sink) shape(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && s.journal && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
		return slog.Attr{}
	}
	return a
}

// priority is syslog's, as sd-daemon(3) has it.
func priority(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "<3>"
	case l >= slog.LevelWarn:
		return "<4>"
	case l >= slog.LevelInfo:
		return "<6>"
	}
	return "<7>"
}
