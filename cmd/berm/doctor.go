package main

import (
	"cmp"
	"errors"

	"github.com/bermedge/berm/cmd/berm/internal/doctor"
	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/loader"
	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/control"
)

type doctorCmd struct{}

// Help is what berm doctor --help adds.
func (doctorCmd) Help() string {
	return `It looks at this host and at the kernel half: interfaces and their drivers, queues and offloads, the other ends of veth pairs, routes, next hops and MTU, addresses, sysctls, bpffs, cgroup, group, contract and counters. For each finding it says what is wrong and where, what comes of it, and the command that mends it. It changes nothing.

Without root it looks at less, and says at what it could not. Exit code 0: nothing found. 1: something was.

Examples:

  sudo berm doctor
  sudo berm doctor --json | jq -r '.findings[] | select(.severity == "blocks") | .fix[]'`
}

// daemonUser is whom the unit runs bermd as.
const daemonUser = "berm"

func (c *doctorCmd) Run(a *app) error {
	e, err := a.edge()
	if err != nil {
		return err
	}
	r := doctor.Examine(e)
	if len(r.Findings) > 0 {
		a.code = exitFailed
	}
	return a.out.Value(r, func() { a.examined(r) })
}

// edge gathers what the checks start from. What cannot be had is told by those that miss it.
func (a *app) edge() (e doctor.Edge, err error) {
	e.Kernel, err = a.kernelOptions()
	if path := a.settings().config; err != nil && exists(path) && !readable(path) {
		a.note("%s may not be read: what it says is not compared with what is there (run berm doctor as root)", path)
		e.Kernel, err = loader.Options{Pins: a.settings().pins}, nil
	}
	if err != nil {
		return e, err
	}
	e.Kernel.Group = cmp.Or(e.Kernel.Group, loader.DefaultGroup)
	e.Kernel.Cgroup = cmp.Or(e.Kernel.Cgroup, loader.CgroupAuto)
	e.Self4, e.Self6, e.DaemonUser = e.Kernel.Self4, e.Kernel.Self6, daemonUser
	e.State, e.StateErr = loader.Status(a.ctx, e.Kernel)
	silent, err := a.silent()
	e.Daemon = err
	set, err := maps.Open(maps.PinDir(e.Kernel.Pins))
	if err != nil {
		if !errors.Is(err, maps.ErrNotUp) { // that is a finding of its own
			e.TablesErr = err
		}
		return e, nil
	}
	defer func() { err = errors.Join(err, set.Close()) }()
	return e, fromTables(set, silent, &e)
}

// silent asks the daemon which backends do not answer, and why; an error says that it does not itself.
func (a *app) silent() (map[string]doctor.Silence, error) {
	c, err := a.daemon()
	if err != nil {
		return nil, err
	}
	status, err := c.Status(a.ctx)
	out := map[string]doctor.Silence{}
	for _, b := range status.Backends {
		if !b.Self && !b.Healthy && b.Error != "" {
			out[b.Name] = doctor.Silence{Probe: b.Probe, Why: b.Error}
		}
	}
	return out, err
}

func fromTables(set *maps.Set, silent map[string]doctor.Silence, e *doctor.Edge) error {
	vips, errV := set.VIPs.List()
	serving, errS := control.Backends(set)
	backends, errB := set.Backends.List()
	drops, errD := set.Stats.Drops()
	if err := errors.Join(errV, errS, errB, errD); err != nil {
		return err
	}
	selfServes := map[string]bool{"": true}
	for _, b := range serving {
		if b.Self {
			selfServes[b.Set] = true
		}
	}
	// All of them: whoever cannot be reached has no rows any more.
	for _, b := range backends {
		if b.ID != set.Config.Self().Backend {
			e.Backends = append(e.Backends, doctor.Backend{Name: b.Name, Address: b.Address, Ready: b.NextHop.Ready, Server: b.Via != maps.ViaEdge, Silence: silent[b.Name]})
		}
	}
	for _, v := range vips {
		e.VIPs = append(e.VIPs, doctor.VIP{Name: v.Name, Address: v.Address, Local: selfServes[v.Backends], Cookies: v.Gate.Cookies != maps.GateOff})
	}
	e.Drops = map[maps.Drop]uint64{}
	for d, n := range drops {
		e.Drops[d] = n.Packets
	}
	return nil
}

func (a *app) examined(r doctor.Report) {
	for _, f := range r.Findings {
		style := out.Warn
		if f.Severity == doctor.Blocks {
			style = out.Bad
		}
		a.out.Printf("%s %s: %s\n", a.out.Paint(style, string(f.Severity)), a.out.Paint(out.Bold, f.Where), f.What)
		a.out.Printf("       %s %s\n", a.out.Paint(out.Dim, "so"), f.Why)
		for _, fix := range f.Fix {
			a.out.Printf("       %s %s\n", a.out.Paint(out.Dim, "#"), fix)
		}
		a.out.Printf("\n")
	}
	for _, u := range r.NotChecked {
		a.note("%s of %s was not checked: %s", u.Check, u.Where, u.Why)
	}
	if len(r.Findings) == 0 {
		a.out.Printf("%s\n", a.out.Paint(out.Good, sprintf("nothing found in %s", plural(len(r.Checked), "check"))))
		return
	}
	a.out.Printf("%s in %s\n", plural(len(r.Findings), "finding"), plural(len(r.Checked), "check"))
}
