package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"github.com/charmbracelet/x/term"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/userspace/control"
)

// How a change was made, as output names it.
const (
	byDaemon = "daemon"
	byMaps   = "maps"
)

// app is what commands run with.
type app struct {
	ctx    context.Context
	root   *root
	in     io.Reader
	stdout io.Writer
	stderr io.Writer
	out    *out.Printer
	code   int // exit code of a command that found something wrong and said so itself

	where   *settings      // once read
	tables  control.Tables // once chosen
	by      string
	closers []func() error
}

func newApp(ctx context.Context, r *root, stdin io.Reader, stdout, stderr io.Writer) *app {
	return &app{
		ctx: ctx, root: r, in: stdin, stdout: stdout, stderr: stderr,
		out: &out.Printer{W: stdout, JSON: r.JSON, Color: colour(stdout, r)},
	}
}

func (a *app) close() {
	for _, c := range a.closers {
		_ = c() // sockets and map handles that were only read, or written with their own errors told
	}
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(f.Fd())
}

// daemon returns a client, or says why there is none. Dialling first tells "not running"
// from a request that failed halfway, which must not be repeated elsewhere.
func (a *app) daemon() (*control.Client, error) {
	socket := a.settings().socket
	c := control.NewClient(socket)
	conn, err := net.DialTimeout("unix", socket, 2*time.Second)
	if err != nil {
		_, err = c.Drops(a.ctx) // the client knows what a failed dial means
		if err == nil {
			return c, nil // it came up in between
		}
		return nil, err
	}
	_ = conn.Close()
	a.closers = append(a.closers, c.Close)
	return c, nil
}

// needDaemon is for commands that only the daemon can do.
func (a *app) needDaemon(what, why string) (*control.Client, error) {
	c, err := a.daemon()
	if errors.Is(err, control.ErrDown) {
		return nil, fail(exitAbsent, "Start it (systemctl start bermd), or name its socket with --socket.",
			"%s needs bermd, and nobody listens at %s: %s", what, a.settings().socket, why)
	}
	return c, err
}

// open chooses how tables are reached: the daemon, or the pinned maps while it is down.
func (a *app) open() (control.Tables, error) {
	if a.tables != nil {
		return a.tables, nil
	}
	c, err := a.daemon()
	if err == nil {
		a.tables, a.by = c, byDaemon
		return c, nil
	}
	if !errors.Is(err, control.ErrDown) {
		return nil, err
	}
	local, closer, lerr := a.openLocal(a.settings().pins)
	if lerr != nil {
		return nil, a.neither(lerr)
	}
	a.closers = append(a.closers, closer)
	a.tables, a.by = local, byMaps
	return local, nil
}

// changed is what every change prints.
type changed struct {
	Changed []string `json:"changed"`
	By      string   `json:"by"` // daemon or maps
}

// change makes a change by whichever way is open and tells what changed.
func (a *app) change(do func(context.Context, control.Tables) (control.Changes, error)) error {
	t, err := a.open()
	if err != nil {
		return err
	}
	c, err := do(a.ctx, t)
	if err != nil {
		return err
	}
	return a.tell(c, a.by)
}

func (a *app) tell(c control.Changes, by string) error {
	if c.Changed == nil {
		c.Changed = []string{}
	}
	return a.out.Value(changed{c.Changed, by}, func() {
		for _, s := range c.Changed {
			a.out.Printf("%s\n", s)
		}
		if len(c.Changed) == 0 {
			a.out.Printf("nothing to change\n")
		}
		way := "through bermd"
		if by == byMaps {
			way = "straight in the pinned maps: bermd is not running, and will apply its configuration when it starts"
		}
		a.out.Printf("%s\n", a.out.Paint(out.Dim, "("+way+")"))
	})
}

// note tells people what machines see from a field.
func (a *app) note(format string, args ...any) {
	if !a.root.JSON && a.stderr != nil {
		p := out.Printer{W: a.stderr, Color: colour(a.stderr, a.root)}
		p.Printf("%s\n", p.Paint(out.Warn, "note: ")+sprintf(format, args...))
	}
}
