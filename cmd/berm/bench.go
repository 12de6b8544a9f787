package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/bermedge/berm/cmd/berm/internal/bench"
	"github.com/bermedge/berm/cmd/berm/internal/out"
)

type benchCmd struct {
	Kernel benchKernel `cmd:"" help:"Measure nanoseconds per packet of the kernel half."`
	Live   benchLive   `cmd:"" help:"Measure what dropping a frame costs, beside nftables."`
	Pcap   benchPcap   `cmd:"" help:"Measure what berm pcap costs while an attack runs."`
}

// Help is what berm bench --help adds.
func (benchCmd) Help() string {
	return `Examples:

  sudo berm bench kernel
  sudo berm bench live
  sudo berm bench pcap`
}

type benchKernel struct {
	Case   []string `complete:"case" placeholder:"NAME" help:"Cases to measure; without it, all."`
	Family []int    `enum:"4,6" placeholder:"4|6" help:"Address families; without it, both."`
	Flows  []int    `placeholder:"N" help:"Numbers of different flows, powers of two; without it, 1, 4096, 65536 and 1048576."`
	Runs   int      `default:"15" help:"Timed runs of each case; the least counts."`
}

// Help is what berm bench kernel --help adds.
func (benchKernel) Help() string {
	return `It loads programs and maps of its own and gives them packets through BPF_PROG_TEST_RUN: no daemon, no interface, nothing that runs is touched. It needs root. What the harness itself costs is subtracted. Compare with floor_encap of the same run (adjust head, write an outer header, nothing else): a busy machine makes everything slower.

With --json every result is a line: {"case":"lb_tcp","family":4,"flows":1048576,"ns":231.0,"runs":15,"spread":0.04}

Examples:

  sudo berm bench kernel
  sudo berm bench kernel --case lb_tcp,drop_geo --family 4 --flows 1,1048576
  sudo berm bench kernel --json > before.json`
}

func (c *benchKernel) Run(a *app) error {
	known := bench.Cases()
	for _, name := range c.Case {
		if !slices.Contains(known, name) {
			return badInput("--case %s: there are %v", name, known)
		}
	}
	if c.Runs < 1 {
		return badInput("--runs %d: want 1 or more", c.Runs)
	}
	for _, n := range c.Flows {
		if n < 1 || n&(n-1) != 0 || n > 1<<20 {
			return badInput("--flows %d: want powers of two from 1 to 1048576", n)
		}
	}
	t := benchTable{floors: map[[2]int]float64{}}
	return a.bench("kernel", func(progress func(string)) error {
		o := bench.Options{Cases: c.Case, Families: c.Family, Flows: c.Flows, Runs: c.Runs, Progress: progress}
		return bench.Run(a.ctx, o, func(r bench.Result) error {
			return a.out.Line(r, func() { t.print(a, r) })
		})
	})
}

// bench runs a benchmark, with its progress where somebody looks.
func (a *app) bench(name string, run func(progress func(string)) error) error {
	var progress func(string)
	if !a.root.JSON && isTerminal(a.stderr) {
		progress = func(s string) { fmt.Fprintf(a.stderr, "\r\x1b[K%s", s) }
	}
	err := run(progress)
	if progress != nil {
		fmt.Fprint(a.stderr, "\r\x1b[K")
	}
	if errors.Is(err, fs.ErrPermission) || err != nil && os.Geteuid() != 0 {
		return fail(exitPermission, "Run it as root: it loads programs.", "bench %s: %w", name, err)
	}
	if err != nil {
		return fmt.Errorf("bench %s: %w", name, err)
	}
	return nil
}

type benchLive struct {
	Flows int `default:"4096" placeholder:"N" help:"Different flows, a power of two."`
	Runs  int `default:"15" help:"Timed runs of each case; the least counts."`
}

// Help is what berm bench live --help adds.
func (benchLive) Help() string {
	return `It sends frames over a veth pair of its own, between two network namespaces that end with it, and measures on one CPU what dropping them costs their receiver: by an XDP program that does nothing else (xdp_floor), by the kernel half with half a million prefixes (drop_geo, drop_rate), and by nftables with one rule on the port, at the device, before conntrack and behind it (nft_ingress, nft_raw, nft_input). What sending costs is subtracted. The command nft has to be there. Linux 5.18 or newer.

With --json every result is a line: {"case":"drop_geo","flows":4096,"ns":120.0,"runs":15,"spread":0.04}

Examples:

  sudo berm bench live
  sudo berm bench live --flows 65536 --json`
}

