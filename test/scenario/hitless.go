package scenario

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/bermedge/berm/test/rig"
)

// Upgrade is the main topology, where the daemons can be started again.
type Upgrade struct{ *Main }

func upUpgrade(ctx context.Context, lab *rig.Lab, opts Options) (Topology, error) {
	m := newMain(lab, opts)
	m.units = true
	return &Upgrade{m}, m.up(ctx)
}

// Steps are run in this order.
func (u *Upgrade) Steps() []Step {
	return []Step{
		{Name: "programs replaced", Run: u.checkPrograms, Loud: true},
		{Name: "daemons hand over", Run: u.checkHandovers, Loud: true},
		{Name: "daemons started again", Run: u.checkRestarts, Loud: true},
	}
}

const (
	programRounds = 2 // on each edge
	restartRounds = 2 // on each edge
	// Each download takes 2 s, well below the time that a daemon gives requests in flight.
	roundSize, roundRate = 6_000_000, "2M" // curl takes the first 2.6 MB at once
	roundDownloads       = 3               // at once
)

// checkPrograms replaces both edges' programs again and again.
func (u *Upgrade) checkPrograms(ctx context.Context, r *Recorder) error {
	before, err := u.programs(ctx)
	if err != nil {
		return err
	}
	l, err := u.underLoad(ctx, quicStands, programRounds, func(ctx context.Context, e *Edge) error {
		if out, err := e.berm(ctx, "kernel", "upgrade"); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		return err
	}
	after, err := u.programs(ctx)
	if err != nil {
		return err
	}
	var same uint64
	for id := range before {
		if after[id] {
			same++
		}
	}
	r.Equal(fmt.Sprintf("programs that outlived %d upgrades", programRounds*len(u.edges)), 0, same, "programs")
	l.check(r, "programs replaced")
	return nil
}

// checkRestarts starts both daemons again and again. Connections that stand end in order, with a response or GOAWAY;
// new ones wait where nobody serves yet.
func (u *Upgrade) checkRestarts(ctx context.Context, r *Recorder) error {
	starts, before := map[string]int{}, map[string]int{}
	l, err := u.underLoad(ctx, quicEnds, restartRounds, func(ctx context.Context, e *Edge) error {
		s, err := e.restart(ctx)
		if starts[e.Name] == 0 {
			before[e.Name] = s.Starts - 1 // more than one where the step is tried again
		}
		starts[e.Name] = s.Starts
		return err
	})
	if err != nil {
		return err
	}
	for _, e := range u.edges {
		r.Equal(e.Name+": starts of its daemon", restartRounds, uint64(starts[e.Name]-before[e.Name]), "starts")
	}
	l.check(r, "daemons started again")
	return u.awaitService(ctx)
}

// met is what clients of each kind met.
type met struct {
	quic                                         int // which of its clients were asked for
	standing, fresh, whole, h3, h3Fresh, h3Whole loadSum
}

// What becomes of connections of QUIC, and so which clients of it take part.
const (
	quicEnds   = iota // with the process: none
	quicStands        // nothing: standing ones
	quicMoves         // their process ends what they asked for: new ones, and downloads
)

// kinds lists what clients did, and how often they must have for the result to mean something.
func (l *met) kinds() []kind {
	kinds := []kind{
		{"requests on standing connections", "requests (wrk, h1)", 500, &l.standing},
		{"requests on new connections", "requests (h2, TLS)", 100, &l.fresh},
		{"downloads of two seconds", "downloads (curl, h1, TLS)", 5, &l.whole},
	}
	switch l.quic {
	case quicStands:
		kinds = append(kinds, kind{"requests on standing connections of QUIC", "requests (h3)", 100, &l.h3})
	case quicMoves:
		kinds = append(kinds, kind{"requests on new connections of QUIC", "requests (h3)", 20, &l.h3Fresh},
			kind{"downloads of four seconds over QUIC", "downloads (ngtcp2, h3)", 4, &l.h3Whole})
	}
	return kinds
}

type kind struct {
	name, unit string
	least      uint64
	sum        *loadSum
}

func (l *met) enough() bool {
	return !slices.ContainsFunc(l.kinds(), func(k kind) bool { return k.sum.done.Load() < k.least })
}

func (l *met) check(r *Recorder, what string) {
	for _, k := range l.kinds() {
		r.AtLeast(what+": "+k.name, float64(k.least), float64(k.sum.requests), k.unit)
		k.sum.checkLost(r, what, k.unit)
	}
}

// underLoad does something to each edge in turn, for so many rounds, while clients of each kind ask, who go on until
// there were enough of each.
func (u *Upgrade) underLoad(ctx context.Context, quic, rounds int, do func(context.Context, *Edge) error) (l *met, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l = &met{quic: quic}
	var done atomic.Bool
	var wg sync.WaitGroup
	clients := map[*loadSum]func(context.Context, *loadSum) error{&l.standing: u.wrkRound, &l.fresh: u.reconnectRound, &l.whole: u.downloadRound}
	switch quic {
	case quicStands:
		clients[&l.h3] = u.quicRound
	case quicMoves:
		clients[&l.h3Fresh], clients[&l.h3Whole] = u.quicFreshRound, u.quicDownloadRound
	}
	for sum, round := range clients {
		wg.Go(func() {
			for sum.err == nil && !done.Load() {
				if sum.err = round(ctx, sum); sum.err != nil {
					cancel()
				}
				sum.done.Store(sum.requests)
			}
		})
	}
	for range rounds {
		for _, e := range u.edges {
			if e2 := do(ctx, e); e2 != nil && err == nil {
				err = fmt.Errorf("%s: %w", e.Name, e2)
			}
		}
	}
	// Clients go on until there were enough of each kind, and edges do not: a row remembers one owner before its own.
	if err == nil {
		err = rig.Until(ctx, stepLimit, "clients of each kind", func() (bool, error) { return l.enough(), nil })
	}
	done.Store(true)
	wg.Wait()
	return l, errors.Join(err, l.standing.err, l.fresh.err, l.whole.err, l.h3.err, l.h3Fresh.err, l.h3Whole.err)
}

// downloadRound has curl download at a bounded rate, each over a connection of its own.
func (u *Upgrade) downloadRound(ctx context.Context, sum *loadSum) error {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range roundDownloads {
		wg.Go(func() {
			vip := []string{vip4, vip6}[i%2]
			if strings.Contains(vip, ":") {
				vip = "[" + vip + "]"
			}
			out, err := u.good.Run(ctx, "curl", "-sS", "-m", "60", "--http1.1", "--cacert", u.cert, "--resolve", edgeName+":443:"+vip,
				"--limit-rate", roundRate, "-o", "/dev/null", "-w", "%{http_code} %{size_download}",
				fmt.Sprintf("https://%s/big/%d", edgeName, roundSize))
			mu.Lock()
			defer mu.Unlock()
			sum.requests++
			if strings.TrimSpace(out) == "200 "+strconv.Itoa(roundSize) {
				return
			}
			sum.lose(fmt.Sprintf("%.80s %v", out, err), 1)
		})
	}
	wg.Wait()
	return ctx.Err()
}
