package main

import (
	"cmp"
	"errors"
	"strings"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/userspace/config"
)

type confCmd struct {
	Check configCheck `cmd:"" help:"Report every mistake in a configuration file."`
}

// Help is what berm config --help adds.
func (confCmd) Help() string {
	return `Examples:

  berm config check
  berm config check new.yaml && sudo mv new.yaml /etc/berm/berm.yaml && berm reload`
}

type configCheck struct {
	File string `arg:"" optional:"" complete:":files" help:"File to check; without it, the one of this edge."`
}

// Help is what berm config check --help adds.
func (configCheck) Help() string {
	return `All mistakes are reported at once, with line and column: unknown keys, bad values, what contradicts itself across sections, and files that it names and that cannot be used: certificates, geo databases. Nothing is changed. Exit code 0: the file is right. 2: it is not. 3: there is none.

Examples:

  berm config check
  berm config check new.yaml
  berm config check --json | jq -r '.problems[] | "\(.line): \(.message)"'`
}

// configAnswer is berm config check --json.
type configAnswer struct {
	File     string           `json:"file"`
	OK       bool             `json:"ok"`
	Problems []config.Problem `json:"problems"`
}

func (c *configCheck) Run(a *app) error {
	path := cmp.Or(c.File, a.root.Config, config.DefaultPath)
	if !exists(path) {
		return fail(exitAbsent, "Name the file to check: berm config check FILE.", "config check: %s does not exist", path)
	}
	loaded, err := config.Check(path)
	problems, ok := errors.AsType[config.Problems](err)
	switch {
	case err != nil && !ok:
		return err
	case err != nil && !readable(path):
		return fail(exitPermission, "", "config check: %w", err)
	case err != nil:
		a.code = exitUsage
	}
	return a.out.Value(configAnswer{path, err == nil, orEmpty(problems)}, func() {
		for _, p := range problems {
			a.problem(p)
		}
		if len(problems) > 0 {
			a.out.Printf("%s\n", a.out.Paint(out.Bad, plural(len(problems), "mistake")))
			return
		}
		a.out.Printf("%s is right: %s\n", path, contents(loaded))
	})
}

// problem prints as compilers do, so that editors can jump to it.
func (a *app) problem(p config.Problem) {
	if a.out.Color {
		hint := ""
		if p.Hint != "" {
			hint = a.out.Paint(out.Dim, " ("+p.Hint+")")
		}
		s := strings.TrimSuffix(p.String(), " ("+p.Hint+")")
		where, what, _ := strings.Cut(s, ": ")
		a.out.Printf("%s %s%s\n", a.out.Paint(out.Bold, where+":"), what, hint)
		return
	}
	a.out.Printf("%s\n", p)
}

func contents(c *config.Config) string {
	return strings.Join([]string{
		"node " + c.Node.Name, plural(len(c.VIPs), "VIP"), plural(len(c.Backends), "backend set"),
		plural(len(c.Geo.Policies), "geo policy"), plural(len(c.Rate.Classes), "rate class"),
		plural(len(c.Origins), "origin"), plural(len(c.Routes), "route"),
	}, ", ")
}
