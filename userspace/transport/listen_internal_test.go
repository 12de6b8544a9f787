package transport

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel's socket maps refuse multipath TCP, which is what Go listens with by default.
func TestListenersAreNotMultipath(t *testing.T) {
	l, err := listenTCP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	proto := 0
	if err := raw.Control(func(fd uintptr) { proto, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL) }); err != nil {
		t.Fatal(err)
	}
	if proto != unix.IPPROTO_TCP {
		t.Errorf("protocol %d", proto)
	}
}

func TestFlood(t *testing.T) {
	f := flood{limit: 3}
	now := time.Unix(1000, 0)
	for i, want := range []bool{false, false, false, true, true} {
		if got := f.tooMany(now); got != want {
			t.Errorf("handshake %d: %t", i+1, got)
		}
	}
	if f.tooMany(now.Add(time.Second)) {
		t.Error("the next second starts full")
	}
}
