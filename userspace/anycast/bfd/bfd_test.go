package bfd

import (
	"errors"
	"testing"
	"time"
)

var valid = Packet{State: Up, Multiplier: 3, Mine: 7, Yours: 9, DesiredTx: 100 * time.Millisecond, RequiredRx: 80 * time.Millisecond}

func TestPacketRoundTrip(t *testing.T) {
	for _, p := range []Packet{
		valid,
		{State: Down, Diag: DiagExpired, Multiplier: 255, Mine: 1<<32 - 1},
		{State: AdminDown, Diag: DiagAdminDown, Poll: true, Multiplier: 1, Mine: 1},
		{State: Init, Final: true, Multiplier: 1, Mine: 1, Yours: 1, DesiredTx: time.Hour, RequiredRx: time.Microsecond},
	} {
		got, err := Parse(p.Append(nil))
		if err != nil || got != p {
			t.Errorf("%+v became %+v: %v", p, got, err)
		}
	}
}

// The packet of RFC 5880's figure, byte by byte.
func TestPacketBytes(t *testing.T) {
	want := "\x20\xc0\x03\x18\x00\x00\x00\x07\x00\x00\x00\x09\x00\x01\x86\xa0\x00\x01\x38\x80\x00\x00\x00\x00"
	if got := string(valid.Append(nil)); got != want {
		t.Errorf("% x, want % x", got, want)
	}
}

// Each mutation of a valid packet is refused.
func TestParseRefuses(t *testing.T) {
	for name, mutate := range map[string]func(b []byte) []byte{
		"empty":                     func([]byte) []byte { return nil },
		"a byte short":              func(b []byte) []byte { return b[:len(b)-1] },
		"version 0":                 func(b []byte) []byte { b[0] &= 0x1f; return b },
		"length below 24":           func(b []byte) []byte { b[3] = 23; return b },
		"length beyond the end":     func(b []byte) []byte { b[3] = 25; return b },
		"authentication":            func(b []byte) []byte { b[1] |= flagAuth; return b },
		"multipoint":                func(b []byte) []byte { b[1] |= flagMulti; return b },
		"multiplier 0":              func(b []byte) []byte { b[2] = 0; return b },
		"my discriminator 0":        func(b []byte) []byte { copy(b[4:], "\x00\x00\x00\x00"); return b },
		"up, your discriminator 0":  func(b []byte) []byte { copy(b[8:], "\x00\x00\x00\x00"); return b },
		"poll and final at a time":  func(b []byte) []byte { b[1] |= flagPoll | flagFinal; return b },
		"init, discriminator 0 too": func(b []byte) []byte { b[1] = byte(Init) << 6; copy(b[8:], "\x00\x00\x00\x00"); return b },
	} {
		if p, err := Parse(mutate(valid.Append(nil))); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(valid.Append(nil))
	f.Add(Packet{State: Down, Multiplier: 1, Mine: 1}.Append(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b)
		if err != nil {
			return
		}
		if again, err := Parse(p.Append(nil)); err != nil || again != p {
			t.Errorf("%+v became %+v: %v", p, again, err)
		}
		// No packet, however odd, takes a session to where its deadline overflows.
		now := time.Unix(1e9, 0)
		s := newSession(Timing{100 * time.Millisecond, 3}, p.Yours, now)
		s.receive(p, now)
		if d := s.deadline(); !d.IsZero() && d.Before(now) {
			t.Errorf("deadline %s before %s", d, now)
		}
		if s.interval() < 0 || s.jittered(0.5) < 0 {
			t.Errorf("interval %s", s.interval())
		}
	})
}

// pair is two sessions that hear each other.
func pair(now time.Time) (a, b *session) {
	return newSession(Timing{100 * time.Millisecond, 3}, 1, now), newSession(Timing{80 * time.Millisecond, 5}, 2, now)
}

func exchange(a, b *session, now time.Time) {
	b.receive(a.packet(false), now)
	a.receive(b.packet(false), now)
}

