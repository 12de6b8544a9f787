package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/cmd/berm/internal/pcap"
	"github.com/bermedge/berm/loader"
	bermmaps "github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/config"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/geo"
)

type replayCmd struct {
	File      string `arg:"" complete:":files" help:"Recorded packets, pcap or pcapng of Ethernet; - is standard input."`
	Candidate string `placeholder:"FILE" complete:":files" help:"The configuration to compare with what runs (default: the one of this edge, as the file is now)."`
}

// Help is what berm replay --help adds.
func (replayCmd) Help() string {
	return `Each packet is given, at its recorded time, to the kernel half's program twice: over the live tables, and over tables made of the candidate's file and of what operators have added. What the two decide otherwise is told, with the prefixes that are concerned, before anything changes. Nothing is sent, counted or charged; limits start afresh in both. Where packets are delivered to is not compared. It needs root.

On an edge itself, tcpdump does not see what the program drops or sends on in native mode: record with berm pcap --full, or at a switch.

Exit code 0: no packet fares otherwise. 1: some do.

Examples:

  sudo berm replay monday.pcapng --candidate new.yaml
  sudo berm pcap --passed --full --rate 0 -c 100000 -w - | sudo berm replay - --candidate new.yaml --json`
}

// replayed is berm replay --json.
type replayed struct {
	Packets     int          `json:"packets"`
	Ours        int          `json:"ours"` // for a VIP, by either
	Differences []difference `json:"differences"`
}

// difference is packets that fare otherwise.
type difference struct {
	Running   string        `json:"running"` // passed, foreign, dropped: REASON or shadow: REASON
	Candidate string        `json:"candidate"`
	Packets   int           `json:"packets"`
	Prefixes  []prefixCount `json:"prefixes"` // the ten with most packets
	all       map[netip.Prefix]int
}

type prefixCount struct {
	Prefix  netip.Prefix `json:"prefix"`
	Packets int          `json:"packets"`
}

func (c *replayCmd) Run(a *app) (err error) {
	o, err := a.kernelOptions()
	if err != nil {
		return err
	}
	path := c.Candidate
	if path == "" {
		path = a.settings().config
	}
	cfg, err := config.Load(path)
	if err != nil {
		return fail(exitUsage, "Check it first: berm config check "+path+".", "replay: %w", err)
	}
	file := a.in
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return badInput("replay: %w", err)
		}
		defer f.Close()
		file = f
	}
	running, candidate, err := loader.NewReplicas(o)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fail(exitPermission, "Run it as root: it loads the program twice more.", "%w", err)
	case errors.Is(err, bermmaps.ErrNotUp):
		return fail(exitAbsent, "Load the kernel half: berm kernel up.", "replay: %w", err)
	case err != nil:
		return err
	}
	a.closers = append(a.closers, running.Close, candidate.Close)
	if err := fill(a.ctx, candidate.Set, running.Set, cfg); err != nil {
		return fmt.Errorf("replay: make tables of %s: %w", path, err)
	}
	r, err := compare(a.ctx, file, running, candidate)
	if err != nil {
		return badInput("replay: %s: %w", c.File, err)
	}
	if len(r.Differences) > 0 {
		a.code = exitFailed
	}
	return a.out.Value(r, func() { a.replayed(r) })
}

// fill makes the candidate's tables: of its file, and of what operators have added to the running ones.
func fill(ctx context.Context, to, from *bermmaps.Set, cfg *config.Config) error {
	w := control.Wanted{ObserveOnly: cfg.Kernel.ObserveOnly}
	for name, c := range cfg.Rate.Classes {
		w.Rates = append(w.Rates, c.Class(name))
	}
	for _, v := range cfg.VIPs {
		w.VIPs = append(w.VIPs, v.Service())
	}
	if err := to.Config.SetShadow(from.Config.Shadow()...); err != nil { // operators'
		return err
	}
	sets := slices.Collect(maps.Keys(cfg.Backends))
	classes, err1 := from.Rates.ListClasses()
	policies, err2 := from.Geo.ListPolicies()
	vips, err3 := from.VIPs.List()
	verdicts, err4 := from.Verdicts.List()
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	for _, c := range classes {
		if c.Owner == bermmaps.OwnerOperator {
			if _, err := to.Rates.PutClass(c); err != nil {
				return err
			}
		}
	}
	for _, p := range policies {
		if p.Owner == bermmaps.OwnerOperator {
			if _, err := to.Geo.PutPolicy(p); err != nil {
				return err
			}
		}
	}
	for _, v := range vips {
		if v.Owner == bermmaps.OwnerOperator && v.Backends != "" {
			sets = append(sets, v.Backends)
		}
	}
	if err := control.ApplyRates(to, w); err != nil {
		return err
	}
	if _, err := geo.New(to).Apply(ctx, cfg.Geo); err != nil {
		return err
	}
	if err := serveHere(to, sets); err != nil {
		return err
	}
	if err := control.ApplyVIPs(to, w); err != nil {
		return err
	}
	for _, v := range vips {
		if v.Owner == bermmaps.OwnerOperator {
			if _, err := to.VIPs.Put(v); err != nil {
				return err
			}
		}
	}
	for _, v := range verdicts {
		// One that has just run out, or whose VIP the candidate has not, decides nothing there.
		if err := to.Verdicts.Put(v); err != nil && !errors.Is(err, bermmaps.ErrNotFound) && time.Until(v.Expires) > 0 {
			return err
		}
	}
	return nil
}

