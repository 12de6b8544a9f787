package cache

import (
	"net/http"
	"strings"
	"time"
)

// notModified reports whether the client's copy, as its conditions describe it, is the one with these validators
// (RFC 9110, 13.2.2). date stands in for a missing Last-Modified (RFC 9111, 4.3.2).
func notModified(req http.Header, etag string, modified, date time.Time) bool {
	if tags := req["If-None-Match"]; tags != nil {
		return matchesAny(tags, etag)
	}
	since := req["If-Modified-Since"]
	if since == nil {
		return false
	}
	t := parseTime(since[0])
	if modified.IsZero() {
		modified = date
	}
	return !t.IsZero() && !modified.IsZero() && !modified.After(t)
}

// matchesAny compares weakly (RFC 9110, 8.8.3.2) with each tag of an If-None-Match field.
func matchesAny(fields []string, etag string) bool {
	for _, list := range fields {
		if strings.Trim(list, " \t") == "*" {
			return true
		}
		for list != "" {
			var tag string
			tag, list = nextTag(list)
			if tag != "" && etag != "" && opaque(tag) == opaque(etag) {
				return true
			}
		}
	}
	return false
}

// nextTag cuts the first entity tag off a list; the tag is empty when what comes is none. Commas may be inside tags.
func nextTag(s string) (tag, rest string) {
	s = strings.TrimLeft(s, " \t,")
	open := 0
	if strings.HasPrefix(s, "W/") {
		open = 2
	}
	if len(s) <= open || s[open] != '"' {
		_, rest, _ = strings.Cut(s, ",")
		return "", rest
	}
	end := strings.IndexByte(s[open+1:], '"')
	if end < 0 {
		return "", ""
	}
	end += open + 2
	return s[:end], s[end:]
}

// opaque returns an entity tag without its weakness.
func opaque(tag string) string { return strings.TrimPrefix(tag, "W/") }

func isStrong(tag string) bool { return strings.HasPrefix(tag, `"`) }

// rangeApplies reports whether a Range is to be heeded under the request's If-Range: only when the client's parts are
// of this very object, by a strong comparison (RFC 9110, 13.1.5).
func rangeApplies(req http.Header, etag string, modified, date time.Time) bool {
	v := req["If-Range"]
	if v == nil {
		return true
	}
	cond := strings.Trim(v[0], " \t")
	if strings.HasPrefix(cond, `"`) || strings.HasPrefix(cond, "W/") {
		return isStrong(cond) && cond == etag
	}
	// A date identifies an object only if it was not changed twice within its second (RFC 9110, 8.8.2.2).
	t := parseTime(cond)
	return !t.IsZero() && t.Equal(modified) && date.Sub(modified) >= time.Second
}

// conditionals are the fields with which a client asks about its own copy, or for a part.
var conditionals = [...]string{"If-None-Match", "If-Modified-Since", "If-Range", "Range"}

// validating turns a fetch into a question about o: has it changed?
func validating(req http.Header, o *object) {
	if o.etag != "" {
		req["If-None-Match"] = []string{o.etag}
	}
	if !o.modified.IsZero() {
		req["If-Modified-Since"] = []string{o.modified.UTC().Format(http.TimeFormat)}
	}
}
