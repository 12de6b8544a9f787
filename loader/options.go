package loader

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Mode says how a program is attached to an interface.
type Mode string

// The modes. Native runs in the driver, before the kernel allocates anything; generic runs
// later, at a multiple of the cost, with any driver.
const (
	Auto    Mode = "auto" // native, else generic with a note
	Native  Mode = "native"
	Generic Mode = "generic"
)

// Defaults of Options.
const (
	DefaultPins      = "/sys/fs/bpf/berm"
	DefaultLock      = "/run/berm/kernel.lock"
	DefaultGroup     = "berm"
	DefaultRateCells = 8 << 20 // 64 MiB
	CgroupAuto       = "auto"
	CgroupNone       = "none"

	rateWays     = 8
	minRateCells = 64
	maxRateCells = rateWays << 20 // BERM_RATE_SETS of the contract
)

// Options say where and how the kernel half runs. The zero value of each field is its default.
type Options struct {
	Interfaces  []string   // to attach to
	Mode        Mode       // Auto
	Pins        string     // root of the pins; the contract's directory is below it
	Lock        string     // file that keeps loaders apart
	Cgroup      string     // for sock_ops: a path, CgroupAuto, or CgroupNone
	Group       string     // name or number of the group that may use the maps
	RateCells   int        // size of the rate table: a power of two, 8 bytes each
	ObserveOnly bool       // count what would be dropped, and drop nothing
	Self4       netip.Addr // this host's tunnel addresses; may be unset
	Self6       netip.Addr

	hook  func(step string) error // for tests: called after each step; an error fails the step
	spec  func(*objects)          // for tests: changes what is loaded
	watch time.Duration           // for tests: how long a new program is on probation

	contract int // for tests: another version's
}

// Validate reports everything that is wrong, by the names of the configuration file.
func (o Options) Validate() error {
	var errs []error
	o.fill()
	if !slices.Contains([]Mode{Auto, Native, Generic}, o.Mode) {
		errs = append(errs, fmt.Errorf("kernel.mode: %q is none of auto, native, generic", o.Mode))
	}
	if !filepath.IsAbs(o.Pins) || o.Pins == "/" {
		errs = append(errs, fmt.Errorf("kernel.pins: %q is not an absolute path below /", o.Pins))
	} else if rel, ok := strings.CutPrefix(o.Pins, bpffsDefault+"/"); ok && strings.Contains(rel, ".") {
		errs = append(errs, fmt.Errorf("kernel.pins: %q: bpffs allows no dot in a name", o.Pins))
	}
	if o.Cgroup != CgroupAuto && o.Cgroup != CgroupNone && !filepath.IsAbs(o.Cgroup) {
		errs = append(errs, fmt.Errorf("kernel.cgroup: %q is neither auto, none nor an absolute path", o.Cgroup))
	}
	if o.RateCells < minRateCells || o.RateCells > maxRateCells || bits.OnesCount(uint(o.RateCells)) != 1 {
		errs = append(errs, fmt.Errorf("kernel.rate_cells: %d is not a power of two from %d to %d",
			o.RateCells, minRateCells, maxRateCells))
	}
	for i, name := range o.Interfaces {
		if name == "" || len(name) > 15 || strings.ContainsAny(name, "/ \t\n") {
			errs = append(errs, fmt.Errorf("kernel.interfaces[%d]: %q is not an interface name", i, name))
		}
		if slices.Contains(o.Interfaces[:i], name) {
			errs = append(errs, fmt.Errorf("kernel.interfaces[%d]: %s is listed twice", i, name))
		}
	}
	if o.Self4.IsValid() && !o.Self4.Unmap().Is4() {
		errs = append(errs, fmt.Errorf("node.address4: %s is not an IPv4 address", o.Self4))
	}
	if o.Self6.IsValid() && (!o.Self6.Is6() || o.Self6.Is4In6()) {
		errs = append(errs, fmt.Errorf("node.address6: %s is not an IPv6 address", o.Self6))
	}
	return errors.Join(errs...)
}

func (o *Options) fill() {
	def := func(s *string, value string) {
		if *s == "" {
			*s = value
		}
	}
	if o.Mode == "" {
		o.Mode = Auto
	}
	if o.RateCells == 0 {
		o.RateCells = DefaultRateCells
	}
	if o.watch == 0 {
		o.watch = probation
	}
	if o.contract == 0 {
		o.contract = contract
	}
	def(&o.Pins, DefaultPins)
	def(&o.Lock, DefaultLock)
	def(&o.Cgroup, CgroupAuto)
	def(&o.Group, DefaultGroup)
	o.Pins = filepath.Clean(o.Pins)
}
