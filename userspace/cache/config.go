package cache

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Bytes is a size in the file: a number with an optional unit, "256MiB" for instance.
type Bytes int64

var units = []struct {
	name string
	n    int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1}}

// UnmarshalText reads "1048576", "1MiB" or "1 MB".
func (b *Bytes) UnmarshalText(text []byte) error {
	s := strings.Trim(strings.TrimSpace(string(text)), `"'`)
	mult := int64(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(s, u.name); ok {
			s, mult = strings.TrimSpace(rest), u.n
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/mult {
		return fmt.Errorf("%q is not a size: use a number with KiB, MiB or GiB", text)
	}
	*b = Bytes(n * mult)
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// String writes the size in the largest unit that divides it.
func (b Bytes) String() string {
	for i := 3; i >= 0; i-- {
		if n := units[i].n; b != 0 && int64(b)%n == 0 {
			return strconv.FormatInt(int64(b)/n, 10) + units[i].name
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// Config is the cache's part of the file.
type Config struct {
	// Memory bounds everything that the cache holds: bodies, heads, keys, and the buffers of fetches under way.
	// The Go heap needs room above it for garbage; see HeapLimit.
	Memory Bytes `yaml:"memory"`
	// MaxObject is the largest body that is kept; larger ones are streamed through.
	MaxObject Bytes `yaml:"max_object"`
	// DefaultTTL is for responses that say nothing about their freshness and offer nothing to guess it from.
	DefaultTTL time.Duration `yaml:"default_ttl"`
	// HeuristicLimit caps the freshness guessed from Last-Modified (a tenth of the object's age); 0 guesses nothing.
	HeuristicLimit time.Duration `yaml:"heuristic_limit"`
	// StaleIfError is how long a stale object may stand in for a failing origin, where the response does not say.
	StaleIfError time.Duration `yaml:"stale_if_error"`
	// StaleWhileRevalidate is how long a stale object may be served while it is fetched anew, where the response
	// does not say.
	StaleWhileRevalidate time.Duration `yaml:"stale_while_revalidate"`
	// PassTTL is how long requests for something that turned out uncacheable go to the origin side by side, without
	// waiting for each other (hit-for-miss).
	PassTTL time.Duration `yaml:"pass_ttl"`
	// IgnoreClient has the Cache-Control of requests ignored, except only-if-cached.
	IgnoreClient bool `yaml:"ignore_client"`
	// Name is what Cache-Status calls this cache.
	Name string `yaml:"name"`
}

// DefaultConfig is what an empty file means.
func DefaultConfig() Config {
	return Config{
		Memory: 256 << 20, MaxObject: 64 << 20, HeuristicLimit: time.Hour, StaleIfError: time.Hour,
		PassTTL: 10 * time.Second, Name: "berm",
	}
}

// minMemory is what a few objects and their buffers need.
const minMemory = 1 << 20

// HeapLimit is a soft limit for the Go heap (debug.SetMemoryLimit) that leaves the rest of the process 128 MiB and
// the collector an eighth of the cache: without it the heap grows to twice the cache before garbage is collected.
func (c Config) HeapLimit() int64 { return int64(c.Memory) + int64(c.Memory)/8 + 128<<20 }

// Validate reports everything wrong, by the file's names.
func (c Config) Validate() error {
	var errs []error
	if c.Memory < minMemory {
		errs = append(errs, fmt.Errorf("cache.memory: %s is below %s", c.Memory, Bytes(minMemory)))
	}
	if c.MaxObject < 1 || c.MaxObject > c.Memory/2 {
		errs = append(errs, fmt.Errorf("cache.max_object: %s must be at least 1 and at most half of cache.memory (%s)",
			c.MaxObject, c.Memory/2))
	}
	for _, d := range []struct {
		name string
		d    time.Duration
	}{
		{"default_ttl", c.DefaultTTL},
		{"heuristic_limit", c.HeuristicLimit},
		{"stale_if_error", c.StaleIfError},
		{"stale_while_revalidate", c.StaleWhileRevalidate},
		{"pass_ttl", c.PassTTL},
	} {
		if d.d < 0 {
			errs = append(errs, fmt.Errorf("cache.%s: %s is negative", d.name, d.d))
		}
	}
	if !isToken(c.Name) {
		errs = append(errs, errors.New("cache.name: must be a word of letters, digits, - _ . that begins with a letter"))
	}
	return errors.Join(errs...)
}

// isToken reports whether s can be written bare as the name of a Cache-Status member (RFC 8941, 3.3.4).
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c|0x20 >= 'a' && c|0x20 <= 'z'
		if !letter && (i == 0 || (c < '0' || c > '9') && c != '-' && c != '_' && c != '.') {
			return false
		}
	}
	return s != ""
}
