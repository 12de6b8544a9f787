package maps

import (
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// Probes tell the kernel half which of this host's TCP connections ask servers through their tunnels.
type Probes struct {
	set *Set
	m   *ebpf.Map
}

// Probe is such a connection: to a server's own address, as the daemon sees it, and to the service's for the server.
type Probe struct {
	Local   uint16 // the port that it comes from
	Server  netip.Addr
	Service netip.Addr // of the same family
	Port    uint16     // of both
	Backend uint32     // id: how packets get there
}

const probePorts = 65536 // BERM_PROBES

// Enable has the kernel half look for probes, or not; in both cases those of a daemon before are forgotten.
func (p *Probes) Enable(on bool) error {
	return p.set.lock.hold(func() error {
		keys, none := make([]uint32, probePorts), make([]bpf.XDPBermProbe, probePorts)
		for i := range keys {
			keys[i] = uint32(i)
		}
		if _, err := p.m.BatchUpdate(keys, none, nil); err != nil {
			return fmt.Errorf("forget probes: %w", err)
		}
		p.set.Config.setFlag(bpf.XDPBermConfigFlagsBERM_CONFIG_PROBES, on)
		return nil
	})
}

// Put has a connection go through the tunnel from its first packet on: it comes before the connection. It takes no
// lock, which a large table's writer holds for longer than probes may take: the port is the caller's own.
func (p *Probes) Put(x Probe) error {
	if x.Server.Unmap().Is4() != x.Service.Unmap().Is4() {
		return fmt.Errorf("probe of %s for %s: the tunnel carries a probe of its own family only", x.Server, x.Service)
	}
	row := bpf.XDPBermProbe{Server: toAddr(x.Server), Service: toAddr(x.Service), Backend: x.Backend, Port: uint32(x.Port)}
	if err := p.m.Put(uint32(x.Local), &row); err != nil {
		return fmt.Errorf("probe of %s from port %d: %w", x.Server, x.Local, err)
	}
	return nil
}

// Get returns the probe from a port, and how many packets of it have left through the tunnel; or ErrNotFound.
func (p *Probes) Get(local uint16) (x Probe, sent int, err error) {
	var row bpf.XDPBermProbe
	if err := p.m.Lookup(uint32(local), &row); err != nil {
		return x, 0, fmt.Errorf("probe from port %d: %w", local, err)
	}
	if row.Port == 0 {
		return x, 0, fmt.Errorf("probe from port %d: %w", local, ErrNotFound)
	}
	x = Probe{Local: local, Server: fromAddr(row.Server), Service: fromAddr(row.Service), Port: uint16(row.Port), Backend: row.Backend}
	return x, int(row.Sent), nil
}

// Take ends the probe from a port and says how many packets of it have left through the tunnel.
func (p *Probes) Take(local uint16) (sent int, err error) {
	if _, sent, err = p.Get(local); err != nil {
		return 0, err
	}
	if err := p.m.Put(uint32(local), &bpf.XDPBermProbe{}); err != nil {
		return 0, fmt.Errorf("end the probe from port %d: %w", local, err)
	}
	return sent, nil
}
