package maps

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// Peers says whose tunnels this edge accepts, by outer source address.
type Peers struct {
	set *Set
	m   *ebpf.Map
}

// List returns the backend id of each accepted outer source.
func (p *Peers) List() (map[netip.Addr]uint32, error) {
	var key bpf.XDPBermAddr
	var id uint64
	list := map[netip.Addr]uint32{}
	it := p.m.Iterate()
	for it.Next(&key, &id) {
		list[fromAddr(key)] = uint32(id)
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("list peers: %w", err)
	}
	return list, nil
}

// Replace makes list the accepted outer sources: new ones first, so that a peer that stays is
// accepted throughout. The low bits that senders vary (config's spread) are taken off.
func (p *Peers) Replace(list map[netip.Addr]uint32) error {
	return p.set.lock.hold(func() error {
		spread := p.set.Config.Get().Spread
		want := make(map[netip.Addr]uint32, len(list))
		for addr, id := range list {
			base := withoutSpread(addr, spread)
			if other, ok := want[base]; ok && other != id {
				return fmt.Errorf("peer %s: backends %d and %d share the outer source %s/%d: give them addresses further apart",
					addr, other, id, base, base.BitLen()-int(spread))
			}
			want[base] = id
		}
		if n := p.m.MaxEntries(); len(want) > int(n) {
			return fmt.Errorf("peers: %d, %d fit: %w", len(want), n, ErrFull)
		}
		old, err := p.List()
		if err != nil {
			return err
		}
		for addr, id := range want {
			if err := p.m.Put(toAddr(addr), uint64(id)); err != nil {
				return fmt.Errorf("peer %s: %w", addr, err)
			}
		}
		for addr := range old {
			if _, stays := want[addr]; stays {
				continue
			}
			if err := p.m.Delete(toAddr(addr)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("remove peer %s: %w", addr, err)
			}
		}
		return nil
	})
}

func withoutSpread(addr netip.Addr, spread uint32) netip.Addr {
	addr = addr.Unmap()
	return netip.PrefixFrom(addr, max(0, addr.BitLen()-int(spread))).Masked().Addr()
}
