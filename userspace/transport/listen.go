package transport

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// listenTCP opens a port. Multipath TCP is off: such sockets are refused by the kernel's socket
// maps, which steer and measure connections.
func listenTCP(address string) (net.Listener, error) {
	family, port, err := split(address)
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp"+family, address)
	if err != nil {
		return nil, explain("tcp", address, port, err)
	}
	return l, nil
}

// udpBuffer is the receive buffer asked for: 7 MB, a tenth of a second at 560 Mbit/s.
const udpBuffer = 7 << 20

// ListenUDP opens a UDP port; errors say what can be done about it.
func ListenUDP(address string) (*net.UDPConn, error) { return listenUDP(address, nil) }

// listenUDP prepares the socket with set before it is bound.
func listenUDP(address string, set func(fd int) error) (*net.UDPConn, error) {
	family, port, err := split(address)
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	if set != nil {
		lc.Control = func(_, _ string, raw syscall.RawConn) error { return control(raw, set) }
	}
	c, err := lc.ListenPacket(context.Background(), "udp"+family, address)
	if err != nil {
		return nil, explain("udp", address, port, err)
	}
	return c.(*net.UDPConn), nil
}

func control(raw syscall.RawConn, f func(fd int) error) error {
	var ferr error
	err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) })
	return errors.Join(err, ferr)
}

// reusePort lets another process of this user bind the same address. TCP's listener, which is opened first, keeps
// strangers out.
func reusePort(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return fmt.Errorf("share the address with the process that comes next: %w", err)
	}
	return nil
}

// explain says what an operator can do about a port that cannot be opened.
func explain(network, address string, port uint16, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s %s is in use by %s: %w", network, address, holder(network, port), syscall.EADDRINUSE)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s %s: ports below 1024 need CAP_NET_BIND_SERVICE (bermd.service has it; or choose another port): %w", network, address, syscall.EACCES)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s %s: no interface of this host has the address (a VIP belongs on lo: ip address add ADDRESS dev lo): %w", network, address, syscall.EADDRNOTAVAIL)
	}
	return fmt.Errorf("listen on %s %s: %w", network, address, err)
}

// Holder names the process that has an address, for the message that it is taken.
func Holder(network, address string) string {
	_, port, err := split(address)
	if err != nil {
		return "another process"
	}
	return holder(network, port)
}

// holder names the process that has a port, as far as this process may see.
func holder(network string, port uint16) string {
	flag := map[string]string{"tcp": "t", "udp": "u"}[network]
	ask := fmt.Sprintf("another process (as root, ss -ln%sp sport = :%d names it)", flag, port)
	inodes := map[string]bool{}
	for _, table := range []string{network, network + "6"} {
		socketsOn("/proc/net/"+table, network, port, inodes)
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil || !strings.HasPrefix(target, "socket:[") || !inodes[strings.Trim(target[7:], "[]")] {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		name, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			continue
		}
		if pid == strconv.Itoa(os.Getpid()) {
			return "this process itself (the port is named twice)"
		}
		return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), pid)
	}
	return ask
}

// socketsOn collects the inodes of sockets that hold a local port; of TCP the listening ones.
func socketsOn(table, network string, port uint16, inodes map[string]bool) {
	f, err := os.Open(table)
	if err != nil {
		return
	}
	defer f.Close()
	const listening = "0A"
	for lines := bufio.NewScanner(f); lines.Scan(); {
		cols := strings.Fields(lines.Text())
		if len(cols) < 10 || network == "tcp" && cols[3] != listening {
			continue
		}
		_, hexPort, _ := strings.Cut(cols[1], ":")
		if b, err := hex.DecodeString(hexPort); err == nil && len(b) == 2 && uint16(b[0])<<8|uint16(b[1]) == port {
			inodes[cols[9]] = true
		}
	}
}

// localPort returns the port a socket got: it differs from the one asked for when that was 0.
func localPort(a net.Addr) uint16 {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return 0
	}
	return ap.Port()
}

// setMaxSegment bounds the segments that connections of a listener announce and send; 0 lifts the
// bound.
func setMaxSegment(l net.Listener, most uint16) error {
	sc, ok := l.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T is no socket", l)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, int(most))
	})
	return errors.Join(err, serr)
}

// receiveBuffer returns the bytes that a socket's receive buffer holds; 0 when unknown. The kernel
// reports twice what it grants, for its own bookkeeping.
func receiveBuffer(c *net.UDPConn) int {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	size := 0
	err = raw.Control(func(fd uintptr) { size, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF) })
	if err != nil {
		return 0
	}
	return size / 2
}
