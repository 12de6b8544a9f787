package maps

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// VIPs is the table of services. Records sit in an array by id; the index that finds them
// exists twice, is built into the copy not in use and goes live with one store.
type VIPs struct {
	set          *Set
	seeds, slots *window
	m, stats     *ebpf.Map
	gates        *ebpf.Map
}

// VIP is a service: an address, a port and a protocol.
type VIP struct {
	ID        uint32     `json:"id"` // given by the table
	Name      string     `json:"name"`
	Address   netip.Addr `json:"address"`
	Port      uint16     `json:"port"`
	Protocol  Protocol   `json:"protocol"`
	Owner     Owner      `json:"owner"`
	Tenant    uint16     `json:"tenant,omitempty"`
	Backends  string     `json:"backends,omitempty"` // backend set; "" = this host
	GeoPolicy string     `json:"geo,omitempty"`      // "" = none
	RateClass string     `json:"rate,omitempty"`     // where the source's record names none; "" = none
	Shadow    bool       `json:"shadow,omitempty"`   // count what the policies would do, and do nothing
	Strict    bool       `json:"strict,omitempty"`   // drop packets for this address to ports without a service
	QUIC      bool       `json:"quic,omitempty"`     // packets go to the backend that their connection ID names
	STUN      bool       `json:"stun,omitempty"`     // WebRTC goes to the backend that its ICE username fragment names
	Gate      Gate       `json:"gate"`
	Sites     Sites      `json:"sites,omitzero"`
}

// String names the service for messages.
func (v VIP) String() string {
	return fmt.Sprintf("%s (%s/%s)", v.Name, netip.AddrPortFrom(v.Address, v.Port), v.Protocol)
}

// Validate says what is wrong with a service on its own.
func (v VIP) Validate() error {
	errs := []error{CheckName(v.Name)}
	switch a := v.Address; {
	case !a.IsValid():
		errs = append(errs, errors.New("address is missing"))
	case a.IsUnspecified(), a.IsMulticast(), a.Zone() != "", a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		errs = append(errs, fmt.Errorf("address %s cannot be a service's: want a unicast address without a zone", a))
	}
	if v.Port == 0 {
		errs = append(errs, errors.New("port is missing: want 1 to 65535"))
	}
	if v.Protocol != ProtocolTCP && v.Protocol != ProtocolUDP {
		errs = append(errs, fmt.Errorf("protocol %s: want tcp or udp", v.Protocol))
	} else if err := v.Gate.Validate(v.Protocol); err != nil {
		errs = append(errs, fmt.Errorf("gate: %w", err))
	}
	if v.QUIC && v.Protocol != ProtocolUDP {
		errs = append(errs, fmt.Errorf("protocol %s: QUIC runs over udp", v.Protocol))
	}
	errs = append(errs, v.Sites.Validate())
	if v.STUN && v.Protocol != ProtocolUDP {
		errs = append(errs, fmt.Errorf("protocol %s: STUN is steered over udp", v.Protocol))
	}
	if v.STUN && v.QUIC {
		errs = append(errs, errors.New("stun and quic: want either"))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("VIP %q: %w", v.Name, err)
	}
	return nil
}

// serviceKey is what a packet is matched by; port and protocol 0 is the bare address.
type serviceKey struct {
	addr  netip.Addr
	port  uint16
	proto Protocol
}

func keyOf(r *bpf.XDPBermVip) serviceKey {
	return serviceKey{fromAddr(r.Addr), swap16(r.Port), Protocol(r.Proto)}
}

func isUsed(r *bpf.XDPBermVip) bool { return r.Flags&uint16(bpf.XDPBermVipFlagsBERM_VIP_USED) != 0 }

func isAddress(r *bpf.XDPBermVip) bool {
	return r.Flags&uint16(bpf.XDPBermVipFlagsBERM_VIP_ADDRESS) != 0
}

// List returns the services, by id.
func (v *VIPs) List() ([]VIP, error) {
	records, err := all[bpf.XDPBermVip](v.m)
	if err != nil {
		return nil, err
	}
	n, err := v.set.namesByID()
	if err != nil {
		return nil, err
	}
	gates, err := all[bpf.XDPBermGate](v.gates)
	if err != nil {
		return nil, err
	}
	var list []VIP
	for id := range records {
		if r := &records[id]; isUsed(r) && !isAddress(r) {
			vip := n.vip(uint32(id), r)
			vip.Gate = decodeGate(&gates[id])
			list = append(list, vip)
		}
	}
	return list, nil
}

// Get returns the service of this name.
func (v *VIPs) Get(name string) (VIP, error) {
	list, err := v.List()
	if err != nil {
		return VIP{}, err
	}
	if i := slices.IndexFunc(list, func(x VIP) bool { return x.Name == name }); i >= 0 {
		return list[i], nil
	}
	return VIP{}, fmt.Errorf("VIP %q: %w", name, ErrNotFound)
}

// Put adds a service, or changes the one of the same name and owner, and returns its id.
func (v *VIPs) Put(vip VIP) (uint32, error) {
	var id uint32
	err := v.edit(func(list []VIP) ([]VIP, error) {
		i := slices.IndexFunc(list, func(x VIP) bool { return x.Name == vip.Name })
		if i < 0 {
			return append(list, vip), nil
		}
		if list[i].Owner != vip.Owner {
			return nil, fmt.Errorf("VIP %s: name %w by the %s's %s", vip, ErrOverlap, list[i].Owner, list[i])
		}
		list[i] = vip
		return list, nil
	}, func(list []VIP) {
		id = list[slices.IndexFunc(list, func(x VIP) bool { return x.Name == vip.Name })].ID
	})
	return id, err
}

