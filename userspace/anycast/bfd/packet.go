// Package bfd is Bidirectional Forwarding Detection (RFC 5880) for directly connected neighbours
// (RFC 5881): asynchronous mode, without echo and authentication. What it sends depends on
// whether its owner says that it is alive, so that a process that hangs is noticed by its neighbours.
package bfd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// State is that of a session (RFC 5880, section 4.1).
type State uint8

// States, by their numbers on the wire.
const (
	AdminDown State = iota
	Down
	Init
	Up
)

// String returns the state's name.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

var stateNames = [...]string{"admin_down", "down", "init", "up"} //nolint:gochecknoglobals // constant

// Diag says why a session last went down.
type Diag uint8

// Diagnostics that we send.
const (
	DiagNone         Diag = 0
	DiagExpired      Diag = 1 // nothing heard for the detection time
	DiagNeighborDown Diag = 3
	DiagAdminDown    Diag = 7
)

// Packet is a control packet.
type Packet struct {
	State      State
	Diag       Diag
	Poll       bool
	Final      bool
	Multiplier uint8  // of the detection time
	Mine       uint32 // discriminator of the sender's session
	Yours      uint32 // discriminator that the sender got from the receiver; 0: none yet
	DesiredTx  time.Duration
	RequiredRx time.Duration // 0: send nothing
}

// length of a control packet without authentication.
const length = 24

const (
	flagPoll  = 0x20
	flagFinal = 0x10
	flagAuth  = 0x04
	flagMulti = 0x01
)

// ErrInvalid is what Parse returns for a packet that RFC 5880, section 6.8.6, has discarded.
var ErrInvalid = errors.New("not a valid BFD control packet")

// Parse reads a control packet. What sections follow the mandatory one is not looked at.
func Parse(b []byte) (Packet, error) {
	invalid := func(format string, args ...any) (Packet, error) {
		return Packet{}, fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
	}
	if len(b) < length {
		return invalid("%d bytes", len(b))
	}
	p := Packet{
		State: State(b[1] >> 6), Diag: Diag(b[0] & 0x1f), Poll: b[1]&flagPoll != 0, Final: b[1]&flagFinal != 0,
		Multiplier: b[2], Mine: binary.BigEndian.Uint32(b[4:]), Yours: binary.BigEndian.Uint32(b[8:]),
		DesiredTx: micros(b[12:]), RequiredRx: micros(b[16:]),
	}
	switch {
	case b[0]>>5 != 1:
		return invalid("version %d", b[0]>>5)
	case int(b[3]) < length || int(b[3]) > len(b):
		return invalid("its length says %d, it has %d bytes", b[3], len(b))
	case b[1]&flagAuth != 0:
		return invalid("it asks for authentication, which is not in use")
	case b[1]&flagMulti != 0:
		return invalid("multipoint")
	case p.Multiplier == 0:
		return invalid("multiplier 0")
	case p.Mine == 0:
		return invalid("without the sender's discriminator")
	case p.Yours == 0 && p.State != Down && p.State != AdminDown:
		return invalid("%s, without our discriminator", p.State)
	case p.Poll && p.Final:
		return invalid("both poll and final")
	}
	return p, nil
}

func micros(b []byte) time.Duration {
	return time.Duration(binary.BigEndian.Uint32(b)) * time.Microsecond
}

// Append adds the packet's wire form to b. Intervals are whole microseconds, up to an hour.
func (p Packet) Append(b []byte) []byte {
	flags := byte(p.State) << 6
	if p.Poll {
		flags |= flagPoll
	}
	if p.Final {
		flags |= flagFinal
	}
	b = append(b, 1<<5|byte(p.Diag), flags, p.Multiplier, length)
	for _, v := range []uint32{p.Mine, p.Yours, uint32(p.DesiredTx / time.Microsecond), uint32(p.RequiredRx / time.Microsecond), 0} { // 0: no echo
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}
