// Package bench measures what the kernel half costs a packet, with BPF_PROG_TEST_RUN on programs
// and maps of its own: no interface, no daemon, nothing pinned. It needs root.
//
// The kernel's own duration is taken, the least of several runs, and the cost of the harness
// that varies the flow and restores the packet is subtracted. Compare cases of one run with
// each other, best in floors (the case floor_encap): absolute figures drift with the machine.
package bench

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Options say what to measure. The zero value measures everything.
type Options struct {
	Cases    []string // names of cases; none = all
	Families []int    // 4, 6; none = both
	Flows    []int    // powers of two up to 1 Mi; none = 1, 4096, 65536, 1048576
	Runs     int      // timed runs of each case; 0 = 15
	// Progress is told what is being done, for a person to see; nil = nobody.
	Progress func(string)
}

// Result is the cost of one case.
type Result struct {
	Case   string  `json:"case"`
	Family int     `json:"family"`
	Flows  int     `json:"flows"`
	NS     float64 `json:"ns"`     // per packet, without the harness
	Runs   int     `json:"runs"`   // timed runs
	Spread float64 `json:"spread"` // how far the median run is above the least, as a share of it
}

// maxFlows is how many different flows the harness can make.
const maxFlows = 1 << 20

// Cases returns the names of all cases.
func Cases() []string {
	var names []string
	for _, c := range cases {
		names = append(names, c.name)
	}
	return names
}

func (o *Options) complete() error {
	if o.Cases == nil {
		o.Cases = Cases()
	}
	if o.Families == nil {
		o.Families = []int{4, 6}
	}
	if o.Flows == nil {
		o.Flows = []int{1, 4096, 65536, maxFlows}
	}
	if o.Runs == 0 {
		o.Runs = 15
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	for _, name := range o.Cases {
		if !slices.Contains(Cases(), name) {
			return fmt.Errorf("case %q is unknown: want some of %v", name, Cases())
		}
	}
	for _, f := range o.Families {
		if f != 4 && f != 6 {
			return fmt.Errorf("family %d: want 4 or 6", f)
		}
	}
	for _, n := range o.Flows {
		if n < 1 || n > maxFlows || n&(n-1) != 0 {
			return fmt.Errorf("%d flows: want a power of two up to %d", n, maxFlows)
		}
	}
	if o.Runs < 1 {
		return fmt.Errorf("%d runs: want at least 1", o.Runs)
	}
	return nil
}

// Run measures and gives each result to emit as soon as it is known.
func Run(ctx context.Context, opts Options, emit func(Result) error) error {
	if err := opts.complete(); err != nil {
		return err
	}
	release, err := pin()
	if err != nil {
		return err
	}
	defer release()
	leave, err := enterHost()
	if err != nil {
		return err
	}
	defer leave()

	opts.Progress("loading the programs and half a million prefixes of each family")
	w, err := newWorld()
	if err != nil {
		return err
	}
	defer w.close()
	for _, family := range opts.Families {
		for _, flows := range opts.Flows {
			if err := w.measureAll(ctx, opts, family, flows, emit); err != nil {
				return err
			}
		}
	}
	return nil
}

// measureAll interleaves the cases, so that a change of the machine's mood meets them all.
func (w *world) measureAll(ctx context.Context, opts Options, family, flows int, emit func(Result) error) error {
	var picked []benchCase
	for _, c := range cases {
		if slices.Contains(opts.Cases, c.name) {
			picked = append(picked, c)
		}
	}
	harness := make([]time.Duration, 0, opts.Runs)
	times := make([][]time.Duration, len(picked))
	for run := range opts.Runs {
		opts.Progress(fmt.Sprintf("IPv%d, %d flows, run %d of %d", family, flows, run+1, opts.Runs))
		for i, c := range picked {
			if err := ctx.Err(); err != nil {
				return err
			}
			bare, err := w.time(harnessOnly, family, flows)
			if err != nil {
				return err
			}
			harness = append(harness, bare)
			d, err := w.time(c, family, flows)
			if err != nil {
				return fmt.Errorf("case %s, IPv%d, %d flows: %w", c.name, family, flows, err)
			}
			times[i] = append(times[i], d)
		}
	}
	base := slices.Min(harness)
	for i, c := range picked {
		slices.Sort(times[i])
		least, median := times[i][0], times[i][len(times[i])/2]
		err := emit(Result{
			Case: c.name, Family: family, Flows: flows, NS: float64(least - base),
			Runs: opts.Runs, Spread: float64(median-least) / float64(max(least, 1)),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// pin keeps this goroutine on one CPU: the last, which has the least to do for others.
func pin() (release func(), err error) {
	runtime.LockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("ask for the CPUs of this thread: %w", err)
	}
	cpu := -1
	for i := range len(before) * 64 {
		if before.IsSet(i) {
			cpu = i
		}
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("stay on CPU %d: %w", cpu, err)
	}
	return func() {
		// Without its CPUs back the thread is of no use to others: it then ends with the goroutine.
		if unix.SchedSetaffinity(0, &before) == nil {
			runtime.UnlockOSThread()
		}
	}, nil
}