// Remove takes the service of this name away, and its verdicts with it.
func (v *VIPs) Remove(name string) error {
	return v.edit(func(list []VIP) ([]VIP, error) {
		n := len(list)
		list = slices.DeleteFunc(list, func(x VIP) bool { return x.Name == name })
		if len(list) == n {
			return nil, fmt.Errorf("VIP %q: %w", name, ErrNotFound)
		}
		return list, nil
	}, nil)
}

// Replace makes list all that owner has, in one flip: a packet meets the services of before or
// those of after. A service that stays keeps its id, counters and verdicts; when its settings
// differ, they change in place just before the flip. On an error nothing has changed.
func (v *VIPs) Replace(owner Owner, list []VIP) error {
	return v.edit(func(old []VIP) ([]VIP, error) {
		merged := slices.DeleteFunc(old, func(x VIP) bool { return x.Owner == owner })
		for _, x := range list {
			x.Owner = owner
			merged = append(merged, x)
		}
		return merged, nil
	}, nil)
}

// edit rewrites the table from a list of all services; done is told the list with its ids.
func (v *VIPs) edit(change func([]VIP) ([]VIP, error), done func([]VIP)) error {
	return v.set.lock.hold(func() error {
		old, err := v.List()
		if err != nil {
			return err
		}
		list, err := change(old)
		if err != nil {
			return err
		}
		if err := checkServices(list); err != nil {
			return err
		}
		n, err := v.set.idsByName()
		if err != nil {
			return err
		}
		records, err := n.records(list)
		if err != nil {
			return err
		}
		gates := make(map[serviceKey]bpf.XDPBermGate, len(list))
		for i := range list {
			gates[keyOf(&records[i])] = list[i].Gate.encode()
		}
		ids, err := v.commit(append(records, addressRecords(records)...), gates)
		if err != nil {
			return err
		}
		for i := range list {
			list[i].ID = ids[keyOf(&records[i])]
		}
		if done != nil {
			done(list)
		}
		return nil
	})
}

// checkServices reports every service that is invalid, and every pair that overlaps.
func checkServices(list []VIP) error {
	var errs []error
	byKey, byName := map[serviceKey]VIP{}, map[string]VIP{}
	for _, x := range list {
		if err := x.Validate(); err != nil {
			errs = append(errs, err)
			continue
		}
		key := serviceKey{x.Address.Unmap(), x.Port, x.Protocol}
		if y, ok := byKey[key]; ok {
			errs = append(errs, fmt.Errorf("VIP %s: address, port and protocol %w by %q of the %s; remove that one or choose another port",
				x, ErrOverlap, y.Name, y.Owner))
		} else if y, ok := byName[x.Name]; ok {
			errs = append(errs, fmt.Errorf("VIP %s: name %w by %s of the %s", x, ErrOverlap, y, y.Owner))
		}
		byKey[key], byName[x.Name] = x, x
	}
	return errors.Join(errs...)
}

// addressRecords derives the entries for bare addresses from the services at them. They decide
// for fragments, ICMP and other ports. Where services of an address differ, the entry follows the
// lowest port, it is strict if any service is, and in shadow if any service is: no packet of
// a service in shadow may be lost.
func addressRecords(services []bpf.XDPBermVip) []bpf.XDPBermVip {
	sorted := slices.Clone(services)
	slices.SortFunc(sorted, func(a, b bpf.XDPBermVip) int {
		ka, kb := keyOf(&a), keyOf(&b)
		return cmp.Or(ka.addr.Compare(kb.addr), cmp.Compare(ka.port, kb.port), cmp.Compare(ka.proto, kb.proto))
	})
	const inherited = uint16(bpf.XDPBermVipFlagsBERM_VIP_SHADOW | bpf.XDPBermVipFlagsBERM_VIP_STRICT)
	var out []bpf.XDPBermVip
	for _, r := range sorted {
		if n := len(out); n > 0 && out[n-1].Addr == r.Addr {
			out[n-1].Flags |= r.Flags & inherited
			continue
		}
		r.Port, r.Proto, r.Name = 0, 0, [16]int8{}
		r.Flags &^= uint16(bpf.XDPBermVipFlagsBERM_VIP_QUIC | bpf.XDPBermVipFlagsBERM_VIP_STUN) // fragments and other ports name nobody
		r.Flags &^= uint16(bpf.XDPBermVipFlagsBERM_VIP_GATE | bpf.XDPBermVipFlagsBERM_VIP_GUARD)
		r.Flags |= uint16(bpf.XDPBermVipFlagsBERM_VIP_ADDRESS)
		withoutSites(&r)
		out = append(out, r)
	}
	return out
}

// users names the services whose record fits, for refusing to remove what they need.
func (v *VIPs) users(fits func(*bpf.XDPBermVip) bool) (string, error) {
	records, err := all[bpf.XDPBermVip](v.m)
	if err != nil {
		return "", err
	}
	var list []string
	for i := range records {
		if r := &records[i]; isUsed(r) && !isAddress(r) && fits(r) {
			list = append(list, fromName(r.Name))
		}
	}
	return strings.Join(list, ", "), nil
}