// serveHere makes this host the owner of every row: where packets go is not compared.
func serveHere(to *bermmaps.Set, sets []string) error {
	if len(sets) == 0 {
		return nil
	}
	self, err := to.Backends.Put(bermmaps.Backend{Name: "here", Address: netip.AddrFrom4([4]byte{192, 0, 2, 1})})
	if err != nil {
		return err
	}
	who := to.Config.Self()
	who.Backend = self
	if err := to.Config.SetSelf(who); err != nil {
		return err
	}
	rows := slices.Repeat([]bermmaps.Row{{Owner: uint16(self)}}, bermmaps.RowCount)
	slices.Sort(sets)
	for _, name := range slices.Compact(sets) {
		id, err := to.Sets.Put(bermmaps.BackendSet{Name: name})
		if err == nil {
			err = to.Rows.Write(id, rows)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// compare gives every packet to both.
func compare(ctx context.Context, file io.Reader, running, candidate *loader.Replica) (out replayed, err error) {
	rd, err := pcap.NewReader(bufio.NewReader(file))
	if err != nil {
		return out, err
	}
	var first time.Time
	found := map[[2]string]*difference{}
	for ctx.Err() == nil {
		at, frame, err := rd.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return out, err
		}
		if out.Packets++; out.Packets == 1 {
			first = at
		}
		if len(frame) < 14 {
			continue // no Ethernet header: no card hands such a frame on
		}
		a, err1 := running.Run(frame, at.Sub(first))
		b, err2 := candidate.Run(frame, at.Sub(first))
		if err := errors.Join(err1, err2); err != nil {
			return out, fmt.Errorf("packet %d: %w", out.Packets, err)
		}
		if a.Ours || b.Ours {
			out.Ours++
		}
		key := [2]string{outcome(a), outcome(b)}
		if key[0] == key[1] {
			continue
		}
		d := found[key]
		if d == nil {
			d = &difference{Running: key[0], Candidate: key[1], all: map[netip.Prefix]int{}}
			found[key] = d
		}
		d.Packets++
		source := a.Source
		if !a.Ours {
			source = b.Source
		}
		d.all[prefixOf(source)]++
	}
	out.Differences = []difference{}
	for _, d := range found {
		out.Differences = append(out.Differences, d.sorted())
	}
	slices.SortFunc(out.Differences, func(a, b difference) int {
		return (b.Packets-a.Packets)*2 + strings.Compare(a.Running+a.Candidate, b.Running+b.Candidate)
	})
	return out, ctx.Err()
}

// outcome leaves out what comes of where packets are delivered to.
func outcome(j loader.Judgement) string {
	switch {
	case !j.Ours:
		return "foreign"
	case j.Reason == bermmaps.DropNoBackend, j.Reason == bermmaps.DropTooBig:
	case j.Reason != bermmaps.DropNone:
		return "dropped: " + j.Reason.String()
	}
	if j.Shadow != bermmaps.DropNone {
		return "shadow: " + j.Shadow.String()
	}
	return "passed"
}

// prefixOf is the prefix by which sources are told: IPv4 /24, IPv6 /48.
func prefixOf(a netip.Addr) netip.Prefix {
	bits := 48
	if a.Is4() {
		bits = 24
	}
	return netip.PrefixFrom(a, bits).Masked()
}

func (d *difference) sorted() difference {
	for p, n := range d.all {
		d.Prefixes = append(d.Prefixes, prefixCount{p, n})
	}
	slices.SortFunc(d.Prefixes, func(a, b prefixCount) int {
		if a.Packets != b.Packets {
			return b.Packets - a.Packets
		}
		return a.Prefix.Addr().Compare(b.Prefix.Addr())
	})
	d.Prefixes = d.Prefixes[:min(10, len(d.Prefixes))]
	return *d
}

func (a *app) replayed(r replayed) {
	a.out.Printf("%s, %d for a VIP\n", plural(r.Packets, "packet"), r.Ours)
	if r.Ours == 0 {
		a.out.Printf("%s\n", a.out.Paint(out.Warn, "nothing was compared: on an edge, tcpdump misses what the program drops or sends on (berm pcap --passed --full does not)"))
		return
	}
	if len(r.Differences) == 0 {
		a.out.Printf("%s\n", a.out.Paint(out.Good, "no packet fares otherwise"))
		return
	}
	rows := make([][]out.Cell, 0, len(r.Differences))
	for _, d := range r.Differences {
		var where []string
		for _, p := range d.Prefixes {
			where = append(where, fmt.Sprintf("%s (%d)", p.Prefix, p.Packets))
		}
		rows = append(rows, out.Row(d.Running, d.Candidate, sprintf("%d", d.Packets), strings.Join(where, " ")))
	}
	a.out.Table([]string{"NOW", "CANDIDATE", "PACKETS>", "FROM"}, rows)
}
