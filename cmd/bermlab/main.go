// Command bermlab builds labs in network namespaces, runs scenarios in them and prints what it
// checked. It needs root.
package main

import (
	"cmp"
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

// Exit codes, the same as berm's.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	scenario.MaybeActor()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main with its surroundings as arguments; it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	code, exited := exitOK, false
	parser, err := kong.New(&c, kong.Name("bermlab"),
		kong.Description("Labs in network namespaces: topologies, scenarios, and what they checked.\n\nExit codes: 0 all checks hold, 1 not, or failed, 2 usage."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(n int) { code, exited = n, true }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(&output{stdout, stderr}))
	if err != nil {
		panic(err) // the command structs contradict themselves
	}
	k, err := parser.Parse(args)
	if exited { // --help was printed
		return code
	}
	code = exitUsage
	if err == nil {
		code, err = exitFailed, k.Run()
	}
	if errors.Is(err, scenario.ErrUnknown) {
		code = exitUsage
	}
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(stderr, "bermlab:", err)
	return code
}

// output is where commands write.
type output struct{ out, err io.Writer }

type listCmd struct {
	JSON bool `help:"Print one JSON object."`
}

// listed is what list --json prints.
type listed struct {
	Scenarios []listedScenario `json:"scenarios"`
	Up        []string         `json:"up"` // labs
}

type listedScenario struct {
	ID      string `json:"id"`
	Summary string `json:"summary"`
}

func (l listCmd) Run(o *output) error {
	up, err := rig.Leftovers()
	if err != nil {
		return err
	}
	if l.JSON {
		all := listed{Up: append([]string{}, up...)}
		for _, s := range scenario.All() {
			all.Scenarios = append(all.Scenarios, listedScenario{s.ID, s.Summary})
		}
		return json.NewEncoder(o.out).Encode(all)
	}
	for _, s := range scenario.All() {
		fmt.Fprintf(o.out, "%-12s %s\n", s.ID, s.Summary)
	}
	for _, name := range up {
		fmt.Fprintf(o.out, "up: %s\n", name)
	}
	return nil
}

type upCmd struct {
	ID  string `arg:"" help:"Scenario."`
	Lab string `help:"Name of the lab; else the scenario's. An earlier lab of that name is removed."`
	Bin string `help:"Directory of berm, bermd and bermprobe; else beside bermlab, else PATH." type:"existingdir" env:"BERM_BIN"`
}

func (u *upCmd) Run(ctx context.Context, o *output) (err error) {
	s, err := scenario.Find(u.ID)
	if err != nil {
		return err
	}
	lab, err := rig.New(cmp.Or(u.Lab, s.Lab()))
	if err != nil {
		return err
	}
	top, err := s.Up(ctx, lab, scenario.Options{Bin: u.Bin, Log: logTo(o.out)})
	if err != nil {
		return errors.Join(err, lab.Close())
	}
	fmt.Fprint(o.out, "\n", top.Guide())
	return lab.Release()
}

type downCmd struct {
	ID []string `arg:"" optional:"" help:"Labs; none = all."`
}

func (d *downCmd) Run(o *output) error {
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
		fmt.Fprintln(o.out, "down:", name)
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
	Lab  string `help:"Name of the lab; else the scenario's. An earlier lab of that name is removed."`
	JSON bool   `help:"Print exactly one JSON object on standard output; progress goes to standard error."`
	Keep bool   `help:"Leave the lab up at the end."`
	Bin  string `help:"Directory of berm, bermd and bermprobe; else beside bermlab, else PATH." type:"existingdir" env:"BERM_BIN"`
	Only string `help:"Run only the steps whose name contains this."`
	Long bool   `help:"Measure more, and for longer, where the scenario can (cc)."`
	Out  string `help:"Directory for figures (JSON) and charts (SVG) of scenarios that have any (cc); their names are printed." type:"path" placeholder:"DIR"`
}

var errChecks = errors.New("not all checks hold")

func (c *runCmd) Run(ctx context.Context, o *output) (err error) {
	s, err := scenario.Find(c.ID)
	if err != nil {
		return err
	}
	lab, err := rig.New(cmp.Or(c.Lab, s.Lab()))
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
	text := o.out
	if c.JSON {
		text = o.err
	}
	rec := &scenario.Recorder{OnCheck: func(k scenario.Check) { printCheck(text, k) }}
	report, err := scenario.Run(ctx, s, lab, scenario.Options{Bin: c.Bin, Only: c.Only, Long: c.Long, Out: c.Out, Log: logTo(text)}, rec)
	if err != nil {
		// The one object is promised, also when the lab did not come up.
		report = scenario.NewReport(s.ID, append(rec.Checks(), scenario.Check{Name: "lab", Want: "runs", Got: err.Error()}))
	}
	if c.JSON {
		err = errors.Join(err, json.NewEncoder(o.out).Encode(report))
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
