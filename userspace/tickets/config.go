// Package tickets lets clients resume their TLS sessions, over TCP and QUIC, on any edge that has the same keys.
package tickets

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// Config is the section tls.tickets.
type Config struct {
	// Dir is where the keys lie, a file each. Edges that see the same files resume each other's sessions. Empty: with the
	// daemon's state.
	Dir    string        `yaml:"dir"`
	Rotate time.Duration `yaml:"rotate"` // how long a key makes tickets; they are accepted for two of these more
	// Create makes the keys. Where they are copied from one edge to others, only that one makes them.
	Create bool `yaml:"create"`
}

// Default is what an empty section means.
func Default() Config { return Config{Rotate: time.Hour, Create: true} }

// Validate reports everything wrong with the section.
func (c Config) Validate() error {
	var errs []error
	if c.Dir != "" && !filepath.IsAbs(c.Dir) {
		errs = append(errs, fmt.Errorf("dir: %q is not an absolute path", c.Dir))
	}
	// Clients keep a ticket for a week at most (RFC 8446, 4.6.1), and three periods must not be longer.
	if c.Rotate < time.Minute || c.Rotate > 48*time.Hour {
		errs = append(errs, fmt.Errorf("rotate: %s is not between 1m and 48h", c.Rotate))
	}
	if !c.Create && c.Dir == "" {
		errs = append(errs, errors.New("create: false needs dir, where another edge's keys come to lie"))
	}
	return errors.Join(errs...)
}
