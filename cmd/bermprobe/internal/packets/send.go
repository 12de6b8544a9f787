package packets

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Report says what was sent; the JSON names are stable.
type Report struct {
	Kind    string  `json:"kind"`
	Src     string  `json:"src"`
	Dst     string  `json:"dst"`
	Device  string  `json:"device"`
	Sent    int64   `json:"sent"`           // taken by the kernel
	Lost    int64   `json:"lost_at_device"` // of those, dropped by this side's device
	Retries int64   `json:"retries"`        // the device was full, and the packet was sent again
	Bytes   int64   `json:"bytes"`          // of IP packets
	Seconds float64 `json:"seconds"`
	PPS     float64 `json:"pps"`
}

// Text prints the report for people.
func (r *Report) Text(w io.Writer) {
	fmt.Fprintf(w, "%s %s -> %s through %s\n  sent  %d packets, %d bytes in %.2fs, %.0f/s\n", r.Kind, r.Src, r.Dst, r.Device, r.Sent, r.Bytes, r.Seconds, r.PPS)
	if r.Lost > 0 {
		fmt.Fprintf(w, "  lost  %d at %s before they reached the other side (lower --pps)\n", r.Lost, r.Device)
	}
}

// Run sends until count or duration is reached or ctx ends.
func Run(ctx context.Context, o Options) (*Report, error) {
	dev, err := device(o.Dst.Addr().AsSlice())
	if err != nil {
		return nil, err
	}
	if err := allowed(&o, dev); err != nil {
		return nil, err
	}
	s, err := open(&o)
	if err != nil {
		return nil, err
	}
	defer unix.Close(s.fd)

	before, err := dropped(dev.Attrs().Index)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := s.send(ctx, start); err != nil {
		return nil, err
	}
	took := time.Since(start)
	after, err := dropped(dev.Attrs().Index)
	if err != nil {
		return nil, err
	}
	return &Report{
		Kind: o.Kind, Src: o.Src.String(), Dst: o.Dst.String(), Device: dev.Attrs().Name,
		Sent: s.sent, Lost: after - before, Retries: s.retries, Bytes: s.bytes,
		Seconds: took.Seconds(), PPS: float64(s.sent) / took.Seconds(),
	}, nil
}

// device is the link through which dst is reached.
func device(dst net.IP) (netlink.Link, error) {
	routes, err := netlink.RouteGet(dst)
	if err != nil || len(routes) == 0 {
		return nil, fmt.Errorf("route to %s: %w (bring the lab's links up first)", dst, err)
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return nil, fmt.Errorf("device towards %s: %w", dst, err)
	}
	return link, nil
}

// allowed keeps made-up sources inside labs.
func allowed(o *Options, dev netlink.Link) error {
	if !isLab(o.Dst.Addr()) {
		return fmt.Errorf("%w: %s is not a private, documentation, benchmarking or loopback address; packets are for labs", ErrRefused, o.Dst.Addr())
	}
	loopback := dev.Attrs().Flags&net.FlagLoopback != 0
	if t := dev.Type(); !loopback && t != "veth" && t != "dummy" {
		return fmt.Errorf("%w: %s is reached through %s, a device of type %s; packets leave only through lo, veth or dummy (run it inside a lab's namespace)",
			ErrRefused, o.Dst.Addr(), dev.Attrs().Name, t)
	}
	return nil
}

// dropped reads the counter through netlink: /sys may show another namespace's devices.
func dropped(index int) (int64, error) {
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return 0, fmt.Errorf("counters of device %d: %w", index, err)
	}
	if s := link.Attrs().Statistics; s != nil {
		return int64(s.TxDropped + s.TxErrors), nil
	}
	return 0, nil
}

type sender struct {
	o       *Options
	fd      int
	to      unix.Sockaddr
	buf     [1500]byte
	sent    int64
	bytes   int64
	retries int64
}

func open(o *Options) (*sender, error) {
	s := &sender{o: o}
	family, level, opt, recverr := unix.AF_INET, unix.IPPROTO_IP, unix.IP_HDRINCL, unix.IP_RECVERR
	if o.Dst.Addr().Is4() {
		s.to = &unix.SockaddrInet4{Addr: o.Dst.Addr().As4()}
	} else {
		family, level, opt, recverr = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_HDRINCL, unix.IPV6_RECVERR
		s.to = &unix.SockaddrInet6{Addr: o.Dst.Addr().As16()}
	}
	var err error
	s.fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if errors.Is(err, unix.EPERM) {
		return nil, errors.New("open a raw socket: not permitted (needs root or CAP_NET_RAW)")
	}
	if err != nil {
		return nil, fmt.Errorf("open a raw socket: %w", err)
	}
	// With RECVERR a packet that the queue refused is an error instead of a silent success.
	if err := errors.Join(unix.SetsockoptInt(s.fd, level, opt, 1), unix.SetsockoptInt(s.fd, level, recverr, 1)); err != nil {
		_ = unix.Close(s.fd)
		return nil, fmt.Errorf("prepare the raw socket: %w", err)
	}
	return s, nil
}

// send keeps to the schedule: packet i is due at start + i/pps.
func (s *sender) send(ctx context.Context, start time.Time) error {
	for s.o.Count == 0 || s.sent < s.o.Count {
		now := time.Now()
		if ctx.Err() != nil || s.o.Duration > 0 && now.Sub(start) >= s.o.Duration {
			return nil
		}
		// At most 32 in a row: a veth's ring holds 256, and its reader shares the CPU.
		n := int64(32)
		if s.o.PPS > 0 {
			due := int64(now.Sub(start).Seconds()*s.o.PPS) + 1 - s.sent
			if due <= 0 {
				wait := time.Until(start.Add(time.Duration(float64(s.sent) / s.o.PPS * float64(time.Second))))
				pause(ctx, max(wait, 50*time.Microsecond))
				continue
			}
			n = min(n, due)
		}
		if s.o.Count > 0 {
			n = min(n, s.o.Count-s.sent)
		}
		for range n {
			if err := s.one(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *sender) one(ctx context.Context) error {
	sport := s.o.Sport
	if sport == 0 {
		sport = uint16(1024 + s.sent%(65536-1024))
	}
	p := s.o.build(s.buf[:], s.o.source(s.sent), sport, uint32(s.sent))
	for tries := 0; ctx.Err() == nil; tries++ {
		err := unix.Sendto(s.fd, p, 0, s.to)
		switch {
		case err == nil:
			s.sent++
			s.bytes += int64(len(p))
			return nil
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EAGAIN):
			s.retries++
			pause(ctx, 100*time.Microsecond)
		case tries < 100 && (errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EHOSTUNREACH)):
			s.retries++ // RECVERR tells of an earlier packet's ICMP error instead of sending this one
		default:
			return fmt.Errorf("send packet %d from %s to %s: %w", s.sent, s.o.source(s.sent), s.o.Dst, err)
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