func (c *benchLive) Run(a *app) error {
	if c.Runs < 1 {
		return badInput("--runs %d: want 1 or more", c.Runs)
	}
	if c.Flows < 1 || c.Flows&(c.Flows-1) != 0 || c.Flows > 1<<20 {
		return badInput("--flows %d: want a power of two from 1 to 1048576", c.Flows)
	}
	var floor float64
	return a.bench("live", func(progress func(string)) error {
		o := bench.LiveOptions{Flows: c.Flows, Runs: c.Runs, Progress: progress}
		return bench.RunLive(a.ctx, o, func(r bench.LiveResult) error {
			return a.out.Line(r, func() {
				if floor == 0 { // the first
					floor = r.NS
					a.out.Printf("%s\n", a.out.Paint(out.Dim, fmt.Sprintf("%-12s %8s %8s %8s %7s", "CASE", "FLOWS", "NS/FRAME", "FLOORS", "SPREAD")))
				}
				a.out.Printf("%-12s %8d %8.1f %8.1f %6.0f%%\n", r.Case, r.Flows, r.NS, r.NS/floor, 100*r.Spread)
			})
		})
	})
}

type benchPcap struct {
	Rate quantity      `default:"200k" placeholder:"N" help:"Frames of the attack per second."`
	For  time.Duration `default:"10s" help:"How long each capture lasts."`
	Runs int           `default:"3" help:"Runs of each capture; the least counts."`
}

// Help is what berm bench pcap --help adds.
func (benchPcap) Help() string {
	return `It sends an attack, at a steady rate, over a veth pair of its own to programs and maps of its own, which drop it by rate, and lets berm pcap capture it in several ways. What that takes is the CPU time of berm pcap, its start included (process), and what frames cost more than without it, on the CPU that drops them (kernel), both in percent of one CPU. fitted tells how many packets the capture was about, of which what is not in the file was left out or, where it is in lost, found the ring full.

With --json every result is a line: {"args":"--reason rate_packets --count 20","rate":200100,"seconds":10,"packets":20,"fitted":20,"lost":0,"process":0.4,"kernel":0,"cpu":0.4}

Examples:

  sudo berm bench pcap
  sudo berm bench pcap --rate 500k --for 5s --json`
}

func (c *benchPcap) Run(a *app) error {
	if c.Runs < 1 {
		return badInput("--runs %d: want 1 or more", c.Runs)
	}
	if c.Rate < 1 || c.Rate > 10_000_000 {
		return badInput("--rate %d: want 1 to 10M", c.Rate)
	}
	if c.For < time.Second {
		return badInput("--for %s: want a second or more", c.For)
	}
	self, err := exec.LookPath(os.Args[0])
	if err != nil { // who may not look there may not load programs either, and is told so
		self = os.Args[0]
	}
	headed := false
	return a.bench("pcap", func(progress func(string)) error {
		o := bench.PcapOptions{Rate: int(c.Rate), For: c.For, Runs: c.Runs, Progress: progress}
		return bench.RunPcap(a.ctx, self, o, func(r bench.PcapResult) error {
			return a.out.Line(r, func() {
				if !headed {
					headed = true
					a.out.Printf("%s\n", a.out.Paint(out.Dim, fmt.Sprintf("%8s %8s %8s %8s %8s %8s %7s  %s", "RATE", "PACKETS", "FITTED", "LOST", "PROCESS", "KERNEL", "CPU", "BERM PCAP")))
				}
				a.out.Printf("%8.0f %8d %8d %8d %7.2f%% %7.2f%% %6.2f%%  %s\n", r.Rate, r.Packets, r.Fitted, r.Lost, r.Process, r.Kernel, r.CPU, r.Args)
			})
		})
	})
}

// benchTable prints results as they come, each in floors too where the floor is known.
type benchTable struct {
	floors map[[2]int]float64 // family, flows → ns of floor_encap
	headed bool
}

func (t *benchTable) print(a *app, r bench.Result) {
	if a.out.Color && isTerminal(a.stderr) {
		fmt.Fprint(a.stderr, "\r\x1b[K") // the progress that was there
	}
	if !t.headed {
		a.out.Printf("%s\n", a.out.Paint(out.Dim, fmt.Sprintf("%-16s %6s %8s %9s %8s %7s", "CASE", "FAMILY", "FLOWS", "NS/PACKET", "FLOORS", "SPREAD")))
		t.headed = true
	}
	if r.Case == "floor_encap" {
		t.floors[[2]int{r.Family, r.Flows}] = r.NS
	}
	floors := "-"
	// The floor of one flow is the machine's; that of as many flows stands in where it is not measured.
	if f := cmp.Or(t.floors[[2]int{r.Family, 1}], t.floors[[2]int{r.Family, r.Flows}]); f > 0 {
		floors = fmt.Sprintf("%.1f", r.NS/f)
	}
	a.out.Printf("%-16s %6d %8d %9.1f %8s %6.0f%%\n", r.Case, r.Family, r.Flows, r.NS, floors, 100*r.Spread)
}
