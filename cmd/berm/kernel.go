package main

import (
	"context"
	"errors"
	"io/fs"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/loader"
)

type kernelCmd struct {
	Up      kernelUp      `cmd:"" help:"Load, attach and pin the kernel half."`
	Upgrade kernelUpgrade `cmd:"" help:"Replace the running programs by this version's, without a gap."`
	Down    kernelDown    `cmd:"" help:"Detach it and remove all that is pinned."`
	Status  kernelStatus  `cmd:"" help:"Show what is loaded, attached and pinned."`
}

// Help is what berm kernel --help adds.
func (kernelCmd) Help() string {
	return `The kernel half outlives the daemon: it filters, limits and steers until berm kernel down. All but status need root (CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON).

Examples:

  sudo berm kernel up --interface eth0
  berm kernel status
  sudo berm kernel upgrade
  sudo berm kernel down`
}

// kernelFlags override the section kernel of the configuration.
type kernelFlags struct {
	Interface []string `short:"i" placeholder:"NAME" help:"Interface to attach to; repeatable. Overrides the configuration."`
	Mode      *string  `enum:"auto,native,generic" placeholder:"MODE" help:"auto (native, else generic, and says so), native or generic."`
	Cgroup    string   `placeholder:"PATH" complete:":dirs" help:"Where TCP connections are measured: auto, none or a path."`
	Group     string   `placeholder:"NAME" help:"Group that may use the maps; the daemon is in it (default: berm)."`
	RateCells int      `placeholder:"N" help:"Size of the rate table: a power of two, 8 bytes each (default: 8388608)."`
}

// options merges defaults, configuration and flags.
func (k *kernelFlags) options(a *app) (loader.Options, error) {
	o, err := a.kernelOptions()
	if err != nil {
		return o, err
	}
	if len(k.Interface) > 0 {
		o.Interfaces = k.Interface
	}
	if k.Mode != nil {
		o.Mode = loader.Mode(*k.Mode)
	}
	if k.Cgroup != "" {
		o.Cgroup = k.Cgroup
	}
	if k.Group != "" {
		o.Group = k.Group
	}
	if k.RateCells != 0 {
		o.RateCells = k.RateCells
	}
	if err := o.Validate(); err != nil {
		return o, badInput("%w", err)
	}
	return o, nil
}

type kernelUp struct {
	kernelFlags
	Observe bool `help:"Count what would be dropped, and drop nothing."`
}

// Help is what berm kernel up --help adds.
func (kernelUp) Help() string {
	return `Doing it twice is harmless: what is missing is put back, and maps keep their content. When a step fails, all is as it was before. Interfaces come from the configuration unless named.

Examples:

  sudo berm kernel up
  sudo berm kernel up --interface eth0 --interface eth1 --mode native
  sudo berm kernel up --observe`
}

func (c *kernelUp) Run(a *app) error {
	o, err := c.options(a)
	if err != nil {
		return err
	}
	o.ObserveOnly = o.ObserveOnly || c.Observe
	if len(o.Interfaces) == 0 {
		return badInput("kernel up: no interface to attach to: name one with --interface, or in the configuration (kernel.interfaces in %s)", a.settings().config)
	}
	return a.load(loader.Up, o)
}

type kernelUpgrade struct{ kernelFlags }

// Help is what berm kernel upgrade --help adds.
func (kernelUpgrade) Help() string {
	return `The programs are replaced under their links, on all interfaces or none; no packet is lost, and maps keep their content, also where their layout has changed. The new program first answers known packets on tables of its own. When it then does wrong by live ones, the old one is back and the exit code is 1.

Examples:

  sudo berm kernel upgrade`
}

func (c *kernelUpgrade) Run(a *app) error {
	o, err := c.options(a)
	if err != nil {
		return err
	}
	return a.load(loader.Upgrade, o)
}

// load runs up or upgrade and tells what it did.
func (a *app) load(do func(context.Context, loader.Options) (*loader.Report, error), o loader.Options) error {
	r, err := do(a.ctx, o)
	if err != nil {
		return loaderFault(err)
	}
	return a.out.Value(r, func() {
		for _, s := range r.Changed {
			a.out.Printf("%s\n", s)
		}
		if len(r.Changed) == 0 {
			a.out.Printf("nothing to change: the kernel half is up\n")
		}
		for _, n := range r.Notes {
			a.note("%s", n)
		}
	})
}

