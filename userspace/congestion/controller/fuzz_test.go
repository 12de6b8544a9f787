package controller

import (
	"encoding/binary"
	"math"
	"testing"
	"time"
)

// FuzzController lets any order of events, however absurd, leave every controller with a window of at least two datagrams and at
// most the greatest, and a rate that is a number.
func FuzzController(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
	f.Add([]byte("\x00\x00\x10\x00\x00\x10\x01\xff\xff\x02\xff\xff\x03\x00\x01\x04\x00\x00\x05\x10\x00\x06\x40\x00\x01\x80\x00\x02\x01\x01"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, name := range []string{BBR, Cubic, Reno} {
			var meter LossMeter
			fuzzOne(t, mustNew(t, name, Options{LossFloor: 0.05, Losses: &meter}), &meter, data)
		}
	})
}

func fuzzOne(t *testing.T, c Controller, meter *LossMeter, data []byte) {
	t.Helper()
	var (
		now      time.Duration
		inFlight int64
		flying   []Packet
		gone     []Packet
		number   int64
		mss      = int64(1200)
	)
	// take removes up to n packets from either end of those in flight.
	take := func(n int, last bool) []Packet {
		n = min(n, len(flying))
		taken := flying[:n:n]
		if last {
			taken = flying[len(flying)-n:]
			flying = flying[:len(flying)-n]
		} else {
			flying = flying[n:]
		}
		return taken
	}
	for ; len(data) >= 3; data = data[3:] {
		arg := int(binary.BigEndian.Uint16(data[1:]))
		e := Event{PriorInFlight: inFlight, RTT: RTT{Latest: time.Duration(arg) * 10 * time.Microsecond, Min: ms, Smoothed: 20 * ms}, HasRTT: arg%3 != 0}
		switch data[0] % 8 {
		case 0:
			for range arg%64 + 1 {
				p := Packet{Number: number, Bytes: int(mss), Sent: now}
				c.Sent(now, inFlight, p)
				flying, inFlight, number = append(flying, p), inFlight+mss, number+1+int64(arg%5/4)
			}
		case 1:
			now += time.Duration(arg) * time.Duration(arg) * time.Microsecond
		case 2:
			e.Acked = take(arg%32, arg&128 != 0)
		case 3:
			e.Lost = take(arg%32, arg&128 != 0)
			gone = e.Lost
			e.Persistent = arg&256 != 0
		case 4:
			c.AppLimited(inFlight)
		case 5:
			e.Spurious, gone = gone, nil
			e.ECNCE = arg % 3
		case 6:
			mss = int64(1200 + arg%300)
			c.Resize(int(mss))
		case 7: // what no transport should say
			e.PriorInFlight = int64(arg) - 1000
			e.Acked = []Packet{{Number: int64(arg) - 5, Bytes: arg, Sent: now + time.Duration(arg) - 2000}}
			e.Lost = []Packet{{Number: -1, Bytes: arg / 2, Sent: -1}}
			e.ECNCE = arg % 9
		}
		for _, p := range append(e.Acked, e.Lost...) {
			inFlight = max(inFlight-int64(p.Bytes), 0)
		}
		e.Now = now
		if len(e.Acked)+len(e.Lost)+len(e.Spurious)+e.ECNCE > 0 {
			c.Update(e)
			meter.Observe(e)
		}
		if w := c.Window(); w < 2*mss || w > maxWindow {
			t.Fatalf("%s: a window of %d with datagrams of %d", c.Name(), w, mss)
		}
		if r := c.PacingRate(); math.IsNaN(r) || math.IsInf(r, 0) || r < 0 || c.Name() == BBR && r == 0 {
			t.Fatalf("%s: a pacing rate of %g", c.Name(), r)
		}
		s := c.State()
		if s.Phase == "" || math.IsNaN(s.Bandwidth) || s.Bandwidth < 0 || math.IsInf(s.Bandwidth, 0) || s.MinRTT < 0 || s.SSThresh <= 0 || !(s.LossFloor >= 0 && s.LossFloor <= MaxLossFloor) {
			t.Fatalf("%s: %+v", c.Name(), s)
		}
		if _, share := meter.Share(); math.IsNaN(share) || share < 0 || share > 1 {
			t.Fatalf("a share of %g: %+v", share, *meter)
		}
	}
}
