package control

import (
	"slices"

	"github.com/bermedge/berm/maps"
)

// explainSites follows what other sites have to do with a flow, once rows or a connection ID have spoken.
func (l *Local) explainSites(vip maps.VIP, proto maps.Protocol, out *Steering) error {
	s := vip.Sites
	if out.VIP == "" { // the bare address has no service, so that no flow of it is elsewhere; but a region's stays its
		s.Spill, s.SpillPoints = "", 0
		if !s.Outside {
			return nil
		}
	}
	if out.CID != nil && out.Row < 0 { // it has decided
		b, err := l.set.Backends.Get(out.CID.Backend)
		if err != nil || !b.Remote {
			return err
		}
		if s.Region != 0 && b.Region != s.Region {
			out.refuseRegion("%s is at a site outside of the service's region", b.Name)
			return nil
		}
		out.Delivery = maps.ExitCarry.String()
		out.step("%s is at another site", b.Name)
		return nil
	}
	if s.Outside {
		return l.explainOutside(s, out)
	}
	if s.Spills(out.Hash) {
		edge, err := l.siteOwner(s.Spill, s.Region, out)
		if err != nil {
			return err
		}
		if out.Spill = edge; edge != "" {
			out.step("its hash is among the %.2f %% of new flows that begin at another site (%s): what begins it (SYN, QUIC Initial) goes to %s", float64(s.SpillPoints)/100, s.Spill, edge)
		}
	}
	if s.Carry == "" || proto != maps.ProtocolTCP {
		return nil
	}
	edge, err := l.siteOwner(s.Carry, s.Region, out)
	if err != nil {
		return err
	}
	if out.Carry = edge; edge != "" {
		out.step("what nobody here has a socket for (TCP, beyond the first packet) is carried to %s at the next site (%s), %d at most", edge, s.Carry, s.Hops)
	}
	return nil
}

// explainOutside is for an edge outside of the service's region.
func (l *Local) explainOutside(s maps.Sites, out *Steering) error {
	edge := ""
	if s.Carry != "" {
		var err error
		if edge, err = l.siteOwner(s.Carry, s.Region, out); err != nil {
			return err
		}
	}
	if edge == "" {
		out.refuseRegion("edges of its region alone serve the VIP, and this one is in another")
		return nil
	}
	out.Carry, out.Delivery = edge, maps.ExitCarry.String()
	out.step("edges of its region alone serve the VIP, and this one is in another: carried to %s (%s)", edge, s.Carry)
	return nil
}

func (s *Steering) refuseRegion(format string, args ...any) {
	s.Delivery = maps.ExitDrop.String()
	s.step(format+": dropped (%s)", append(args, maps.DropRegion)...)
}

// siteOwner is the edge of another site that the flow's row there names, and that can be reached; "" = none.
func (l *Local) siteOwner(set string, region uint8, out *Steering) (string, error) {
	sets, err := l.set.Sets.List()
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(sets, func(s maps.BackendSet) bool { return s.Name == set })
	if i < 0 || out.Row < 0 {
		return "", nil
	}
	rows, err := l.set.Rows.Read(sets[i].ID)
	if err != nil {
		return "", err
	}
	row := rows[out.Row]
	for _, id := range []uint16{row.Owner, row.Second} {
		b, err := l.set.Backends.ByID(uint32(id))
		if err == nil && b.NextHop.Ready && (region == 0 || b.Region == region) {
			return b.Name, nil
		}
	}
	if nobody := "nobody of " + set + " can be reached"; !slices.Contains(out.Steps, nobody) { // spill and carry may name the same
		out.step("%s", nobody)
	}
	return "", nil
}
