package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// identity is whom the daemon runs as.
type identity struct {
	user, group string
	uid, gid    int
}

// identify finds a user, or nobody where there is none of that name.
func identify(name string) (identity, error) {
	u, err := user.Lookup(name)
	var unknown user.UnknownUserError
	if errors.As(err, &unknown) {
		u, err = user.Lookup("nobody")
	}
	if err != nil {
		return identity{}, fmt.Errorf("whom to run as: %w (useradd --system %s, or name another with --user)", err, name)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return identity{}, fmt.Errorf("user %s has id %q: %w", u.Username, u.Uid, err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return identity{}, fmt.Errorf("user %s has group %q: %w", u.Username, u.Gid, err)
	}
	id := identity{user: u.Username, group: u.Gid, uid: uid, gid: gid}
	if g, err := user.LookupGroupId(u.Gid); err == nil {
		id.group = g.Name
	}
	return id, nil
}

// makeDirs makes the directories that the daemon writes to, and gives them to it.
func (id identity) makeDirs(dirs map[string]os.FileMode) error {
	for dir, mode := range dirs {
		if dir == "" {
			continue
		}
		if err := os.MkdirAll(dir, mode); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
		// Only our own: a directory such as /run itself is nobody's to take.
		if filepath.Base(dir) != "berm" {
			continue
		}
		if err := os.Chown(dir, id.uid, id.gid); err != nil {
			return fmt.Errorf("give %s to %s: %w", dir, id.user, err)
		}
	}
	return nil
}

// confine prepares the calling thread, and so what it starts: no program may ever gain privileges
// again, and of root's capabilities only binding ports below 1024 can be had. The thread must be
// locked, and never be used for anything else.
func confine() error {
	for c := 0; c <= unix.CAP_LAST_CAP; c++ {
		if c == unix.CAP_NET_BIND_SERVICE {
			continue
		}
		// EINVAL: a capability that this kernel does not know.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid new privileges: %w", err)
	}
	return nil
}

// becomeUser replaces the process by itself, run as the user with CAP_NET_BIND_SERVICE alone. The
// process keeps its id, so that systemd still knows it.
func (r *run) becomeUser() error {
	id, err := identify(r.User)
	if err != nil {
		return err
	}
	if id.uid == 0 {
		return errors.New("user root is what --allow-root is for")
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find my own program: %w", err)
	}
	if err := id.makeDirs(map[string]os.FileMode{r.State: 0o700, "/run/berm": 0o750}); err != nil {
		return err
	}
	runtime.LockOSThread() // execve takes this thread's credentials
	// Keeps the permitted set over setuid, so that the ambient one can be filled from it.
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	if err := confine(); err != nil {
		return err
	}
	if err := errors.Join(syscall.Setgroups([]int{}), syscall.Setgid(id.gid), syscall.Setuid(id.uid)); err != nil {
		return fmt.Errorf("become %s: %w", id.user, err)
	}
	if err := raiseBind(); err != nil {
		return err
	}
	err = syscall.Exec(self, os.Args, os.Environ())
	if errors.Is(err, fs.ErrPermission) {
		err = syscall.Exec(sameProgram, os.Args, os.Environ())
	}
	return fmt.Errorf("start %s as %s: %w", self, id.user, err)
}

// sameProgram is this program by a way that asks for no permission on its directory: a home that is
// closed to others is where people build.
const sameProgram = "/proc/self/exe"

// Packages are initialized on the process's first thread, whose name is the process's; main may run on any.
var _ = restoreName()

// restoreName undoes what sameProgram does to the name that ps and ss show.
func restoreName() error {
	if was, err := os.ReadFile("/proc/self/comm"); err != nil || string(was) != filepath.Base(sameProgram)+"\n" {
		return err // started by another way
	}
	name := append([]byte("bermd"), 0)
	return unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0) // only a name
}

// raiseBind makes CAP_NET_BIND_SERVICE the one capability that survives execve.
func raiseBind() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	const bind = 1 << unix.CAP_NET_BIND_SERVICE
	data[0] = unix.CapUserData{Effective: bind, Permitted: bind, Inheritable: bind}
	if _, _, errno := unix.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0); errno != 0 {
		return fmt.Errorf("set capabilities: %w", errno)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_NET_BIND_SERVICE, 0, 0); err != nil {
		return fmt.Errorf("keep CAP_NET_BIND_SERVICE: %w", err)
	}
	return nil
}
