package wan

import (
	"math"
	"strings"
	"testing"
	"time"
)

const mbit = 1_000_000

// began is when pass begins.
const began = time.Second

// pass sends n frames of a size, one every so often, and returns when each that gets there is due; others are 0.
func pass(p *path, n, size int, every time.Duration) []int64 {
	due := make([]int64, n)
	for i := range due {
		now := int64(began + time.Duration(i)*every)
		if p.take(now, make([]byte, size)) {
			due[i] = p.waiting[len(p.waiting)-1].due
		}
		for p.give(now) != nil {
			p.n.Sent++
		}
	}
	return due
}

func TestRateAndDelay(t *testing.T) {
	// 1,250 bytes at 50 Mbit/s take 200 µs; they come twice as fast, and the queue holds ten.
	p := newPath(Profile{Rate: 50 * mbit, Queue: 12500, Delay: 25 * time.Millisecond}, 1, 1)
	due := pass(p, 10000, 1250, 100*time.Microsecond)
	const frame = int64(200 * time.Microsecond)
	if first := due[0] - int64(began+25*time.Millisecond); first != frame {
		t.Errorf("the first frame took %s beside the delay, want its 200µs at the rate", time.Duration(first))
	}
	var last int64
	var got uint64
	for i, d := range due {
		if d == 0 {
			continue
		}
		got++
		if last != 0 && d-last != frame {
			t.Fatalf("frame %d comes %s after the one before, want 200µs", i, time.Duration(d-last))
		}
		last = d
	}
	if c := p.counters(); c.In != 10000 || c.Dropped != 10000-got || c.Lost != 0 || c.Sent+c.Waiting != got {
		t.Errorf("%d frames got there, counters %+v", got, c)
	}
	// One second at the rate, and what the queue held at the end.
	if want := uint64(5000 + 10); got < want-1 || got > want {
		t.Errorf("%d frames got there, want %d", got, want)
	}
}

func TestQueueDropsAtTheTail(t *testing.T) {
	p := newPath(Profile{Rate: 8 * mbit, Queue: 5000}, 1, 1) // a byte a microsecond
	for i := range 7 {
		if took := p.take(0, make([]byte, 1000)); took != (i < 5) {
			t.Errorf("frame %d of 1,000 bytes into a queue of 5,000: taken %v", i, took)
		}
	}
	if p.take(int64(999*time.Microsecond), make([]byte, 1000)) {
		t.Error("taken before the first has left the queue")
	}
	if !p.take(int64(time.Millisecond), make([]byte, 1000)) {
		t.Error("dropped though the first has left the queue")
	}
	p.profile.Rate = 0
	if !p.take(int64(time.Millisecond), make([]byte, 1000)) {
		t.Error("dropped at a link without a rate")
	}
}

// losses counts lost frames and the runs they are in.
func losses(p *path, n int) (lost, runs int) {
	before := false
	for _, d := range pass(p, n, 100, time.Millisecond) {
		if d == 0 {
			lost++
			if !before {
				runs++
			}
		}
		before = d == 0
	}
	return lost, runs
}

func TestLoss(t *testing.T) {
	const n = 200_000
	for _, c := range []struct {
		name         string
		p            Profile
		share, burst float64
	}{
		{"none", Profile{}, 0, 0},
		{"single", Profile{Loss: 0.02}, 0.02, 1 / 0.98},
		{"bursts", Profile{Burst: 0.03, BurstLength: 6}, 0.03, 6},
		{"short bursts", Profile{Burst: 0.2, BurstLength: 1.5}, 0.2, 1.5},
		{"all", Profile{Burst: 1, BurstLength: 1}, 1, n},
	} {
		lost, runs := losses(newPath(c.p, 7, 1), n)
		if got := float64(lost) / n; math.Abs(got-c.share) > 0.06*c.share {
			t.Errorf("%s: lost %.4f, want %.4f", c.name, got, c.share)
		}
		if got := float64(lost) / float64(max(1, runs)); math.Abs(got-c.burst) > 0.06*c.burst {
			t.Errorf("%s: bursts of %.3f, want %.3f", c.name, got, c.burst)
		}
	}
	// Both kinds at once add up.
	lost, _ := losses(newPath(Profile{Loss: 0.1, Burst: 0.1, BurstLength: 4}, 7, 1), n)
	if got := float64(lost) / n; math.Abs(got-0.19) > 0.01 {
		t.Errorf("lost %.4f, want 0.19", got)
	}
}

