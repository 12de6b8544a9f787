package loader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"

	"github.com/cilium/ebpf"
)

// step is one act on the way up. It notes with undoing how to take back each thing right after doing
// it, so that a step that stops half-way is taken back as far as it came.
type step struct {
	name string
	do   func(*run) error
}

// run is one call of Up or Upgrade: what its steps hand to each other.
type run struct {
	opts   Options
	report *Report
	lock   *os.File
	at     layout // the published directory
	to     layout // where pins are made: at, or the directory that will become it
	from   layout // of the running version, where that is of another contract

	objs    *objects
	ifaces  []*net.Interface
	maps    map[string]*ebpf.Map     // by the name of their pin
	progs   map[string]*ebpf.Program // likewise
	replace []*replacement           // of Upgrade
	watched []pinnedLink             // whose packets tell how a new program does
	tick    tickMeter
	closers []io.Closer
	undos   []undo // latest last

	upgrading bool     // load anew, whatever is there
	last      []func() // after all steps, when there is no way back
}

func begin(ctx context.Context, o Options) (*run, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o.fill()
	lock, err := takeLock(ctx, o.Lock)
	if err != nil {
		return nil, err
	}
	r := &run{
		opts: o, lock: lock,
		report: &Report{
			Kernel: kernelRelease(), Interfaces: []Attachment{}, Programs: []Program{}, Changed: []string{}, Notes: []string{},
		},
		at: o.pinned(), to: o.pinned(),
		maps: map[string]*ebpf.Map{}, progs: map[string]*ebpf.Program{},
	}
	r.report.Pins = r.at.dir
	return r, nil
}

// closeOnEnd keeps c until the run is over.
func (r *run) closeOnEnd(c io.Closer) { r.closers = append(r.closers, c) }

// end lets go of all that is not pinned, the lock last.
func (r *run) end(err error) error {
	errs := []error{err}
	for _, c := range slices.Backward(r.closers) {
		errs = append(errs, c.Close())
	}
	for _, m := range r.maps {
		errs = append(errs, m.Close())
	}
	for _, p := range r.progs {
		errs = append(errs, p.Close())
	}
	return errors.Join(append(errs, r.lock.Close())...)
}

// walk takes the steps in order, or leaves no trace of them.
func (r *run) walk(ctx context.Context, steps []step) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, r.unwind())
			return
		}
		for _, f := range r.last {
			f()
		}
	}()
	for _, s := range steps {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("before %s: %w", s.name, err)
		}
		if err := s.do(r); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if r.opts.hook != nil {
			if err := r.opts.hook(s.name); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	return nil
}

type undo struct {
	what string
	do   func() error
}

func (r *run) undoing(what string, f func() error) { r.undos = append(r.undos, undo{what, f}) }

func (r *run) unwind() error {
	var errs []error
	for _, u := range slices.Backward(r.undos) {
		if err := u.do(); err != nil {
			errs = append(errs, fmt.Errorf("undo: %s: %w", u.what, err))
		}
	}
	return errors.Join(errs...)
}
