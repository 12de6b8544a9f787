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
	if row.Newcomers {
		done, err := l.byNewcomer(row, self, proto, f, out)
		if err != nil || done {
			return err
		}
	} else if row.Moved {
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

// wayTo says how packets are sent to a backend.
func wayTo(b maps.Backend) string {
	switch {
	case b.Via == maps.ViaGUE:
		return fmt.Sprintf("encapsulated in GUE (UDP port %d) and sent to it", b.Port)
	case b.Via == maps.ViaL2:
		return fmt.Sprintf("sent to its Ethernet address (%s) as it came", b.NextHop.MAC)
	case b.Via == maps.ViaIPIP && b.Address.Unmap().Is4():
		return "encapsulated in IPIP and sent to it"
	case b.Via == maps.ViaIPIP:
		return "encapsulated in IP6IP6 and sent to it"
	}
	return "encapsulated and sent to it"
}

// byNewcomer looks whether a flow began since its row moved; done means that this decides.
func (l *Local) byNewcomer(row maps.Row, self uint32, proto maps.Protocol, f Flow, out *Steering) (done bool, err error) {
	if proto != maps.ProtocolTCP || f.Destination.Port() == 0 {
		out.step("the row has moved, and so have its flows: only those of TCP are noted")
		return false, nil
	}
	n, noted := l.set.Newcomers.Find(out.Hash)
	switch {
	case noted && n.Open:
		out.step("the row has moved, and the flow began since: it is a newcomer, who stays where it began")
		return l.candidate(n.Backend, self, "newcomer's backend", out)
	case noted:
		out.step("the row has moved, and a SYN of the flow was seen since: what goes on from there is a newcomer's, all else the previous owner's")
		return l.candidate(n.Backend, self, "newcomer's backend", out)
	}
	out.step("the row has moved to a backend that cannot give second chances: a flow that begins now is noted as a newcomer; all other packets (TCP) go to the previous owner")
	return false, nil
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
	case "owner", "newcomer's backend":
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
		out.step("the row's %s is %s (%s): %s", role, b.Name, b.Address, wayTo(b))
		return true, nil
	}
	out.step("the row's %s is %s (%s), whose next hop is not known", role, b.Name, b.Address)
	return false, nil
}

// Seen is how many seconds ago a backend gave its last sign of life, as Backend has it.
func Seen(b maps.Backend) float64 {
	if b.Heartbeat.IsZero() {
		return -1
	}
	return time.Since(b.Heartbeat).Seconds()
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
			out = append(out, Backend{
				ID: b.ID, Set: s.Name, Name: b.Name, Address: b.Address, Via: b.Via, Self: b.ID == self, Ready: b.NextHop.Ready || b.ID == self,
				Healthy: owned[b.ID] > 0, Rows: owned[b.ID], Seen: Seen(b),
			})
		}
	}
	return out, nil
}
