package maps

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/bermedge/berm/bpf"
)

// nameTables resolve what a VIP names, in both directions.
type nameTables struct {
	sets, policies, classes           map[string]uint32
	setNames, policyNames, classNames map[uint32]string
}

func (s *Set) idsByName() (n nameTables, err error) {
	if n.sets, err = s.Sets.ids(); err != nil {
		return n, err
	}
	if n.policies, err = s.Geo.ids(); err != nil {
		return n, err
	}
	n.classes, err = s.Rates.ids()
	return n, err
}

func (s *Set) namesByID() (nameTables, error) {
	n, err := s.idsByName()
	if err != nil {
		return n, err
	}
	n.setNames, n.policyNames, n.classNames = invert(n.sets), invert(n.policies), invert(n.classes)
	return n, nil
}

func invert(ids map[string]uint32) map[uint32]string {
	out := make(map[uint32]string, len(ids))
	for name, id := range ids {
		out[id] = name
	}
	return out
}

// records encodes services, and reports every name that nothing has.
func (n nameTables) records(list []VIP) ([]bpf.XDPBermVip, error) {
	var errs []error
	resolve := func(v VIP, kind, name string, ids map[string]uint32) uint16 {
		if name == "" {
			return 0
		}
		id, ok := ids[name]
		if !ok {
			known := "there is none yet"
			if len(ids) > 0 {
				known = "there are " + strings.Join(slices.Sorted(maps.Keys(ids)), ", ")
			}
			errs = append(errs, fmt.Errorf("VIP %s: %s %q: %w (%s)", v, kind, name, ErrNotFound, known))
		}
		return uint16(id)
	}
	out := make([]bpf.XDPBermVip, 0, len(list))
	for _, v := range list {
		r := bpf.XDPBermVip{
			Addr: toAddr(v.Address), Port: swap16(v.Port), Proto: uint8(v.Protocol), Owner: uint8(v.Owner),
			Flags: uint16(bpf.XDPBermVipFlagsBERM_VIP_USED) | v.Gate.flags(), Tenant: v.Tenant, Name: toName(v.Name),
			Set:       resolve(v, "backends", v.Backends, n.sets),
			GeoPolicy: resolve(v, "geo policy", v.GeoPolicy, n.policies),
			RateClass: resolve(v, "rate class", v.RateClass, n.classes),
		}
		if v.Shadow {
			r.Flags |= uint16(bpf.XDPBermVipFlagsBERM_VIP_SHADOW)
		}
		if v.Strict {
			r.Flags |= uint16(bpf.XDPBermVipFlagsBERM_VIP_STRICT)
		}
		if v.QUIC {
			r.Flags |= uint16(bpf.XDPBermVipFlagsBERM_VIP_QUIC)
		}
		v.Sites.encode(&r, func(name string) uint16 { return resolve(v, "backends", name, n.sets) })
		if v.STUN {
			r.Flags |= uint16(bpf.XDPBermVipFlagsBERM_VIP_STUN)
		}
		out = append(out, r)
	}
	return out, errors.Join(errs...)
}

// vip decodes a record.
func (n nameTables) vip(id uint32, r *bpf.XDPBermVip) VIP {
	return VIP{
		ID: id, Name: fromName(r.Name), Address: fromAddr(r.Addr), Port: swap16(r.Port),
		Protocol: Protocol(r.Proto), Owner: Owner(r.Owner), Tenant: r.Tenant,
		Backends: n.setNames[uint32(r.Set)], GeoPolicy: n.policyNames[uint32(r.GeoPolicy)],
		RateClass: n.classNames[uint32(r.RateClass)],
		Shadow:    r.Flags&uint16(bpf.XDPBermVipFlagsBERM_VIP_SHADOW) != 0,
		Strict:    r.Flags&uint16(bpf.XDPBermVipFlagsBERM_VIP_STRICT) != 0,
		QUIC:      r.Flags&uint16(bpf.XDPBermVipFlagsBERM_VIP_QUIC) != 0,
		Sites:     n.sites(r),
		STUN:      r.Flags&uint16(bpf.XDPBermVipFlagsBERM_VIP_STUN) != 0,
	}
}
