package pipeline

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"sync/atomic"
)

// DietConfig is the section headers.
type DietConfig struct {
	// Drop names fields of answers that clients do not get: X-Powered-By, or X-Debug-* for all that begin so. What
	// clients need to understand an answer cannot be dropped.
	Drop []string `yaml:"drop"`
}

// needed are fields without which an answer means something else, is kept where it may not be, or guards less.
var needed = []string{
	"Cache-Control", "Connection", "Content-Encoding", "Content-Length", "Content-Range", "Content-Type", "Date", "Etag", "Location",
	"Content-Security-Policy", "Cross-Origin-Embedder-Policy", "Cross-Origin-Opener-Policy", "Cross-Origin-Resource-Policy",
	"Retry-After", "Set-Cookie", "Strict-Transport-Security", "Trailer", "Transfer-Encoding", "Upgrade", "Vary", "Www-Authenticate",
	"X-Content-Type-Options",
}

// Validate reports everything wrong with the section.
func (c DietConfig) Validate() error {
	var errs []error
	seen := map[string]bool{}
	for i, name := range c.Drop {
		stem, many := strings.CutSuffix(name, "*")
		lower := strings.ToLower(name)
		switch {
		case !isFieldName(stem):
			errs = append(errs, fmt.Errorf("drop[%d]: %q is no field's name (write X-Powered-By, or X-Debug-* for all that begin so)", i, name))
			continue
		case seen[lower]:
			errs = append(errs, fmt.Errorf("drop[%d]: %q is given twice", i, name))
		}
		seen[lower] = true
		for _, n := range needed {
			if strings.EqualFold(n, stem) || many && len(n) >= len(stem) && strings.EqualFold(n[:len(stem)], stem) {
				errs = append(errs, fmt.Errorf("drop[%d]: %q is %s, which clients cannot do without", i, name, n))
				break
			}
		}
	}
	return errors.Join(errs...)
}

// isFieldName reports whether s is a token (RFC 9110, 5.6.2).
func isFieldName(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}*`, c) >= 0 {
			return false
		}
	}
	return s != ""
}

// Diet takes fields out of answers that the operator does not want to send: by any stage, and last of all.
type Diet struct {
	now     atomic.Pointer[diet]
	Dropped atomic.Uint64 // fields
}

type diet struct {
	names []string // canonical
	stems []string // canonical, of names that begin so
}

// Apply follows another section, which is valid.
func (d *Diet) Apply(c DietConfig) {
	next := &diet{}
	for _, name := range c.Drop {
		stem, many := strings.CutSuffix(name, "*")
		if stem = textproto.CanonicalMIMEHeaderKey(stem); many {
			next.stems = append(next.stems, stem)
		} else {
			next.names = append(next.names, stem)
		}
	}
	d.now.Store(next)
}

// trim takes fields out of h.
func (d *Diet) trim(h http.Header) {
	now := d.now.Load()
	if now == nil || len(now.names)+len(now.stems) == 0 {
		return
	}
	before := len(h)
	for _, name := range now.names {
		delete(h, name)
	}
	if len(now.stems) > 0 {
		for name := range h {
			if slices.ContainsFunc(now.stems, func(stem string) bool { return strings.HasPrefix(name, stem) }) {
				delete(h, name)
			}
		}
	}
	d.Dropped.Add(uint64(before - len(h)))
}

// WithDiet has d take fields out of every answer that the exit delivers.
func WithDiet(d *Diet) Option { return func(p *Pipeline) { p.diet = d } }