func TestSeed(t *testing.T) {
	lostBy := func(p Profile, seed, stream uint64) string {
		var b strings.Builder
		for _, d := range pass(newPath(p, seed, stream), 2000, 100, time.Millisecond) {
			b.WriteByte("01"[min(1, d)])
		}
		return b.String()
	}
	plain := Profile{Loss: 0.3, Delay: time.Millisecond}
	jittery := plain
	jittery.Jitter, jittery.Rate, jittery.Queue = 20*time.Millisecond, 10*mbit, 1<<20
	if lostBy(plain, 1, 1) != lostBy(jittery, 1, 1) {
		t.Error("jitter and rate change which frames are lost")
	}
	if lostBy(plain, 1, 1) == lostBy(plain, 2, 1) || lostBy(plain, 1, 1) == lostBy(plain, 1, 2) {
		t.Error("another seed or direction loses the same frames")
	}
}

func TestJitterKeepsOrder(t *testing.T) {
	const delay, jitter = 10 * time.Millisecond, 5 * time.Millisecond
	var last int64
	early, late := jitter, time.Duration(0)
	for i, d := range pass(newPath(Profile{Delay: delay, Jitter: jitter}, 1, 1), 1000, 100, 2*time.Millisecond) {
		if d < last {
			t.Fatalf("frame %d overtakes", i)
		}
		last = d
		more := time.Duration(d) - began - time.Duration(i)*2*time.Millisecond - delay
		early, late = min(early, more), max(late, more)
	}
	if early < 0 || early > jitter/5 || late > jitter || late < jitter*4/5 {
		t.Errorf("jitter of %s to %s, want 0 to %s", early, late, jitter)
	}
}

func TestNeighboursAreFound(t *testing.T) {
	frame := func(kind uint16, proto, icmp byte) []byte {
		b := make([]byte, 70)
		b[12], b[13], b[20], b[54] = byte(kind>>8), byte(kind), proto, icmp
		return b
	}
	for _, c := range []struct {
		name  string
		frame []byte
		taken bool
	}{
		{"ARP", frame(0x0806, 0, 0), true},
		{"neighbour solicitation", frame(0x86dd, 58, 135), true},
		{"echo", frame(0x86dd, 58, 128), false},
		{"UDP", frame(0x86dd, 17, 135), false},
		{"IPv4", frame(0x0800, 58, 135), false},
		{"cut", frame(0x86dd, 58, 135)[:54], false},
		{"shorter than Ethernet", []byte{1}, false},
	} {
		if got := newPath(Profile{Loss: 1}, 1, 1).take(0, c.frame); got != c.taken {
			t.Errorf("%s: survives a link that loses all: %v, want %v", c.name, got, c.taken)
		}
	}
}

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		p    Profile
		want string // "" = fine
	}{
		{Profile{}, ""},
		{Profile{Rate: 50 * mbit, Queue: 312_500, Delay: 25 * time.Millisecond, Loss: 0.02, Burst: 0.5, BurstLength: 1}, ""},
		{Profile{Burst: 1, BurstLength: 3}, ""},
		{Profile{Rate: -1}, "rate: -1"},
		{Profile{Rate: maxRate + 1, Queue: minQueue}, "rate: 10000000001"},
		{Profile{Rate: mbit}, "queue: 0"},
		{Profile{Rate: mbit, Queue: maxQueue + 1}, "queue: 67108865"},
		{Profile{Delay: -1}, "delay and jitter: -1ns"},
		{Profile{Jitter: time.Minute}, "delay and jitter: 0s and 1m0s"},
		{Profile{Loss: 1.1}, "loss and burst: 1.1"},
		{Profile{Burst: math.NaN(), BurstLength: 2}, "loss and burst: 0 and NaN"},
		{Profile{Burst: 0.1}, "burst_length: 0"},
		{Profile{Burst: 0.9, BurstLength: 2}, "burst: 0.9 of the frames cannot be in bursts of only 2"},
		{Profile{Rate: -1, Delay: -1}, "delay and jitter"},
	} {
		err := Both{Down: c.p}.Validate()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), "down: ") || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v, want %q", c.p, err, c.want)
		}
	}
	err := Plan{Links: []Link{{Name: "a"}, {Name: "a"}, {Name: "b", Both: Same(Profile{Rate: -1})}}}.Validate()
	if err == nil || !strings.Contains(err.Error(), `link "a"`) || !strings.Contains(err.Error(), "link b: up: rate") {
		t.Errorf("a plan with mistakes: %v", err)
	}
}
