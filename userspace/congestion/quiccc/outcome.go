package quiccc

import (
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/congestion/controller"
)

// gapMost is the longest that a connection waits for its client and counts it: who is gone is waited for much longer, and tells
// nothing more. As bpf/include/result.h has it.
const gapMost = 3 * time.Second

// Results is the table of what came of connections, by the profile that they began with.
type Results interface {
	CountResult(client netip.Addr, profile uint32, p maps.CCPart) error
}

// outcome adds up what came of a connection, as the kernel half does for one of TCP: goodput while there was something to
// deliver, round trips and queues once a round trip, packets sent again. It tells nothing before the connection delivered more than its
// first window, with which all controllers do the same.
type outcome struct {
	first     int64         // bytes of the first window
	delivered int64         // bytes
	from      time.Duration // the client is waited for since then; 0: nothing is in flight
	looked    time.Duration
	told      bool
	part      maps.CCPart // since it was told last
}

// sent tells of a packet.
func (o *outcome) sent(inFlight int64, at time.Duration) {
	if inFlight == 0 {
		o.from = at
	}
	o.part.Sent++
}

// update takes an event in.
func (o *outcome) update(e *controller.Event) {
	left := e.PriorInFlight
	for _, p := range e.Acked {
		o.delivered += int64(p.Bytes)
		o.part.Bytes += uint64(p.Bytes)
		left -= int64(p.Bytes)
	}
	for _, p := range e.Lost {
		left -= int64(p.Bytes)
	}
	o.part.Again += uint32(len(e.Lost))
	if o.from > 0 {
		o.part.Busy += min(max(e.Now-o.from, 0), gapMost)
	}
	if o.from = 0; left > 0 {
		o.from = e.Now
	}
	if e.HasRTT && e.Now-o.looked >= e.RTT.Smoothed {
		o.looked = e.Now
		o.part.RTT += e.RTT.Smoothed
		o.part.Queue += max(e.RTT.Smoothed-e.RTT.Min, 0)
		o.part.Looks++
	}
}

// take returns what is to be told, if there is enough of it.
func (o *outcome) take(last bool) (p maps.CCPart, ok bool) {
	if o.delivered < o.first || o.part.Looks == 0 || !last && o.part.Busy < every {
		return maps.CCPart{}, false
	}
	p = o.part
	if !o.told {
		p.Connections = 1
	}
	o.told, o.part = true, maps.CCPart{}
	return p, true
}

// turns has connections write to a table of results one after the other.
type turns struct {
	mu sync.Mutex
	to Results
}

func (t *turns) add(client netip.Addr, profile uint32, p maps.CCPart) error {
	if !client.IsValid() {
		return errors.New("its client has no address")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.to.CountResult(client, profile, p)
}
