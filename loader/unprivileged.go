package loader

import (
	"fmt"
	"os/user"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Unprivileged returns the attributes of a child process that may use the pins and bind ports, and nothing else: the
// user and group named, no other groups, and CAP_NET_BIND_SERVICE alone. The child is killed when its parent dies, since
// it is the parent that takes the kernel half down. Start it from a goroutine locked to its thread (Pdeathsig follows the
// thread).
func Unprivileged(userName, group string) (*syscall.SysProcAttr, error) {
	u, err := user.Lookup(userName)
	if err != nil {
		return nil, fmt.Errorf("drop privileges: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("drop privileges: user %s has id %q: %w", userName, u.Uid, err)
	}
	gid, err := lookupGroup(group)
	if err != nil {
		return nil, fmt.Errorf("drop privileges: %w", err)
	}
	return &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: []uint32{}},
		AmbientCaps: []uintptr{unix.CAP_NET_BIND_SERVICE},
		Pdeathsig:   syscall.SIGTERM,
	}, nil
}
