package bench

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/maps"
)

// PcapOptions say how to measure captures. The zero value is the usual way.
type PcapOptions struct {
	Rate     int           // frames of the attack a second; 0 = 200,000
	For      time.Duration // that each capture lasts; 0 = 10 s
	Runs     int           // of each capture; 0 = 3
	Progress func(string)  // nil = nobody
}

// PcapResult is what a capture costs while an attack runs, as the least of several runs.
type PcapResult struct {
	Args    string  `json:"args"`    // of berm pcap
	Rate    float64 `json:"rate"`    // frames a second that were dropped meanwhile; a busy machine sends fewer than asked
	Seconds float64 `json:"seconds"` // that the capture ran
	Packets uint64  `json:"packets"` // in the file
	Fitted  uint64  `json:"fitted"`  // that it asked for
	Lost    uint64  `json:"lost"`    // copies that found the ring full
	Process float64 `json:"process"` // CPU of berm pcap, in percent of one
	Kernel  float64 `json:"kernel"`  // and what frames cost more than without it, on the CPU that drops them
	CPU     float64 `json:"cpu"`     // both
}

// captures are the ways to capture an attack that are measured, as arguments of berm pcap.
var captures = [][]string{
	{"--reason", "rate_packets", "--count", "20"},
	{"--stage", "rate", "--reason", "rate_packets", "--count", "1000000"},
	{"--count", "1000000", "--every", "1024"},
	{"--count", "1000000", "--rate", "0"}, // what the limit saves
}

// RunPcap drops an attack that comes over a wire at a steady rate, and has self, the program berm, capture
// it meanwhile. The attack is sent, received and dropped by one thread; what CPU time that takes more than without
// a capture is the kernel's part.
func RunPcap(ctx context.Context, self string, opts PcapOptions, emit func(PcapResult) error) (err error) {
	if opts.Rate == 0 {
		opts.Rate = 200_000
	}
	if opts.For == 0 {
		opts.For = 10 * time.Second
	}
	if opts.Runs == 0 {
		opts.Runs = 3
	}
	if opts.Progress == nil {
		opts.Progress = func(string) {}
	}
	release, err := pin()
	if err != nil {
		return err
	}
	defer release()
	opts.Progress("loading the programs and half a million prefixes of each family")
	w, err := newWorld()
	if err != nil {
		return err
	}
	defer w.close()
	pins, unpin, err := w.pinMaps()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unpin()) }()
	wire, err := newWire()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, wire.close()) }()
	l := &live{world: w, wire: wire, flows: 4096}
	detach, err := l.attach(w.ingress)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, detach()) }()
	p := &captured{live: l, opts: opts, self: self, pins: pins}
	if _, err := l.send(underAttack, l.harness.BenchSend, l.flows); err != nil { // each source may send one
		return err
	}
	return p.measure(ctx, emit)
}

// underAttack is a frame that is refused by rate.
var underAttack = kind{port: portRate, proto: maps.ProtocolTCP, flags: tcpACK}

// pinMaps lets berm pcap find the maps, in a bpffs of their own.
func (w *world) pinMaps() (root string, unpin func() error, err error) {
	if root, err = os.MkdirTemp("", "berm-bench-"); err != nil {
		return "", nil, fmt.Errorf("pin the maps: %w", err)
	}
	if err := unix.Mount("berm", root, "bpf", 0, "mode=0700"); err != nil {
		return "", nil, errors.Join(fmt.Errorf("mount a bpffs on %s: %w", root, err), os.Remove(root))
	}
	unpin = func() error { return errors.Join(unix.Unmount(root, unix.MNT_DETACH), os.Remove(root)) }
	dir := maps.PinDir(root)
	err = os.Mkdir(dir, 0o700)
	for name, m := range w.coll.Maps {
		if err == nil && strings.HasPrefix(name, "berm_") {
			err = m.Pin(filepath.Join(dir, name))
		}
	}
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("pin the maps: %w", err), unpin())
	}
	return root, unpin, nil
}

