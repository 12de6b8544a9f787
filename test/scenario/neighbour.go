package scenario

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Windows of the neighbour check: quiet and under attack in turn, so that what else the machine
// does meets both alike. More are taken while their spread says that the answer is not yet known.
const (
	windowLength = 800 * time.Millisecond
	windowsMin   = 10
	windowsMax   = 24
	windowError  = 0.03 // standard error of the median that is good enough
)

// checkNeighbour measures a good client's p99 with and without an over-rate client beside it.
// The attack's packets are processed on the CPU that sends them, up to the edges' sockets; the
// good client and the daemons have the other one, as flows do that hash to different queues, and
// come before everything else that this machine may be doing.
func (m *Main) checkNeighbour(ctx context.Context, r *Recorder) (err error) {
	for _, e := range m.edges {
		if err := errors.Join(e.bermd.Pin(1), e.bermd.Realtime(true)); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, e.bermd.Pin(0, 1), e.bermd.Realtime(false)) }()
	}
	var ratios, quiets, attacked []float64
	for i := 0; i < windowsMax && (i < windowsMin || standardError(ratios) > windowError); i++ {
		quiet, err := m.window(ctx, false)
		if err != nil {
			return err
		}
		loud, err := m.window(ctx, true)
		if err != nil {
			return err
		}
		quiets, attacked = append(quiets, quiet), append(attacked, loud)
		ratios = append(ratios, loud/quiet)
	}
	m.opts.logf("good client: p99 %.3f ms quiet, %.3f ms under attack (medians of %d windows, standard error of the ratio %.1f %%)",
		median(quiets), median(attacked), len(ratios), 100*standardError(ratios))
	r.AtMost("good client beside an over-rate one: p99 moves by", 10, 100*(median(ratios)-1),
		fmt.Sprintf("%% (median of %d pairs of windows)", len(ratios)))
	return nil
}

// window returns the good client's p99 in milliseconds over one window.
func (m *Main) window(ctx context.Context, attack bool) (p99 float64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var attackErr error
	if attack {
		wg.Go(func() {
			var s sent
			attackErr = m.probe(ctx, m.greedy, onCPU(0), &s, "packets", "--src", greedy4, "--dst", vipPort(vip4, sinkPort),
				"--sport", "4444", "--pps", strconv.Itoa(10*greedyRate), "--duration", windowLength.String())
		})
	}
	var l load
	err = m.probe(ctx, m.good, onCPU(1), &l, "load", "http://"+vipPort(vip4, 80)+"/o/neighbour/{n}", "--objects", "50",
		"--conns", "8", "--rate", "1500", "--duration", windowLength.String())
	wg.Wait()
	switch {
	case err != nil:
		return 0, err
	case attackErr != nil:
		return 0, attackErr
	case l.Errors > 0 || l.OK == 0:
		return 0, fmt.Errorf("the good client had %d errors and %d answers: %v", l.Errors, l.OK, l.Failures)
	}
	return l.Latency.P99, nil
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(v))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// standardError of the median, from the quartiles so that outliers do not decide:
// 1.2533 * (IQR / 1.349) / sqrt(n), as for a normal middle part.
func standardError(v []float64) float64 {
	if len(v) < 4 {
		return math.Inf(1)
	}
	s := slices.Sorted(slices.Values(v))
	iqr := s[len(s)*3/4] - s[len(s)/4]
	return 1.2533 * iqr / 1.349 / math.Sqrt(float64(len(s)))
}
