package maps

import (
	"fmt"
	"sync/atomic"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// Geo is the table of geo policies: what each does with each country.
type Geo struct {
	set   *Set
	rules *window // one word a country: action in its lowest byte
	m     *ebpf.Map
}

// GeoPolicy says what becomes of packets by the country of their source.
type GeoPolicy struct {
	ID       uint32             `json:"id"` // given by the table
	Name     string             `json:"name"`
	Owner    Owner              `json:"owner"`
	Fallback Action             `json:"fallback"` // countries without a rule, the unknown one included
	Rules    map[Country]Action `json:"rules"`
}

// Action is what the policy does with a country.
func (p GeoPolicy) Action(c Country) Action {
	if a, ok := p.Rules[c]; ok {
		return a
	}
	return p.Fallback
}

func (g *Geo) table() named[bpf.XDPBermGeoPolicy] {
	return named[bpf.XDPBermGeoPolicy]{g.m, "geo policy", func(p *bpf.XDPBermGeoPolicy) string {
		if p.Used == 0 {
			return ""
		}
		return fromName(p.Name)
	}}
}

func (g *Geo) ids() (map[string]uint32, error) { return g.table().ids() }

func (g *Geo) rule(policy uint32, c Country) *uint64 {
	return &g.rules.words()[int(policy)*countries+int(c)]
}

// ListPolicies returns all policies, by id. A rule that equals the fallback is not told apart from it.
func (g *Geo) ListPolicies() ([]GeoPolicy, error) {
	entries, err := g.table().entries()
	if err != nil {
		return nil, err
	}
	var list []GeoPolicy
	for id := 1; id < len(entries); id++ {
		if entries[id].Used != 0 {
			list = append(list, g.decode(uint32(id), &entries[id]))
		}
	}
	return list, nil
}

func (g *Geo) decode(id uint32, e *bpf.XDPBermGeoPolicy) GeoPolicy {
	p := GeoPolicy{
		ID: id, Name: fromName(e.Name), Owner: Owner(e.Owner), Fallback: Action(e.Fallback),
		Rules: map[Country]Action{},
	}
	for c := range Country(countries) {
		if a := Action(atomic.LoadUint64(g.rule(id, c)) & 0xff); a != p.Fallback {
			p.Rules[c] = a
		}
	}
	return p
}

// GetPolicy returns the policy of this name.
func (g *Geo) GetPolicy(name string) (GeoPolicy, error) {
	id, e, err := g.table().find(name)
	if err != nil {
		return GeoPolicy{}, err
	}
	return g.decode(id, &e), nil
}

// PutPolicy adds a policy, or changes the one of this name country by country, each in one store.
func (g *Geo) PutPolicy(p GeoPolicy) (uint32, error) {
	if err := p.validate(); err != nil {
		return 0, err
	}
	var id uint32
	err := g.set.lock.hold(func() (err error) {
		if id, _, _, err = g.table().place(p.Name); err != nil {
			return err
		}
		for c := range Country(countries) {
			atomic.StoreUint64(g.rule(id, c), uint64(p.Action(c)))
		}
		return put(g.m, id, bpf.XDPBermGeoPolicy{Name: toName(p.Name), Used: 1, Owner: uint8(p.Owner), Fallback: uint8(p.Fallback)})
	})
	return id, err
}

func (p GeoPolicy) validate() error {
	if err := CheckName(p.Name); err != nil {
		return fmt.Errorf("geo policy: %w", err)
	}
	if p.Fallback == ActionNone || p.Fallback >= actionMax {
		return fmt.Errorf("geo policy %q: fallback %s: want allow, drop, shadow or mark", p.Name, p.Fallback)
	}
	for c, a := range p.Rules {
		if a == ActionNone || a >= actionMax || c >= countries {
			return fmt.Errorf("geo policy %q: country %s: action %s: want allow, drop, shadow or mark", p.Name, c, a)
		}
	}
	return nil
}

// RemovePolicy takes a policy away that no VIP names.
func (g *Geo) RemovePolicy(name string) error {
	return g.set.lock.hold(func() error {
		id, _, err := g.table().find(name)
		if err != nil {
			return err
		}
		users, err := g.set.VIPs.users(func(r *bpf.XDPBermVip) bool { return uint32(r.GeoPolicy) == id })
		if err != nil {
			return err
		}
		if users != "" {
			return fmt.Errorf("geo policy %q: %w by VIP %s", name, ErrInUse, users)
		}
		return put(g.m, id, bpf.XDPBermGeoPolicy{})
	})
}
