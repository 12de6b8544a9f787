package loader

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func (r *run) attachXDP() error {
	name, err := r.objs.xdpName()
	if err != nil {
		return err
	}
	prog := r.progs[name]
	var links []pinnedLink
	if !r.fresh() {
		if links, err = r.at.openLinks(); err != nil {
			return err
		}
		for _, l := range links {
			r.closeOnEnd(l.link)
		}
	}
	for _, ifc := range r.ifaces {
		a, err := r.attachedAlready(ifc, links, prog)
		if err == nil && a == nil {
			a, err = r.attachOne(ifc, prog)
		}
		if err != nil {
			return err
		}
		r.report.Interfaces = append(r.report.Interfaces, *a)
	}
	r.noteOthers(links)
	return nil
}

// attachedAlready finds the link that holds ifc. It drops one whose device is gone, and moves the pin
// of one whose device was renamed.
func (r *run) attachedAlready(ifc *net.Interface, links []pinnedLink, prog *ebpf.Program) (*Attachment, error) {
	path := r.at.xdpLink(ifc.Name)
	on, err := xdpOn(ifc.Index)
	if errors.Is(err, ErrNoInterface) {
		return nil, vanished(ifc)
	}
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if l.info.Type != link.XDPType {
			continue
		}
		here := l.ifindex() == ifc.Index && uint32(l.info.Program) == on.program
		switch {
		case here && l.path != path:
			if exists(path) {
				return nil, fmt.Errorf("interface %s: pinned as %s, but %s is there too; take one away by berm kernel down", ifc.Name, l.path, path)
			}
			if err := os.Rename(l.path, path); err != nil {
				return nil, fmt.Errorf("interface %s was renamed: %w", ifc.Name, err)
			}
			r.undoing("move link back", func() error { return os.Rename(path, l.path) })
			r.changed("interface %s is called %s now: moved its link", l.ifname, ifc.Name)
		case here:
		case l.path == path && l.ifindex() == 0:
			if err := os.Remove(path); err != nil {
				return nil, err
			}
			r.changed("dropped the link of %s, whose device was removed", ifc.Name)
			return nil, nil
		case l.path == path:
			return nil, fmt.Errorf("interface %s: %s is attached to device %d of another network namespace "+
				"(use another pins directory for this one, or run berm kernel down there)", ifc.Name, path, l.ifindex())
		default:
			continue
		}
		if info, err := prog.Info(); err == nil {
			if id, ok := info.ID(); ok && id != l.info.Program {
				r.note("interface %s runs another build of the program than the pinned one (try: berm kernel upgrade)", ifc.Name)
			}
		}
		if r.opts.Mode != Auto && string(r.opts.Mode) != on.mode {
			r.note("interface %s stays in %s mode, not %s, until berm kernel down and up", ifc.Name, on.mode, r.opts.Mode)
		}
		return &Attachment{Name: ifc.Name, Index: ifc.Index, Mode: on.mode}, nil
	}
	return nil, nil
}

func (r *run) attachOne(ifc *net.Interface, prog *ebpf.Program) (*Attachment, error) {
	a := &Attachment{Name: ifc.Name, Index: ifc.Index, New: true}
	var l link.Link
	err := errors.New("not tried")
	if r.opts.Mode != Generic {
		a.Mode = string(Native)
		l, err = attachMode(ifc, prog, link.XDPDriverMode)
	}
	if r.opts.Mode == Generic || r.opts.Mode == Auto && fallsBack(err) {
		if r.opts.Mode == Auto {
			a.Why = nativeHint(err)
			r.note("interface %s: generic XDP, which costs several times as much, since native mode is refused: %s", ifc.Name, a.Why)
		}
		a.Mode = string(Generic)
		l, err = attachMode(ifc, prog, link.XDPGenericMode)
	}
	if err != nil {
		return nil, err
	}
	r.closeOnEnd(l)
	path := r.to.xdpLink(ifc.Name)
	r.undoing("detach from "+ifc.Name, func() error { return detachAndUnpin(l, path) })
	if err := l.Pin(path); err != nil {
		return nil, fmt.Errorf("pin link of %s: %w", ifc.Name, err)
	}
	r.changed("attached to %s in %s mode", ifc.Name, a.Mode)
	return a, nil
}

func attachMode(ifc *net.Interface, prog *ebpf.Program, flags link.XDPAttachFlags) (link.Link, error) {
	l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: ifc.Index, Flags: flags})
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST): // EEXIST: taken in the other mode
		return nil, fmt.Errorf("interface %s: %w (find it: ip link show %s; bpftool net)", ifc.Name, ErrInUse, ifc.Name)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EINVAL) && !interfaceThere(ifc):
		return nil, vanished(ifc)
	}
	return nil, fmt.Errorf("attach to %s: %w", ifc.Name, err)
}

func vanished(ifc *net.Interface) error {
	return fmt.Errorf("interface %s: vanished while being attached to: %w", ifc.Name, ErrNoInterface)
}

// fallsBack says whether generic mode may help: not when the interface is taken or gone.
func fallsBack(err error) bool {
	return err != nil && !errors.Is(err, ErrInUse) && !errors.Is(err, ErrNoInterface) && !errors.Is(err, unix.EPERM)
}

func nativeHint(err error) string {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return "the driver has none, or not with its present offloads (ethtool -K DEV lro off gro-hw off)"
	case errors.Is(err, unix.ERANGE):
		return "the MTU is too large for the driver's native mode"
	case errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOSPC):
		return "the device has too few queues or too little memory (ethtool -L DEV combined N)"
	}
	return err.Error()
}

func interfaceThere(ifc *net.Interface) bool {
	now, err := net.InterfaceByIndex(ifc.Index)
	return err == nil && now.Name == ifc.Name
}

// noteOthers tells of interfaces that are attached though nobody asked for them now.
func (r *run) noteOthers(links []pinnedLink) {
	for _, l := range links {
		if l.info.Type != link.XDPType || !exists(l.path) {
			continue
		}
		asked := false
		for _, ifc := range r.ifaces {
			asked = asked || ifc.Name == l.ifname || ifc.Index == l.ifindex()
		}
		if !asked {
			r.note("interface %s is attached, though not asked for now; it stays until berm kernel down", l.ifname)
		}
	}
}

func detachAndUnpin(l link.Link, path string) error {
	err := l.Detach()
	if exists(path) {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// attached is what the kernel says about the XDP program of an interface.
type attached struct {
	mode    string
	program uint32
}

func xdpOn(ifindex int) (attached, error) {
	l, err := netlink.LinkByIndex(ifindex)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return attached{}, ErrNoInterface
	}
	if err != nil {
		return attached{}, fmt.Errorf("interface %d: %w", ifindex, err)
	}
	x := l.Attrs().Xdp
	if x == nil || !x.Attached {
		return attached{}, nil
	}
	mode := map[uint32]string{nl.XDP_ATTACHED_DRV: string(Native), nl.XDP_ATTACHED_SKB: string(Generic), nl.XDP_ATTACHED_HW: "hardware"}[x.AttachMode]
	return attached{mode, x.ProgId}, nil
}

func findByIndex(ifindex int) (string, error) {
	ifc, err := net.InterfaceByIndex(ifindex)
	if err != nil {
		return "", err
	}
	return ifc.Name, nil
}
