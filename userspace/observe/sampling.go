package observe

import (
	"errors"
	"math/bits"

	"github.com/bermedge/berm/maps"
)

// sampleRate is how many events a second each fate of packets may produce. Twenty fates at once
// fill the ring's 1 MiB in two seconds; the reader needs microseconds an event.
const sampleRate = 250

// Samples is what decides how many packets become events: maps.Samples.
type Samples interface {
	Set(d maps.Drop, every uint64) error
	Get(d maps.Drop) uint64
}

// Tune sets the sampling of each drop reason, and of packets that are not dropped, so that a trickle
// is seen whole and a flood costs little. It raises the step at once and lowers it by halves, so
// that a flood that comes in pulses finds sampling already sparse.
func Tune(s Samples, from, to Snapshot) error {
	seconds := to.Time.Sub(from.Time).Seconds()
	if seconds <= 0 {
		return nil
	}
	var errs []error
	var dropped, in uint64
	for d := range maps.AllDrops() {
		n := Since(from.Drops[d].Packets, to.Drops[d].Packets)
		dropped += n
		n += Since(from.Shadows[d].Packets, to.Shadows[d].Packets)
		errs = append(errs, tune(s, d, float64(n)/seconds))
	}
	before := map[uint32]uint64{}
	for _, v := range from.VIPs {
		before[v.ID] = v.In.Packets
	}
	for _, v := range to.VIPs {
		in += Since(before[v.ID], v.In.Packets)
	}
	return errors.Join(append(errs, tune(s, maps.DropNone, float64(in-min(dropped, in))/seconds))...)
}

func tune(s Samples, d maps.Drop, rate float64) error {
	want := uint64(1)
	if n := uint64(rate / sampleRate); n > 1 {
		want = 1 << bits.Len64(n-1)
	}
	have := s.Get(d)
	if have > 1 {
		want = max(want, have/2)
	}
	if want == have {
		return nil
	}
	return s.Set(d, want)
}

// Since is what a counter grew by. One that shrank was loaded anew, and counted from zero.
func Since(from, to uint64) uint64 {
	if to < from {
		return to
	}
	return to - from
}
