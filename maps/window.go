package maps

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// window is the memory of an array map with BPF_F_MMAPABLE, shared with the kernel. It is mapped
// here, not by Map.Memory, because flips and bits need atomic stores, which want a pointer.
type window struct{ b []byte }

func mapWindow(m *ebpf.Map) (*window, error) {
	size := int(m.ValueSize()+7) &^ 7 * int(m.MaxEntries()) // array values are padded to 8 bytes
	page := unix.Getpagesize()
	b, err := unix.Mmap(m.FD(), 0, (size+page-1)&^(page-1), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	return &window{b: b[:size]}, nil
}

func (w *window) close() error {
	if w == nil || w.b == nil {
		return nil
	}
	err := unix.Munmap(w.b[:cap(w.b)])
	w.b = nil
	return err
}

// words are the window as 64-bit words: every mmapable map of ours has such cells.
func (w *window) words() []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(w.b))), len(w.b)/8)
}

// store32 makes one 32-bit store at a byte offset, which a packet sees whole or not at all.
func (w *window) store32(offset uintptr, v uint32) {
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&w.b[offset])), v)
}

// quiesce returns when no packet that began before the call is still being processed, so that
// the copy that a flip retired may be written again. membarrier's global command waits for one
// RCU grace period, and XDP programs run inside RCU read sections. Hosts with isolated CPUs
// (nohz_full) refuse it: there a pause of a thousand times a packet's worst case has to do.
func quiesce() {
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		time.Sleep(50 * time.Millisecond) // sleep: see above
	}
}

const membarrierGlobal = 1 // MEMBARRIER_CMD_GLOBAL

// mapWindows maps several maps for the length of one operation.
func mapWindows(ms ...*ebpf.Map) (_ []*window, closeAll func() error, err error) {
	var ws []*window
	closeAll = func() error {
		var errs []error
		for _, w := range ws {
			errs = append(errs, w.close())
		}
		return errors.Join(errs...)
	}
	for _, m := range ms {
		w, err := mapWindow(m)
		if err != nil {
			return nil, nil, errors.Join(err, closeAll())
		}
		ws = append(ws, w)
	}
	return ws, closeAll, nil
}
