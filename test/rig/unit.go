package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Unit runs a program as systemd runs a service of Type=notify: it hears when the program is ready, keeps the
// sockets that it is asked to keep (FDSTORE), gives them to the program when it is started again, and lets the program name
// another process that is the main one from then on (MAINPID). It hears the main process alone (NotifyAccess=main).
type Unit struct {
	args  []string
	setUp func(*exec.Cmd)

	notes *net.UnixConn
	path  string
	heard sync.WaitGroup
	ready chan struct{}

	mu   sync.Mutex
	kept []keptSocket
	main *process
	rest []*process // that were the main one, and may still run
}

// process is a child of this one.
type process struct {
	pid   int
	ended chan struct{}
	err   error // how it ended, once it has
}

// watch takes the word of wait for the end of a process.
func watch(pid int, wait func() error) *process {
	p := &process{pid: pid, ended: make(chan struct{})}
	go func() {
		p.err = wait()
		close(p.ended)
	}()
	return p
}

// waitFor reaps a child that somebody else started (CLONE_PARENT).
func waitFor(pid int) error {
	for {
		var status syscall.WaitStatus
		switch _, err := syscall.Wait4(pid, &status, 0, nil); {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return err
		case status.Exited() && status.ExitStatus() == 0:
			return nil
		default:
			return fmt.Errorf("process %d: exit status %d, signal %d", pid, status.ExitStatus(), status.Signal())
		}
	}
}

type keptSocket struct {
	name string
	fd   int
}

// NewUnit listens for notifications at path. setUp completes each command before it is started.
func NewUnit(path string, args []string, setUp func(*exec.Cmd)) (*Unit, error) {
	notes, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	u := &Unit{args: args, setUp: setUp, notes: notes, path: path, ready: make(chan struct{}, 1)}
	raw, err := notes.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, notes.Close())
	}
	var cerr error
	err = raw.Control(func(fd uintptr) { cerr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	if err := errors.Join(err, cerr); err != nil {
		return nil, errors.Join(err, notes.Close())
	}
	u.heard.Go(u.listen)
	return u, os.Chmod(path, 0o666) // the program may be another user
}

func (u *Unit) listen() {
	buf, oob := make([]byte, 4096), make([]byte, 256)
	for {
		n, oobn, _, _, err := u.notes.ReadMsgUnix(buf, oob)
		if err != nil {
			return // closed
		}
		sender, fds := rights(oob[:oobn])
		u.hear(sender, string(buf[:n]), fds)
	}
}

func rights(oob []byte) (sender int, fds []int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0, nil
	}
	for _, m := range messages {
		if some, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, some...)
		} else if cred, err := unix.ParseUnixCredentials(&m); err == nil {
			sender = int(cred.Pid)
		}
	}
	return sender, fds
}

func (u *Unit) hear(sender int, note string, fds []int) {
	fields := map[string]string{}
	for line := range strings.Lines(note) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		fields[key] = value
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.main == nil || sender != u.main.pid {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return
	}
	if pid, err := strconv.Atoi(fields["MAINPID"]); err == nil && pid != u.main.pid {
		u.rest = append(u.rest, u.main)
		u.main = watch(pid, func() error { return waitFor(pid) })
	}
	switch name := fields["FDNAME"]; {
	case fields["FDSTOREREMOVE"] == "1":
		u.drop(name)
	case fields["FDSTORE"] == "1":
		u.drop(name)
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			u.kept = append(u.kept, keptSocket{name, fd})
		}
	case fields["READY"] == "1":
		select {
		case u.ready <- struct{}{}:
		default:
		}
	}
}

func (u *Unit) drop(name string) {
	for i := 0; i < len(u.kept); i++ {
		if u.kept[i].name == name {
			unix.Close(u.kept[i].fd)
			u.kept = append(u.kept[:i], u.kept[i+1:]...)
			i--
		}
	}
}

// Kept lists the names of the sockets that are kept.
func (u *Unit) Kept() (names []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, k := range u.kept {
		names = append(names, k.name)
	}
	return names
}

// Start starts the program and returns when it says that it is ready.
func (u *Unit) Start(ctx context.Context) error {
	// LISTEN_PID has to be the program's own: the shell knows it, and becomes the program.
	cmd := exec.Command("sh", append([]string{"-c", `export LISTEN_PID=$$; exec "$@"`, "sh"}, u.args...)...)
	names, err := u.give(cmd)
	if err != nil {
		return err
	}
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+u.path)
	if len(names) > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if u.setUp != nil {
		u.setUp(cmd)
	}
	select {
	case <-u.ready: // of an earlier start
	default:
	}
	main, err := u.launch(cmd)
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	if err != nil {
		return err
	}
	select {
	case <-u.ready:
		return nil
	case <-main.ended:
		return fmt.Errorf("%s ended before it was ready: %w: %s", u.args[0], main.err, lastLines(said.String(), 5))
	case <-ctx.Done():
		return fmt.Errorf("%s is not ready: %w: %s", u.args[0], ctx.Err(), lastLines(said.String(), 5))
	}
}

// launch starts the command, and hears nobody before it knows whom to hear.
func (u *Unit) launch(cmd *exec.Cmd) (*process, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	u.main = watch(cmd.Process.Pid, cmd.Wait)
	return u.main, nil
}

// Main is the main process's id, and how many processes that were it before still run.
func (u *Unit) Main() (pid, others int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, p := range u.rest {
		select {
		case <-p.ended:
		default:
			others++
		}
	}
	return u.main.pid, others
}

// give passes copies of what is kept, since the program may have it replaced while it is being started.
func (u *Unit) give(cmd *exec.Cmd) (names []string, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, k := range u.kept {
		fd, err := unix.FcntlInt(uintptr(k.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		cmd.ExtraFiles, names = append(cmd.ExtraFiles, os.NewFile(uintptr(fd), k.name)), append(names, k.name)
	}
	return names, nil
}

// Stop ends the main process with a signal, and returns how it ended. Those that were it before are killed then
// (KillMode=mixed).
func (u *Unit) Stop(ctx context.Context, sig syscall.Signal) error {
	u.mu.Lock()
	main, rest := u.main, u.rest
	u.rest = nil
	u.mu.Unlock()
	if err := main.end(ctx, sig); err != nil {
		return err
	}
	for _, p := range rest {
		if err := p.end(ctx, syscall.SIGKILL); err != nil {
			return err
		}
	}
	return main.err
}

func (p *process) end(ctx context.Context, sig syscall.Signal) error {
	select {
	case <-p.ended:
		return nil
	default:
	}
	if err := syscall.Kill(p.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process %d does not end: %w", p.pid, ctx.Err())
	}
}

// PID is the main process's id.
func (u *Unit) PID() int {
	pid, _ := u.Main()
	return pid
}

// Close ends the program for good, and lets go of what was kept.
func (u *Unit) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var err error
	u.mu.Lock()
	started := u.main != nil
	u.mu.Unlock()
	if started {
		_ = u.Stop(ctx, syscall.SIGKILL) // how it ended is what we asked for
	}
	err = errors.Join(err, u.notes.Close())
	u.heard.Wait()
	for _, k := range u.kept {
		err = errors.Join(err, unix.Close(k.fd))
	}
	return err
}
