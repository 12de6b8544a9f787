package scenario

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// unwrapCounts is what a receiver of tunnels has seen.
type unwrapCounts struct {
	Packets uint64 `json:"packets"` // given to the host
	Odd     uint64 `json:"odd"`     // that hold no IP packet of the length that they should
}

// actUnwrap is the end of a tunnel on a server, as its kernel would be with the modules fou and ipip: it takes
// what comes by gue or ipip (the first argument) at the port (the second; 0 for ipip), and gives the
// inner packets to the host through a TUN device. It answers counts at the third.
func actUnwrap(ctx context.Context, args []string) error {
	tun := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: "unwrap", MTU: linkMTU},
		Mode:      netlink.TUNTAP_MODE_TUN, Flags: netlink.TUNTAP_NO_PI, NonPersist: true, Queues: 1,
	}
	if err := netlink.LinkAdd(tun); err != nil {
		return fmt.Errorf("make a TUN device: %w", err)
	}
	link, err := netlink.LinkByName("unwrap")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	conns, err := tunnelEnds(ctx, args[0], args[1])
	if err != nil {
		return err
	}
	u := &unwrap{tun: tun.Fds[0]}
	for _, c := range conns {
		go u.run(c)
	}
	err = serveCounts(ctx, args[2], func() any { return unwrapCounts{u.packets.Load(), u.odd.Load()} })
	for _, c := range conns {
		err = errors.Join(err, c.Close())
	}
	return errors.Join(err, u.tun.Close())
}

// tunnelEnds opens what tunnels arrive at: of GUE a port that takes datagrams without a checksum, over
// IPv6 too (RFC 6936); of IPIP the two protocols, whose packets come without their outer header.
func tunnelEnds(ctx context.Context, via, port string) (conns []net.PacketConn, err error) {
	ends := map[string]string{"ip4:4": "0.0.0.0", "ip4:41": "0.0.0.0"}
	if via == "gue" {
		ends = map[string]string{"udp4": "0.0.0.0:" + port, "udp6": "[::]:" + port}
	}
	zero := net.ListenConfig{Control: func(network, _ string, raw syscall.RawConn) (err error) {
		if network != "udp6" {
			return nil
		}
		cerr := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_RX, 1)
		})
		return errors.Join(cerr, err)
	}}
	for network, at := range ends {
		c, err := zero.ListenPacket(ctx, network, at)
		if err != nil {
			return nil, err
		}
		conns = append(conns, c)
	}
	return conns, nil
}

type unwrap struct {
	tun          *os.File
	packets, odd atomic.Uint64
}

func (u *unwrap) run(c net.PacketConn) {
	buf := make([]byte, 65536)
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return // closed
		}
		if lengthOf(buf[:n]) != n {
			u.odd.Add(1)
			continue
		}
		if _, err := u.tun.Write(buf[:n]); err != nil {
			fmt.Fprintln(os.Stderr, "give a packet to the host:", err)
			continue
		}
		u.packets.Add(1)
	}
}

// lengthOf is how long an IP packet says it is; 0 where it is none.
func lengthOf(p []byte) int {
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		return int(p[2])<<8 | int(p[3])
	case len(p) >= 40 && p[0]>>4 == 6:
		return 40 + (int(p[4])<<8 | int(p[5]))
	}
	return 0
}
