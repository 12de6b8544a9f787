package scenario

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/bermedge/berm/test/rig"
)

// crowd is flows in flight while something is done to the edges: connections that ask again and
// again, and curl's downloads, held back so that they take a while.
type crowd struct {
	m      *Main
	flows  []*longFlow
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu        sync.Mutex
	downloads int      // begun
	over      int      // of those, ended
	cut       []string // of those, what curl said of those that did not end well
}

const (
	crowdDownloads = 6
	// Five seconds each: curl takes the first 2.6 MB at once, whatever its limit.
	downloadSize = 12_000_000
	downloadRate = "2M"
)

// startCrowd opens n flows from the good client and begins downloads. Each flow has had answers
// before it returns.
func (m *Main) startCrowd(ctx context.Context, n int) (*crowd, error) {
	flows, err := m.openLong(ctx, n)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &crowd{m: m, flows: flows, cancel: cancel}
	for _, f := range flows {
		c.wg.Go(func() { f.run(ctx) })
	}
	for i := range crowdDownloads {
		c.download(ctx, i)
	}
	err = rig.Until(ctx, flowLimit, "the flows are answered", func() (bool, error) { return slowest(flows) >= 3, nil })
	if err != nil {
		c.stop()
		return nil, err
	}
	return c, nil
}

// download has curl fetch a large object, over each family, with TLS and without.
func (c *crowd) download(ctx context.Context, i int) {
	url := fmt.Sprintf("http://%s/big/%d", vipPort([]string{vip4, vip6}[i%2], 80), downloadSize)
	if i%3 == 2 && !c.m.plain {
		url = fmt.Sprintf("https://%s/big/%d", edgeName, downloadSize)
	}
	c.mu.Lock()
	c.downloads++
	c.mu.Unlock()
	c.wg.Go(func() {
		out, err := c.m.good.Run(ctx, "curl", "-sS", "--max-time", "40", "--limit-rate", downloadRate, "-o", "/dev/null",
			"-w", "%{http_code} %{size_download} %{num_connects}", "--cacert", c.m.cert,
			"--resolve", edgeName+":443:"+[]string{vip4, "[" + vip6 + "]"}[i%2], url)
		c.mu.Lock()
		c.over++
		c.mu.Unlock()
		if want := fmt.Sprintf("200 %d 1", downloadSize); ctx.Err() == nil && (err != nil || strings.TrimSpace(out) != want) {
			c.mu.Lock()
			c.cut = append(c.cut, fmt.Sprintf("%q %v", out, err))
			c.mu.Unlock()
		}
	})
}

// on lists the flows that an edge has.
func (c *crowd) on(edge string) (out []*longFlow) {
	for _, f := range c.flows {
		if f.edge == edge {
			out = append(out, f)
		}
	}
	return out
}

// settle waits until every flow that is not broken has had an answer since now.
func (c *crowd) settle(ctx context.Context) error {
	since := time.Now()
	return rig.Until(ctx, 2*flowLimit, "every flow has an answer or an end", func() (bool, error) {
		for _, f := range c.flows {
			f.mu.Lock()
			done := f.err != nil || f.left || len(f.times) > 0 && f.times[len(f.times)-1].After(since)
			f.mu.Unlock()
			if !done {
				return false, nil
			}
		}
		return true, nil
	})
}

// stop ends all flows; what they have seen stays. Downloads are cut.
func (c *crowd) stop() {
	c.cancel()
	c.wg.Wait()
}

// finish lets the downloads end by themselves, and then the flows.
func (c *crowd) finish(ctx context.Context) error {
	err := c.settle(ctx)
	done := make(chan struct{})
	go func() {
		for _, f := range c.flows {
			f.leave()
		}
		c.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	c.stop()
	return err
}

// broken counts the flows that failed, and says how.
func broken(flows []*longFlow) (n uint64, how string) {
	counts := map[string]int{}
	for _, f := range flows {
		f.mu.Lock()
		if f.err != nil {
			n++
			why := f.err
			for inner := errors.Unwrap(why); inner != nil; inner = errors.Unwrap(inner) {
				why = inner
			}
			counts[f.edge+": "+why.Error()]++
		}
		f.mu.Unlock()
	}
	for what, k := range counts {
		how += fmt.Sprintf(" (%d × %s)", k, what)
	}
	return n, how
}

// report checks that nothing of the crowd was reset or had to begin again.
func (c *crowd) report(r *Recorder, what string) {
	n, how := broken(c.flows)
	r.Equal(fmt.Sprintf("%s: of %d flows in flight reset", what, len(c.flows)), 0, n, "flows"+how)
	c.mu.Lock()
	defer c.mu.Unlock()
	r.Equal(fmt.Sprintf("%s: of %d downloads (curl) cut or begun again", what, c.downloads), 0, uint64(len(c.cut)), "downloads "+strings.Join(c.cut, ", "))
}
