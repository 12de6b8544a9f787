// Package rig builds small networks on one machine: namespaces, veth pairs, daemons and
// captures, for tests and for bermlab. Everything it makes carries the lab's name, so that
// Sweep finds and removes it after a crash. It knows nothing of the testing package; see rigtest.
package rig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Root is where labs keep their state: one directory each, on tmpfs.
const Root = "/run/bermlab"

// nsPrefix starts the name of every network namespace and cgroup of ours.
const nsPrefix = "bermlab-"

// Names become parts of others, joined by "-": a lab "a" must not own what "a-b" made.
var validName = regexp.MustCompile(`^[a-z][a-z0-9]{0,15}$`)

// ErrInUse is returned when another process is building or running a lab of that name.
var ErrInUse = errors.New("lab is in use by another process")

// Lab is a network on this machine and everything that runs in it.
type Lab struct {
	Name string
	Dir  string // for configuration, logs, sockets, captures and bpffs

	mu    sync.Mutex
	nodes map[string]*Node
	procs []*Proc
	lock  *os.File

	publishing sync.Mutex // programs
}

// New makes an empty lab, removing what an earlier one of that name left behind.
func New(name string) (_ *Lab, err error) {
	if err := CheckPrivilege(); err != nil {
		return nil, err
	}
	lock, err := acquire(name)
	if err != nil {
		return nil, err
	}
	l := &Lab{Name: name, Dir: filepath.Join(Root, name), nodes: map[string]*Node{}, lock: lock}
	defer func() {
		if err != nil {
			err = errors.Join(err, release(lock))
		}
	}()
	if err := remove(name); err != nil {
		return nil, fmt.Errorf("remove leftovers of lab %s: %w", name, err)
	}
	// Daemons without privilege read their configuration here.
	if err := os.MkdirAll(l.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("lab %s: %w", name, err)
	}
	return l, nil
}

// Attach opens a lab that is already up, for looking into it and adding to it.
func Attach(name string) (*Lab, error) {
	l := &Lab{Name: name, Dir: filepath.Join(Root, name), nodes: map[string]*Node{}}
	names, err := namespaces(name)
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("lab %s is not up (bermlab up %s)", name, name)
	}
	for _, ns := range names {
		n, err := openNode(l, ns)
		if err != nil {
			return nil, errors.Join(err, l.Release())
		}
		l.nodes[n.Name] = n
	}
	return l, nil
}

// Close kills the lab's daemons and removes everything it made.
func (l *Lab) Close() error {
	l.mu.Lock()
	procs := slices.Clone(l.procs)
	l.mu.Unlock()

	var errs []error
	for _, p := range slices.Backward(procs) {
		errs = append(errs, p.Kill())
	}
	l.closeNodes()
	return errors.Join(append(errs, remove(l.Name), l.unlock())...)
}

// Release lets go of the lab and leaves it running.
func (l *Lab) Release() error {
	l.closeNodes()
	return l.unlock()
}

func (l *Lab) closeNodes() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.nodes {
		n.close()
	}
	clear(l.nodes)
}

func (l *Lab) unlock() error {
	if l.lock == nil {
		return nil
	}
	lock := l.lock
	l.lock = nil
	return release(lock)
}

// Node returns the node of that name, or nil.
func (l *Lab) Node(name string) *Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nodes[name]
}

// Nodes lists the names of the lab's nodes.
func (l *Lab) Nodes() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for name := range l.nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Path names a file in the lab's directory.
func (l *Lab) Path(elem ...string) string {
	return filepath.Join(append([]string{l.Dir}, elem...)...)
}

// WriteFile writes a file into the lab's directory and returns its path.
func (l *Lab) WriteFile(name string, mode os.FileMode, data []byte) (string, error) {
	path := l.Path(name)
	if err := os.WriteFile(path, data, mode); err != nil {
		return "", fmt.Errorf("lab %s: %w", l.Name, err)
	}
	return path, nil
}

// CheckPrivilege says why this process cannot build labs, or nil.
func CheckPrivilege() error {
	if os.Geteuid() != 0 {
		return errors.New("labs need root: they make network namespaces and load XDP programs")
	}
	return nil
}

// acquire takes the lab's lock. The kernel drops it with the process, however that ends.
func acquire(name string) (*os.File, error) {
	if !validName.MatchString(name) {
		return nil, fmt.Errorf("lab name %q: must match %s", name, validName)
	}
	if err := os.MkdirAll(Root, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(Root, name+".lock")
	for {
		f, err := lockFile(path)
		if err != nil {
			return nil, fmt.Errorf("lab %s: %w", name, err)
		}
		// Its holder removes the file at the end: what we locked may be a file without a name.
		held, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if named, err := os.Stat(path); err == nil && os.SameFile(held, named) {
			return f, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

// release removes the name first: while the lock is held nobody else can have taken it.
func release(lock *os.File) error {
	return errors.Join(os.Remove(lock.Name()), lock.Close())
}

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil, errors.Join(ErrInUse, f.Close())
	case err != nil:
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f, nil
}
