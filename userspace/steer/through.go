package steer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	bermmaps "github.com/bermedge/berm/maps"
)

// Ways of a server's probes.
const (
	throughTunnel = "tunnel" // as its clients' packets reach it
	throughDirect = "direct" // at its own address
)

// through asks a server for its services, through its tunnel: an ordinary connection to its own address, whose packets the
// kernel half sends as it sends a client's. A round asks for one service, so that many cost no more than one; the one that
// failed is asked for until it is there again, so that one that is broken is found broken however many are not.
type through struct {
	probes   *bermmaps.Probes
	backend  uint32
	server   netip.Addr
	services []netip.Addr
	turn     int
	tell     func(direct string) // why the server was asked at its own address all the same; "" = it was not
}

const (
	noService = "no service of its family has it among its backends"
	noEgress  = "the kernel half has no program on the way out to it (see: berm kernel status)"
)

// servicesOf are the addresses that a server is asked for: of its sets' services at the probe's port, or, if no service
// has that, of all. The tunnel carries a probe of the server's own family only.
func (c Config) servicesOf(m Backend, p Probe) []netip.Addr {
	var same, all []netip.Addr
	for set, members := range c.Sets {
		if !slices.ContainsFunc(members, func(b Backend) bool { return b.Name == m.Name }) {
			continue
		}
		for _, s := range c.Services[set] {
			if s.Addr().Unmap().Is4() != m.Address.Unmap().Is4() {
				continue
			}
			all = append(all, s.Addr())
			if s.Port() == p.Port {
				same = append(same, s.Addr())
			}
		}
	}
	if len(same) > 0 {
		all = same
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// newThrough is nil for what is asked at its own address.
func (c *Controller) newThrough(name string, b *backend) *through {
	if !b.tunnelled() {
		return nil
	}
	return &through{
		probes: c.maps.Probes, backend: b.id, server: b.address, services: b.services,
		tell: func(why string) { c.direct(name, why) },
	}
}

func (b *backend) tunnelled() bool {
	return b.via != bermmaps.ViaEdge && cmp.Or(b.probe.Through, throughTunnel) == throughTunnel && len(b.services) > 0
}

// unserved says why a server has no tunnel to be asked through, though it is to be.
func (b *backend) unserved() string {
	if b.via == bermmaps.ViaEdge || b.probe.Through == throughDirect || b.tunnelled() {
		return ""
	}
	return noService
}

// howProbed says how, and of a server by which way.
func (b *backend) howProbed() string {
	switch how := b.probe.String(); {
	case b.via == bermmaps.ViaEdge:
		return how
	case b.tunnelled() && b.direct == "":
		return how + " through its tunnel"
	default:
		return how + " at its own address"
	}
}

// direct notes why a server is asked at its own address, and tells once.
func (c *Controller) direct(name, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.backends[name]
	if b.direct == why {
		return
	}
	b.direct = why
	if why != "" {
		c.log.Warn("server is probed at its own address: whether its tunnel works is not known", "backend", name, "why", why)
		return
	}
	c.log.Info("server is probed through its tunnel", "backend", name)
}

// ask probes once.
func (t *through) ask(ctx context.Context, p Probe) error {
	service := t.services[t.turn%len(t.services)]
	var local uint16
	d := &net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if cerr := raw.Control(func(fd uintptr) { local, err = t.register(int(fd), service, p.Port) }); cerr != nil {
			return cerr
		}
		return err
	}}
	err := p.connect(ctx, d, t.server)
	if local == 0 {
		return err
	}
	sent, terr := t.probes.Take(local)
	if terr != nil && !errors.Is(terr, bermmaps.ErrNotFound) { // somebody emptied the map: that says nothing of the server
		return errors.Join(err, terr)
	}
	switch answered := err == nil || errors.Is(err, syscall.ECONNREFUSED); {
	case sent > 0:
		t.tell("")
	case answered:
		t.tell(noEgress)
	}
	if err == nil {
		t.turn++
	} else if sent > 0 {
		err = fmt.Errorf("through its tunnel, for %s: %w", service, err)
	}
	return err
}

// register binds a socket to a port and has the kernel half know it before the first packet. The end of the connection is a
// reset, which goes through the tunnel too while the port is known: nothing of it is left to come later.
func (t *through) register(fd int, service netip.Addr, port uint16) (local uint16, err error) {
	if err := syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1}); err != nil {
		return 0, fmt.Errorf("linger: %w", err)
	}
	var any syscall.Sockaddr = &syscall.SockaddrInet6{}
	if t.server.Unmap().Is4() {
		any = &syscall.SockaddrInet4{}
	}
	if err := syscall.Bind(fd, any); err != nil {
		return 0, fmt.Errorf("bind: %w", err)
	}
	name, err := syscall.Getsockname(fd)
	switch a := name.(type) {
	case *syscall.SockaddrInet4:
		local = uint16(a.Port)
	case *syscall.SockaddrInet6:
		local = uint16(a.Port)
	default:
		return 0, fmt.Errorf("local port: %T, %w", name, err)
	}
	return local, t.probes.Put(bermmaps.Probe{Local: local, Server: t.server, Service: service, Port: port, Backend: t.backend})
}
