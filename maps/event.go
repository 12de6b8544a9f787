package maps

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// Samples says how many packets of each fate become events.
type Samples struct {
	set *Set
	w   *window
}

// Set makes one in every packets with this fate an event: a power of two, 1 for all, 0 for none.
// DropNone stands for packets that are not dropped.
func (s *Samples) Set(d Drop, every uint64) error {
	if d >= dropMax {
		return fmt.Errorf("sample: %s is not a drop reason", d)
	}
	if every&(every-1) != 0 {
		return fmt.Errorf("sample of %s: 1 in %d: want a power of two, or 0 for none", d, every)
	}
	return s.set.lock.holdQuietly(func() error {
		atomic.StoreUint64(&s.w.words()[d], every-1) // 0 - 1 is all ones: never
		if d == DropNone {
			s.set.Config.setFlag(bpf.XDPBermConfigFlagsBERM_CONFIG_SAMPLE_PASSED, every != 0)
		}
		return nil
	})
}

// Get returns one in how many packets with this fate becomes an event; 0 is none.
func (s *Samples) Get(d Drop) uint64 {
	if d >= dropMax {
		return 0
	}
	return atomic.LoadUint64(&s.w.words()[d]) + 1
}

// Events is the stream of sampled packets.
type Events struct{ m *ebpf.Map }

// Event is a sampled packet, without its payload.
type Event struct {
	Time        time.Time      `json:"time"`
	Source      netip.AddrPort `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	Protocol    Protocol       `json:"protocol"`
	Exit        Exit           `json:"exit"`
	Reason      Drop           `json:"reason"`
	Shadow      Drop           `json:"shadow"` // what would have dropped it
	Length      uint32         `json:"length"` // of the IP packet
	VIP         uint32         `json:"vip"`
	Record      uint32         `json:"record"`
	Weight      uint32         `json:"weight"` // packets that this event stands for
}

// Read calls fn for each event until the context ends, which is no error, or fn returns one. Only
// one reader at a time gets events; a second one would take some of them away from the first.
func (e *Events) Read(ctx context.Context, fn func(Event) error) error {
	return readRing(ctx, e.m, int(unsafe.Sizeof(bpf.XDPBermEvent{})), func(raw []byte) error { return fn(decodeEvent(raw)) })
}

func decodeEvent(raw []byte) Event {
	var v bpf.XDPBermEvent
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&v)), unsafe.Sizeof(v)), raw)
	return Event{
		Time:        wall(v.TimeNs),
		Source:      netip.AddrPortFrom(fromAddr(v.Source), swap16(v.Sport)),
		Destination: netip.AddrPortFrom(fromAddr(v.Destination), swap16(v.Dport)),
		Protocol:    Protocol(v.Proto), Exit: Exit(v.Exit), Reason: Drop(v.Reason), Shadow: Drop(v.Shadow),
		Length: v.Len, VIP: v.Vip, Record: v.Record, Weight: v.Weight,
	}
}
