package cache

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseRange(t *testing.T) {
	for _, c := range []struct {
		field string
		size  int64
		want  string
	}{
		{"bytes=0-4", 10, "[{0 5}]"},
		{"Bytes=0-4", 10, "[{0 5}]"},
		{"bytes=5-", 10, "[{5 10}]"},
		{"bytes=-3", 10, "[{7 10}]"},
		{"bytes=-30", 10, "[{0 10}]"},
		{"bytes=0-99", 10, "[{0 10}]"},
		{"bytes=9-9", 10, "[{9 10}]"},
		{"bytes=0-0, 2-3,, -1", 10, "[{0 1} {2 4} {9 10}]"},
		{"bytes=0-0,20-", 10, "[{0 1}]"},
		{"bytes=10-", 10, "unsatisfiable"},
		{"bytes=-0", 10, "unsatisfiable"},
		{"bytes=0-", 0, "unsatisfiable"},
		{"bytes=-5", 0, "unsatisfiable"},
		{"bytes=99999999999999999999-", 10, "unsatisfiable"},
		{"bytes=0-99999999999999999999", 10, "[{0 10}]"},
		{"bytes=", 10, "ignore"},
		{"bytes", 10, "ignore"},
		{"items=0-4", 10, "ignore"},
		{"bytes=4-0", 10, "ignore"},
		{"bytes=a-b", 10, "ignore"},
		{"bytes=1", 10, "ignore"},
		{"bytes=--1", 10, "ignore"},
		{"bytes=+1-2", 10, "ignore"},
		{"bytes=0-9,0-9", 10, "ignore"},
		{"bytes=" + strings.Repeat("0-0,", maxSpans+1), 1000, "ignore"},
	} {
		var room [maxSpans]span
		spans, form := parseRange(c.field, c.size, room[:])
		got := [...]string{"ignore", "unsatisfiable", fmt.Sprint(spans)}[form]
		if got != c.want {
			t.Errorf("%q of %d: %s, want %s", c.field, c.size, got, c.want)
		}
	}
}

func FuzzRange(f *testing.F) {
	f.Add("bytes=0-4,-3", int64(10))
	f.Add("bytes=5-,,", int64(0))
	f.Fuzz(func(t *testing.T, field string, size int64) {
		if size < 0 {
			return
		}
		var room [maxSpans]span
		spans, form := parseRange(field, size, room[:])
		if (form == rangeParts) != (len(spans) > 0) {
			t.Errorf("%q of %d: form %d with %d spans", field, size, form, len(spans))
		}
		for _, s := range spans {
			if s.start < 0 || s.end <= s.start || s.end > size {
				t.Errorf("%q of %d: span %v", field, size, s)
			}
		}
	})
}

func TestMatchesAny(t *testing.T) {
	for _, c := range []struct {
		fields []string
		etag   string
		want   bool
	}{
		{[]string{`"a"`}, `"a"`, true},
		{[]string{`W/"a"`}, `"a"`, true},
		{[]string{`"a"`}, `W/"a"`, true},
		{[]string{`"b", "a"`}, `"a"`, true},
		{[]string{`"b"`, `"a"`}, `"a"`, true},
		{[]string{`"a,b"`}, `"a,b"`, true},
		{[]string{`"a,b"`}, `"a"`, false},
		{[]string{`a`}, `"a"`, false},
		{[]string{`x, "a"`}, `"a"`, true},
		{[]string{`"a`}, `"a"`, false},
		{[]string{"*"}, "", true},
		{[]string{`""`}, "", false},
		{[]string{""}, `"a"`, false},
	} {
		if got := matchesAny(c.fields, c.etag); got != c.want {
			t.Errorf("%q matches %s: %t", c.fields, c.etag, got)
		}
	}
}

func FuzzTags(f *testing.F) {
	f.Add(`"a", W/"b", c`, `"b"`)
	f.Fuzz(func(t *testing.T, list, etag string) {
		matchesAny([]string{list}, etag)
		if strings.Count(etag, `"`) == 2 && isStrong(etag) && strings.HasSuffix(etag, `"`) && !matchesAny([]string{`"x", ` + etag}, etag) {
			t.Errorf("%q is not found in its own list", etag)
		}
	})
}
