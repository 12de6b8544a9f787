package main

import (
	"cmp"
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/bermedge/berm/cmd/bermd/internal/edge"
	"github.com/bermedge/berm/userspace/config"
	"github.com/bermedge/berm/userspace/observe"
)

const defaultState = "/var/lib/berm"

// Run chooses how to run: as it is, as an unprivileged user, or supervised with the kernel half.
func (r *run) Run() error {
	// quic-go would print this by itself; we say it with the address and what to do.
	_ = os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
	r.State = cmp.Or(r.State, defaultState)
	root := os.Geteuid() == 0
	switch {
	case r.AllInOne && os.Getenv(childEnv) != "":
		return r.serveAllInOne()
	case r.AllInOne:
		return r.supervise(root)
	case root && !r.AllowRoot:
		return r.becomeUser()
	}
	path := r.path()
	return r.serve(edge.Options{Path: path, Load: func() (*config.Config, error) { return config.Load(path) }}, nil)
}

// serve runs an edge until a signal ends it. started is called once it serves.
func (r *run) serve(opts edge.Options, started func(*edge.Edge)) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	opts.State, opts.Version, opts.Log = r.State, version, observe.NewLog(observe.Default(), os.Stderr)
	opts.Notify = func(state string) { _, _ = daemon.SdNotify(false, state) } // without systemd nobody listens
	succeeds := beSuccessor()
	opts.Held = activation.Files(true)
	if succeeds {
		before, held, err := predecessor(opts.Held)
		if err != nil {
			return err
		}
		defer before.Close() //nolint:errcheck // all was said
		opts.Predecessor, opts.Held = before, held
	}
	if socket := os.Getenv("NOTIFY_SOCKET"); socket != "" {
		opts.Keeper = systemd{socket}
		if program, err := os.Executable(); err == nil && !r.AllInOne {
			opts.Start = startSuccessor(program)
		}
	}
	e, err := edge.Start(ctx, opts)
	if err != nil {
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	go func() {
		for range hup {
			_, _ = e.Reload(ctx) // it logs both ways
		}
	}()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends at once
	if started != nil {
		started(e)
	}
	return e.Run(ctx)
}
