package congestion

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Mode is what the learner does with what it learns.
type Mode uint8

// The modes. In shadow it says what it would choose, and no connection begins differently.
const (
	Off Mode = iota
	Shadow
	On
)

var modeNames = [...]string{Off: "off", Shadow: "shadow", On: "on"}

// String is the mode's name.
func (m Mode) String() string { return modeNames[m] }

// MarshalText gives the mode's name.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads a mode's name.
func (m *Mode) UnmarshalText(b []byte) error {
	i := slices.Index(modeNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("mode %q: want one of %s", b, strings.Join(modeNames[:], ", "))
	}
	*m = Mode(i)
	return nil
}

// Learn is the section cc.learn: profiles chosen by what they reach, for each IPv4 /24 and IPv6 /48.
type Learn struct {
	// Mode is off, shadow (say what would be chosen, change nothing) or on.
	Mode Mode `yaml:"mode"`
	// Arms are two or three profiles to choose among; empty: learn-cubic and learn-bbr, which the learner makes.
	Arms []string `yaml:"arms"`
	// HoldOut is the share of connections that begin with what was not chosen, so that it stays known what that would do.
	HoldOut float64 `yaml:"hold_out"`
	// Queueing is how much of its goodput a profile loses that fills the round trip with queues.
	Queueing float64 `yaml:"queueing"`
	// Retransmission is how much of its goodput a profile loses for each share of segments sent again.
	Retransmission float64 `yaml:"retransmission"`
	// Hysteresis is by how much another profile must do better to be chosen instead.
	Hysteresis float64 `yaml:"hysteresis"`
	// Memory is after what time what was measured counts half.
	Memory time.Duration `yaml:"memory"`
	// Prefixes is the most prefixes that are remembered; those that were not seen for longest are forgotten.
	Prefixes int `yaml:"prefixes"`
}

// DefaultLearn is what a file that says nothing means.
func DefaultLearn() Learn {
	return Learn{HoldOut: 0.05, Queueing: 0.1, Retransmission: 1, Hysteresis: 0.1, Memory: 30 * time.Minute, Prefixes: 4096}
}

// Default is what an empty file means.
func Default() Config { return Config{Learn: DefaultLearn()} }

// The profiles of the learner's own.
const (
	ownCubic = "learn-cubic"
	ownBBR   = "learn-bbr"
)

// maxArms are those that a rule names: what is chosen, and two others.
const maxArms = 3

// maxPrefixes leaves room for two profiles each, of TCP and of QUIC, in the kernel half's table of results.
const maxPrefixes = 4096

// validate reports everything that is wrong, by the section's keys.
func (l Learn) validate(profiles map[string]Profile) error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf("cc.learn."+format, args...)) }
	if n := len(l.Arms); n == 1 || n > maxArms {
		fail("arms: %d, want 2 or %d to choose among, or none", n, maxArms)
	}
	for i, name := range l.Arms {
		at := fmt.Sprintf("arms[%d]", i)
		if _, ok := profiles[name]; !ok {
			fail("%s: there is no profile %q", at, name)
		}
		if slices.Contains(l.Arms[:i], name) {
			fail("%s: %s is listed twice", at, name)
		}
	}
	within := func(key string, v, least, most float64) {
		if !(v >= least && v <= most) { // not a number is neither
			fail("%s: %v is not between %v and %v", key, v, least, most)
		}
	}
	within("hold_out", l.HoldOut, 0.01, 0.25)
	within("queueing", l.Queueing, 0, 1)
	within("retransmission", l.Retransmission, 0, 10)
	within("hysteresis", l.Hysteresis, 0.01, 1)
	if l.Memory < time.Minute || l.Memory > 7*24*time.Hour {
		fail("memory: %s is not between 1m and 168h", l.Memory)
	}
	if l.Prefixes < 1 || l.Prefixes > maxPrefixes {
		fail("prefixes: %d is not between 1 and %d", l.Prefixes, maxPrefixes)
	}
	return errors.Join(errs...)
}
