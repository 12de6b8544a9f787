package cache

import (
	"strings"
	"time"

	"github.com/dunglas/httpsfv"
)

// unset marks a directive that is not there.
const unset time.Duration = -1

// maxDelta is the largest delta-seconds: RFC 9111, 1.2.2 has larger ones taken as 2^31.
const maxDelta = 1 << 31

// directives are a Cache-Control field's, of a request or a response.
type directives struct {
	noStore, noCache, private, public, mustRevalidate, proxyRevalidate, mustUnderstand, onlyIfCached bool
	maxAge, sMaxAge, minFresh, maxStale, swr, sie                                                    time.Duration
}

// noDirectives is an absent field.
var noDirectives = directives{maxAge: unset, sMaxAge: unset, minFresh: unset, maxStale: unset, swr: unset, sie: unset}

// parseDirectives reads the values of a Cache-Control field. It is lenient as RFC 9111 asks: unknown directives are
// ignored, a freshness that cannot be read counts as 0, and of two the first one stands. It does not allocate for
// lower-case input.
func parseDirectives(values []string) directives {
	d := noDirectives
	for _, v := range values {
		for v != "" {
			var name, arg string
			var has bool
			name, arg, has, v = nextDirective(v)
			d.set(strings.ToLower(name), arg, has)
		}
	}
	return d
}

// nextDirective cuts the first directive off s: its name, its argument without quotes, whether it has one, the rest.
func nextDirective(s string) (name, arg string, has bool, rest string) {
	end := strings.IndexAny(s, ",=")
	if end < 0 {
		return strings.Trim(s, " \t"), "", false, ""
	}
	name = strings.Trim(s[:end], " \t")
	if s[end] == ',' {
		return name, "", false, s[end+1:]
	}
	s = strings.TrimLeft(s[end+1:], " \t")
	if strings.HasPrefix(s, `"`) {
		i := 1
		for i < len(s) && s[i] != '"' {
			if s[i] == '\\' {
				i++
			}
			i++
		}
		arg = s[1:min(i, len(s))]
		s = s[min(i+1, len(s)):]
		_, rest, _ = strings.Cut(s, ",")
		return name, arg, true, rest
	}
	arg, rest, _ = strings.Cut(s, ",")
	return name, strings.Trim(arg, " \t"), true, rest
}

func (d *directives) set(name, arg string, has bool) {
	switch name {
	case "no-store":
		d.noStore = true
	case "no-cache": // its qualified form names fields; taking it for the plain one is always allowed
		d.noCache = true
	case "private":
		d.private = true
	case "public":
		d.public = true
	case "must-revalidate":
		d.mustRevalidate = true
	case "proxy-revalidate":
		d.proxyRevalidate = true
	case "must-understand":
		d.mustUnderstand = true
	case "only-if-cached":
		d.onlyIfCached = true
	case "max-age":
		first(&d.maxAge, arg, 0)
	case "s-maxage":
		first(&d.sMaxAge, arg, 0)
	case "min-fresh":
		first(&d.minFresh, arg, unset)
	case "stale-while-revalidate":
		first(&d.swr, arg, unset)
	case "stale-if-error":
		first(&d.sie, arg, unset)
	case "max-stale":
		if !has { // any staleness
			d.maxStale = maxDelta * time.Second
			return
		}
		first(&d.maxStale, arg, unset)
	}
}

// first sets *d unless an earlier directive did; unreadable is what an argument that is no number counts as.
func first(d *time.Duration, arg string, unreadable time.Duration) {
	if *d != unset {
		return
	}
	if secs, ok := deltaSeconds(arg); ok {
		*d = secs
		return
	}
	*d = unreadable
}

// deltaSeconds reads digits as seconds.
func deltaSeconds(s string) (time.Duration, bool) {
	if s == "" {
		return 0, false
	}
	n := int64(0)
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = min(n*10+int64(s[i]-'0'), maxDelta)
	}
	return time.Duration(n) * time.Second, true
}

// parseTargeted reads a CDN-Cache-Control field (RFC 9213), a structured dictionary. It reports false when the field
// is absent, empty or malformed: then Cache-Control stands.
func parseTargeted(values []string) (directives, bool) {
	if len(values) == 0 {
		return noDirectives, false
	}
	dict, err := httpsfv.UnmarshalDictionary(values)
	if err != nil || len(dict.Names()) == 0 {
		return noDirectives, false
	}
	d := noDirectives
	for _, name := range dict.Names() {
		m, _ := dict.Get(name)
		item, ok := m.(httpsfv.Item)
		if !ok {
			continue
		}
		switch v := item.Value.(type) {
		case bool:
			if v {
				d.set(name, "", false)
			}
		case int64:
			d.setSeconds(name, v)
		}
	}
	return d, true
}

func (d *directives) setSeconds(name string, v int64) {
	secs := time.Duration(min(max(v, 0), maxDelta)) * time.Second
	switch name {
	case "max-age":
		d.maxAge = secs
	case "s-maxage":
		d.sMaxAge = secs
	case "stale-while-revalidate":
		d.swr = secs
	case "stale-if-error":
		d.sie = secs
	}
}
