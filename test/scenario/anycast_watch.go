package scenario

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

// seenPaths is how the router's view of one edge's route changed.
type seenPaths struct {
	mu    sync.Mutex
	views []string // announced, prepended or withdrawn, each beside "graceful" or nothing
}

func (s *seenPaths) add(view string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.views) == 0 || s.views[len(s.views)-1] != view {
		s.views = append(s.views, view)
	}
}

// String lists the phases.
func (s *seenPaths) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.ReplaceAll(strings.Join(s.views, ", "), " graceful", "")
}

// graceful reports whether GRACEFUL_SHUTDOWN was ever seen.
func (s *seenPaths) graceful() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(strings.Join(s.views, ", "), "graceful")
}

// await waits until the last that was seen is the end of the route, or what came is told by String.
func (s *seenPaths) await(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, anycastWait)
	defer cancel()
	_ = rig.Poll(ctx, 5*time.Millisecond, func() (bool, error) { return strings.HasSuffix(s.String(), "withdrawn"), nil })
}

// watchPaths asks the router for an edge's route again and again, until stop.
func (a *Anycast) watchPaths(ctx context.Context, e *Edge, seen *seenPaths) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	look := func() (bool, error) {
		out, err := a.birdc(ctx, "show", "route", "all", "protocol", e.Name+"_4")
		if err == nil {
			seen.add(view(out))
		}
		return false, nil
	}
	_, _ = look() // how it began
	wg.Go(func() { _ = rig.Poll(ctx, 20*time.Millisecond, look) })
	return func() {
		cancel()
		wg.Wait()
	}
}

// view reads what a route says.
func view(route string) string {
	v := "withdrawn"
	if _, path, ok := strings.Cut(route, "BGP.as_path: "); ok {
		path, _, _ = strings.Cut(path, "\n")
		switch strings.TrimSpace(path) {
		case anycastAS:
			v = "announced"
		case strings.TrimSpace(strings.Repeat(anycastAS+" ", prepends+1)):
			v = "prepended"
		default:
			v = "path " + path
		}
	}
	if strings.Contains(route, "(65535,0)") {
		v += " graceful"
	}
	return v
}

// Downloads take 2.7 s, of which the drain is over after 1.1: curl takes the first 2.6 MiB at once.
const (
	downloads     = 8
	downloadBytes = 8 << 20
	heldRate      = "2M" // bytes a second
)

// download starts curl over h1 and h2, both families. It returns what tells how many are not done yet,
// and what waits for all and tells how many came whole.
func (a *Anycast) download(ctx context.Context) (left func() uint64, wait func() (whole uint64, err error)) {
	var mu sync.Mutex
	var whole, done uint64
	var failed error
	var wg sync.WaitGroup
	for i := range downloads {
		vip, version := []string{vip4, vip6}[i%2], []string{"--http1.1", "--http2"}[i/2%2]
		if strings.Contains(vip, ":") {
			vip = "[" + vip + "]"
		}
		wg.Go(func() {
			out, err := a.good.Output(ctx, "curl", "-sS", "-m", "30", version, "--cacert", a.cert, "--resolve", edgeName+":443:"+vip,
				"--limit-rate", heldRate, "-o", "/dev/null", "-w", "%{size_download}", fmt.Sprintf("https://%s/big/%d", edgeName, downloadBytes))
			mu.Lock()
			defer mu.Unlock()
			done++
			if err == nil && string(out) == fmt.Sprint(downloadBytes) {
				whole++
			} else if err != nil {
				failed = err
			}
		})
	}
	left = func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		return downloads - done
	}
	return left, func() (uint64, error) {
		wg.Wait()
		return whole, failed
	}
}

// checkDrain drains an edge on an operator's command, with downloads in flight and new flows coming.
func (a *Anycast) checkDrain(ctx context.Context, r *Recorder) error {
	e := a.edges[0]
	if err := a.awaitAll(ctx); err != nil {
		return err
	}
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	left, wait := a.download(ctx)
	var wg sync.WaitGroup
	fresh := &freshFlows{}
	wg.Go(func() { fresh.run(running, a.Main) })
	var seen seenPaths
	stop := a.watchPaths(ctx, e, &seen)
	defer stop()
	err := a.order(ctx, e, "drain")
	if err == nil {
		_, err = a.awaitWays(ctx, 1)
	}
	if err == nil {
		err = e.awaitAnycast(ctx, "withdrew", func(s control.Anycast) bool { return s.Phase == "withdrawn" && s.Command == "drain" })
	}
	seen.await(ctx)
	flying := left()
	stop()
	cancel()
	wg.Wait()
	if err != nil {
		return err
	}
	whole, err := wait()
	if err != nil {
		a.opts.logf("download: %v", err)
	}
	var failed uint64
	for _, t := range fresh.tries {
		if t.err != nil {
			failed++
		}
	}
	r.Same("drain: what the router saw", "announced, prepended, withdrawn", seen.String(), "")
	r.Same("drain: with GRACEFUL_SHUTDOWN", "true", fmt.Sprint(seen.graceful()), "")
	r.Timed().AtLeast("drain: downloads in flight when it was withdrawn", downloads/2, float64(flying), "downloads")
	r.Equal("drain: downloads that came whole", downloads, whole, "downloads")
	r.Timed().AtLeast("drain: new flows meanwhile", 20, float64(len(fresh.tries)), "flows")
	r.Equal("drain: of them failed", 0, failed, "flows")
	if err := a.order(ctx, e, "announce"); err != nil {
		return err
	}
	return a.awaitAll(ctx)
}

// checkKill kills a daemon. Its kernel half stays, so what matters is that routers and the other
// edge learn of it.
func (a *Anycast) checkKill(ctx context.Context, r *Recorder) error {
	survivor, victim := a.edges[0], a.edges[1]
	if err := a.awaitAll(ctx); err != nil {
		return err
	}
	flows, err := a.openLong(ctx, longFlows)
	if err != nil {
		return err
	}
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for _, f := range flows {
		wg.Go(func() { f.run(running) })
	}
	fresh := &freshFlows{}
	wg.Go(func() { fresh.run(running, a.Main) })
	err = rig.Until(ctx, flowLimit, "long flows are answered", func() (bool, error) { return slowest(flows) >= 3, nil })
	if err == nil {
		err = victim.bermd.Kill()
	}
	lost := time.Now()
	var gone time.Duration
	if err == nil {
		gone, err = a.awaitWays(ctx, 1)
	}
	if err == nil {
		err = elapse(ctx, failoverWatch)
	}
	cancel()
	wg.Wait()
	if err != nil {
		return err
	}
	r.Timed().AtMost("kill -9: out of the router's kernel after", 1000, ms(gone), "ms")
	reportLong(r, "kill -9", flows, survivor.Name, lost)
	reportFresh(r, "kill -9", fresh, survivor.Name, lost)
	if err := victim.startDaemon(ctx); err != nil {
		return err
	}
	if err := victim.bermd.Realtime(true); err != nil {
		return err
	}
	return a.awaitAll(ctx)
}
