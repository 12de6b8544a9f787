package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
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
	err = raw.Control(func(fd uintptr) { sent = s.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, syscall.UnixRights(int(fd))) })
	return errors.Join(err, sent)
}

// Forget drops a socket.
func (s systemd) Forget(name string) error {
	return s.send("FDSTOREREMOVE=1\nFDNAME="+name, nil)
}

func (s systemd) send(state string, rights []byte) error {
	to := &net.UnixAddr{Name: s.socket, Net: "unixgram"}
	c, err := net.DialUnix("unixgram", nil, to)
	if err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	defer c.Close()
	if _, _, err := c.WriteMsgUnix([]byte(state), rights, nil); err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	return nil
}
