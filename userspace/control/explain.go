package control

import (
	"context"
	"fmt"
	"time"

	"github.com/bermedge/berm/maps"
)

// ExplainSteer tells where a flow's packets go, and why, by the steps that the kernel half takes.
func (l *Local) ExplainSteer(_ context.Context, f Flow) (Steering, error) {
	if f.CID != "" && !f.Source.IsValid() && !f.Destination.IsValid() {
		return l.explainCIDAlone(f)
	}
	if f.Ufrag != "" && !f.Source.IsValid() && !f.Destination.IsValid() {
		return l.explainUfragAlone(f)
	}
	proto, err := maps.ParseProtocol(f.Protocol)
	if err != nil {
		return Steering{}, err
	}
	if !f.Source.IsValid() || !f.Destination.IsValid() || f.Source.Addr().Unmap().Is4() != f.Destination.Addr().Unmap().Is4() {
		return Steering{}, fmt.Errorf("flow %s → %s: want two addresses with ports, both IPv4 or both IPv6", f.Source, f.Destination)
	}
	out := Steering{Flow: f, Row: -1}
	vip, ok, err := l.service(f, proto, &out)
	if err != nil || !ok {
		return out, err
	}
	if err := l.explainRow(vip, f, proto, &out); err != nil {
		return out, err
	}
	return out, l.explainSites(vip, proto, &out)
}

func (s *Steering) step(format string, args ...any) {
	s.Steps = append(s.Steps, fmt.Sprintf(format, args...))
}

// service finds the VIP that a flow meets. ok is false when the answer is complete already.
func (l *Local) service(f Flow, proto maps.Protocol, out *Steering) (vip maps.VIP, ok bool, err error) {
	list, err := l.set.VIPs.List()
	if err != nil {
		return vip, false, err
	}
	to := f.Destination.Addr().Unmap()
	var bare *maps.VIP // the service that the bare address follows: the one with the lowest port
	strict := false
	for i, v := range list {
		if v.Address.Unmap() != to {
			continue
		}
		if v.Port == f.Destination.Port() && v.Protocol == proto {
			out.VIP = v.Name
			out.step("VIP %s is the service of this destination", v)
			return v, true, nil
		}
		strict = strict || v.Strict
		if bare == nil || v.Port < bare.Port {
			bare = &list[i]
		}
	}
	switch {
	case bare == nil:
		out.Delivery = maps.ExitForeign.String()
		out.step("%s is no VIP's address: the packet passes untouched", to)
		return vip, false, nil
	case strict && (proto == maps.ProtocolTCP || proto == maps.ProtocolUDP):
		out.Delivery = maps.ExitDrop.String()
		out.step("%s is a VIP's address, no service has port %d/%s, and the address is strict: dropped (%s)", to, f.Destination.Port(), proto, maps.DropNoService)
		return vip, false, nil
	}
	out.step("no service has port %d/%s: the entry of the bare address decides, which follows VIP %s", f.Destination.Port(), proto, bare.Name)
	return *bare, true, nil
}

// explainRow follows hash, row, owner and previous owner.
func (l *Local) explainRow(vip maps.VIP, f Flow, proto maps.Protocol, out *Steering) error {
	out.Set = vip.Backends
	if vip.Backends == "" {
		out.Delivery = maps.ExitLocal.String()
		out.step("the VIP has no backend set: delivered on this host")
		return nil
	}
	sets, err := l.set.Sets.List()
	if err != nil {
		return err
	}
	id := uint32(0)
	for _, s := range sets {
		if s.Name == vip.Backends {
			id = s.ID
		}
	}
	if done, err := l.byUfrag(vip, id, f, proto, out); err != nil || done {
		return err
	}
	if done, err := l.byCID(vip, id, f, out); err != nil || done {
		return err
	}
	rows, err := l.set.Rows.Read(id)
	if err != nil {
		return err
	}
	out.Hash = maps.FlowHash(l.set.Config.Secrets().Flow, f.Source, f.Destination, proto)
	out.Row = maps.FlowRow(out.Hash)
	row := rows[out.Row]
	self := l.set.Config.Self().Backend
	out.step("the flow's keyed hash %016x chooses row %d of set %s", out.Hash, out.Row, vip.Backends)
	second := "heir"
	if row.Moved {
		second = "previous owner"
	}
	if row.Moved {
		out.step("the row has moved: what its owner has no socket for (TCP, beyond the first packet) goes to the previous owner, once")
	}
	for i, b := range []uint16{row.Owner, row.Second} {
		role := [...]string{"owner", second}[i]
		done, err := l.candidate(uint32(b), self, role, out)
		if err != nil || done {
			return err
		}
	}
	if self == 0 {
		out.Delivery = maps.ExitDrop.String()
		out.step("nobody can take it, and this host is no backend: dropped (%s)", maps.DropNoBackend)
		return nil
	}
	out.Delivery = maps.ExitFailOpen.String()
	out.step("nobody can take it: delivered on this host rather than lost (fail_open)")
	return nil
}

// candidate looks at one backend that the row names; done means that the packet goes there.
func (l *Local) candidate(id, self uint32, role string, out *Steering) (done bool, err error) {
	if id == 0 {
		out.step("the row names no %s", role)
		return false, nil
	}
	b, err := l.set.Backends.ByID(id)
	if err != nil {
		out.step("the row's %s is backend %d, which does not exist", role, id)
		return false, nil //nolint:nilerr // a row may outlive its backend; that is an answer
	}
	switch role {
	case "owner":
		out.Owner = b.Name
	case "heir":
		out.Heir = b.Name
	default:
		out.Previous = b.Name
	}
	switch {
	case id == self:
		out.Delivery = maps.ExitLocal.String()
		out.step("the row's %s is %s, this host: delivered here", role, b.Name)
		return true, nil
	case b.NextHop.Ready:
		out.Delivery = maps.ExitForward.String()
		out.step("the row's %s is %s (%s): encapsulated and sent to it", role, b.Name, b.Address)
		return true, nil
	}
	out.step("the row's %s is %s (%s), whose next hop is not known", role, b.Name, b.Address)
	return false, nil
}

// Backends lists the backends with the sets whose rows name them.
func Backends(set *maps.Set) ([]Backend, error) {
	list, err := set.Backends.List()
	if err != nil {
		return nil, err
	}
	sets, err := set.Sets.List()
	if err != nil {
		return nil, err
	}
	self := set.Config.Self().Backend
	out := []Backend{}
	for _, s := range sets {
		rows, err := set.Rows.Read(s.ID)
		if err != nil {
			return nil, err
		}
		var owned, previous [1 << 16]int
		for _, r := range rows {
			owned[r.Owner]++
			previous[r.Second]++
		}
		for _, b := range list {
			if owned[b.ID]+previous[b.ID] == 0 {
				continue
			}
			x := Backend{
				ID: b.ID, Set: s.Name, Name: b.Name, Address: b.Address, Self: b.ID == self, Ready: b.NextHop.Ready || b.ID == self,
				Healthy: owned[b.ID] > 0, Rows: owned[b.ID], Seen: -1,
			}
			if !b.Heartbeat.IsZero() {
				x.Seen = time.Since(b.Heartbeat).Seconds()
			}
			out = append(out, x)
		}
	}
	return out, nil
}
