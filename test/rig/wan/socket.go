package wan

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// bufferBytes hold what comes while the process waits for a CPU: at 50 Mbit/s more than a second.
const bufferBytes = 16 << 20

// openDevice returns a socket that does not block, and gets and sends whole frames of a device.
func openDevice(name string) (_ int, err error) {
	dev, err := net.InterfaceByName(name)
	if err != nil {
		return -1, fmt.Errorf("device %s: %w", name, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("packet socket (needs CAP_NET_RAW): %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("packet socket of %s: %w", name, err), unix.Close(fd))
		}
	}()
	for _, o := range []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bufferBytes},
		{unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, bufferBytes},
		{unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1},
		{unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return -1, fmt.Errorf("option %d: %w", o.name, err)
		}
	}
	// Frames are for the other end's address, not for this device's.
	all := unix.PacketMreq{Ifindex: int32(dev.Index), Type: unix.PACKET_MR_PROMISC}
	if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &all); err != nil {
		return -1, fmt.Errorf("promiscuous: %w", err)
	}
	const everything = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network byte order
	return fd, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: dev.Index})
}

// missed returns how many frames the kernel dropped for want of room since the last time it was asked.
func missed(fd int) uint64 {
	stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0 // the socket is being closed
	}
	return uint64(stats.Drops)
}

// monotonic is the clock that poll sleeps by.
func monotonic() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // the kernel has no such clock
	}
	return t.Nano()
}
