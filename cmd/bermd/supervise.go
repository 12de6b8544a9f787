package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/bermedge/berm/loader"
	"github.com/bermedge/berm/userspace/config"
)

// childEnv tells the child that it is one, and what its supervisor did.
const childEnv = "BERM_ALL_IN_ONE"

// circumstances are what the supervisor tells its child.
type circumstances struct {
	Loaded  *loader.Report `json:"loaded,omitempty"`
	Why     string         `json:"why,omitempty"` // the kernel half is not there
	Group   string         `json:"group"`
	Restart int            `json:"restart"`
}

// supervise loads the kernel half, runs the daemon in an unprivileged child, starts it again when
// it dies, and takes the kernel half down at the end. It parses nothing that comes from outside.
func (r *run) supervise(root bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if !root {
		return r.keepRunning(ctx, nil, circumstances{Why: "it takes root to load it (sudo bermd run --all-in-one)", Group: config.Default().Kernel.Group})
	}
	id, err := identify(r.User)
	if err != nil {
		return err
	}
	cfg, err := r.allInOneConfig()
	if err != nil {
		return err
	}
	if err := id.makeDirs(map[string]os.FileMode{r.State: 0o700, filepath.Dir(cfg.Admin.Socket): 0o750}); err != nil {
		return err
	}
	if r.NoKernel {
		return r.keepRunning(ctx, &id, circumstances{Why: "--no-kernel", Group: id.group})
	}
	opts := loaderOptions(cfg, id)
	served := false
	err = loader.With(ctx, opts, func(rep *loader.Report) error {
		served = true
		return r.keepRunning(ctx, &id, circumstances{Loaded: rep, Group: id.group})
	})
	if served || ctx.Err() != nil {
		return err
	}
	return r.keepRunning(ctx, &id, circumstances{Why: err.Error(), Group: id.group})
}

func loaderOptions(cfg *config.Config, id identity) loader.Options {
	k := cfg.Kernel
	return loader.Options{
		Interfaces: k.Interfaces, Mode: loader.Mode(k.Mode), Pins: k.Pins, Cgroup: k.Cgroup, Group: id.group,
		RateCells: k.RateCells, ObserveOnly: k.ObserveOnly, Self4: cfg.Node.Address4, Self6: cfg.Node.Address6,
	}
}

// keepRunning runs the child until it ends well, the supervisor is told to end, or the child cannot
// even start.
func (r *run) keepRunning(ctx context.Context, id *identity, c circumstances) error {
	const pause = 500 * time.Millisecond // before a child that died is started again
	const quick = 3 * time.Second        // one that gives up sooner by itself has a cause that stays
	for {
		began := time.Now()
		err := r.child(ctx, id, c)
		var exit *exec.ExitError
		switch {
		case ctx.Err() != nil || err == nil:
			return nil
		case !errors.As(err, &exit) || exit.Exited() && time.Since(began) < quick:
			return fmt.Errorf("the daemon did not stay up: %w", err)
		}
		c.Restart++
		fmt.Fprintf(os.Stderr, "bermd: the daemon died (%v): starting it again; the kernel half went on filtering\n", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// child runs the daemon once, and passes signals on to it.
func (r *run) child(ctx context.Context, id *identity, c circumstances) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find my own program: %w", err)
	}
	told, err := json.Marshal(c)
	if err != nil {
		return err
	}
	command := func(program string) *exec.Cmd {
		cmd := exec.Command(program, os.Args[1:]...)
		cmd.Args[0] = os.Args[0]
		cmd.Env = append(os.Environ(), childEnv+"="+string(told))
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		return cmd
	}
	cmd := command(self)
	ended := make(chan error, 1)
	started := make(chan error, 1)
	go func() {
		// The thread is confined for ever, so it is never unlocked: it ends with the goroutine. It
		// waits for the child, which is told (Pdeathsig) when this thread ends.
		runtime.LockOSThread()
		err := startAs(cmd, id)
		if errors.Is(err, fs.ErrPermission) {
			cmd = command(sameProgram)
			err = startAs(cmd, id)
		}
		if err != nil {
			started <- err
			return
		}
		started <- nil
		ended <- cmd.Wait()
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	done := ctx.Done()
	for {
		select {
		case err := <-ended:
			return err
		case <-hup:
			_ = cmd.Process.Signal(syscall.SIGHUP) // a child that just died is started again with the new file
		case <-done:
			_ = cmd.Process.Signal(syscall.SIGTERM) // it may have got Ctrl-C from the terminal as well; once is enough for it
			done = nil
		}
	}
}

// startAs starts the child as id from the calling, locked thread.
func startAs(cmd *exec.Cmd, id *identity) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if id != nil {
		attr, err := loader.Unprivileged(id.user, id.group)
		if err != nil {
			return err
		}
		cmd.SysProcAttr = attr
		if err := confine(); err != nil {
			return err
		}
	}
	// Its own process group: Ctrl-C reaches the supervisor alone, which ends things in order.
	cmd.SysProcAttr.Setpgid = true
	return cmd.Start()
}

// told is what the supervisor told this child.
func told() (c circumstances, err error) {
	if err := json.Unmarshal([]byte(os.Getenv(childEnv)), &c); err != nil {
		return c, errors.New(childEnv + " is set by bermd itself: unset it")
	}
	return c, nil
}

// path is the file that is used, "" for built-in settings.
func (r *run) path() string {
	if r.AllInOne {
		return r.Config
	}
	return cmp.Or(r.Config, config.DefaultPath)
}
