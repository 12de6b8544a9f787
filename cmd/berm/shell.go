package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"

	"github.com/bermedge/berm/cmd/berm/internal/complete"
	"github.com/bermedge/berm/cmd/berm/internal/manual"
)

// version is set by the build: -ldflags "-X main.version=1.2.3".
var version = "dev"

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Help is what berm completion --help adds.
func (completionCmd) Help() string {
	return `It completes commands, flags, and the names of VIPs, policies, classes and verdicts that exist.

Examples:

  source <(berm completion bash)
  berm completion bash > /usr/share/bash-completion/completions/berm
  berm completion zsh > /usr/share/zsh/vendor-completions/_berm
  berm completion fish > /usr/share/fish/vendor_completions.d/berm.fish`
}

func (c *completionCmd) Run(a *app) error {
	s, err := complete.Script(c.Shell, "berm")
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(a.stdout, s)
	return err
}

type manCmd struct {
	Dir  string `arg:"" complete:":dirs" help:"Directory; it is made if needed."`
	Date string `placeholder:"YYYY-MM-DD" help:"Date to print on the pages."`
}

// Help is what berm man --help adds.
func (manCmd) Help() string {
	return `One page for berm and one for each command: berm.1, berm-vip.1 and so on.

Examples:

  berm man /tmp/man && man -l /tmp/man/berm-vip.1`
}

func (c *manCmd) Run(a *app) error {
	b := manual.Book{Version: version, Date: c.Date, Ending: manualEnding}
	paths, err := b.Write(c.Dir, newParser(&root{}).Model)
	if err != nil {
		return fmt.Errorf("man: %w", err)
	}
	return a.out.Value(map[string][]string{"pages": paths}, func() {
		a.out.Printf("wrote %s into %s\n", plural(len(paths), "page"), c.Dir)
	})
}

// manualEnding closes every page.
var manualEnding = []manual.Section{
	{Title: "EXIT STATUS", Text: "\t0\nDone.\n\t1\nFailed.\n\t2\nUsage or bad input: no retry will help.\n\t3\nNot running, not loaded or not found.\n\t4\nNot permitted.\n"},
	{Title: "ENVIRONMENT", Text: "\tBERM_SOCKET, BERM_CONFIG, BERM_PINS\nStand in for --socket, --config and --pins.\n\tNO_COLOR\nWhen not empty, nothing is coloured.\n"},
	{Title: "FILES", Text: "\t/etc/berm/berm.yaml\nThe configuration of the edge.\n\t/run/berm/berm.sock\nThe admin socket of the daemon, for root and the group berm.\n\t/sys/fs/bpf/berm\nThe pinned programs and maps of the kernel half.\n"},
}

type versionCmd struct{}

// Help is what berm version --help adds.
func (versionCmd) Help() string {
	return `Examples:

  berm version --json | jq -r .version`
}

type versionInfo struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
}

func (c *versionCmd) Run(a *app) error {
	v := versionInfo{Version: version, Go: runtime.Version()}
	if info, ok := debug.ReadBuildInfo(); ok {
		i := slices.IndexFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == "vcs.revision" })
		if i >= 0 {
			v.Commit = info.Settings[i].Value
		}
	}
	return a.out.Value(v, func() {
		a.out.Printf("berm %s (%s)", v.Version, v.Go)
		if v.Commit != "" {
			a.out.Printf(" commit %.12s", v.Commit)
		}
		a.out.Printf("\n")
	})
}
