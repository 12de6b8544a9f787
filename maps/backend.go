package maps

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// Backends is the table of what VIPs' packets are delivered to.
type Backends struct {
	set *Set
	m   *ebpf.Map
}

// Backend is an edge or a server.
type Backend struct {
	ID      uint32     `json:"id"` // given by the table
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"` // outer destination
	Owner   Owner      `json:"owner"`
	NextHop NextHop    `json:"next_hop"`
	Remote  bool       `json:"remote,omitempty"` // at another site
	Region  uint8      `json:"region,omitempty"` // number, on this host only; 0 = none
	// Heartbeat is the last sign of life seen by this host; zero = none.
	Heartbeat time.Time `json:"heartbeat,omitzero"`
}

// NextHop is how frames reach a backend.
type NextHop struct {
	Ready     bool `json:"ready"`     // the other fields are known
	Interface int  `json:"interface"` // index; 0 = back through where the packet came from
	MAC       MAC  `json:"mac"`
	SourceMAC MAC  `json:"source_mac"`
}

// MAC is an Ethernet address, comparable.
type MAC [6]byte

// String is the address with colons.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText gives the address with colons.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads an address with colons.
func (m *MAC) UnmarshalText(b []byte) error {
	hw, err := net.ParseMAC(string(b))
	if err != nil || len(hw) != len(m) {
		return fmt.Errorf("MAC address %q: want six octets", b)
	}
	copy(m[:], hw)
	return nil
}

func (b *Backends) table() named[bpf.XDPBermBackend] {
	return named[bpf.XDPBermBackend]{b.m, "backend", func(e *bpf.XDPBermBackend) string {
		if e.Flags&uint16(bpf.XDPBermBackendFlagsBERM_BACKEND_USED) == 0 {
			return ""
		}
		return fromName(e.Name)
	}}
}

// List returns all backends, by id.
func (b *Backends) List() ([]Backend, error) {
	entries, err := b.table().entries()
	if err != nil {
		return nil, err
	}
	var list []Backend
	for id := 1; id < len(entries); id++ {
		if e := &entries[id]; e.Flags&uint16(bpf.XDPBermBackendFlagsBERM_BACKEND_USED) != 0 {
			list = append(list, decodeBackend(uint32(id), e))
		}
	}
	return list, nil
}

// Get returns the backend of this name.
func (b *Backends) Get(name string) (Backend, error) {
	id, e, err := b.table().find(name)
	if err != nil {
		return Backend{}, err
	}
	return decodeBackend(id, &e), nil
}

// ByID returns the backend of this id.
func (b *Backends) ByID(id uint32) (Backend, error) {
	var e bpf.XDPBermBackend
	if id == 0 || id >= b.m.MaxEntries() {
		return Backend{}, fmt.Errorf("backend %d: %w", id, ErrNotFound)
	}
	if err := b.m.Lookup(id, &e); err != nil {
		return Backend{}, fmt.Errorf("backend %d: %w", id, err)
	}
	if e.Flags&uint16(bpf.XDPBermBackendFlagsBERM_BACKEND_USED) == 0 {
		return Backend{}, fmt.Errorf("backend %d: %w", id, ErrNotFound)
	}
	return decodeBackend(id, &e), nil
}

func decodeBackend(id uint32, e *bpf.XDPBermBackend) Backend {
	return Backend{
		ID: id, Name: fromName(e.Name), Address: fromAddr(e.Addr), Owner: Owner(e.Owner),
		NextHop: NextHop{
			Ready:     e.Flags&uint16(bpf.XDPBermBackendFlagsBERM_BACKEND_READY) != 0,
			Interface: int(e.Ifindex), MAC: e.Mac, SourceMAC: e.SrcMac,
		},
		Remote: e.Flags&uint16(bpf.XDPBermBackendFlagsBERM_BACKEND_REMOTE) != 0, Region: e.Region,
		Heartbeat: wall(e.HeartbeatNs),
	}
}

// Put adds a backend, or changes what is known of the one of this name. A new address
// forgets the next hop; NextHop and Heartbeat of the argument are not looked at.
func (b *Backends) Put(v Backend) (uint32, error) {
	if err := CheckName(v.Name); err != nil {
		return 0, fmt.Errorf("backend: %w", err)
	}
	if !v.Address.IsValid() || v.Address.IsUnspecified() || v.Address.IsMulticast() || v.Address.Zone() != "" {
		return 0, fmt.Errorf("backend %q: address %s: want a unicast address without a zone", v.Name, v.Address)
	}
	var id uint32
	err := b.set.lock.hold(func() (err error) {
		var e bpf.XDPBermBackend
		if id, e, _, err = b.table().place(v.Name); err != nil {
			return err
		}
		if addr := toAddr(v.Address); e.Addr != addr {
			e = bpf.XDPBermBackend{Addr: addr}
		}
		e.Name, e.Owner, e.Family = toName(v.Name), uint8(v.Owner), 6
		if v.Address.Unmap().Is4() {
			e.Family = 4
		}
		e.Flags |= uint16(bpf.XDPBermBackendFlagsBERM_BACKEND_USED)
		e.Flags &^= uint16(bpf.XDPBermBackendFlagsBERM_BACKEND_REMOTE)
		if v.Remote {
			e.Flags |= uint16(bpf.XDPBermBackendFlagsBERM_BACKEND_REMOTE)
		}
		e.Region = v.Region
		return put(b.m, id, e)
	})
	return id, err
}

// SetNextHop says how frames reach a backend, or that it is not known.
func (b *Backends) SetNextHop(id uint32, hop NextHop) error {
	return b.change(b.set.lock.hold, id, func(e *bpf.XDPBermBackend) {
		e.Flags &^= uint16(bpf.XDPBermBackendFlagsBERM_BACKEND_READY)
		if hop.Ready {
			e.Flags |= uint16(bpf.XDPBermBackendFlagsBERM_BACKEND_READY)
		}
		e.Ifindex, e.Mac, e.SrcMac = uint32(hop.Interface), hop.MAC, hop.SourceMAC
	})
}

// Beat records a sign of life of a backend.
func (b *Backends) Beat(id uint32) error {
	return b.change(b.set.lock.holdQuietly, id, func(e *bpf.XDPBermBackend) { e.HeartbeatNs = monotonic() })
}

func (b *Backends) change(hold func(func() error) error, id uint32, fn func(*bpf.XDPBermBackend)) error {
	return hold(func() error {
		var e bpf.XDPBermBackend
		if err := b.m.Lookup(id, &e); err != nil {
			return fmt.Errorf("backend %d: %w", id, err)
		}
		if e.Flags&uint16(bpf.XDPBermBackendFlagsBERM_BACKEND_USED) == 0 {
			return fmt.Errorf("backend %d: %w", id, ErrNotFound)
		}
		fn(&e)
		return put(b.m, id, e)
	})
}

// Remove takes away a backend that no row names as owner. Rows that still name it as
// previous owner lose a second chance that it could not give.
func (b *Backends) Remove(name string) error {
	return b.set.lock.hold(func() error {
		id, _, err := b.table().find(name)
		if err != nil {
			return err
		}
		sets, err := b.set.Sets.List()
		if err != nil {
			return err
		}
		for _, s := range sets {
			for _, row := range b.set.Rows.read(s.ID) {
				if uint32(row.Owner) == id {
					return fmt.Errorf("backend %q: %w by rows of set %q", name, ErrInUse, s.Name)
				}
			}
		}
		return put(b.m, id, bpf.XDPBermBackend{})
	})
}
