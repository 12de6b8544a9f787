package scenario

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Windows of the neighbour check: quiet and under attack in turn, so that what else the machine
// does meets both alike. More are taken while their spread leaves open on which side of the bound
// the answer lies.
const (
	windowLength = 800 * time.Millisecond
	windowsMin   = 10
	windowsMax   = 60
	moveMost     = 0.10
)

// undecided says whether more windows are needed: unless the answer is below the bound by more than
// its standard error, or, with twice the windows, below it at all.
func undecided(quiet, loud []float64) bool {
	if len(quiet) < windowsMin {
		return true
	}
	moved := move(quiet, loud)
	return moved > moveMost || len(quiet) < 2*windowsMin && moved+moveError(quiet, loud) > moveMost
}

// checkNeighbour measures a good client's p99 with and without an over-rate client beside it. In
// quiet windows the same packets go to the origin's host: what it costs this machine to make
// them, which a real attacker pays elsewhere, is then in both.
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
	var quiet, loud []float64
	began := time.Now()
	for len(quiet) < windowsMax && undecided(quiet, loud) && hasTime(ctx, began, len(quiet)) {
		q, err := m.window(ctx, originHost)
		if err != nil {
			return err
		}
		l, err := m.window(ctx, vip4)
		if err != nil {
			return err
		}
		quiet, loud = append(quiet, q), append(loud, l)
	}
	m.opts.logf("good client: p99 %.3f ms quiet, %.3f ms under attack (first quartiles of %d windows; standard error of the ratio %.1f %%)",
		quartile(quiet), quartile(loud), len(quiet), 100*moveError(quiet, loud))
	r.Timed().AtMost("good client beside an over-rate one: p99 moves by", 100*moveMost, 100*move(quiet, loud),
		fmt.Sprintf("%% (first quartiles of %d pairs of windows)", len(quiet)))
	return nil
}

// hasTime says whether twice what a pair of windows has taken so far is left of the step: on a busy machine
// the answer is then what was measured, and not that the step was cut off.
func hasTime(ctx context.Context, began time.Time, pairs int) bool {
	end, ok := ctx.Deadline()
	return !ok || pairs == 0 || time.Until(end) > 2*time.Since(began)/time.Duration(pairs)
}

// window returns the good client's p99 in milliseconds over one window, while the over-rate
// client sends to target.
func (m *Main) window(ctx context.Context, target string) (p99 float64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var attackErr error
	wg.Go(func() {
		var s sent
		attackErr = m.probe(ctx, m.greedy, onCPU(0), &s, "packets", "--src", greedy4, "--dst", vipPort(target, sinkPort),
			"--sport", "4444", "--pps", strconv.Itoa(10*greedyRate), "--duration", windowLength.String())
	})
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

// move is the share by which the attack moves p99. What else the machine does only ever adds to a
// window's p99, so the first quartiles are nearer to the truth than the medians; an attack that
// is felt is felt in all of its windows.
func move(quiet, loud []float64) float64 { return quartile(loud)/quartile(quiet) - 1 }

func quartile(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	return slices.Sorted(slices.Values(v))[(len(v)-1)/4]
}

// moveError is the standard error of move, by resampling the pairs (bootstrap). The same windows
// give the same answer.
func moveError(quiet, loud []float64) float64 {
	const rounds = 500
	rng := rand.New(rand.NewPCG(1, 2))
	q, l := make([]float64, len(quiet)), make([]float64, len(loud))
	var sum, squares float64
	for range rounds {
		for i := range q {
			k := rng.IntN(len(quiet))
			q[i], l[i] = quiet[k], loud[k]
		}
		v := move(q, l)
		sum += v
		squares += v * v
	}
	mean := sum / rounds
	return math.Sqrt(max(0, squares/rounds-mean*mean))
}
