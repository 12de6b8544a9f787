package maps

import (
	"sync/atomic"

	"github.com/bermedge/berm/bpf"
)

// Newcomers are flows that began after their row had moved, where a server that runs no Berm may have
// got the row: nobody can ask it which flows it knows. The kernel half notes them; what is not
// noted is the former owner's.
type Newcomers struct {
	set *Set
	w   *window
}

// Of a cell: see contract.h.
const (
	newcomerBackend = 12
	newcomerState   = 10
)

// Newcomer is a place in the table.
type Newcomer struct {
	Backend uint32 // who has the flow
	Open    bool   // it has shown that it receives
}

// Count is how many places are taken. Those of flows that have ended are given away only when they
// are needed.
func (n *Newcomers) Count() int {
	taken := 0
	words := n.w.words()
	for i := range words {
		if atomic.LoadUint64(&words[i])>>newcomerBackend&rowBackend != 0 {
			taken++
		}
	}
	return taken
}

// Forget frees the places of flows that a backend had, since it is gone; 0 = all.
func (n *Newcomers) Forget(backend uint32) error {
	return n.set.lock.hold(func() error {
		words := n.w.words()
		for i := range words {
			cell := atomic.LoadUint64(&words[i])
			if cell != 0 && (backend == 0 || uint32(cell>>newcomerBackend&rowBackend) == backend) {
				atomic.CompareAndSwapUint64(&words[i], cell, 0) // or it has just been written anew
			}
		}
		return nil
	})
}

// Find returns the place of a flow, by its hash.
func (n *Newcomers) Find(flow uint64) (Newcomer, bool) {
	words := n.w.words()
	set := int(flow>>48) % (len(words) / newcomerWays)
	for i := range newcomerWays {
		cell := atomic.LoadUint64(&words[set*newcomerWays+i])
		if backend := uint32(cell >> newcomerBackend & rowBackend); backend != 0 && cell>>40 == flow>>24&0xffffff {
			return Newcomer{Backend: backend, Open: cell>>newcomerState&3 != uint64(bpf.XDPBermNewcomerStateBERM_NEWCOMER_OPENING)}, true
		}
	}
	return Newcomer{}, false
}

const newcomerWays = 8 // BERM_NEWCOMER_WAYS
