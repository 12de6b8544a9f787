package dictionary

import (
	"fmt"
	"strings"
)

// pattern is the part of URL patterns that is understood: an absolute path in which "*" stands for any characters,
// "/" included. Queries do not matter, as they do not in a URL pattern without one.
type pattern struct {
	text  string
	parts []string // between the "*"
}

const (
	maxPattern   = 1024
	maxWildcards = 8 // bounds the work of a match
)

// parsePattern takes a pattern apart. What means more in a URL pattern than it says here is refused: groups,
// alternatives, names, modifiers, queries, fragments, and URLs with a host.
func parsePattern(s string) (pattern, error) {
	switch i := strings.IndexAny(s, `:?#{}()+\`); {
	case !strings.HasPrefix(s, "/") || strings.HasPrefix(s, "//"):
		return pattern{}, fmt.Errorf("%q is no path (write /static/*)", s)
	case i >= 0:
		return pattern{}, fmt.Errorf("%q has a %q, and of URL patterns only * is understood", s, s[i])
	case len(s) > maxPattern:
		return pattern{}, fmt.Errorf("%d characters are more than %d", len(s), maxPattern)
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return pattern{}, fmt.Errorf("%q has a character that stands escaped in a URL (write %%%02X)", s, s[i])
		}
	}
	parts := strings.Split(s, "*")
	if len(parts) > maxWildcards+1 {
		return pattern{}, fmt.Errorf("%q has more than %d *", s, maxWildcards)
	}
	return pattern{s, parts}, nil
}

// matches reports whether a path, escaped as in a URL, is one of the pattern's.
func (p pattern) matches(path string) bool {
	last := len(p.parts) - 1
	if last == 0 {
		return path == p.parts[0]
	}
	path, ok := strings.CutPrefix(path, p.parts[0])
	if !ok {
		return false
	}
	for _, part := range p.parts[1:last] {
		i := strings.Index(path, part)
		if i < 0 {
			return false
		}
		path = path[i+len(part):]
	}
	return strings.HasSuffix(path, p.parts[last])
}
