package bench

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/maps"
)

// LiveOptions say how to measure live frames. The zero value is the usual way.
type LiveOptions struct {
	Flows    int          // a power of two up to 1 Mi; 0 = 4096
	Runs     int          // timed runs of each case; 0 = 15
	Progress func(string) // nil = nobody
}

// LiveResult is what dropping a frame costs its receiver.
type LiveResult struct {
	Case   string  `json:"case"`
	Flows  int     `json:"flows"`
	NS     float64 `json:"ns"`     // per frame, without the generator
	Runs   int     `json:"runs"`   // timed runs
	Spread float64 `json:"spread"` // how far the median run is above the least, as a share of it
}

// liveCase is one way to drop the frames that come in at the far end of the wire.
type liveCase struct {
	name    string
	program func(*world) *ebpf.Program // attached to the far end; nil = none
	packet  kind
	exit    maps.StageExit // where the ingress program counts them; unused for others
	rules   string         // of nftables at the far end
}

// rules has one counter and drops what is for the service's port. Nothing drops cheaper in nftables:
// no set, no lookup.
func rules(family, hook, match string) string {
	return fmt.Sprintf(`table %s bench {
	counter hits {}
	chain guard {
		type filter hook %s;
		%s tcp dport %d counter name "hits" drop
	}
}
`, family, hook, match, portService)
}

var (
	plainTCP  = kind{port: portService, proto: maps.ProtocolTCP, flags: tcpACK}
	liveCases = []liveCase{
		{name: "xdp_floor", program: func(w *world) *ebpf.Program { return w.harness.BenchDrop }, packet: plainTCP},
		{
			name: "drop_geo", program: func(w *world) *ebpf.Program { return w.ingress },
			packet: kind{port: portGeo, proto: maps.ProtocolTCP, flags: tcpACK}, exit: maps.StageExit{Stage: maps.StageGeo, Exit: maps.ExitDrop},
		},
		{
			name: "drop_rate", program: func(w *world) *ebpf.Program { return w.ingress },
			packet: kind{port: portRate, proto: maps.ProtocolTCP, flags: tcpACK}, exit: maps.StageExit{Stage: maps.StageRate, Exit: maps.ExitDrop},
		},
		{name: "nft_ingress", packet: plainTCP, rules: rules("netdev", "ingress device "+farDev+" priority 0", "")},
		{name: "nft_raw", packet: plainTCP, rules: rules("ip", "prerouting priority raw", "")},
		{name: "nft_input", packet: plainTCP, rules: rules("ip", "input priority filter", "ct state != established")},
	}
)

// liveFrames are sent in a timed run: enough that its start and end do not matter.
const liveFrames = 400_000

// RunLive sends frames over a wire of its own, a veth pair between two namespaces, and measures what
// dropping them costs at the other end: by XDP programs, by the kernel half with half a
// million prefixes, and by nftables. One CPU does both ends, so time adds up, and the generator's
// share, measured with frames that go nowhere, is subtracted.
func RunLive(ctx context.Context, opts LiveOptions, emit func(LiveResult) error) (err error) {
	kernel := Options{Flows: []int{opts.Flows}, Runs: opts.Runs, Progress: opts.Progress}
	if opts.Flows == 0 {
		kernel.Flows[0] = 4096
	}
	if err := kernel.complete(); err != nil {
		return err
	}
	if _, err := exec.LookPath("nft"); err != nil {
		return fmt.Errorf("nftables to compare with: %w (install the package nftables)", err)
	}
	release, err := pin()
	if err != nil {
		return err
	}
	defer release()
	kernel.Progress("loading the programs and half a million prefixes of each family")
	w, err := newWorld()
	if err != nil {
		return err
	}
	defer w.close()
	wire, err := newWire()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, wire.close()) }()
	l := &live{world: w, wire: wire, flows: kernel.Flows[0]}
	return l.measure(ctx, kernel, emit)
}

type live struct {
	*world
	wire  *wire
	flows int
}

