package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/bermedge/berm/cmd/berm/internal/pcap"
	"github.com/bermedge/berm/maps"
)

type pcapCmd struct {
	Write  string        `short:"w" required:"" placeholder:"FILE" complete:":files" help:"Where the capture goes, in pcapng; - is standard output."`
	Stage  []string      `placeholder:"NAME" help:"Packets about which this stage had the last word; repeatable."`
	Reason []string      `placeholder:"NAME" help:"Packets that were dropped, or would have been, for this reason; repeatable. Without --stage and --reason: all that were dropped."`
	VIP    string        `name:"vip" complete:"vip" placeholder:"NAME" help:"Packets to this VIP."`
	Passed bool          `help:"Packets that were not dropped, too."`
	Count  uint64        `short:"c" default:"20" placeholder:"N" help:"Stop after N packets."`
	Every  quantity      `default:"1" placeholder:"N" help:"Copy every N-th packet that fits: a power of two."`
	Rate   quantity      `default:"1000" placeholder:"N" help:"Copy at most N packets a second; 0 = as many as fit."`
	Snap   int           `placeholder:"BYTES" default:"128" help:"Copy so many bytes of a frame at most (2047 with --full)."`
	For    time.Duration `default:"1m" help:"Stop after this time."`
	Full   bool          `help:"Keep clients' addresses and payload."`
}

// Help is what berm pcap --help adds.
func (pcapCmd) Help() string {
	return `The kernel half copies the packets that fit into a ring of its own, and each says in a comment at which stage, for what reason and with which VIP. It decides before it copies, and copies at most --rate packets a second, those that come first after each tenth of it: a flood costs little, and while nobody captures, nothing. For an even sample use --every. Packets that are not for a VIP are never copied.

Clients' addresses are cut to /24 and /48, and payload is left out, unless --full is given: then keep the file as what it is. How many packets fitted, those included that were not copied, and how many copies found the ring full, is told here and in the file. One capture runs at a time; it needs the group berm.

Examples:

  berm pcap --reason rate_packets --count 20 -w limited.pcapng
  berm pcap --stage geo --vip web -w - | tshark -r - -T fields -e ip.src -e frame.comment
  sudo berm pcap --passed --every 1024 --full --for 10s --count 1000 -w sample.pcapng`
}

// errEnough ends a capture that has all it wanted.
var errEnough = errors.New("enough")

// captured is berm pcap --json.
type captured struct {
	File    string `json:"file"`
	Packets int    `json:"packets"`
	Fitted  uint64 `json:"fitted"`
	Lost    uint64 `json:"lost"`
}

