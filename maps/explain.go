package maps

import (
	"fmt"
	"net/netip"

	"github.com/bermedge/berm/bpf"
)

// Steering is what the kernel half does with the packets of a flow, and why.
type Steering struct {
	Service  string         `json:"service"` // VIP name; "" = the bare address's entry, or not ours
	VIP      uint32         `json:"vip"`     // id; 0 = not for a service of ours
	Backends string         `json:"backends,omitempty"`
	Hash     uint64         `json:"hash,omitempty"`
	Row      int            `json:"row"` // -1 = no table is asked
	Owner    *BackendStatus `json:"owner,omitempty"`
	Second   *BackendStatus `json:"second,omitempty"` // gets the packets when the owner cannot
	Moved    bool           `json:"moved,omitempty"`  // the second owned the row before
	Exit     Exit           `json:"exit"`             // foreign, local, forward, fail_open or drop
	To       string         `json:"to"`               // name of the backend; "" = this host
	Why      string         `json:"why"`              // one sentence
}

// BackendStatus is a backend as a row names it.
type BackendStatus struct {
	ID    uint32 `json:"id"`
	Name  string `json:"name"`
	Self  bool   `json:"self"`  // this edge
	Ready bool   `json:"ready"` // its next hop is known
}

// MarshalText gives the exit's name.
func (e Exit) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// MarshalText gives the reason's name.
func (d Drop) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a reason's name.
func (d *Drop) UnmarshalText(b []byte) (err error) {
	if string(b) == DropNone.String() {
		*d = DropNone
		return nil
	}
	*d, err = ParseDrop(string(b))
	return err
}

// UnmarshalText reads an exit's name.
func (e *Exit) UnmarshalText(b []byte) error {
	for v := range AllExits() {
		if v.String() == string(b) {
			*e = v
			return nil
		}
	}
	return unknown("exit", string(b), AllExits())
}

// findVIP is the kernel half's lookup in the live index: the service, else the bare address.
func (v *VIPs) findVIP(dst netip.AddrPort, proto Protocol) (uint32, *bpf.XDPBermVip, error) {
	c := v.set.Config.Get()
	if c.Vips == 0 {
		return 0, nil, nil
	}
	active := c.VipActive & 1
	keys := []serviceKey{{dst.Addr().Unmap(), dst.Port(), proto}, {dst.Addr().Unmap(), 0, 0}}
	if dst.Port() == 0 {
		keys = keys[1:]
	}
	for _, key := range keys {
		h := VIPHash(c.Seed, key.addr, key.port, key.proto)
		d := v.seeds.words()[uint64(active*vipBuckets)+h%vipBuckets]
		id := uint32(v.slots.words()[uint64(active*vipSlots)+vipSlot(h, d)])
		if id == 0 || id >= v.m.MaxEntries() {
			continue
		}
		var r bpf.XDPBermVip
		if err := v.m.Lookup(id, &r); err != nil {
			return 0, nil, fmt.Errorf("VIP %d: %w", id, err)
		}
		if isUsed(&r) && keyOf(&r) == key {
			return id, &r, nil
		}
	}
	return 0, nil, nil
}

// Steer explains where the packets of a flow go. Ports of fragments and of protocols other than
// TCP and UDP are 0. It says nothing about the policies before: see Judge.
func (s *Set) Steer(src, dst netip.AddrPort, proto Protocol) (Steering, error) {
	if !src.IsValid() || !dst.IsValid() || src.Addr().Unmap().Is4() != dst.Addr().Unmap().Is4() {
		return Steering{}, fmt.Errorf("flow %s to %s: want two addresses of one family", src, dst)
	}
	if proto != ProtocolTCP && proto != ProtocolUDP {
		src, dst = netip.AddrPortFrom(src.Addr(), 0), netip.AddrPortFrom(dst.Addr(), 0)
	}
	out := Steering{Row: -1}
	id, r, err := s.VIPs.findVIP(dst, proto)
	if err != nil {
		return out, err
	}
	if r == nil {
		out.Exit, out.Why = ExitForeign, fmt.Sprintf("%s is not an address of a VIP, so the packet passes untouched", dst.Addr())
		return out, nil
	}
	names, err := s.namesByID()
	if err != nil {
		return out, err
	}
	out.VIP, out.Service, out.Backends = id, fromName(r.Name), names.setNames[uint32(r.Set)]
	if isAddress(r) && r.Flags&uint16(bpf.XDPBermVipFlagsBERM_VIP_STRICT|bpf.XDPBermVipFlagsBERM_VIP_SHADOW) == uint16(bpf.XDPBermVipFlagsBERM_VIP_STRICT) && dst.Port() != 0 {
		out.Exit, out.Why = ExitDrop, fmt.Sprintf("no service at port %d, and the address is strict", dst.Port())
		return out, nil
	}
	if r.Set == 0 {
		out.Exit, out.Why = ExitLocal, "the VIP has no backends: it is served by this host"
		return out, nil
	}
	return out, s.followRow(&out, uint32(r.Set), src, dst, proto)
}

