package fec

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"
)

// feed puts the packets that come in on a socket into blocks.
type feed struct {
	in               socket
	enc              *Encoder // run's
	delay            func() time.Duration
	begin            func(sbn uint32) Params             // the shape of the block that begins
	emit             func(pkt []byte, repair bool) error // counts what it could not send
	welcome          func(netip.Addr) bool               // whose packets are taken; nil: everybody's
	arrived, dropped *atomic.Uint64
}

// run returns when the socket is closed.
func (f feed) run() {
	buf := make([]byte, 1<<16)
	var opened time.Time // the block under way
	for {
		var due time.Time
		if f.enc.Filled() > 0 {
			due = opened.Add(f.delay())
		}
		if f.in.SetReadDeadline(due) != nil {
			return // closed
		}
		n, from, err := f.in.ReadFromUDPAddrPort(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			_ = f.enc.Close(f.emit)
			continue
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			continue // an ICMP error about an earlier packet
		case f.welcome != nil && !f.welcome(from.Addr().Unmap()):
			f.dropped.Add(1)
			continue
		}
		if f.enc.Filled() == 0 {
			opened = time.Now()
			_ = f.enc.SetParams(f.begin(f.enc.sbn)) // Choose makes only shapes that can be
		}
		f.arrived.Add(1)
		if f.enc.Add(buf[:n], f.emit) != nil {
			f.dropped.Add(1)
		}
	}
}

// meter tells how fast packets come, smoothed over some looks at their number.
type meter struct {
	rate   float64 // a second
	last   time.Time
	before uint64
}

func newMeter() *meter { return &meter{last: time.Now()} }

// within returns how many packets come within a time, now that there were n.
func (m *meter) within(n uint64, now time.Time, d time.Duration) int {
	if took := now.Sub(m.last); took > 0 {
		m.rate += (float64(n-m.before)/took.Seconds() - m.rate) / 2
	}
	m.last, m.before = now, n
	return int(m.rate * d.Seconds())
}