func (c *pcapCmd) Run(a *app) (err error) {
	set, err := maps.Open(maps.PinDir(a.settings().pins))
	if errors.Is(err, maps.ErrNotUp) || errors.Is(err, maps.ErrContract) {
		return fail(exitAbsent, "Load the kernel half: berm kernel up.", "pcap: %w", err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, set.Close()) }()
	a.by = byMaps
	want, err := c.want(set)
	if err != nil {
		return err
	}
	// Nobody else may take packets away: the lock goes with the process.
	lock, err := net.Listen("unix", "@berm-pcap:"+a.settings().pins)
	if err != nil {
		return fmt.Errorf("pcap: another capture is under way: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()

	file, done, err := c.file(a)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	r, err := c.capture(a, set, want, file)
	if err != nil {
		return err
	}
	if c.Write == "-" {
		return nil // what goes there is the capture
	}
	return a.out.Value(r, func() {
		a.out.Printf("%s of %d that fitted, %d lost, in %s\n", plural(r.Packets, "packet"), r.Fitted, r.Lost, r.File)
	})
}

func (c *pcapCmd) want(set *maps.Set) (w maps.Capture, err error) {
	w = maps.Capture{Every: uint64(c.Every), Snap: c.Snap, Count: c.Count}
	if c.Full && c.Snap == 128 {
		w.Snap = maps.MaxSnap
	}
	for _, name := range c.Reason {
		d, err := maps.ParseDrop(name)
		if err != nil {
			return w, badInput("--reason: %w", err)
		}
		w.Reasons = append(w.Reasons, d)
	}
	for _, name := range c.Stage {
		s, err := maps.ParseStage(name)
		if err != nil {
			return w, badInput("--stage: %w", err)
		}
		w.Stages = append(w.Stages, s)
	}
	if len(w.Reasons) == 0 {
		w.Reasons = slices.Collect(maps.AllDrops())
	}
	if c.Passed || len(c.Reason) == 0 && len(c.Stage) > 0 {
		w.Reasons = append(w.Reasons, maps.DropNone)
	}
	if c.VIP != "" {
		v, err := set.VIPs.Get(c.VIP)
		if err != nil {
			return w, err
		}
		w.VIP = v.ID
	}
	return w, nil
}

func (c *pcapCmd) file(a *app) (io.Writer, func() error, error) {
	if c.Write == "-" {
		return a.stdout, func() error { return nil }, nil
	}
	f, err := os.OpenFile(c.Write, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600) // it tells of people
	if err != nil {
		return nil, nil, fmt.Errorf("pcap: %w", err)
	}
	b := bufio.NewWriter(f)
	return b, func() error { return errors.Join(b.Flush(), f.Close()) }, nil
}

func (c *pcapCmd) capture(a *app, set *maps.Set, want maps.Capture, file io.Writer) (r captured, err error) {
	r.File = c.Write
	names := map[uint32]string{}
	vips, err := set.VIPs.List()
	if err != nil {
		return r, err
	}
	for _, v := range vips {
		names[v.ID] = v.Name
	}
	w, err := pcap.NewWriter(file, "berm "+version, "kernel half", want.Snap)
	if err != nil {
		return r, err
	}
	if err := drain(a.ctx, set); err != nil {
		return r, err
	}
	ctx, cancel := context.WithTimeout(a.ctx, c.For)
	defer cancel()
	got, stop, err := c.start(ctx, set, want)
	if err != nil {
		return r, badInput("pcap: %w", err)
	}
	defer stop()
	err = set.Captures.Read(ctx, func(p maps.Captured) error {
		frame := p.Frame
		if !c.Full {
			frame = pcap.Redact(frame)
		}
		if err := w.Packet(p.Time, frame, p.Length, comment(p, names)); err != nil {
			return err
		}
		r.Packets++
		got.Add(1)
		if uint64(r.Packets) >= want.Count {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	err = errors.Join(err, set.Captures.Stop())
	r.Fitted, r.Lost = set.Captures.Counts()
	return r, errors.Join(err, w.Stats(time.Now(), r.Fitted, r.Lost))
}

// ratePeriod is how often a capture may go on, where copies are limited by rate.
const ratePeriod = 100 * time.Millisecond

// start asks for the packets, and for a part of them each ratePeriod if there is a limit. The caller counts
// in got what has come.
func (c *pcapCmd) start(ctx context.Context, set *maps.Set, want maps.Capture) (got *atomic.Uint64, stop func(), err error) {
	got = new(atomic.Uint64)
	part := uint64(c.Rate) / uint64(time.Second/ratePeriod)
	if c.Rate == 0 || part >= want.Count {
		return got, func() {}, set.Captures.Start(want)
	}
	count := want.Count
	want.Count = max(part, 1)
	if err := set.Captures.Start(want); err != nil {
		return got, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(ratePeriod)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				set.Captures.Want(min(want.Count, count-min(count, got.Load())))
			}
		}
	}()
	return got, func() { cancel(); <-done }, nil
}

// drain forgets what a capture that was killed has left in the ring.
func drain(ctx context.Context, set *maps.Set) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if err := set.Captures.Stop(); err != nil {
		return err
	}
	return set.Captures.Read(ctx, func(maps.Captured) error { return nil })
}

func comment(p maps.Captured, names map[uint32]string) string {
	s := fmt.Sprintf("stage=%s exit=%s", p.Stage, p.Exit)
	if p.Reason != maps.DropNone {
		s += " reason=" + p.Reason.String()
	}
	if p.Shadow != maps.DropNone {
		s += " shadow=" + p.Shadow.String()
	}
	if p.VIP != 0 {
		s += " vip=" + or(names[p.VIP], fmt.Sprintf("#%d", p.VIP))
	}
	return s + fmt.Sprintf(" record=%d weight=%d", p.Record, p.Weight)
}
