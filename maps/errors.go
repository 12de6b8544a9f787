package maps

import "errors"

var (
	// ErrNotUp says that the kernel half is not loaded: there are no pins.
	ErrNotUp = errors.New("not pinned")
	// ErrContract says that the maps are of another layout than this program's.
	ErrContract = errors.New("contract differs")
	// ErrNotFound says that no entry has this key or name.
	ErrNotFound = errors.New("not found")
	// ErrOverlap says that another entry already claims this address, port and protocol, or this name.
	ErrOverlap = errors.New("already taken")
	// ErrFull says that a table has no place left.
	ErrFull = errors.New("table is full")
	// ErrInUse says that something else still names this entry.
	ErrInUse = errors.New("still in use")
)
