// Command bermprobe is Berm's own load and protocol client: it asks an edge over HTTP/1.1,
// HTTP/2 and HTTP/3 at a rate, watches live streams, and in labs sends counted packets at a VIP.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/bermedge/berm/cmd/bermprobe/internal/load"
	"github.com/bermedge/berm/cmd/bermprobe/internal/packets"
	"github.com/bermedge/berm/cmd/bermprobe/internal/watch"
)

// Exit codes, the same as berm's.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

type cli struct {
	JSON    bool       `help:"Print one JSON object instead of text; errors too."`
	Load    loadCmd    `cmd:"" help:"Send requests to a URL and measure them."`
	Watch   watchCmd   `cmd:"" help:"Subscribe to a live stream, repair it, and tell what its path loses."`
	Packets packetsCmd `cmd:"" help:"Send counted UDP or TCP SYN packets at a VIP of a lab."`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main with its surroundings as arguments; it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	code, exited := exitOK, false
	parser, err := kong.New(&c,
		kong.Name("bermprobe"),
		kong.Description("Load and protocol client for Berm edges.\n\nExit codes: 0 done (whatever the answers were), 1 failed, 2 usage or bad input."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(n int) { code, exited = n, true }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(&c),
		kong.BindTo(stdout, (*io.Writer)(nil)),
	)
	if err != nil {
		panic(err) // the command structs contradict themselves
	}
	k, err := parser.Parse(args)
	if exited { // --help was printed
		return code
	}
	if err == nil {
		err = k.Run()
	} else {
		err = usage{err}
	}
	if err == nil {
		return exitOK
	}
	code = exitFailed
	if _, bad := errors.AsType[usage](err); bad || errors.Is(err, packets.ErrRefused) {
		code = exitUsage
	}
	if c.JSON {
		_ = json.NewEncoder(stderr).Encode(map[string]any{"error": err.Error(), "code": code})
	} else {
		fmt.Fprintln(stderr, "bermprobe:", err)
	}
	return code
}

// usage marks errors that the caller can mend by asking differently. The parser calls the
// Validate methods of options, so that theirs are among them.
type usage struct{ error }

func (u usage) Unwrap() error { return u.error }

// emit prints v as one JSON object, or calls text.
func (c *cli) emit(w io.Writer, v any, text func(io.Writer)) error {
	if !c.JSON {
		text(w)
		return nil
	}
	return json.NewEncoder(w).Encode(v)
}

type loadCmd struct {
	load.Options
}

// Help is what --help adds.
func (loadCmd) Help() string {
	return `Without --rate every connection asks again as soon as it was answered (closed loop). With --rate requests start at fixed times and latency counts from the time a request was due, so that a stalled edge cannot hide its stall (no coordinated omission).

"{n}" in the URL becomes 0, 1, 2 … up to --objects and then starts again.

Examples:

  bermprobe load https://192.0.2.10/ --proto h2 --conns 4 --duration 10s
  bermprobe load 'https://192.0.2.10/obj/{n}' --objects 1000 --requests 2000 --proto h3
  bermprobe load https://edge.test:8443/ --connect 127.0.0.1:8443 --rate 500 --json
`
}

func (l *loadCmd) Run(ctx context.Context, c *cli, w io.Writer) error {
	rep, err := load.Run(ctx, l.Options)
	if err != nil {
		return err
	}
	return c.emit(w, rep, rep.Text)
}

type watchCmd struct {
	watch.Options
}

// Help is what --help adds.
func (watchCmd) Help() string {
	return `It repairs as the player does: parity comes as the edge plans it by the viewer's reports, and more where a block lacks some. Losses of the last blocks, which may still be repaired, are not counted.

Examples:

  bermprobe watch https://192.0.2.10/live/stage
  bermprobe watch 'https://192.0.2.10/live/stage?fec=off' --duration 1m --json
`
}

func (w *watchCmd) Run(ctx context.Context, c *cli, out io.Writer) error {
	rep, err := watch.Run(ctx, w.Options)
	if err != nil {
		return err
	}
	return c.emit(out, rep, rep.Text)
}

type packetsCmd struct {
	packets.Options
}

// Help is what --help adds.
func (packetsCmd) Help() string {
	return `For labs. It needs CAP_NET_RAW and sends only to private, documentation, benchmarking or loopback addresses that are reached through lo, a veth or a dummy device; everything else is refused.

"sent" counts what the kernel took; "lost_at_device" is what the device of this side dropped since (a veth drops when its peer's ring is full: lower --pps). What reached the other side is sent - lost_at_device.

Examples:

  bermprobe packets --src 198.51.100.7 --dst 192.0.2.10:443 --pps 10000 --count 50000
  bermprobe packets --kind syn --src 10.0.0.0/8 --dst 192.0.2.10:443 --pps 50000 --duration 10s --json
  bermprobe packets --src 2001:db8:7::/64 --dst '[2001:db8::10]:443' --count 100
`
}

func (p *packetsCmd) Run(ctx context.Context, c *cli, w io.Writer) error {
	rep, err := packets.Run(ctx, p.Options)
	if err != nil {
		return err
	}
	return c.emit(w, rep, rep.Text)
}