type captured struct {
	*live
	opts PcapOptions
	self string
	pins string
}

// attacked is a stretch of attack: how many frames came, and the CPU time that sending and dropping them took,
// which happens on this thread.
type attacked struct {
	frames uint64
	busy   time.Duration
}

func (a attacked) each() float64 { return float64(a.busy) / float64(max(a.frames, 1)) }

// measure has a stretch of attack without a capture before each with one. As anywhere here the least counts,
// of frames and of the process by itself: whatever else the machine does only adds.
func (p *captured) measure(ctx context.Context, emit func(PcapResult) error) error {
	for _, args := range captures {
		var runs []PcapResult
		bare, kept := math.Inf(1), math.Inf(1)
		for run := range p.opts.Runs {
			p.opts.Progress(fmt.Sprintf("berm pcap %s, run %d of %d", strings.Join(args, " "), run+1, p.opts.Runs))
			without, err := p.attack(ctx, p.opts.For)
			if err != nil {
				return err
			}
			r, with, err := p.capture(ctx, args)
			if err != nil {
				return fmt.Errorf("berm pcap %s: %w", strings.Join(args, " "), err)
			}
			bare, kept = min(bare, without.each()), min(kept, with.each())
			runs = append(runs, r)
		}
		r := slices.MinFunc(runs, func(a, b PcapResult) int { return cmp.Compare(a.Process, b.Process) })
		r.Kernel = 100 * max(kept-bare, 0) * float64(p.opts.Rate) / float64(time.Second)
		r.CPU = r.Process + r.Kernel
		if err := emit(r); err != nil {
			return err
		}
	}
	return nil
}

// threadTime is the CPU time of this thread.
func threadTime() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now); err != nil {
		panic(err) // each thread has this clock
	}
	return time.Duration(now.Nano())
}

// chunks are sent in a second, each at once: the kernel takes up to 20 ms to make ready for one, however large it is.
const chunks = 20

// attack sends frames at the rate for a time.
func (p *captured) attack(ctx context.Context, d time.Duration) (a attacked, err error) {
	exit := maps.StageExit{Stage: maps.StageRate, Exit: maps.ExitDrop}
	before, err := p.maps.Stats.Stages()
	if err != nil {
		return a, err
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	chunk := max(1, p.opts.Rate/chunks)
	start, sent, busy := time.Now(), 0, threadTime()
	for past := time.Duration(0); past < d; past = time.Since(start) {
		select {
		case <-ctx.Done():
			return a, ctx.Err()
		case <-tick.C:
		}
		for ; float64(sent) < past.Seconds()*float64(p.opts.Rate); sent += chunk {
			if _, err := p.send(underAttack, p.harness.BenchSend, chunk); err != nil {
				return a, err
			}
		}
	}
	after, err := p.maps.Stats.Stages()
	a.busy = threadTime() - busy
	a.frames = after[exit].Packets - before[exit].Packets
	return a, err
}

// capture runs berm pcap while the attack goes on.
func (p *captured) capture(ctx context.Context, args []string) (r PcapResult, a attacked, err error) {
	args = append(slices.Clone(args), "--for", p.opts.For.String())
	cmd := exec.CommandContext(ctx, p.self, append([]string{"--json", "--pins", p.pins, "pcap", "--write", os.DevNull}, args...)...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := p.wire.onFar(cmd.Start); err != nil {
		return r, a, err
	}
	if a, err = p.attack(ctx, p.opts.For); err != nil {
		return r, a, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	if err := cmd.Wait(); err != nil {
		return r, a, fmt.Errorf("%w: %s", err, bytes.TrimSpace(complaint.Bytes()))
	}
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		return r, a, fmt.Errorf("its answer %.200q: %w", out.Bytes(), err)
	}
	r.Args, r.Seconds = strings.Join(args, " "), p.opts.For.Seconds()
	r.Rate = float64(a.frames) / r.Seconds
	used := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	r.Process = 100 * float64(used) / float64(p.opts.For)
	return r, a, nil
}
