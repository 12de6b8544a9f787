package clock_test

import (
	"testing"
	"time"

	"github.com/bermedge/berm/userspace/clock"
)

func TestFake(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	var c clock.Clock = clock.NewFake(start)

	if got := c.Now(); !got.Equal(start) {
		t.Errorf("Now = %s, want %s", got, start)
	}
	want := start.Add(1500 * time.Millisecond)
	if got := c.(*clock.Fake).Advance(1500 * time.Millisecond); !got.Equal(want) || !c.Now().Equal(want) {
		t.Errorf("after Advance: returned %s, Now %s, want %s", got, c.Now(), want)
	}
}

func TestSystemKeepsMonotonicReading(t *testing.T) {
	a, b := clock.System{}.Now(), clock.System{}.Now()
	if b.Before(a) {
		t.Errorf("the system clock went back: %s, then %s", a, b)
	}
}
