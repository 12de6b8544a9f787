package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// enterHost takes the calling goroutine's thread into a network namespace of its own, where somebody
// listens at portCookie and the kernel makes cookies: a test run's packets arrive in the
// namespace of whoever asks for it. The goroutine is locked to its thread already.
func enterHost() (leave func(), err error) {
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, errors.Join(fmt.Errorf("make a network namespace: %w (needs root)", err), unix.Close(home))
	}
	var listener net.Listener
	leave = func() {
		if listener != nil {
			_ = listener.Close() // nothing ever came
		}
		if unix.Setns(home, unix.CLONE_NEWNET) != nil {
			runtime.LockOSThread() // once more than it is unlocked: the thread ends with the goroutine
		}
		_ = unix.Close(home)
	}
	defer func() {
		if err != nil {
			leave()
		}
	}()
	if err := os.WriteFile("/proc/sys/net/ipv4/tcp_syncookies", []byte("2"), 0o600); err != nil {
		return nil, fmt.Errorf("turn SYN cookies on: %w", err)
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	if listener, err = lc.Listen(context.Background(), "tcp", fmt.Sprintf(":%d", portCookie)); err != nil {
		return nil, err
	}
	return leave, nil
}
