package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"strconv"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Names of the two ends of the wire.
const (
	nearDev = "near0"
	farDev  = "far0"
)

// wire is a veth pair between two network namespaces without a name, which end with the process at
// the latest. Its calls have to come from the thread that made it.
type wire struct {
	origin, near, far netns.NsHandle
	nearIndex         int
	farIndex          int
}

// newWire leaves the thread in the near namespace.
func newWire() (_ *wire, err error) {
	w := &wire{origin: netns.None(), near: netns.None(), far: netns.None()}
	if w.origin, err = netns.Get(); err != nil {
		return nil, fmt.Errorf("the network namespace of this thread: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	for _, ns := range []*netns.NsHandle{&w.far, &w.near} { // the last one made is the one it is in
		if *ns, err = netns.New(); err != nil {
			return nil, fmt.Errorf("make a network namespace: %w", err)
		}
	}
	return w, w.connect()
}

func (w *wire) connect() error {
	near, err := netlink.NewHandleAt(w.near)
	if err != nil {
		return fmt.Errorf("ask for links: %w", err)
	}
	defer near.Close()
	far, err := netlink.NewHandleAt(w.far)
	if err != nil {
		return fmt.Errorf("ask for links: %w", err)
	}
	defer far.Close()
	pair := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: nearDev}, PeerName: farDev, PeerNamespace: netlink.NsFd(int(w.far)),
		PeerHardwareAddr: net.HardwareAddr(hostMAC[:]),
	}
	if err := near.LinkAdd(pair); err != nil {
		return fmt.Errorf("make a veth pair: %w", err)
	}
	if w.nearIndex, err = up(near, nearDev); err != nil {
		return err
	}
	if _, err := up(far, "lo"); err != nil {
		return err
	}
	if w.farIndex, err = up(far, farDev); err != nil {
		return err
	}
	return w.address(far)
}

func up(h *netlink.Handle, dev string) (int, error) {
	link, err := h.LinkByName(dev)
	if err != nil {
		return 0, fmt.Errorf("device %s: %w", dev, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return 0, fmt.Errorf("set %s up: %w", dev, err)
	}
	return link.Attrs().Index, nil
}

// address makes the far end the host that the measured packets are for, with a way back to their
// sources: a stack that has none drops them before any rule of its own.
func (w *wire) address(far *netlink.Handle) error {
	link, err := far.LinkByIndex(w.farIndex)
	if err != nil {
		return fmt.Errorf("device %s: %w", farDev, err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: vip4.AsSlice(), Mask: net.CIDRMask(32, 32)}}
	if err := far.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add %s to %s: %w", vip4, farDev, err)
	}
	all := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	if err := far.RouteAdd(&netlink.Route{LinkIndex: w.farIndex, Dst: all, Scope: netlink.SCOPE_LINK}); err != nil {
		return fmt.Errorf("default route through %s: %w", farDev, err)
	}
	// A veth device without an XDP program takes redirected frames only with GRO.
	return w.onFar(func() error { return setGRO(farDev) })
}

// ethtoolValue is struct ethtool_value of linux/ethtool.h.
type ethtoolValue struct{ cmd, data uint32 }

const ethtoolSetGRO = 0x2c // ETHTOOL_SGRO

func setGRO(dev string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written to it
	value := ethtoolValue{ethtoolSetGRO, 1}
	var req struct { // struct ifreq
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(req.name[:], dev)
	req.data = unsafe.Pointer(&value)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return fmt.Errorf("turn GRO of %s on: %w", dev, errno)
	}
	return nil
}

// onFar runs f in the far namespace.
func (w *wire) onFar(f func() error) (err error) {
	if err := netns.Set(w.far); err != nil {
		return fmt.Errorf("enter the far namespace: %w", err)
	}
	defer func() {
		if back := netns.Set(w.near); back != nil {
			err = errors.Join(err, fmt.Errorf("return to the near namespace: %w", back))
		}
	}()
	return f()
}

// close takes the thread back to where it was; the namespaces go with their last user.
func (w *wire) close() error {
	var errs []error
	if w.origin.IsOpen() {
		errs = append(errs, netns.Set(w.origin))
	}
	for _, ns := range []*netns.NsHandle{&w.origin, &w.near, &w.far} {
		if ns.IsOpen() {
			errs = append(errs, ns.Close())
		}
	}
	return errors.Join(errs...)
}

// nft gives rules to the far end's nftables, in place of those that it has.
func (w *wire) nft(ctx context.Context, rules string) error {
	_, err := w.runNFT(ctx, "flush ruleset\n"+rules)
	return err
}

var nftPackets = regexp.MustCompile(`packets (\d+) bytes`)

// nftHits returns how many packets met the one counter of the rules.
func (w *wire) nftHits(ctx context.Context) (uint64, error) {
	out, err := w.runNFT(ctx, "list counters\n")
	if err != nil {
		return 0, err
	}
	found := nftPackets.FindSubmatch(out)
	if found == nil {
		return 0, fmt.Errorf("nft: no counter in %.200q", out)
	}
	return strconv.ParseUint(string(found[1]), 10, 64)
}

func (w *wire) runNFT(ctx context.Context, script string) ([]byte, error) {
	var out, complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader([]byte(script)), &out, &complaint
	err := w.onFar(func() error { return cmd.Run() }) // a child begins in its thread's namespace
	if err != nil {
		return nil, fmt.Errorf("nft: %w: %s", err, bytes.TrimSpace(complaint.Bytes()))
	}
	return out.Bytes(), nil
}

// received is how many frames the far end has seen.
func (w *wire) received() (n uint64, err error) {
	far, err := netlink.NewHandleAt(w.far)
	if err != nil {
		return 0, fmt.Errorf("ask for links: %w", err)
	}
	defer far.Close()
	link, err := far.LinkByIndex(w.farIndex)
	if err != nil {
		return 0, fmt.Errorf("device %s: %w", farDev, err)
	}
	return link.Attrs().Statistics.RxPackets, nil
}
