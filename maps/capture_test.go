package maps_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

// No more copies than are asked for come, until more are; what fits is counted all the while.
func TestCaptureWant(t *testing.T) {
	k := mapstest.New(t)
	if _, err := k.VIPs.Put(service("web", "192.0.2.10", 443)); err != nil {
		t.Fatal(err)
	}
	send := func(n int) {
		for range n {
			k.Run(t, mapstest.TCP(client, netip.MustParseAddrPort("192.0.2.10:443"), mapstest.ACK))
		}
	}
	read := func(n int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		got := 0
		err := k.Captures.Read(ctx, func(maps.Captured) error {
			if got++; got == n {
				cancel()
			}
			return nil
		})
		if err != nil || got != n {
			t.Errorf("%d copies, %v; want %d", got, err, n)
		}
	}
	if err := k.Captures.Start(maps.Capture{Reasons: []maps.Drop{maps.DropNone}, Every: 1, Snap: 64, Count: 2}); err != nil {
		t.Fatal(err)
	}
	send(5)
	k.Captures.Want(3)
	send(1)
	read(3)
	send(4)
	read(2)
	if seen, lost := k.Captures.Counts(); seen != 10 || lost != 0 {
		t.Errorf("%d fitted and %d were lost, want 10 and none", seen, lost)
	}
	if err := k.Captures.Stop(); err != nil {
		t.Fatal(err)
	}
	send(1)
	if seen, _ := k.Captures.Counts(); seen != 10 {
		t.Errorf("%d fitted once it was stopped", seen)
	}
}
