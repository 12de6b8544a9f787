package maps

import (
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"
)

// Heart is the daemon's sign of life, by which the kernel half knows whether new flows are served.
type Heart struct {
	set *Set
	w   *window
}

// rateUnit is what ticks are given in (config's tick_units).
const rateUnit = 64 * time.Nanosecond

// maxSilence keeps a limit far below the 2^31 ticks that the kernel half can tell apart.
const maxSilence = time.Hour

func (h *Heart) field(i int) *uint32 {
	words := h.w.words()
	return &unsafe.Slice((*uint32)(unsafe.Pointer(unsafe.SliceData(words))), 2*len(words))[i]
}

// The fields of struct berm_heart, in words of 32 bits.
const (
	heartBeat  = 0
	heartLimit = 1
	heartFired = 4
)

// Beat tells the kernel half that the daemon lives.
func (h *Heart) Beat() { atomic.AddUint32(h.field(heartBeat), 1) }

// SetLimit says after what silence the kernel half hands new flows to other edges; 0 = never.
func (h *Heart) SetLimit(d time.Duration) error {
	if d < 0 || d > maxSilence {
		return fmt.Errorf("silence: %s is not between 0 and %s", d, maxSilence)
	}
	tick := h.tick()
	if d > 0 && tick == 0 {
		return fmt.Errorf("silence: the tick's length is not known: %w", ErrContract)
	}
	ticks := uint32(0)
	if d > 0 {
		ticks = uint32((d + tick - 1) / tick)
	}
	return h.set.lock.hold(func() error {
		atomic.StoreUint32(h.field(heartLimit), ticks)
		return nil
	})
}

func (h *Heart) tick() time.Duration { return time.Duration(h.set.Config.Get().TickUnits) * rateUnit }

// Limit is what SetLimit said, in whole ticks.
func (h *Heart) Limit() time.Duration {
	return time.Duration(atomic.LoadUint32(h.field(heartLimit))) * h.tick()
}

// Fired says whether a new flow went to another edge since Clear.
func (h *Heart) Fired() bool { return atomic.LoadUint32(h.field(heartFired)) != 0 }

// Clear forgets that. Before it, the rows have to say where those flows are.
func (h *Heart) Clear() { atomic.StoreUint32(h.field(heartFired), 0) }
