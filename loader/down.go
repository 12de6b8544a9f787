package loader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Removed says what Down took away.
type Removed struct {
	Changed []string `json:"changed"`
	Notes   []string `json:"notes"`
}

// Down detaches the programs and removes pins, directories and the mount that Up made, of every contract, and nothing
// else. When nothing is up it does nothing.
func Down(ctx context.Context, o Options) (*Removed, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("kernel down: %w", err)
	}
	o.fill()
	lock, err := takeLock(ctx, o.Lock)
	if err != nil {
		return nil, fmt.Errorf("kernel down: %w", err)
	}
	gone, err := down(o.Pins)
	if err := errors.Join(err, lock.Close()); err != nil {
		return gone, fmt.Errorf("kernel down: %w", err)
	}
	return gone, nil
}

func down(root string) (*Removed, error) {
	gone := &Removed{Changed: []string{}, Notes: []string{}}
	if on, err := onBPFFS(root); err != nil || !on {
		return gone, err
	}
	dirs, err := contracts(root)
	if err != nil {
		return gone, err
	}
	var errs []error
	for _, l := range dirs {
		names, _ := l.linkNames()
		left, err := l.remove()
		for _, path := range left {
			gone.Notes = append(gone.Notes, path+" is not Berm's: left it")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.dir, err))
			continue
		}
		for _, n := range names {
			gone.Changed = append(gone.Changed, "detached from "+n)
		}
		gone.Changed = append(gone.Changed, "removed "+l.dir)
	}
	if err := errors.Join(errs...); err != nil {
		return gone, err
	}
	// The root is a directory in a bpffs, or where we mounted one: one of the two can be removed at once.
	made, err := removeRoot(root)
	point, uerr := unmountBPFFS(root)
	if err := errors.Join(err, uerr); err != nil {
		return gone, err
	}
	if point != "" {
		gone.Changed = append(gone.Changed, "unmounted bpffs from "+point)
	}
	if !made {
		made, err = removeRoot(root)
	}
	if made {
		gone.Changed = append(gone.Changed, "removed "+root)
	}
	return gone, err
}

// removeRoot leaves a root in which others have something.
func removeRoot(root string) (bool, error) {
	switch err := os.Remove(root); {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EBUSY):
		return false, nil
	default:
		return false, fmt.Errorf("remove %s: %w", root, err)
	}
}