func (s *Set) followRow(out *Steering, set uint32, src, dst netip.AddrPort, proto Protocol) error {
	c := s.Config.Get()
	out.Hash = FlowHash(c.Secret, src, dst, proto)
	out.Row = FlowRow(out.Hash)
	row := s.Rows.read(set)[out.Row]
	out.Owner, out.Second, out.Moved = s.status(row.Owner, c.Self), s.status(row.Second, c.Self), row.Moved
	role := "is the owner's heir"
	if row.Moved {
		role = "owned the row before"
	}
	switch owner, second := out.Owner, out.Second; {
	case owner != nil && owner.Self:
		out.Exit, out.Why = ExitLocal, "this edge owns the row"
		if second != nil && row.Moved {
			out.Why += ", which has moved: TCP packets of flows that it has no socket for go to " + second.Name
		}
	case owner != nil && owner.Ready:
		out.Exit, out.To, out.Why = ExitForward, owner.Name, fmt.Sprintf("%s owns the row", owner.Name)
	case second != nil && second.Self:
		out.Exit, out.Why = ExitLocal, "the owner cannot be reached, and this edge "+role
	case second != nil && second.Ready:
		out.Exit, out.To, out.Why = ExitForward, second.Name, fmt.Sprintf("the owner cannot be reached, and %s %s", second.Name, role)
	case c.Self == 0:
		out.Exit, out.Why = ExitDrop, "no owner of the row can be reached, and this host is no backend itself"
	default:
		out.Exit, out.Why = ExitFailOpen, "no owner of the row can be reached, so this edge serves the flow"
	}
	return nil
}

func (s *Set) status(id uint16, self uint32) *BackendStatus {
	if id == 0 {
		return nil
	}
	st := &BackendStatus{ID: uint32(id), Name: fmt.Sprintf("#%d", id), Self: uint32(id) == self}
	if b, err := s.Backends.ByID(uint32(id)); err == nil {
		st.Name, st.Ready = b.Name, b.NextHop.Ready
	}
	return st
}

// Judgement is what the kernel half knows and decides about a source.
type Judgement struct {
	Source    netip.Addr     `json:"source"` // as limits and verdicts call it
	Record    PrefixRecord   `json:"record"`
	RateClass string         `json:"rate_class,omitempty"` // the record's
	Verdicts  []Verdict      `json:"verdicts,omitempty"`
	Services  []ServiceStand `json:"services"`
}

// ServiceStand is how a service treats a source.
type ServiceStand struct {
	Service   string `json:"service"`
	Policy    string `json:"policy,omitempty"`
	Country   Action `json:"country"`              // what the policy does with the source's country
	RateClass string `json:"rate_class,omitempty"` // that the source's packets are charged to
	Drop      Drop   `json:"drop"`                 // why its packets are dropped, rates aside; none = they are not
	Shadow    bool   `json:"shadow"`               // the service or the reason is only counted
}

// Judge explains what the policies do with a source, at each service.
func (s *Set) Judge(source netip.Addr) (Judgement, error) {
	j := Judgement{Source: SourceOf(source)}
	var err error
	if j.Record, err = s.Prefixes.Lookup(source); err != nil {
		return j, err
	}
	names, err := s.namesByID()
	if err != nil {
		return j, err
	}
	j.RateClass = names.classNames[uint32(j.Record.RateClass)]
	all, err := s.Verdicts.List()
	if err != nil {
		return j, err
	}
	for _, v := range all {
		if v.Source == j.Source && !v.expired() {
			j.Verdicts = append(j.Verdicts, v)
		}
	}
	services, err := s.VIPs.List()
	if err != nil {
		return j, err
	}
	for _, v := range services {
		stand, err := s.stand(&j, v)
		if err != nil {
			return j, err
		}
		j.Services = append(j.Services, stand)
	}
	return j, nil
}

func (s *Set) stand(j *Judgement, v VIP) (ServiceStand, error) {
	st := ServiceStand{Service: v.Name, Policy: v.GeoPolicy, RateClass: v.RateClass}
	if j.RateClass != "" {
		st.RateClass = j.RateClass
	}
	if v.GeoPolicy != "" {
		p, err := s.Geo.GetPolicy(v.GeoPolicy)
		if err != nil {
			return st, err
		}
		st.Country = p.Action(j.Record.Country)
	}
	verdict := ActionNone
	for _, x := range j.Verdicts { // one for the VIP goes before one for all
		if x.VIP == v.Name || x.VIP == "" && verdict == ActionNone {
			verdict = x.Action
		}
	}
	st.Drop = decide(verdict, j.Record.ACL, st.Country)
	c := s.Config.Get()
	st.Shadow = v.Shadow || s.Config.ObserveOnly() || c.Shadow>>st.Drop&1 != 0
	return st, nil
}

// decide is the order of the policy stages.
func decide(verdict, acl, country Action) Drop {
	switch {
	case verdict == ActionDrop:
		return DropVerdict
	case verdict == ActionAllow:
		return DropNone
	case acl == ActionDrop:
		return DropACL
	case acl == ActionAllow:
		return DropNone
	case country == ActionDrop:
		return DropGeo
	}
	return DropNone
}
