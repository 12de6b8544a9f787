package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/bermedge/berm/cmd/berm/internal/out"
)

func sprintf(format string, args ...any) string { return fmt.Sprintf(format, args...) }

// orEmpty makes JSON lists of nothing "[]", never "null".
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func or(s, instead string) string {
	if s == "" {
		return instead
	}
	return s
}

func count(n uint64) string { return out.Count(float64(n)) }

// plural writes "1 object", "2 objects", "2 policies", "2 classes".
func plural(n int, what string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(what, "y"):
		what = strings.TrimSuffix(what, "y") + "ies"
	case strings.HasSuffix(what, "s"):
		what += "es"
	default:
		what += "s"
	}
	return strconv.Itoa(n) + " " + what
}

// quantity is a number with an optional decimal suffix: 1500, 10k, 2.5M.
type quantity uint64

// UnmarshalText reads 1500, 10k and 2.5M.
func (q *quantity) UnmarshalText(text []byte) error {
	s, unit := strings.ToLower(string(text)), 1.0
	if i := strings.IndexAny(s, "kmg"); i >= 0 && i == len(s)-1 {
		unit = map[byte]float64{'k': 1e3, 'm': 1e6, 'g': 1e9}[s[i]]
		s = s[:i]
	}
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || n < 0 || n*unit >= math.MaxInt64 || n*unit != math.Trunc(n*unit) {
		return fmt.Errorf("%q: want a whole number, for instance 1500, 10k or 2.5M", text)
	}
	*q = quantity(n * unit)
	return nil
}

// span is a duration with days: 90s, 10m, 2h, 7d; "forever" is 0.
type span time.Duration

// UnmarshalText reads 90s, 10m, 2h, 7d and forever.
func (s *span) UnmarshalText(text []byte) error {
	t := string(text)
	if t == "forever" {
		*s = 0
		return nil
	}
	if days, ok := strings.CutSuffix(t, "d"); ok {
		n, err := strconv.ParseFloat(days, 64)
		if err == nil && n > 0 && n < 36500 {
			*s = span(n * float64(24*time.Hour))
			return nil
		}
	}
	d, err := time.ParseDuration(t)
	if err != nil || d <= 0 {
		return fmt.Errorf("%q: want a time such as 90s, 10m, 2h or 7d, or forever", text)
	}
	*s = span(d)
	return nil
}
