// Command berm is the operator's CLI of Berm: it loads the kernel half, shows what the edge
// does, and changes it while it runs.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/bermedge/berm/cmd/berm/internal/complete"
	"github.com/bermedge/berm/cmd/berm/internal/out"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is main with its surroundings as arguments; it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == complete.Command {
		return runComplete(ctx, args[1:], stdout)
	}
	r := &root{}
	exited, code := false, exitOK
	parser := newParser(r, kong.Writers(stdout, stderr), kong.Exit(func(n int) { exited, code = true, n }))
	if len(args) == 0 {
		args = []string{"--help"}
	}
	k, err := parser.Parse(args)
	if exited { // --help was printed
		return code
	}
	if err != nil {
		return report(stderr, wantsJSON(args), colour(stderr, r), usage(err))
	}
	a := newApp(ctx, r, stdin, stdout, stderr)
	defer a.close()
	if err := a.same(k.Run(a)); err != nil {
		return report(stderr, r.JSON, colour(stderr, r), err)
	}
	return a.code
}

// newParser is the one description of the command line; help, completion and the manual
// pages are derived from it.
func newParser(r *root, opts ...kong.Option) *kong.Kong {
	opts = append([]kong.Option{
		kong.Name("berm"),
		kong.Description(description),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true, WrapUpperBound: 100}),
		kong.ExplicitGroups(groups),
	}, opts...)
	p, err := kong.New(r, opts...)
	if err != nil {
		panic(err) // the command structs contradict themselves
	}
	return p
}

// runComplete answers the shells' completion scripts.
func runComplete(ctx context.Context, words []string, stdout io.Writer) int {
	r := &root{}
	parser := newParser(r)
	names := func(kind string) []string { return r.names(ctx, words, kind) }
	for _, c := range complete.Candidates(parser.Model, words, names) {
		fmt.Fprintln(stdout, c)
	}
	return exitOK
}

// wantsJSON looks for --json where the command line itself could not be parsed.
func wantsJSON(args []string) bool {
	for _, a := range args {
		if a == "--" {
			return false
		}
		if a == "--json" {
			return true
		}
	}
	return false
}

// colour says whether w is a terminal whose owner did not object (https://no-color.org).
func colour(w io.Writer, r *root) bool {
	return !r.NoColor && !r.JSON && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && isTerminal(w)
}

// report prints an error and returns its exit code.
func report(w io.Writer, asJSON, color bool, err error) int {
	f := explain(err)
	if asJSON {
		p := out.Printer{W: w, JSON: true}
		_ = p.Line(f, nil) // nothing is left to be done when stderr is gone
		return f.Code
	}
	lines := strings.Split(f.Error, "\n")
	fmt.Fprintf(w, "%s %s\n", out.Paint(color, out.Bad, "berm:"), lines[0])
	for _, l := range lines[1:] {
		fmt.Fprintf(w, "      %s\n", l)
	}
	if f.Hint != "" {
		fmt.Fprintf(w, "      %s\n", f.Hint)
	}
	return f.Code
}
