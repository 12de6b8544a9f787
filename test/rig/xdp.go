package rig

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// XDP actions, as in linux/bpf.h.
const (
	xdpPass = 2
	xdpTX   = 3
)

// AcceptXDP lets a veth device receive frames that its peer's XDP program sends with XDP_TX or
// a redirect. The kernel drops such frames silently unless the *receiving* end has a native XDP
// program, so this gives it one that passes everything. The program is attached without a
// link: it stays until the device goes, also when the lab's process ends first.
func (n *Node) AcceptXDP(dev string) error { return n.attachReturn(dev, xdpPass) }

// attachReturn attaches a program whose verdict is always the same.
func (n *Node) attachReturn(dev string, verdict int32) error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:         "rig_return",
		Type:         ebpf.XDP,
		License:      "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
	})
	if err != nil {
		return fmt.Errorf("load an XDP program for %s: %w", dev, err)
	}
	defer prog.Close()
	link, err := n.link(dev)
	if err != nil {
		return err
	}
	flags := unix.XDP_FLAGS_DRV_MODE | unix.XDP_FLAGS_UPDATE_IF_NOEXIST
	err = n.Do(func() error { return netlink.LinkSetXdpFdWithFlags(link, prog.FD(), flags) })
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil // has a program already, which is all it needs
	case err != nil:
		return fmt.Errorf("%s: attach XDP to %s: %w", n.Name, dev, err)
	}
	return nil
}
