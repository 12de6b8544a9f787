package cache

import (
	"strings"
)

// span is a part of a body: bytes start to end-1.
type span struct{ start, end int64 }

// maxSpans is the most ranges that are served in one answer; a request for more gets the whole object, which RFC
// 9110, 14.2 allows, so that a small request cannot ask for a thousand parts.
const maxSpans = 16

// rangeForm is what a Range field turned out to be.
type rangeForm uint8

const (
	rangeIgnore        rangeForm = iota // absent, malformed, another unit, or too much: serve the whole
	rangeUnsatisfiable                  // no part of it lies in the body: 416
	rangeParts                          // these parts
)

// parseRange reads a Range field for a body of size bytes into spans, whose room bounds their number. Parts outside
// the body are dropped. Overlapping parts that together ask for more than the body are refused by serving the whole.
func parseRange(field string, size int64, spans []span) ([]span, rangeForm) {
	set, ok := cutUnit(field)
	if !ok {
		return nil, rangeIgnore
	}
	spans = spans[:0]
	var sum int64
	count := 0
	for set != "" {
		var spec string
		spec, set, _ = strings.Cut(set, ",")
		spec = strings.Trim(spec, " \t")
		if spec == "" {
			continue
		}
		count++
		s, form := parseSpan(spec, size)
		if form == rangeIgnore || count > maxSpans {
			return nil, rangeIgnore
		}
		if form == rangeParts {
			spans = append(spans, s)
			sum += s.end - s.start
		}
	}
	switch {
	case count == 0:
		return nil, rangeIgnore
	case len(spans) == 0:
		return nil, rangeUnsatisfiable
	case len(spans) > 1 && sum > size:
		return nil, rangeIgnore
	}
	return spans, rangeParts
}

// cutUnit cuts "bytes=" off a Range field.
func cutUnit(field string) (string, bool) {
	const unit = "bytes="
	if len(field) < len(unit) || !strings.EqualFold(field[:len(unit)], unit) {
		return "", false
	}
	return field[len(unit):], true
}

// parseSpan reads "first-last", "first-" or "-suffix".
func parseSpan(spec string, size int64) (span, rangeForm) {
	a, b, ok := strings.Cut(spec, "-")
	if !ok {
		return span{}, rangeIgnore
	}
	if a == "" {
		n, ok := digits(b)
		switch {
		case !ok:
			return span{}, rangeIgnore
		case n == 0 || size == 0:
			return span{}, rangeUnsatisfiable
		}
		return span{max(size-n, 0), size}, rangeParts
	}
	first, ok := digits(a)
	if !ok {
		return span{}, rangeIgnore
	}
	last := size - 1
	if b != "" {
		if last, ok = digits(b); !ok || last < first {
			return span{}, rangeIgnore
		}
	}
	if first >= size {
		return span{}, rangeUnsatisfiable
	}
	return span{first, min(last+1, size)}, rangeParts
}

// digits reads a decimal number, stopping short of overflow: no body is that large.
func digits(s string) (int64, bool) {
	const most = 1 << 60
	if s == "" {
		return 0, false
	}
	n := int64(0)
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = min(n*10+int64(s[i]-'0'), most)
	}
	return n, true
}
