package maps

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// lock keeps writers apart: goroutines by the mutex, processes by flock on the pins' directory.
// A directory of bpffs takes flock like any inode (the kernel keeps it in the VFS), needs only
// read permission, and lives exactly as long as the maps: no lock file can be left behind.
// Readers take no lock; what they read is consistent by single stores and flips.
type lock struct {
	mu     sync.Mutex
	dir    *os.File // nil: maps without a directory, used by one process
	ledger *ledger  // nil: nobody watches for drift
}

func lockDir(path string) (*lock, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open for locking: %w", err)
	}
	return &lock{dir: f}, nil
}

// hold runs fn as the only writer.
func (l *lock) hold(fn func() error) (err error) {
	return l.holdQuietly(func() error {
		if l.ledger != nil {
			l.ledger.before()
			defer l.ledger.after()
		}
		return fn()
	})
}

// holdQuietly is hold for what is written often and is not in the ledger's tables: samples,
// signs of life, and verdicts, whose writers tell the ledger themselves.
func (l *lock) holdQuietly(fn func() error) (err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dir != nil {
		if err := flock(l.dir, unix.LOCK_EX); err != nil {
			return fmt.Errorf("lock %s: %w", l.dir.Name(), err)
		}
		defer func() { err = errors.Join(err, flock(l.dir, unix.LOCK_UN)) }()
	}
	return fn()
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (l *lock) close() error {
	if l.dir == nil {
		return nil
	}
	return l.dir.Close()
}
