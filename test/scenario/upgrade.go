package scenario

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/bermedge/berm/loader"
)

const upgrades = 6 // half of them on each edge

// checkUpgrade replaces the programs of both edges again and again while wrk asks on standing
// connections and bermprobe on new ones, for as long as it takes.
func (m *Main) checkUpgrade(ctx context.Context, r *Recorder) error {
	before, err := m.programs(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var done atomic.Bool
	var wg sync.WaitGroup
	var standing, fresh loadSum
	for sum, round := range map[*loadSum]func(context.Context, *loadSum) error{&standing: m.wrkRound, &fresh: m.reconnectRound} {
		wg.Go(func() {
			for sum.err == nil && !done.Load() {
				sum.err = round(ctx, sum)
			}
		})
	}
	var upgradeErr error
	for i := 0; i < upgrades && upgradeErr == nil; i++ {
		_, upgradeErr = m.edges[i%len(m.edges)].berm(ctx, "kernel", "upgrade")
	}
	done.Store(true)
	wg.Wait()
	if err := errors.Join(upgradeErr, standing.err, fresh.err); err != nil {
		return err
	}
	after, err := m.programs(ctx)
	if err != nil {
		return err
	}
	var same uint64
	for id := range before {
		if after[id] {
			same++
		}
	}
	r.Equal(fmt.Sprintf("upgrade under load: programs that outlived %d upgrades", upgrades), 0, same, "programs")
	r.Timed().AtLeast("upgrade under load: requests on standing connections", 1000, float64(standing.requests), "requests (wrk, h1)")
	standing.checkLost(r, "upgrade under load", "requests")
	r.Timed().AtLeast("upgrade under load: requests on new connections", 200, float64(fresh.requests), "requests (h2, TLS)")
	fresh.checkLost(r, "upgrade under load", "requests")
	return nil
}

// loadSum adds up rounds of load.
type loadSum struct {
	requests, lost uint64
	failures       map[string]uint64
	err            error
	done           atomic.Uint64 // requests of rounds that are over
}

func (s *loadSum) lose(what string, n uint64) {
	if s.failures == nil {
		s.failures = map[string]uint64{}
	}
	s.failures[what] += n
	s.lost += n
}

// checkLost wants none lost. Where all that went wrong is that answers took longer than the client waits, the machine may
// have been busy.
func (s *loadSum) checkLost(r *Recorder, what, unit string) {
	if s.failures["timeout"] == s.lost {
		r = r.Timed()
	}
	r.Equal(what+": of those lost", 0, s.lost, strings.TrimSpace(unit+" "+failures(s.failures)))
}

const roundLength = "3s"

func (m *Main) wrkRound(ctx context.Context, sum *loadSum) error {
	out, err := m.good.Run(ctx, "wrk", "-t1", "-c16", "-d", roundLength, "http://"+vipPort(vip4, 80)+"/o/upgrade/1")
	if err != nil {
		return err
	}
	requests, failed, err := parseWrk(out)
	sum.requests += requests
	for what, n := range failed {
		sum.lose(what, n)
	}
	return err
}

func (m *Main) reconnectRound(ctx context.Context, sum *loadSum) error {
	return m.probeRound(ctx, sum, "--proto", "h2", "--reconnect")
}

// quicRound is of standing connections.
func (m *Main) quicRound(ctx context.Context, sum *loadSum) error {
	return m.probeRound(ctx, sum, "--proto", "h3")
}

func (m *Main) probeRound(ctx context.Context, sum *loadSum, args ...string) error {
	var l load
	err := m.probe(ctx, m.good, nil, &l, append([]string{
		"load", "https://" + vipPort(vip6, 443) + "/o/upgrade/2", "--conns", "4", "--duration", roundLength,
	}, args...)...)
	sum.requests += l.OK
	sum.lost += l.Errors + l.OK - l.Status["200"]
	if sum.failures == nil {
		sum.failures = map[string]uint64{}
	}
	for what, n := range l.Failures {
		sum.failures[what] += n
	}
	return err
}

// programs lists the ids of all programs of the kernel halves.
func (m *Main) programs(ctx context.Context) (map[uint32]bool, error) {
	ids := map[uint32]bool{}
	for _, e := range m.edges {
		var s loader.State
		if err := e.ask(ctx, &s, "kernel", "status"); err != nil {
			return nil, err
		}
		if len(s.Programs) == 0 {
			return nil, fmt.Errorf("%s: kernel status names no program", e.Name)
		}
		for _, p := range s.Programs {
			ids[p.ID] = true
		}
	}
	return ids, nil
}

var (
	wrkRequests = regexp.MustCompile(`(\d+) requests in`)
	wrkErrors   = regexp.MustCompile(`Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)`)
	wrkStatus   = regexp.MustCompile(`Non-2xx or 3xx responses: (\d+)`)
)

// parseWrk reads how many requests wrk made and what went wrong, by its own words.
func parseWrk(out string) (requests uint64, failures map[string]uint64, err error) {
	f := wrkRequests.FindStringSubmatch(out)
	if f == nil {
		return 0, nil, fmt.Errorf("wrk printed no count of requests: %q", out)
	}
	if requests, err = strconv.ParseUint(f[1], 10, 64); err != nil {
		return 0, nil, err
	}
	failures = map[string]uint64{}
	note := func(re *regexp.Regexp, kinds ...string) {
		f := re.FindStringSubmatch(out)
		for i, kind := range kinds {
			if f == nil {
				return
			}
			n, e := strconv.ParseUint(f[1+i], 10, 64)
			if n > 0 {
				failures[kind] = n
			}
			err = errors.Join(err, e)
		}
	}
	note(wrkErrors, "connect", "read", "write", "timeout")
	note(wrkStatus, "not 2xx or 3xx")
	return requests, failures, err
}
