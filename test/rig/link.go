package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End is one end of a link: a device in a node, with its addresses.
type End struct {
	Node  *Node
	Dev   string
	Addrs []string // with prefix length
}

// DefaultMTU is used for links that ask for none.
const DefaultMTU = 1500

// Connect joins two nodes by a veth pair, up, addressed, and with offloads off: a sender that
// leaves checksums to hardware hangs every TCP connection that XDP sends onward.
func Connect(ctx context.Context, a, b End, mtu int) error {
	if mtu == 0 {
		mtu = DefaultMTU
	}
	pair := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: a.Dev, MTU: mtu},
		PeerName:      b.Dev,
		PeerMTU:       uint32(mtu),
		PeerNamespace: netlink.NsFd(int(b.Node.ns)),
	}
	if err := a.Node.nl.LinkAdd(pair); err != nil {
		return fmt.Errorf("link %s %s to %s %s: %w", a.Node.Name, a.Dev, b.Node.Name, b.Dev, err)
	}
	for _, e := range []End{a, b} {
		if err := e.Node.offloadsOff(ctx, e.Dev); err != nil {
			return err
		}
		if err := e.Node.Up(e.Dev); err != nil {
			return err
		}
		if err := e.Node.AddAddr(e.Dev, e.Addrs...); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) offloadsOff(ctx context.Context, dev string) error {
	_, err := n.Run(ctx, "ethtool", "-K", dev, "tx", "off", "tso", "off", "gso", "off", "gro", "off")
	if err != nil {
		return fmt.Errorf("turn offloads off: %w", err)
	}
	return nil
}

// AddBridge makes a bridge of devices that the node already has.
func (n *Node) AddBridge(name string, devs ...string) error {
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	if err := n.nl.LinkAdd(br); err != nil {
		return fmt.Errorf("%s: bridge %s: %w", n.Name, name, err)
	}
	for _, dev := range devs {
		link, err := n.link(dev)
		if err != nil {
			return err
		}
		if err := n.nl.LinkSetMaster(link, br); err != nil {
			return fmt.Errorf("%s: put %s into %s: %w", n.Name, dev, name, err)
		}
	}
	return n.Up(name)
}

// Up sets a device up.
func (n *Node) Up(dev string) error { return n.setLink(dev, n.nl.LinkSetUp) }

// Down sets a device down; its peer loses carrier.
func (n *Node) Down(dev string) error { return n.setLink(dev, n.nl.LinkSetDown) }

func (n *Node) setLink(dev string, set func(netlink.Link) error) error {
	link, err := n.link(dev)
	if err != nil {
		return err
	}
	if err := set(link); err != nil {
		return fmt.Errorf("%s: set %s: %w", n.Name, dev, err)
	}
	return nil
}

// MAC returns the device's hardware address.
func (n *Node) MAC(dev string) (net.HardwareAddr, error) {
	link, err := n.link(dev)
	if err != nil {
		return nil, err
	}
	return link.Attrs().HardwareAddr, nil
}

func (n *Node) link(dev string) (netlink.Link, error) {
	link, err := n.nl.LinkByName(dev)
	if err != nil {
		return nil, fmt.Errorf("%s: device %s: %w", n.Name, dev, err)
	}
	return link, nil
}

// AddAddr gives a device addresses, usable at once (no duplicate address detection).
func (n *Node) AddAddr(dev string, addrs ...string) error {
	link, err := n.link(dev)
	if err != nil {
		return err
	}
	for _, s := range addrs {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("%s: address %q: %w", n.Name, s, err)
		}
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := n.nl.AddrAdd(link, a); err != nil {
			return fmt.Errorf("%s: add %s to %s: %w", n.Name, s, dev, err)
		}
	}
	return nil
}

// Route sends traffic for a prefix ("default4", "default6" or CIDR) by a gateway.
func (n *Node) Route(to, via string) error {
	gw, err := netip.ParseAddr(via)
	if err != nil {
		return fmt.Errorf("%s: gateway %q: %w", n.Name, via, err)
	}
	switch to {
	case "default4":
		to = "0.0.0.0/0"
	case "default6":
		to = "::/0"
	}
	_, dst, err := net.ParseCIDR(to)
	if err != nil {
		return fmt.Errorf("%s: route: %w", n.Name, err)
	}
	r := &netlink.Route{Dst: dst, Gw: gw.AsSlice()}
	if err := n.nl.RouteReplace(r); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s: route to %s via %s: %w", n.Name, to, via, err)
	}
	return nil
}

// Ways counts the next hops that the node's kernel has for an address by a route of its own.
func (n *Node) Ways(addr string) (int, error) {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return 0, fmt.Errorf("%s: ways to %q: %w", n.Name, addr, err)
	}
	dst := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
	family := netlink.FAMILY_V6
	if a.Is4() {
		family = netlink.FAMILY_V4
	}
	routes, err := n.nl.RouteListFiltered(family, &netlink.Route{Dst: dst}, netlink.RT_FILTER_DST)
	if err != nil {
		return 0, fmt.Errorf("%s: ways to %s: %w", n.Name, addr, err)
	}
	ways := 0
	for _, r := range routes {
		ways += max(1, len(r.MultiPath))
	}
	return ways, nil
}

// Forward makes the node a router for both families that spreads by ports as well as addresses.
func (n *Node) Forward() error {
	for _, kv := range [][2]string{
		{"net.ipv4.ip_forward", "1"},
		{"net.ipv6.conf.all.forwarding", "1"},
		{"net.ipv4.fib_multipath_hash_policy", "1"},
		{"net.ipv6.fib_multipath_hash_policy", "1"},
	} {
		if err := n.Sysctl(kv[0], kv[1]); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	return nil
}
