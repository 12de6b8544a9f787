// Package controller holds congestion controllers as pure state machines: Reno, CUBIC and BBRv3. A transport tells one what was
// sent, acknowledged and lost, and asks it how much may be in flight and how fast to send. No clock, no socket, no random source.
package controller

import (
	"fmt"
	"math"
	"time"
)

// The controllers' names.
const (
	BBR   = "bbr"
	Cubic = "cubic"
	Reno  = "reno"
)

// Packet is an ack-eliciting packet.
type Packet struct {
	Number int64         // grows within a packet number space; spaces may share numbers
	Bytes  int           // what it adds to the bytes in flight
	Sent   time.Duration // by the clock of Event.Now
}

// RTT is what the transport knows of the round trip.
type RTT struct {
	Latest, Smoothed, Min time.Duration
}

// Event is one acknowledgement, one run of loss detection, or both.
type Event struct {
	Now           time.Duration // monotonic, from any start
	PriorInFlight int64         // before anything in this event was taken off
	Acked, Lost   []Packet
	Spurious      []Packet // declared lost by an earlier event, and acknowledged after all; not in Acked
	RTT           RTT
	HasRTT        bool // RTT.Latest is a new sample
	ECNCE         int  // newly CE-marked packets
	Persistent    bool // persistent congestion (RFC 9002, 7.6)
}

// Controller decides what may be in flight, and how fast it is sent. It is not safe for concurrent use, keeps no slice
// that it was handed, and allocates nothing once its connection has reached its largest window.
type Controller interface {
	// Name is one of the package's constants.
	Name() string
	// Sent tells of a packet as it goes out; inFlight is without it.
	Sent(now time.Duration, inFlight int64, p Packet)
	// Update tells of acknowledgements and losses.
	Update(e Event)
	// AppLimited tells that there was nothing to send, although sending was allowed.
	AppLimited(inFlight int64)
	// Resize tells the size of datagrams from now on.
	Resize(maxDatagram int)
	// Window is how many bytes may be in flight.
	Window() int64
	// PacingRate is in bytes a second; 0 means that the window alone decides (RFC 9002, 7.7: pace at 1.25 windows a round trip).
	PacingRate() float64
	// State is for telemetry.
	State() State
}

// Phase is what a controller is doing.
type Phase string

// The phases of Reno and CUBIC, and those of BBR by their names in its draft.
const (
	SlowStart     Phase = "slow_start"
	Conservative  Phase = "conservative_slow_start" // RFC 9406, 4.2
	Recovery      Phase = "recovery"
	Avoidance     Phase = "avoidance"
	Startup       Phase = "startup"
	Drain         Phase = "drain"
	ProbeBWDown   Phase = "probe_bw_down"
	ProbeBWCruise Phase = "probe_bw_cruise"
	ProbeBWRefill Phase = "probe_bw_refill"
	ProbeBWUp     Phase = "probe_bw_up"
	ProbeRTT      Phase = "probe_rtt"
)

// State is a snapshot of a controller.
type State struct {
	Phase     Phase
	Bandwidth float64       // bytes a second; 0: not estimated
	MinRTT    time.Duration // 0: not measured
	LossFloor float64       // the share of losses not taken for congestion
	SSThresh  int64         // bytes; math.MaxInt64 before the first congestion, and always for BBR
}

// MaxLossFloor bounds Options.LossFloor: above it, a flow would push aside whoever backs off at losses.
const MaxLossFloor = 0.10

// Sizes of datagrams: RFC 9000, 14 and 18.2.
const (
	minDatagram = 1200
	maxDatagram = 65527
)

// Options are what a connection begins with. The zero value is that of RFC 9002.
type Options struct {
	MaxDatagram   int           // bytes; 0: 1200
	InitialWindow int64         // bytes; 0: RFC 9002, 7.2
	InitialRTT    time.Duration // what the path's round trip was before; 0: not known
	Losses        *LossMeter    // of BBR: raises the floor by what the connection meets; its owner tells it of events; nil: nothing does
	LossFloor     float64       // of BBR: the share of losses that this path has without congestion, at most MaxLossFloor
}

// New makes the controller of that name.
func New(name string, o Options) (Controller, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("controller %s: %w", name, err)
	}
	switch name {
	case BBR:
		return newBBR(o), nil
	case Cubic:
		return newCubic(o), nil
	case Reno:
		return newReno(o), nil
	default:
		return nil, fmt.Errorf("controller %q: not one of %s, %s, %s", name, BBR, Cubic, Reno)
	}
}

func (o Options) withDefaults() (Options, error) {
	if o.MaxDatagram == 0 {
		o.MaxDatagram = minDatagram
	}
	if o.MaxDatagram < minDatagram || o.MaxDatagram > maxDatagram {
		return o, fmt.Errorf("datagrams of %d bytes: must be %d to %d", o.MaxDatagram, minDatagram, maxDatagram)
	}
	mss := int64(o.MaxDatagram)
	if o.InitialWindow == 0 {
		o.InitialWindow = min(10*mss, max(14720, 2*mss))
	}
	if o.InitialWindow < 2*mss || o.InitialWindow > maxWindow {
		return o, fmt.Errorf("initial window of %d bytes: must be %d (two datagrams) to %d", o.InitialWindow, 2*mss, maxWindow)
	}
	if o.InitialRTT < 0 {
		return o, fmt.Errorf("initial round trip of %s: must not be negative", o.InitialRTT)
	}
	if math.IsNaN(o.LossFloor) || o.LossFloor < 0 || o.LossFloor > MaxLossFloor {
		return o, fmt.Errorf("loss floor of %g: must be 0 to %g", o.LossFloor, MaxLossFloor)
	}
	return o, nil
}

// maxWindow is 4 GiB: 10 Gbit/s over a round trip of 3.4 s, and far from where sums overflow.
const maxWindow = int64(1) << 32

func sum(packets []Packet) int64 {
	n := int64(0)
	for _, p := range packets {
		n += int64(p.Bytes)
	}
	return n
}