// loaderFault gives the loader's errors their exit codes.
func loaderFault(err error) error {
	switch {
	case errors.Is(err, loader.ErrNotUp), errors.Is(err, loader.ErrNoInterface), errors.Is(err, loader.ErrContract):
		return fail(exitAbsent, "", "%w", err)
	case errors.Is(err, fs.ErrPermission):
		return fail(exitPermission, "", "%w", err)
	}
	return err
}

type kernelDown struct{}

// Help is what berm kernel down --help adds.
func (kernelDown) Help() string {
	return `From then on every packet passes untouched to this host's stack. VIPs, verdicts and counters go with the maps. A daemon that runs goes on without them.

Examples:

  sudo berm kernel down`
}

func (c *kernelDown) Run(a *app) error {
	o, err := a.kernelOptions()
	if err != nil {
		return err
	}
	r, err := loader.Down(a.ctx, o)
	if err != nil {
		return loaderFault(err)
	}
	return a.out.Value(r, func() {
		for _, s := range r.Changed {
			a.out.Printf("%s\n", s)
		}
		if len(r.Changed) == 0 {
			a.out.Printf("nothing to remove: the kernel half is not up\n")
		}
		for _, n := range r.Notes {
			a.note("%s", n)
		}
	})
}

type kernelStatus struct{ kernelFlags }

// Help is what berm kernel status --help adds.
func (kernelStatus) Help() string {
	return `Exit code 0: all that the configuration names is in place. 1: something is missing; the problems are listed. 3: it is not up.

Examples:

  berm kernel status
  berm kernel status --json | jq '.programs[] | {name, jited_bytes}'`
}

func (c *kernelStatus) Run(a *app) error {
	o, err := c.options(a)
	if err != nil {
		return err
	}
	s, err := loader.Status(a.ctx, o)
	if err != nil {
		return loaderFault(err)
	}
	switch {
	case !s.Up:
		a.code = exitAbsent
	case len(s.Problems) > 0:
		a.code = exitFailed
	}
	return a.out.Value(s, func() { a.kernelState(s) })
}

func (a *app) kernelState(s *loader.State) {
	state := a.out.Paint(out.Good, "up")
	switch {
	case !s.Up:
		state = a.out.Paint(out.Bad, "not up")
	case s.ObserveOnly:
		state += a.out.Paint(out.Warn, ", observing only: nothing is dropped")
	}
	a.out.Field("kernel", "%s, Linux %s, contract %d", state, s.Kernel, s.Contract)
	a.out.Field("pins", "%s%s", s.Pins, prefixed(", group ", s.Group))
	for _, i := range s.Interfaces {
		what := i.Mode + " mode, program " + sprintf("%d", i.Program)
		if !i.Attached {
			what = a.out.Paint(out.Bad, "not attached")
		}
		a.out.Field("interface", "%s: %s%s", i.Name, what, prefixed(": ", i.Problem))
	}
	if s.SockOps != nil && s.SockOps.Attached {
		a.out.Field("sock_ops", "cgroup %d, program %d", s.SockOps.Cgroup, s.SockOps.Program)
	}
	for _, p := range s.Problems {
		a.out.Field("problem", "%s", a.out.Paint(out.Warn, p))
	}
	if len(s.Programs) > 0 {
		rows := make([][]out.Cell, 0, len(s.Programs))
		for _, p := range s.Programs {
			rows = append(rows, out.Row(p.Name, sprintf("%d", p.ID), p.Tag, known(p.Instructions), known(p.Verified), known(p.JITed)))
		}
		a.out.Printf("\n")
		a.out.Table([]string{"PROGRAM", "ID>", "TAG", "INSNS>", "VERIFIED>", "JITED>"}, rows)
	}
	if len(s.Maps) > 0 {
		a.out.Printf("\n%s, %s\n", plural(len(s.Maps), "map"), out.Bytes(float64(s.Memory)))
	}
}

// known writes a number that is 0 where the kernel does not tell.
func known(n int) string {
	if n == 0 {
		return "-"
	}
	return sprintf("%d", n)
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}
