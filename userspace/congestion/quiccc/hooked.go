//go:build quiccc

package quiccc

import (
	"time"

	"github.com/quic-go/quic-go"

	"github.com/bermedge/berm/userspace/congestion/controller"
)

// Selectable says whether connections can have a controller of their own.
const Selectable = true

// hook has quic-go ask for the controller of the connection's path, and for another one when its client moved.
func (c *Chooser) hook(choice Choice, q *quic.Config) {
	q.InitialRTT, q.MaxAckDelay = choice.QUIC.InitialRTT, choice.AckDelay
	q.CongestionControl = func(path quic.CongestionPath) quic.CongestionController {
		if path.Migrated {
			choice = c.of(path.RemoteAddr)
			path.InitialRTT = choice.QUIC.InitialRTT
		}
		return c.flow(choice, path)
	}
}

// flow makes the controller of one path.
func (c *Chooser) flow(choice Choice, path quic.CongestionPath) *flow {
	name, refused := Controller(choice.Controller)
	window := int64(InitialWindow(choice.InitialWindow)) * int64(path.MaxDatagramSize)
	client := address(path.RemoteAddr).Addr()
	f := &flow{chooser: c}
	o := controller.Options{MaxDatagram: path.MaxDatagramSize, InitialWindow: window, InitialRTT: path.InitialRTT, LossFloor: c.floors.of(client), Losses: &f.meter}
	cc, err := controller.New(name, o)
	if err != nil { // a window of one packet, say
		refused = err
		if cc, err = controller.New(name, controller.Options{}); err != nil {
			panic(err) // a name of the package's own, and its defaults
		}
	}
	f.Controller, f.count = cc, Count{Controller: cc.Name(), Profile: choice.Profile, Refused: refused != nil}
	if refused != nil {
		c.once(choice.Profile, "QUIC connections do not get all that profile "+choice.Profile+" has", refused)
	}
	f.gauge.client, f.outcome.first = client, window
	if f.profile = choice.ID; f.count.Refused {
		f.profile = 0
	}
	f.telling = c.results != nil && (choice.ID != 0 || choice.Profile == "")
	return f
}

// flow is a controller as quic-go calls it. It belongs to the goroutine of one connection.
type flow struct {
	controller.Controller
	chooser *Chooser
	count   Count
	counted bool
	gauge   gauge
	meter   controller.LossMeter
	outcome outcome
	profile uint32           // that it began with; 0: the host's, also where its own was refused
	telling bool             // what came of it, to the table of results
	event   controller.Event // its slices are used again
}

// Sent tells of a packet.
func (f *flow) Sent(inFlight int64, p quic.CongestionPacket) {
	f.gauge.sent++
	f.outcome.sent(inFlight, p.Sent)
	f.Controller.Sent(p.Sent, inFlight, controller.Packet(p))
}

// Update tells of acknowledgements and losses. A connection counts from its first round trip on: before that, its address
// may be forged.
func (f *flow) Update(e *quic.CongestionEvent) {
	ev := &f.event
	ev.Acked, ev.Lost, ev.Spurious = packets(ev.Acked, e.Acked), packets(ev.Lost, e.Lost), packets(ev.Spurious, e.Spurious)
	ev.Now, ev.PriorInFlight, ev.ECNCE, ev.Persistent = e.Now, e.PriorInFlight, e.ECNCE, e.Persistent
	ev.HasRTT, ev.RTT = e.HasRTT, controller.RTT{Latest: e.LatestRTT, Smoothed: e.SmoothedRTT, Min: e.MinRTT}
	f.Controller.Update(*ev)
	f.gauge.update(ev, e.MeanDeviation)
	f.meter.Observe(*ev)
	f.outcome.update(ev)
	if !f.counted && f.gauge.rtt > 0 {
		f.counted = true
		f.chooser.count(f.count)
	}
	if f.gauge.due(ev.Now) {
		f.tell(ev.Now, false)
	}
}

// Closed reports the rest.
func (f *flow) Closed() {
	if f.gauge.rtt > 0 {
		f.tell(0, true)
	}
}

// tell reports what is new, and what came of the connection once there is enough of that or it was the last time.
func (f *flow) tell(now time.Duration, last bool) {
	s, c := f.gauge.take(now), f.chooser
	if of, share := f.meter.Share(); of > 0 {
		c.floors.learn(f.gauge.client, int64(s.packets()), share)
	}
	if c.report != nil {
		if err := c.report.add(f.gauge.client, s); err != nil {
			c.once("report", "what QUIC connections measure is not written to the table of paths", err)
		}
	}
	if !f.telling {
		return
	}
	f.outcome.part.RateKbps = max(f.outcome.part.RateKbps, s.kbps)
	if p, ok := f.outcome.take(last); ok {
		if err := c.results.add(f.gauge.client, f.profile, p); err != nil {
			c.once("results", "what came of QUIC connections is not written to the table of results", err)
		}
	}
}

func packets(to []controller.Packet, from []quic.CongestionPacket) []controller.Packet {
	to = to[:0]
	for _, p := range from {
		to = append(to, controller.Packet(p))
	}
	return to
}