// measure interleaves the cases as measureAll does.
func (l *live) measure(ctx context.Context, opts Options, emit func(LiveResult) error) error {
	var nowhere []time.Duration
	runs := make([][]liveRun, len(liveCases))
	for run := range opts.Runs {
		opts.Progress(fmt.Sprintf("%d flows, run %d of %d", l.flows, run+1, opts.Runs))
		bare, err := l.send(plainTCP, l.harness.BenchDrop, liveFrames)
		if err != nil {
			return err
		}
		nowhere = append(nowhere, bare)
		for i, c := range liveCases {
			if err := ctx.Err(); err != nil {
				return err
			}
			r, err := l.time(ctx, c)
			if err != nil {
				return fmt.Errorf("case %s: %w", c.name, err)
			}
			runs[i] = append(runs[i], r)
		}
	}
	generator := slices.Min(nowhere)
	for i, c := range liveCases {
		var each []float64
		for _, r := range runs[i] {
			each = append(each, float64(r.took-generator)/float64(r.dropped))
		}
		slices.Sort(each)
		least, median := each[0], each[len(each)/2]
		err := emit(LiveResult{Case: c.name, Flows: l.flows, NS: least, Runs: opts.Runs, Spread: (median - least) / max(least, 1)})
		if err != nil {
			return err
		}
	}
	return nil
}

// liveRun is one run of a case. On a busy machine the wire's queue overflows now and then: a frame that
// was lost there cost its sending, and no more.
type liveRun struct {
	took    time.Duration
	dropped uint64
}

// time sends a run's frames to the case, and makes sure that it was the case that dropped them.
func (l *live) time(ctx context.Context, c liveCase) (_ liveRun, err error) {
	if err := l.wire.nft(ctx, c.rules); err != nil {
		return liveRun{}, err
	}
	if c.program != nil {
		detach, err := l.attach(c.program(l.world))
		if err != nil {
			return liveRun{}, err
		}
		defer func() { err = errors.Join(err, detach()) }()
	}
	// Every flow once, to warm up: sources that are limited may send a packet first.
	if _, err := l.send(c.packet, l.harness.BenchSend, max(l.flows, 1000)); err != nil {
		return liveRun{}, err
	}
	before, err := l.dropped(ctx, c)
	if err != nil {
		return liveRun{}, err
	}
	d, err := l.send(c.packet, l.harness.BenchSend, liveFrames)
	if err != nil {
		return liveRun{}, err
	}
	after, err := l.dropped(ctx, c)
	if err != nil {
		return liveRun{}, err
	}
	if n := after - before; n < liveFrames/4*3 {
		return liveRun{}, fmt.Errorf("%d of %d frames were dropped: %w", n, liveFrames, errOther)
	}
	return liveRun{took: d, dropped: after - before}, nil
}

func (l *live) attach(p *ebpf.Program) (detach func() error, err error) {
	var attached link.Link
	err = l.wire.onFar(func() (err error) {
		attached, err = link.AttachXDP(link.XDPOptions{Program: p, Interface: l.wire.farIndex, Flags: link.XDPDriverMode})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attach to %s: %w", farDev, err)
	}
	return attached.Close, nil
}

// dropped is how many frames the case has dropped until now. What the floor drops, nobody counts but the
// device that it received them.
func (l *live) dropped(ctx context.Context, c liveCase) (uint64, error) {
	switch {
	case c.rules != "":
		return l.wire.nftHits(ctx)
	case c.exit == maps.StageExit{}:
		return l.wire.received()
	}
	stages, err := l.maps.Stats.Stages()
	return stages[c.exit].Packets, err
}

// send lets so many of the harness's frames go through the program, as live frames, and takes the time.
func (l *live) send(packet kind, through *ebpf.Program, frames int) (time.Duration, error) {
	frame, err := l.set(packet, 4, l.flows, l.flows, 0, l.wire.nearIndex)
	if err != nil {
		return 0, err
	}
	if err := l.harness.BenchTarget.Put(uint32(0), through); err != nil {
		return 0, fmt.Errorf("set the program that sends: %w", err)
	}
	start := time.Now()
	_, err = l.harness.BenchHarness.Run(&ebpf.RunOptions{Data: frame, Repeat: uint32(frames), Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES})
	if err != nil {
		return 0, fmt.Errorf("send live frames: %w (Linux 5.18 or newer)", err)
	}
	return time.Since(start), nil
}
