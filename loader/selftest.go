package loader

import (
	"bytes"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// XDP's verdicts.
const (
	xdpDrop = 1
	xdpPass = 2
	xdpTX   = 3
)

// golden is a packet whose fate is known.
type golden struct {
	name string
	in   []byte
	want uint32 // and, for xdpPass, the bytes unchanged
}

var (
	nobody4 = netip.MustParseAddrPort("198.51.100.7:4711")
	nobody6 = netip.MustParseAddrPort("[2001:db8:7::7]:4711")
)

// foreign packets are for addresses that are no VIP's: whatever the maps hold, they pass untouched.
func foreign() []golden {
	to4, to6 := netip.MustParseAddrPort("203.0.113.1:80"), netip.MustParseAddrPort("[2001:db8:ffff::1]:80")
	v4 := packet{nobody4, to4, unix.IPPROTO_TCP}.frame()
	return []golden{
		{"ARP", ether(etherARP, make([]byte, 46)), xdpPass},
		{"foreign IPv4", v4, xdpPass},
		{"foreign IPv4, truncated", v4[:etherLen+20+3], xdpPass},
		{"foreign IPv6", packet{nobody6, to6, unix.IPPROTO_UDP}.frame(), xdpPass},
	}
}

func (g golden) run(prog *ebpf.Program) error {
	// Some kernels append to or shift what they return; room for their head- and tailroom.
	o := &ebpf.RunOptions{Data: g.in, DataOut: make([]byte, len(g.in)+512), Repeat: 1}
	got, err := prog.Run(o)
	switch {
	case err != nil:
		return fmt.Errorf("packet %q: %w", g.name, err)
	case got != g.want:
		return fmt.Errorf("%w: packet %q: verdict %d, want %d", ErrSelfTest, g.name, got, g.want)
	case got == xdpPass && !bytes.Equal(o.DataOut, g.in):
		return fmt.Errorf("%w: packet %q: changed on its way", ErrSelfTest, g.name)
	}
	return nil
}

// selfTest runs the program that will be attached, against the maps it will have. Only foreign
// packets: nothing but their counter moves, which is live in an upgrade.
func (r *run) selfTest() error {
	name, err := r.objs.xdpName()
	if err != nil {
		return err
	}
	for _, g := range foreign() {
		if err := g.run(r.progs[name]); err != nil {
			return err
		}
	}
	return nil
}
