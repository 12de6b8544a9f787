// Command bermlab builds labs in network namespaces, runs scenarios in them and prints what it
// checked. It needs root.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/test/scenario"
)

type cli struct {
	List  listCmd  `cmd:"" help:"List scenarios and labs that are up."`
	Up    upCmd    `cmd:"" help:"Build a scenario's lab and leave it running."`
	Down  downCmd  `cmd:"" help:"Take labs down, and whatever a killed one left behind."`
	Shell shellCmd `cmd:"" help:"Run a shell, or a command, in a node of a lab."`
	Run   runCmd   `cmd:"" help:"Build a lab, run its scenario, print each check, take it down."`
}

func main() {
	scenario.MaybeActor()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var c cli
	k := kong.Parse(&c, kong.Name("bermlab"),
		kong.Description("Labs in network namespaces: topologies, scenarios, and what they checked.\n\nExit codes: 0 all checks hold, 1 not, or failed, 2 usage."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
		kong.BindTo(ctx, (*context.Context)(nil)))
	if err := k.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "bermlab:", err)
		os.Exit(1)
	}
}

type listCmd struct{}

func (listCmd) Run() error {
	for _, s := range scenario.All() {
		fmt.Printf("%-8s %s\n", s.ID, s.Summary)
	}
	up, err := rig.Leftovers()
	if err != nil {
		return err
	}
	for _, name := range up {
		fmt.Printf("up: %s\n", name)
	}
	return nil
}

type upCmd struct {
	ID  string `arg:"" help:"Scenario."`
	Bin string `help:"Directory of berm, bermd and bermprobe; else beside bermlab, else PATH." type:"existingdir" env:"BERM_BIN"`
}

func (u *upCmd) Run(ctx context.Context) (err error) {
	s, err := scenario.Find(u.ID)
	if err != nil {
		return err
	}
	lab, err := rig.New(s.ID)
	if err != nil {
		return err
	}
	top, err := s.Up(ctx, lab, scenario.Options{Bin: u.Bin, Log: logTo(os.Stdout)})
	if err != nil {
		return errors.Join(err, lab.Close())
	}
	fmt.Print("\n", top.Guide())
	return lab.Release()
}

type downCmd struct {
	ID []string `arg:"" optional:"" help:"Labs; none = all."`
}

func (d *downCmd) Run() error {
	names := d.ID
	if len(names) == 0 {
		var err error
		if names, err = rig.Leftovers(); err != nil {
			return err
		}
	}
	var errs []error
	for _, name := range names {
		if err := rig.Sweep(name); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Println("down:", name)
	}
	return errors.Join(errs...)
}

type shellCmd struct {
	Lab     string   `arg:"" help:"Lab."`
	Node    string   `arg:"" help:"Node, such as good, router or edge1."`
	Command []string `arg:"" optional:"" passthrough:"" help:"Command; none = a shell."`
}

func (c *shellCmd) Run() error {
	lab, err := rig.Attach(c.Lab)
	if err != nil {
		return err
	}
	n := lab.Node(c.Node)
	if n == nil {
		return fmt.Errorf("lab %s has no node %q; it has %v", c.Lab, c.Node, lab.Nodes())
	}
	args := c.Command
	if len(args) == 0 {
		shell := os.Getenv("SHELL")
		if shell == "" {
			shell = "/bin/sh"
		}
		args = []string{shell}
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	// The thread that enters the node becomes the program; this goroutine must not move.
	runtime.LockOSThread()
	ns, err := netns.GetFromPath(n.NamespacePath())
	if err != nil {
		return err
	}
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("enter %s: %w", c.Node, err)
	}
	return unix.Exec(path, args, append(os.Environ(), "PS1=["+c.Lab+" "+c.Node+"]# "))
}

type runCmd struct {
	ID   string `arg:"" help:"Scenario."`
	JSON bool   `help:"Print exactly one JSON object on standard output; progress goes to standard error."`
	Keep bool   `help:"Leave the lab up at the end."`
	Bin  string `help:"Directory of berm, bermd and bermprobe; else beside bermlab, else PATH." type:"existingdir" env:"BERM_BIN"`
	Only string `help:"Run only the steps whose name contains this."`
}

var errChecks = errors.New("not all checks hold")

func (c *runCmd) Run(ctx context.Context) (err error) {
	s, err := scenario.Find(c.ID)
	if err != nil {
		return err
	}
	lab, err := rig.New(s.ID)
	if err != nil {
		return err
	}
	defer func() {
		if c.Keep {
			err = errors.Join(err, lab.Release())
		} else {
			err = errors.Join(err, lab.Close())
		}
	}()
	var text io.Writer = os.Stdout
	if c.JSON {
		text = os.Stderr
	}
	rec := &scenario.Recorder{OnCheck: func(k scenario.Check) { printCheck(text, k) }}
	report, err := scenario.Run(ctx, s, lab, scenario.Options{Bin: c.Bin, Only: c.Only, Log: logTo(text)}, rec)
	if err != nil {
		// The one object is promised, also when the lab did not come up.
		report = scenario.NewReport(s.ID, append(rec.Checks(), scenario.Check{Name: "lab", Want: "runs", Got: err.Error()}))
	}
	if c.JSON {
		err = errors.Join(err, json.NewEncoder(os.Stdout).Encode(report))
	}
	if err == nil && !report.OK {
		err = errChecks
	}
	return err
}

func logTo(w io.Writer) func(string, ...any) {
	start := time.Now()
	return func(format string, args ...any) {
		fmt.Fprintf(w, "[%5.1f s] %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}
}

func printCheck(w io.Writer, c scenario.Check) {
	mark := "ok  "
	if !c.OK {
		mark = "FAIL"
	}
	fmt.Fprintf(w, "  %s %s: %s %s (want %s)\n", mark, c.Name, c.Got, c.Unit, c.Want)
}
