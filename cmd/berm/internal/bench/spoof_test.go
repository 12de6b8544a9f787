package bench

import (
	"testing"
	"time"

	"github.com/bermedge/berm/maps"
)

// Ten million sources that are made up, a packet of each, in the table of full size: one that is over
// its limit stays limited meanwhile.
func TestSpoofedSources(t *testing.T) {
	requireRoot(t)
	const (
		perSecond, burst = 100, 100
		spoofed          = 10_000_000
		slice            = 1 << 16 // sources between two rounds of the offender
		offence          = 200     // packets of a round
	)
	w, err := newWorld()
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	if _, err := w.maps.Rates.PutClass(maps.RateClass{
		Name: "flooded", Packets: maps.Limit{PerSecond: perSecond, Burst: burst},
	}); err != nil {
		t.Fatal(err)
	}
	service, err := w.maps.VIPs.Get("tcp-4")
	if err != nil {
		t.Fatal(err)
	}
	service.RateClass = "flooded"
	if _, err := w.maps.VIPs.Put(service); err != nil {
		t.Fatal(err)
	}
	packet := kind{port: portService, proto: maps.ProtocolTCP, flags: tcpACK}
	// send gives n packets of as many sources, or of one, and returns how many were let through.
	send := func(sources, first, n int) uint64 {
		t.Helper()
		before, err := w.maps.Stats.Stages()
		if err != nil {
			t.Fatal(err)
		}
		frame, err := w.set(packet, 4, sources, sources, first, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.harness.BenchTarget.Put(uint32(0), w.ingress); err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.harness.BenchHarness.Benchmark(frame, n, nil); err != nil {
			t.Fatal(err)
		}
		after, err := w.maps.Stats.Stages()
		if err != nil {
			t.Fatal(err)
		}
		out := maps.StageExit{Stage: maps.StageDeliver, Exit: maps.ExitForward}
		return after[out].Packets - before[out].Packets
	}
	const offender = 1 << 28 // far from those that the flood uses
	start := time.Now()
	var passed, sent, flooded uint64
	for first := 0; first < spoofed; first += slice {
		flooded += send(slice, first, slice)
		passed += send(1, offender, offence)
		sent += offence
	}
	allowed := burst + perSecond*time.Since(start).Seconds()
	t.Logf("%d of %d packets of made-up sources and %d of the offender's %d were let through; its limit allows %.0f", flooded, spoofed, passed, sent, allowed)
	if flooded < spoofed*99/100 {
		t.Errorf("%d of %d sources that sent one packet each were let through", flooded, spoofed)
	}
	if float64(passed) > 1.02*allowed+1 {
		t.Errorf("the offender got %d packets through, its limit allows %.0f", passed, allowed)
	}
	if sent < uint64(5*allowed) {
		t.Errorf("the offender sent %d packets, not far enough above the %.0f that it may", sent, allowed)
	}
}
