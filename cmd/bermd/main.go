// Command bermd is the edge daemon: it terminates HTTP/1.1, 2 and 3, answers from its cache, and
// fetches what it lacks from the origins.
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/bermedge/berm/userspace/config"
)

// version is set by the linker.
var version = ""

const description = `The daemon of a Berm edge: HTTP/1.1 and 2 over TCP and HTTP/3 over UDP, a cache, and its origins.

It works beside the kernel half, which filters, limits and steers packets before any socket sees them, and which ` +
	"`berm kernel up`" + ` loads. Without it the daemon serves all the same, says so, and picks it up when it appears.

To try everything at once on this host, with built-in settings and a demo origin:
    sudo bermd run --all-in-one
To run from a file, check it first:
    berm config check && bermd run --config /etc/berm/berm.yaml

Signals: HUP reloads the file (a wrong one changes nothing), INT and TERM drain and end.`

type commands struct {
	Run     run              `cmd:"" default:"withargs" help:"Serve until a signal ends it."`
	Version kong.VersionFlag `help:"Print the version and exit."`
}

type run struct {
	Config    string   `placeholder:"FILE" type:"path" help:"Configuration (default: ${path}; with --all-in-one: built-in settings)."`
	State     string   `placeholder:"DIR" type:"path" env:"STATE_DIRECTORY" help:"What is kept over restarts: the self-signed certificate, keys of TLS sessions, QUIC's reset key (default: /var/lib/berm)."`
	AllInOne  bool     `help:"Load the kernel half too, serve with an unprivileged child, and take everything down at the end. Needs root for the kernel half."`
	Interface []string `short:"i" placeholder:"NAME" help:"With --all-in-one: interfaces to attach to (default: lo and the default route's)."`
	Pins      string   `placeholder:"DIR" help:"With --all-in-one: root of the pins (default: /sys/fs/bpf/berm)."`
	Socket    string   `placeholder:"PATH" type:"path" help:"With --all-in-one: admin socket (default: /run/berm/berm.sock)."`
	NoKernel  bool     `help:"With --all-in-one: leave the kernel half out."`
	User      string   `default:"berm" help:"Who to become when started by root; nobody where that user does not exist."`
	AllowRoot bool     `help:"Stay root when started by root. The daemon that parses what the Internet sends should not be."`
}

func main() {
	if version == "" {
		version = fromBuild()
	}
	var c commands
	ctx := kong.Parse(&c, kong.Name("bermd"), kong.Description(description), kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.Vars{"version": "bermd " + version, "path": config.DefaultPath})
	os.Exit(exit(ctx.Run()))
}

// exit prints what went wrong. Problems of the file stand a line each, as a compiler's.
func exit(err error) int {
	if err == nil {
		return 0
	}
	var ps config.Problems
	if errors.As(err, &ps) {
		fmt.Fprintln(os.Stderr, ps.Error())
		fmt.Fprintf(os.Stderr, "bermd: not started: %d %s with the configuration\n", len(ps), plural(len(ps), "problem"))
		return 78 // EX_CONFIG
	}
	fmt.Fprintf(os.Stderr, "bermd: %s\n", strings.ReplaceAll(err.Error(), "\n", "\nbermd: "))
	return 1
}

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// fromBuild is the version that the Go toolchain noted.
func fromBuild() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}
