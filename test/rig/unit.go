package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Unit runs a program as systemd runs a service of Type=notify: it hears when the program is ready, keeps the
// sockets that it is asked to keep (FDSTORE), and gives them to the program when it is started again.
type Unit struct {
	args  []string
	setUp func(*exec.Cmd)

	notes *net.UnixConn
	path  string
	heard sync.WaitGroup
	ready chan struct{}

	mu   sync.Mutex
	kept []keptSocket

	cmd   *exec.Cmd
	ended chan error
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
		u.hear(string(buf[:n]), rights(oob[:oobn]))
	}
}

func rights(oob []byte) (fds []int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		if some, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, some...)
		}
	}
	return fds
}

func (u *Unit) hear(note string, fds []int) {
	fields := map[string]string{}
	for line := range strings.Lines(note) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		fields[key] = value
	}
	u.mu.Lock()
	defer u.mu.Unlock()
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
	u.cmd = exec.Command("sh", append([]string{"-c", `export LISTEN_PID=$$; exec "$@"`, "sh"}, u.args...)...)
	names, err := u.give(u.cmd)
	if err != nil {
		return err
	}
	u.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+u.path)
	if len(names) > 0 {
		u.cmd.Env = append(u.cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	var said bytes.Buffer
	u.cmd.Stdout, u.cmd.Stderr = &said, &said
	if u.setUp != nil {
		u.setUp(u.cmd)
	}
	select {
	case <-u.ready: // of an earlier start
	default:
	}
	err = u.cmd.Start()
	for _, f := range u.cmd.ExtraFiles {
		f.Close()
	}
	if err != nil {
		return err
	}
	cmd, ended := u.cmd, make(chan error, 1)
	u.ended = ended
	go func() { ended <- cmd.Wait() }()
	select {
	case <-u.ready:
		return nil
	case err := <-ended:
		ended <- err
		return fmt.Errorf("%s ended before it was ready: %w: %s", u.args[0], err, lastLines(said.String(), 5))
	case <-ctx.Done():
		return fmt.Errorf("%s is not ready: %w: %s", u.args[0], ctx.Err(), lastLines(said.String(), 5))
	}
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

// Stop ends the program with a signal and returns how it ended.
func (u *Unit) Stop(ctx context.Context, sig syscall.Signal) error {
	if err := u.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case err := <-u.ended:
		u.ended <- err
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s does not end: %w", u.args[0], ctx.Err())
	}
}

// PID is the program's process id.
func (u *Unit) PID() int { return u.cmd.Process.Pid }

// Close ends the program for good, and lets go of what was kept.
func (u *Unit) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var err error
	if u.cmd != nil && u.cmd.Process != nil {
		_ = u.Stop(ctx, syscall.SIGKILL) // how it ended is what we asked for
	}
	err = errors.Join(err, u.notes.Close())
	u.heard.Wait()
	for _, k := range u.kept {
		err = errors.Join(err, unix.Close(k.fd))
	}
	return err
}
