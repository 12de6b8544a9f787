package dictionary

import (
	"errors"
	"fmt"
	"strings"

	"github.com/bermedge/berm/userspace/cache"
)

// Config is the section compression.dictionaries.
type Config struct {
	// Memory bounds dictionaries, encoded answers, and what answers under way take. 0: nothing is encoded.
	Memory cache.Bytes `yaml:"memory"`
	// MaxSize is the largest dictionary, and the largest body that is encoded with one.
	MaxSize cache.Bytes `yaml:"max_size"`
	// Rules make dictionaries of answers whose origins do not say Use-As-Dictionary.
	Rules []Rule `yaml:"rules"`
}

// Rule names answers that become dictionaries, and what for.
type Rule struct {
	Host  string `yaml:"host"`  // "www.example.com"; "*" for any
	Path  string `yaml:"path"`  // of the dictionary; * stands for any characters
	Match string `yaml:"match"` // paths of the same host that it is for; * stands for any characters
	// Destinations are what clients want the answers for (Sec-Fetch-Dest): script, style, document. Empty: anything.
	Destinations []string `yaml:"destinations"`
}

const (
	// minMemory is what one answer of the largest size needs while it is encoded, twice.
	minMemory = 64 << 20
	// maxSize keeps a dictionary and a body together in a window of 8 MiB, which is all that clients need to have
	// memory for (RFC 9842, 5).
	maxSize = 4 << 20
)

// Default is what an empty section means.
func Default() Config { return Config{MaxSize: 2 << 20} }

// Validate reports everything wrong with the section.
func (c Config) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Memory != 0 && c.Memory < minMemory {
		fail("memory: %s is neither 0 nor at least %s", c.Memory, cache.Bytes(minMemory))
	}
	if c.MaxSize < minSize || c.MaxSize > maxSize {
		fail("max_size: %s is not between %s and %s", c.MaxSize, cache.Bytes(minSize), cache.Bytes(maxSize))
	}
	if len(c.Rules) > 0 && c.Memory == 0 {
		fail("rules: nothing follows them while memory is 0")
	}
	for i, r := range c.Rules {
		for _, err := range r.problems() {
			fail("rules[%d].%w", i, err)
		}
	}
	return errors.Join(errs...)
}

func (r Rule) problems() (errs []error) {
	if r.Host == "" || r.Host != "*" && strings.ContainsAny(r.Host, "*/: ") {
		errs = append(errs, fmt.Errorf(`host: %q is neither a host's name without a port nor "*"`, r.Host))
	}
	if _, err := parsePattern(r.Path); err != nil {
		errs = append(errs, fmt.Errorf("path: %w", err))
	}
	if _, err := parsePattern(r.Match); err != nil {
		errs = append(errs, fmt.Errorf("match: %w", err))
	}
	for i, d := range r.Destinations {
		if !isDestination(d) {
			errs = append(errs, fmt.Errorf("destinations[%d]: %q is no destination (write script, style, document)", i, d))
		}
	}
	return errs
}