func TestHandshake(t *testing.T) {
	now := time.Unix(1e9, 0)
	a, b := pair(now)
	if a.interval() != slow {
		t.Errorf("while down it sends every %s", a.interval())
	}
	exchange(a, b, now) // a: down; b: init, and so a: up
	exchange(a, b, now)
	if a.state != Up || b.state != Up {
		t.Fatalf("%s and %s", a.state, b.state)
	}
	if !a.packet(false).Poll || a.packet(true).Poll || !a.packet(true).Final {
		t.Error("it does not ask the other to confirm its faster interval")
	}
	if !b.receive(a.packet(false), now) {
		t.Error("a poll is not answered")
	}
	a.receive(b.packet(true), now)
	if a.packet(false).Poll {
		t.Error("it goes on polling after the answer")
	}
	exchange(a, b, now)
	// a sends at what both agree on, and waits for the other's multiplier of it.
	if a.interval() != 100*time.Millisecond || b.interval() != 100*time.Millisecond {
		t.Errorf("intervals %s and %s", a.interval(), b.interval())
	}
	if d := a.deadline().Sub(now); d != 500*time.Millisecond {
		t.Errorf("a waits %s", d)
	}
	if d := b.deadline().Sub(now); d != 300*time.Millisecond {
		t.Errorf("b waits %s", d)
	}
	for _, r := range []float64{0, 0.5, 0.999} {
		if j := a.jittered(r); j < 75*time.Millisecond || j > 100*time.Millisecond {
			t.Errorf("jitter %s", j)
		}
	}
}

func up(t *testing.T, now time.Time) (a, b *session) {
	t.Helper()
	a, b = pair(now)
	for range 3 {
		exchange(a, b, now)
	}
	if a.state != Up || b.state != Up {
		t.Fatalf("%s and %s", a.state, b.state)
	}
	return a, b
}

func TestSilenceIsDown(t *testing.T) {
	now := time.Unix(1e9, 0)
	a, b := up(t, now)
	b.expire(now.Add(299 * time.Millisecond))
	if b.state != Up {
		t.Fatal("down too early")
	}
	now = now.Add(300 * time.Millisecond)
	b.expire(now)
	if b.state != Down || b.diag != DiagExpired || b.yours != 0 || !b.deadline().IsZero() {
		t.Fatalf("%+v", b)
	}
	// The one that did not hear it is told, and both come up again.
	a.receive(b.packet(false), now)
	if a.state != Down || a.diag != DiagNeighborDown {
		t.Fatalf("%s, %d", a.state, a.diag)
	}
	for range 3 {
		exchange(a, b, now)
	}
	if a.state != Up || b.state != Up || a.diag != DiagNone {
		t.Errorf("%s and %s", a.state, b.state)
	}
}

func TestStrangersAndFarewell(t *testing.T) {
	now := time.Unix(1e9, 0)
	a, b := up(t, now)
	forged := b.packet(false)
	forged.Yours, forged.State = 77, Down
	a.receive(forged, now)
	if a.state != Up {
		t.Error("a packet for another session was taken")
	}
	b.enter(AdminDown, DiagAdminDown, now)
	a.receive(b.packet(false), now)
	if a.state != Down || a.diag != DiagNeighborDown {
		t.Errorf("%s after the other ended on purpose", a.state)
	}
	if b.receive(a.packet(false), now); b.state != AdminDown {
		t.Errorf("one that ended came back as %s", b.state)
	}
	quiet := Packet{State: Down, Multiplier: 3, Mine: 2, DesiredTx: slow} // wants no packets
	a.receive(quiet, now)
	if a.interval() != 0 {
		t.Errorf("it sends every %s to one that wants nothing", a.interval())
	}
}

func TestOneMissedPacket(t *testing.T) {
	s := newSession(Timing{time.Second, 1}, 1, time.Time{})
	if j := s.jittered(0.9999); j > 900*time.Millisecond {
		t.Errorf("with multiplier 1 it waits %s", j)
	}
}
