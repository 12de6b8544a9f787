package controller

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestNew(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    Options
		want string // part of the error; empty: none
	}{
		{name: Reno},
		{name: Cubic},
		{name: BBR},
		{name: "vegas", want: `"vegas": not one of bbr, cubic, reno`},
		{name: Reno, o: Options{MaxDatagram: 1199}, want: "1199 bytes: must be 1200 to 65527"},
		{name: Reno, o: Options{MaxDatagram: 65528}, want: "must be 1200 to 65527"},
		{name: Reno, o: Options{InitialWindow: 2399}, want: "initial window of 2399 bytes"},
		{name: Reno, o: Options{InitialWindow: -1}, want: "initial window of -1 bytes"},
		{name: Reno, o: Options{InitialWindow: maxWindow + 1}, want: "initial window"},
		{name: Reno, o: Options{InitialRTT: -1}, want: "must not be negative"},
		{name: Reno, o: Options{LossFloor: 0.101}, want: "loss floor of 0.101: must be 0 to 0.1"},
		{name: Reno, o: Options{LossFloor: -0.1}, want: "loss floor"},
		{name: Reno, o: Options{LossFloor: math.NaN()}, want: "loss floor"},
	} {
		c, err := New(tt.name, tt.o)
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("New(%s, %+v): %v", tt.name, tt.o, err)
		case tt.want == "" && c.Name() != tt.name:
			t.Errorf("New(%s) is a %s", tt.name, c.Name())
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("New(%s, %+v) says %v, want %q", tt.name, tt.o, err, tt.want)
		}
	}
}

// mustNew makes a controller, of datagrams of 1200 bytes if o does not say.
func mustNew(t testing.TB, name string, o Options) Controller {
	t.Helper()
	c, err := New(name, o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const ms = time.Millisecond

func packet(number int64, sent time.Duration) Packet {
	return Packet{Number: number, Bytes: 1200, Sent: sent}
}

func TestRenoSlowStartAndAvoidance(t *testing.T) {
	c := mustNew(t, Reno, Options{})
	if c.Window() != 12000 || c.State().Phase != SlowStart {
		t.Fatalf("begins with %d in %s", c.Window(), c.State().Phase)
	}
	c.Update(Event{Now: 50 * ms, PriorInFlight: 12000, Acked: []Packet{packet(0, 0), packet(1, 0)}})
	if c.Window() != 14400 {
		t.Errorf("two datagrams acknowledged in slow start: window %d, want 14400", c.Window())
	}
	c.Update(Event{Now: 60 * ms, PriorInFlight: 14400, Lost: []Packet{packet(2, 10*ms)}})
	if c.Window() != 7200 || c.State() != (State{Phase: Recovery, SSThresh: 7200}) {
		t.Errorf("one loss: window %d, %+v", c.Window(), c.State())
	}
	c.Update(Event{Now: 70 * ms, PriorInFlight: 9600, Lost: []Packet{packet(3, 10*ms)}, Acked: []Packet{packet(4, 60*ms)}})
	if c.Window() != 7200 {
		t.Errorf("another loss of the same round: window %d, want 7200", c.Window())
	}
	for i := range int64(6) {
		c.Update(Event{Now: 120 * ms, PriorInFlight: 7200, Acked: []Packet{packet(5+i, 70*ms)}})
	}
	if c.Window() != 8400 || c.State().Phase != Avoidance {
		t.Errorf("a window acknowledged: %d in %s, want 8400 in avoidance", c.Window(), c.State().Phase)
	}
	c.Update(Event{Now: 130 * ms, PriorInFlight: 8400, Acked: []Packet{packet(20, 125*ms)}, ECNCE: 1})
	if c.Window() != 4200 {
		t.Errorf("a mark: window %d, want 4200", c.Window())
	}
	c.Update(Event{Now: 140 * ms, PriorInFlight: 4200, Lost: []Packet{packet(21, 135*ms)}, Persistent: true})
	if c.Window() != 2400 || c.State().Phase != Avoidance {
		t.Errorf("persistent congestion: window %d in %s, want 2400", c.Window(), c.State().Phase)
	}
}

func TestRenoUnusedWindowDoesNotGrow(t *testing.T) {
	c := mustNew(t, Reno, Options{})
	c.AppLimited(2400)
	c.Update(Event{Now: 50 * ms, PriorInFlight: 2400, Acked: []Packet{packet(0, 0), packet(1, 0)}})
	if c.Window() != 12000 {
		t.Errorf("window %d of which 2400 were used, want 12000", c.Window())
	}
	c.AppLimited(7200) // more than half of it: in slow start the window is used
	c.Update(Event{Now: 100 * ms, PriorInFlight: 7200, Acked: []Packet{packet(2, 50*ms)}})
	if c.Window() != 13200 {
		t.Errorf("window %d, want 13200", c.Window())
	}
}

func TestRenoResize(t *testing.T) {
	c := mustNew(t, Reno, Options{InitialWindow: 2400})
	c.Resize(1400)
	if c.Window() != 2800 {
		t.Errorf("window %d after datagrams grew to 1400, want 2800", c.Window())
	}
}
