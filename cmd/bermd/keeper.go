package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// systemd keeps sockets over the end of this process (sd_pid_notify_with_fds(3), FileDescriptorStoreMax of the unit) and
// gives them to the next one as it gives those of socket units.
type systemd struct{ socket string }

// Keep keeps a socket. FDPOLL=0: an error on it is for us to see, and no reason to drop it.
func (s systemd) Keep(name string, f *os.File) error {
	raw, err := f.SyscallConn() // not Fd, which would make the socket block, also in our hands
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) { sent = s.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, unix.UnixRights(int(fd))) })
	return errors.Join(err, sent)
}

// Forget drops a socket.
func (s systemd) Forget(name string) error {
	return s.send("FDSTOREREMOVE=1\nFDNAME="+name, nil)
}

func (s systemd) send(state string, rights []byte) error {
	// Not net's: it sends rights only over sockets that are not connected, and has none without a name.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing is buffered
	if err := unix.Sendmsg(fd, []byte(state), rights, &unix.SockaddrUnix{Name: s.socket}, 0); err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	return nil
}
