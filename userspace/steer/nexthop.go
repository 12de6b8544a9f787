package steer

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/maps"
)

// ErrUnresolved says that a next hop's Ethernet address is being asked for.
var ErrUnresolved = errors.New("next hop not yet known")

var errNotOnLink = errors.New("not on link")

// Resolver finds next hops the way the kernel's own stack does: by its routes and neighbours. It
// needs no privilege. It works in the network namespace it was made in.
type Resolver struct {
	netlink *netlink.Handle
	udp     map[int]net.PacketConn // by address family, to provoke ARP and neighbour discovery
}

// NewResolver opens what a resolver needs.
func NewResolver() (_ *Resolver, err error) {
	r := &Resolver{udp: map[int]net.PacketConn{}}
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	if r.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	for family, network := range map[int]string{unix.AF_INET: "udp4", unix.AF_INET6: "udp6"} {
		conn, err := net.ListenPacket(network, ":0")
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue // a host without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("open a socket to find neighbours: %w", err)
		}
		r.udp[family] = conn
	}
	return r, nil
}

// Close releases what the resolver opened.
func (r *Resolver) Close() {
	if r.netlink != nil {
		r.netlink.Close()
	}
	for _, conn := range r.udp {
		_ = conn.Close() // holds nothing
	}
}

// Resolve returns the next hop towards an address. When it is not known yet, asking for it is
// provoked, and the error is ErrUnresolved.
func (r *Resolver) Resolve(addr netip.Addr) (maps.NextHop, error) { return r.resolve(addr, false) }

// resolve is Resolve, and with onLink refuses a way that goes through a router: frames that are not
// encapsulated end there.
func (r *Resolver) resolve(addr netip.Addr, onLink bool) (maps.NextHop, error) {
	addr = addr.Unmap()
	routes, err := r.netlink.RouteGet(addr.AsSlice())
	if err != nil || len(routes) == 0 {
		return maps.NextHop{}, fmt.Errorf("route to %s: %w (add a route, or correct the backend's address)", addr, err)
	}
	route := routes[0]
	if route.Type == unix.RTN_LOCAL {
		return maps.NextHop{}, fmt.Errorf("%s is an address of this host: give the node the backend's name, or the backend another address", addr)
	}
	link, err := r.netlink.LinkByIndex(route.LinkIndex)
	if err != nil {
		return maps.NextHop{}, fmt.Errorf("interface towards %s: %w", addr, err)
	}
	attrs := link.Attrs()
	if len(attrs.HardwareAddr) != 6 {
		return maps.NextHop{}, fmt.Errorf("%s is reached through %s, which is not an Ethernet interface: frames cannot be sent there", addr, attrs.Name)
	}
	via := addr
	if gw, ok := netip.AddrFromSlice(route.Gw); ok && !gw.IsUnspecified() {
		via = gw.Unmap()
	}
	if onLink && via != addr {
		return maps.NextHop{}, fmt.Errorf("%s is reached through the router %s, and l2 needs a server in the same segment: %w (choose via: gue or ipip)", addr, via, errNotOnLink)
	}
	mac, err := r.neighbour(via, attrs.Index)
	if err != nil {
		return maps.NextHop{}, fmt.Errorf("%s via %s on %s: %w", addr, via, attrs.Name, err)
	}
	return maps.NextHop{Ready: true, Interface: attrs.Index, MAC: mac, SourceMAC: maps.MAC(attrs.HardwareAddr)}, nil
}

// MTU returns the smallest IP packet size, in bytes, of these interfaces.
func (r *Resolver) MTU(interfaces []int) (int, error) {
	smallest := 0
	for _, index := range interfaces {
		link, err := r.netlink.LinkByIndex(index)
		if err != nil {
			return 0, fmt.Errorf("MTU of interface %d: %w", index, err)
		}
		if mtu := link.Attrs().MTU; smallest == 0 || mtu < smallest {
			smallest = mtu
		}
	}
	return smallest, nil
}

// States of neighbours whose Ethernet address can be used; of these, what is not being kept fresh.
const (
	usable = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE | netlink.NUD_PERMANENT | netlink.NUD_NOARP
	stale  = netlink.NUD_STALE
)

func (r *Resolver) neighbour(via netip.Addr, index int) (maps.MAC, error) {
	family := unix.AF_INET6
	if via.Is4() {
		family = unix.AF_INET
	}
	list, err := r.netlink.NeighList(index, family)
	if err != nil {
		return maps.MAC{}, fmt.Errorf("read neighbours: %w", err)
	}
	i := slices.IndexFunc(list, func(n netlink.Neigh) bool {
		ip, ok := netip.AddrFromSlice(n.IP)
		return ok && ip.Unmap() == via
	})
	known := i >= 0 && list[i].State&usable != 0 && len(list[i].HardwareAddr) == 6
	// What the kernel half sends does not tell the stack that an entry is in use: a stale one is
	// asked for again here, so that a neighbour that changed its Ethernet address is noticed.
	if !known || list[i].State&stale != 0 {
		r.provoke(via, index, family)
	}
	if !known {
		return maps.MAC{}, ErrUnresolved
	}
	return maps.MAC(list[i].HardwareAddr), nil
}

// provoke sends a datagram to the discard port, before which the stack must find the neighbour.
func (r *Resolver) provoke(via netip.Addr, index, family int) {
	conn := r.udp[family]
	if conn == nil {
		return
	}
	to := &net.UDPAddr{IP: via.AsSlice(), Port: 9}
	if via.IsLinkLocalUnicast() && via.Is6() {
		to.Zone = fmt.Sprint(index)
	}
	_, _ = conn.WriteTo([]byte{0}, to) // whether it worked shows in the neighbour table
}
