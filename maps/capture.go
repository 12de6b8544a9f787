package maps

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/bermedge/berm/bpf"
)

// Captures is how copies of packets are had from the kernel half, for one who asks at a time.
type Captures struct {
	set  *Set
	w    *window
	ring *ebpf.Map
}

// MaxSnap is how many bytes of a frame can be copied.
const MaxSnap = 2047

// Capture says which packets are wanted.
type Capture struct {
	Reasons []Drop  // refused, or in shadow, for one of these; DropNone: neither
	Stages  []Stage // that had the last word; none: any
	VIP     uint32  // id; 0: any
	Every   uint64  // one in so many that fit: a power of two
	Snap    int     // bytes of the frame
	Count   uint64  // copies, until Want asks for more; then the kernel half stops by itself
}

// Captured is a copy of a packet, as it was when its fate was sealed.
type Captured struct {
	Time   time.Time
	Length int // of the frame, of which Frame may be the beginning
	VIP    uint32
	Record uint32
	Weight uint32 // packets that this one stands for
	Stage  Stage
	Exit   Exit
	Reason Drop
	Shadow Drop
	Frame  []byte // only valid until the next one
}

// words of berm_capture that the kernel half reads or counts in, and userspace reads.
const (
	captureLeft = iota
	captureSeen
	captureLost
)

// Start asks for packets; what was asked before is forgotten.
func (c *Captures) Start(want Capture) error {
	if want.Every == 0 || want.Every&(want.Every-1) != 0 || want.Every > 1<<31 {
		return fmt.Errorf("capture: one in %d: want a power of two", want.Every)
	}
	if want.Snap < 1 || want.Snap > MaxSnap {
		return fmt.Errorf("capture: %d bytes of a frame: want 1 to %d", want.Snap, MaxSnap)
	}
	if want.Count < 1 || want.Count > 1<<62 {
		return fmt.Errorf("capture: %d packets: want at least 1", want.Count)
	}
	v := bpf.XDPBermCapture{Left: want.Count, Stages: ^uint32(0), Vip: want.VIP, Mask: uint32(want.Every - 1), Snap: uint32(want.Snap)}
	for _, d := range want.Reasons {
		v.Reasons |= 1 << d
	}
	if len(want.Stages) > 0 {
		v.Stages = 0
	}
	for _, s := range want.Stages {
		v.Stages |= 1 << s
	}
	return c.set.lock.holdQuietly(func() error {
		c.set.Config.setFlag(bpf.XDPBermConfigFlagsBERM_CONFIG_CAPTURE, false)
		from := (*[unsafe.Sizeof(v) / 8]uint64)(unsafe.Pointer(&v))
		for i := range from {
			atomic.StoreUint64(&c.w.words()[i], from[i])
		}
		c.set.Config.setFlag(bpf.XDPBermConfigFlagsBERM_CONFIG_CAPTURE, true)
		return nil
	})
}

// Want asks for so many copies from now on, instead of what was still asked for.
func (c *Captures) Want(count uint64) { atomic.StoreUint64(&c.w.words()[captureLeft], count) }

// Stop asks for no more.
func (c *Captures) Stop() error {
	return c.set.lock.holdQuietly(func() error {
		c.set.Config.setFlag(bpf.XDPBermConfigFlagsBERM_CONFIG_CAPTURE, false)
		atomic.StoreUint64(&c.w.words()[captureLeft], 0)
		return nil
	})
}

// Counts tells how many packets fitted, whether they were copied or not, and how many copies were lost because the ring was full.
func (c *Captures) Counts() (seen, lost uint64) {
	return atomic.LoadUint64(&c.w.words()[captureSeen]), atomic.LoadUint64(&c.w.words()[captureLost])
}

// Read calls fn for each copy until the context ends, which is no error, or fn returns one. Only one
// reader at a time gets copies.
func (c *Captures) Read(ctx context.Context, fn func(Captured) error) error {
	return readRing(ctx, c.ring, int(unsafe.Sizeof(bpf.XDPBermCaptured{})), func(raw []byte) error { return fn(decodeCaptured(raw)) })
}

func decodeCaptured(raw []byte) Captured {
	var v bpf.XDPBermCaptured
	n := copy(unsafe.Slice((*byte)(unsafe.Pointer(&v)), unsafe.Sizeof(v)), raw)
	return Captured{
		Time: wall(v.TimeNs), Length: int(v.Len), VIP: v.Vip, Record: v.Record, Weight: v.Weight,
		Stage: Stage(v.Stage), Exit: Exit(v.Exit), Reason: Drop(v.Reason), Shadow: Drop(v.Shadow), Frame: raw[n:],
	}
}

// readRing reads a ring buffer's records, each of which has at least so many bytes.
func readRing(ctx context.Context, ring *ebpf.Map, least int, fn func([]byte) error) (err error) {
	r, err := ringbuf.NewReader(ring)
	if err != nil {
		return fmt.Errorf("read %s: %w", ring, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = r.Close() }) // wakes ReadInto below
	defer func() {
		if stop() {
			err = errors.Join(err, r.Close())
		}
	}()
	var rec ringbuf.Record
	for {
		switch err := r.ReadInto(&rec); {
		case errors.Is(err, ringbuf.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("read %s: %w", ring, err)
		}
		if len(rec.RawSample) < least {
			return fmt.Errorf("record of %d bytes in %s, want %d: %w (run: berm kernel upgrade)", len(rec.RawSample), ring, least, ErrContract)
		}
		if err := fn(rec.RawSample); err != nil {
			return err
		}
	}
}
