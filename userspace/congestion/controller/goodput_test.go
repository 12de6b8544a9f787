package controller

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkGoodput prints what each controller delivers through 50 Mbit/s, 50 ms and a queue of one bandwidth-delay product.
func BenchmarkGoodput(b *testing.B) {
	for _, c := range []struct {
		name  string
		label string
		floor float64
	}{{Reno, "reno", 0}, {Cubic, "cubic", 0}, {BBR, "bbr", 0}, {BBR, "bbr+floor", -1}, {BBR, "bbr+floor10", 0.1}} {
		for _, loss := range []float64{0, 0.01, 0.02, 0.03, 0.05} {
			b.Run(fmt.Sprintf("%s/loss=%g%%", c.label, 100*loss), func(b *testing.B) {
				share, queue := 0.0, int64(0)
				for i := range b.N {
					s := newSim(uint64(i)+1, loss)
					floor := c.floor
					if floor < 0 {
						floor = loss
					}
					f := s.add(b, c.name, Options{LossFloor: floor}, 0)
					share += s.goodput(f, 5*time.Second, 20*time.Second)
					queue = max(queue, s.link.maxQueue)
				}
				b.ReportMetric(50*share/float64(b.N), "Mbit/s")
				b.ReportMetric(float64(queue)/1000, "queue-kB")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// TestGoodput asserts broad truths of the table: everyone fills a clean link, losses take CUBIC's and Reno's window, and BBR's only
// where the path's floor is not known.
func TestGoodput(t *testing.T) {
	for _, tt := range []struct {
		name              string
		loss, floor       float64
		atLeast, lessThan float64
	}{
		{Reno, 0, 0, 0.9, 1},
		{Cubic, 0, 0, 0.9, 1},
		{BBR, 0, 0, 0.9, 1},
		{BBR, 0, MaxLossFloor, 0.9, 1},
		{Reno, 0.02, 0, 0, 0.2},
		{Cubic, 0.02, 0, 0, 0.2},
		{BBR, 0.01, 0, 0.7, 1},
		{BBR, 0.02, 0.02, 0.8, 1},
		{BBR, 0.05, 0.05, 0.8, 1},
	} {
		t.Run(fmt.Sprintf("%s at %g with floor %g", tt.name, tt.loss, tt.floor), func(t *testing.T) {
			s := newSim(1, tt.loss)
			f := s.add(t, tt.name, Options{LossFloor: tt.floor}, 0)
			got := s.goodput(f, 3*time.Second, 6*time.Second)
			if got < tt.atLeast || got > tt.lessThan {
				t.Errorf("goodput %.3f of the link, want %g to %g", got, tt.atLeast, tt.lessThan)
			}
		})
	}
}

// TestGoodputWhereRoundTripsVary has random losses on a path that stands still for 40 of every 200 ms, and acknowledges in slots of
// 30 ms: most round trips are much longer than the shortest, and no queue is full.
func TestGoodputWhereRoundTripsVary(t *testing.T) {
	s := newSim(1, 0.02)
	s.link.slot = 30 * ms
	s.link.extra = func(*flow, int64) time.Duration { return max(0, 40*ms-s.now%(200*ms)) }
	f := s.add(t, BBR, Options{LossFloor: 0.02}, 0)
	if got := s.goodput(f, 3*time.Second, 6*time.Second); got < 0.75 {
		t.Errorf("goodput %.3f of the link", got)
	}
}
