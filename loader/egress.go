package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The program for packets that leave is a filter of the device's clsact qdisc: links for it (tcx) are there only
// from 6.6 on, and one way does for all kernels. No pin holds a filter, so what holds is the pinned XDP link: a filter
// is put on a device after its link, and taken away before it. A device that is removed takes its own along.
const (
	egressName     = "berm_egress"
	egressPriority = 0xbe // after filters of those who want to be first
	egressHandle   = 1
)

func egressFilter(ifindex int) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex, Parent: netlink.HANDLE_MIN_EGRESS, Handle: egressHandle, Priority: egressPriority, Protocol: unix.ETH_P_ALL,
		},
		Name: egressName, DirectAction: true,
	}
}

func clsact(ifindex int) *netlink.GenericQdisc {
	return &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
}

func filtersAt(ifindex int, parent uint32) ([]netlink.Filter, error) {
	filters, err := netlink.FilterList(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}, parent)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // no such qdisc
		return nil, nil
	}
	return filters, err
}

// egressOn returns the program of our filter on a device of this network namespace; 0 if there is none.
func egressOn(ifindex int) (program uint32, err error) {
	filters, err := filtersAt(ifindex, netlink.HANDLE_MIN_EGRESS)
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Name == egressName {
			return uint32(b.Id), nil
		}
	}
	return 0, err
}

func putEgress(ifindex int, prog *ebpf.Program) error {
	if err := netlink.QdiscAdd(clsact(ifindex)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add a clsact qdisc: %w (does the kernel have CONFIG_NET_SCH_INGRESS?)", err)
	}
	f := egressFilter(ifindex)
	f.Fd = prog.FD()
	if err := netlink.FilterReplace(f); err != nil {
		return fmt.Errorf("add a filter at egress: %w (does the kernel have CONFIG_NET_CLS_BPF? is another qdisc at ingress? see: tc qdisc show)", err)
	}
	return nil
}

// removeEgress takes our filter away, and the qdisc if nobody has a filter there.
func removeEgress(ifindex int) error {
	if id, err := egressOn(ifindex); err != nil || id == 0 {
		return err
	}
	if err := netlink.FilterDel(egressFilter(ifindex)); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("take the filter away from egress: %w", err)
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		if left, err := filtersAt(ifindex, parent); err != nil || len(left) > 0 {
			return err
		}
	}
	return netlink.QdiscDel(clsact(ifindex))
}

func (r *run) attachEgress() error {
	for _, a := range r.report.Interfaces {
		if err := r.egress(a.Name, a.Index); err != nil {
			return err
		}
	}
	return nil
}

// updateEgress follows the links, which have the new program by now.
func (r *run) updateEgress() error {
	for _, l := range r.watched {
		if l.ifname == "" || !l.here() {
			continue
		}
		if err := r.egress(l.ifname, l.ifindex()); err != nil {
			return err
		}
	}
	return nil
}

// egress puts the program on a device. Without it all works but probes of servers, which then ask at their own
// addresses, and say so.
func (r *run) egress(ifname string, ifindex int) error {
	name, err := r.objs.egressName()
	if err != nil {
		return err
	}
	prog := r.progs[name]
	info, err := prog.Info()
	if err != nil {
		return fmt.Errorf("program info: %w", err)
	}
	id, _ := info.ID()
	running, err := egressOn(ifindex)
	if err == nil && running == uint32(id) {
		return nil
	}
	before, _ := ebpf.NewProgramFromID(ebpf.ProgramID(running)) // none
	if before != nil {
		r.closeOnEnd(before)
	}
	if err == nil {
		err = putEgress(ifindex, prog)
	}
	if err != nil {
		r.note("interface %s: servers that run no Berm are probed at their own addresses, not through their tunnels: %v", ifname, err)
		return nil
	}
	r.undoing("take egress of "+ifname+" back", func() error {
		if before != nil {
			return putEgress(ifindex, before)
		}
		return removeEgress(ifindex)
	})
	return nil
}

// here says whether an XDP link's device is in this network namespace.
func (p *pinnedLink) here() bool {
	info, err := p.link.Info()
	if err != nil {
		return false
	}
	x := info.XDP()
	if x == nil || x.Ifindex == 0 {
		return false
	}
	on, err := xdpOn(int(x.Ifindex))
	return err == nil && on.program == uint32(info.Program)
}
