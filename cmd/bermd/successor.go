package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/cmd/bermd/internal/edge"
)

const (
	// successorEnv tells a process that it is to take over from another.
	successorEnv = "BERM_SUCCESSOR"
	// wordsName is that of the socket over which the two agree.
	wordsName = "berm-words"
)

// successor is a process that takes over.
type successor struct {
	net.Conn
	pid int
}

// PID is its process id.
func (s *successor) PID() int { return s.pid }

// Kill ends it.
func (s *successor) Kill() error {
	if err := syscall.Kill(s.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill process %d: %w", s.pid, err)
	}
	return nil
}

// startSuccessor returns what starts program, which may have been replaced since, as this process was started, with
// copies of sockets. The child is a sibling (CLONE_PARENT): systemd is its parent from the beginning, and so
// learns how it ends also while this process lives.
func startSuccessor(program string) func(files []*os.File) (edge.Successor, error) {
	return func(files []*os.File) (_ edge.Successor, err error) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("a socket to agree over: %w", err)
		}
		mine, theirs := os.NewFile(uintptr(fds[0]), wordsName), os.NewFile(uintptr(fds[1]), wordsName)
		defer mine.Close() // net has a copy
		defer theirs.Close()
		conn, err := net.FileConn(mine)
		if err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, conn.Close())
			}
		}()
		given := []uintptr{0, 1, 2}
		var names []string
		for _, f := range append(slices.Clone(files), theirs) {
			raw, err := f.SyscallConn() // not Fd, which would make the socket block, also in our hands
			if err == nil {
				err = raw.Control(func(fd uintptr) { given = append(given, fd) })
			}
			if err != nil {
				return nil, err
			}
			names = append(names, f.Name())
		}
		pid, err := syscall.ForkExec(program, os.Args, &syscall.ProcAttr{
			Env: successorEnviron(names), Files: given, Sys: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_PARENT},
		})
		if err != nil {
			return nil, fmt.Errorf("start %s: %w", program, err)
		}
		return &successor{conn, pid}, nil
	}
}

// successorEnviron passes files as systemd does, but for LISTEN_PID, which nobody knows before.
func successorEnviron(names []string) []string {
	env := slices.DeleteFunc(os.Environ(), func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return slices.Contains([]string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"}, name)
	})
	return append(env, successorEnv+"=1", fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
}

// beSuccessor has the files that a process before gave looked for, if one did.
func beSuccessor() bool {
	if os.Getenv(successorEnv) == "" {
		return false
	}
	_ = os.Setenv("LISTEN_PID", fmt.Sprint(os.Getpid()))
	_ = os.Unsetenv(successorEnv) // for the one after
	return true
}

// predecessor finds the socket to the process before among the files, and returns the rest.
func predecessor(files []*os.File) (io.ReadWriteCloser, []*os.File, error) {
	for i, f := range files {
		if f.Name() == wordsName {
			defer f.Close() // net has a copy
			conn, err := net.FileConn(f)
			return conn, slices.Delete(files, i, i+1), err
		}
	}
	return nil, nil, errors.New(successorEnv + " is set by bermd itself: unset it")
}
