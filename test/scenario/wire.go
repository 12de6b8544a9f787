package scenario

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/test/rig"
)

// datagram is a UDP datagram that is sent in whatever pieces a check asks for.
type datagram struct {
	src, dst netip.AddrPort
	id       uint32
	payload  []byte
}

const (
	protoUDP      = 17
	protoHop      = 0
	protoDst      = 60
	protoFragment = 44
)

func (d datagram) six() bool { return d.src.Addr().Is6() }

// udp is the datagram without its IP header.
func (d datagram) udp() []byte {
	b := make([]byte, 8, 8+len(d.payload))
	binary.BigEndian.PutUint16(b, d.src.Port())
	binary.BigEndian.PutUint16(b[2:], d.dst.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(d.payload)))
	b = append(b, d.payload...)
	pseudo := append(d.src.Addr().AsSlice(), d.dst.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, protoUDP, b[4], b[5])
	sum := internetSum(append(pseudo, b...))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], sum)
	return b
}

// packet puts the IP header, with IPv4 options or IPv6 extension headers (the first one's number is next),
// before a payload.
func (d datagram) packet(frag uint16, next byte, options, payload []byte) []byte {
	if d.six() {
		b := make([]byte, 8, 40+len(options)+len(payload))
		b[0], b[6], b[7] = 0x60, next, 64
		binary.BigEndian.PutUint16(b[4:], uint16(len(options)+len(payload)))
		b = append(append(b, d.src.Addr().AsSlice()...), d.dst.Addr().AsSlice()...)
		return append(append(b, options...), payload...)
	}
	b := make([]byte, 12, 20+len(options)+len(payload))
	b[0], b[8], b[9] = 0x40|byte(5+len(options)/4), 64, next
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(options)+len(payload)))
	binary.BigEndian.PutUint16(b[4:], uint16(d.id))
	binary.BigEndian.PutUint16(b[6:], frag)
	b = append(append(b, d.src.Addr().AsSlice()...), d.dst.Addr().AsSlice()...)
	b = append(b, options...)
	binary.BigEndian.PutUint16(b[10:], internetSum(b))
	return append(b, payload...)
}

// whole is the datagram in one packet, with what comes between the IP header and UDP's.
func (d datagram) whole(next byte, options []byte) []byte {
	return d.packet(0, next, options, d.udp())
}

// piece is a fragment: these bytes at this offset.
func (d datagram) piece(offset int, more bool, bytes []byte) []byte {
	if !d.six() {
		frag := uint16(offset / 8)
		if more {
			frag |= 0x2000
		}
		return d.packet(frag, protoUDP, nil, bytes)
	}
	head := []byte{protoUDP, 0, 0, 0, 0, 0, 0, 0}
	frag := uint16(offset)
	if more {
		frag |= 1
	}
	binary.BigEndian.PutUint16(head[2:], frag)
	binary.BigEndian.PutUint32(head[4:], d.id)
	return d.packet(0, protoFragment, head, bytes)
}

// fragments are all pieces, of so many bytes each.
func (d datagram) fragments(size int) (out [][]byte) {
	b := d.udp()
	for at := 0; at < len(b); at += size {
		end := min(at+size, len(b))
		out = append(out, d.piece(at, end < len(b), b[at:end]))
	}
	return out
}

// rawSender sends IP packets as they are, by the routes of a node.
type rawSender struct{ four, six int }

func newRawSender(n *rig.Node) (s *rawSender, err error) {
	s = &rawSender{-1, -1}
	err = n.Do(func() (err error) {
		if s.four, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
			return err
		}
		s.six, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *rawSender) send(p []byte) error {
	if p[0]>>4 == 6 {
		to := &unix.SockaddrInet6{Addr: [16]byte(p[24:40])}
		return unix.Sendto(s.six, p, 0, to)
	}
	return unix.Sendto(s.four, p, 0, &unix.SockaddrInet4{Addr: [4]byte(p[16:20])})
}

func (s *rawSender) close() (err error) {
	for _, fd := range []int{s.four, s.six} {
		if fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
		}
	}
	return err
}

// frameSender sends Ethernet frames from the router to one edge, whatever the routes are.
type frameSender struct {
	fd       int
	src, dst net.HardwareAddr
}

func newFrameSender(router *rig.Node, e *Edge) (s *frameSender, err error) {
	s = &frameSender{fd: -1}
	if s.src, err = router.MAC(e.Name); err != nil {
		return nil, err
	}
	if s.dst, err = e.node.MAC("eth0"); err != nil {
		return nil, err
	}
	err = router.Do(func() error {
		dev, err := net.InterfaceByName(e.Name)
		if err != nil {
			return err
		}
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(s.fd, &unix.SockaddrLinklayer{Ifindex: dev.Index})
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("send frames to %s: %w", e.Name, err), s.close())
	}
	return s, nil
}

// send sends a packet behind VLAN tags, the outer one first, each an EtherType and a TCI.
func (s *frameSender) send(p []byte, tags ...[2]uint16) error {
	frame := append(append([]byte{}, s.dst...), s.src...)
	for _, t := range tags {
		frame = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(frame, t[0]), t[1])
	}
	proto := uint16(unix.ETH_P_IP)
	if p[0]>>4 == 6 {
		proto = unix.ETH_P_IPV6
	}
	_, err := unix.Write(s.fd, append(binary.BigEndian.AppendUint16(frame, proto), p...))
	return err
}

func (s *frameSender) close() error {
	if s.fd < 0 {
		return nil
	}
	return unix.Close(s.fd)
}
