package steer

import (
	"fmt"
	"maps"
	"slices"

	bermmaps "github.com/bermedge/berm/maps"
)

// Order is what an operator wants of a backend beside the file. What is nil stays as it is.
type Order struct {
	Backend  string
	Draining *bool
	Weight   *int // 0 = as in the file
	Share    *int // of a canary, in basis points of the rows; 0 = none
}

func (o Order) apply(said Says) (Says, error) {
	if o.Draining != nil {
		said.Draining = *o.Draining
	}
	if o.Weight != nil {
		said.Weight = *o.Weight
	}
	if o.Share != nil {
		said.Share = *o.Share
	}
	if said.Weight < 0 || said.Weight > maxWeight {
		return said, fmt.Errorf("weight of %s: %d: want 1 to %d, or 0 for that of the file", o.Backend, said.Weight, maxWeight)
	}
	if said.Share < 0 || said.Share > whole {
		return said, fmt.Errorf("share of %s: %d basis points: want 0 to %d", o.Backend, said.Share, whole)
	}
	return said, nil
}

// Order changes what a backend is to be, at once. What is said of this edge, its answers to probes tell
// all others; what is said of another is in force on this edge alone. It lasts until it is
// changed, or the daemon ends. self says which of the two it is.
func (c *Controller) Order(o Order) (self bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.backends[o.Backend] == nil {
		return false, fmt.Errorf("backend %q: %w", o.Backend, bermmaps.ErrNotFound)
	}
	said, err := o.apply(c.saysOf(o.Backend))
	if err != nil {
		return false, err
	}
	if c.orders == nil {
		c.orders = map[string]Says{}
	}
	c.orders[o.Backend] = said
	return o.Backend == c.self, c.writeRows()
}

// Change is what Plan is asked about.
type Change struct {
	Sets   map[string][]Backend // as a candidate file has them; nil = as they are
	Add    []Backend            // to every set
	Remove []string
	Orders []Order
}

// SetPlan is what a change would mean for the rows of a set.
type SetPlan struct {
	Set      string
	Moved    int // rows that change their owner
	Least    int // that any change to the new shares must move
	Backends []BackendPlan
}

// BackendPlan is that for a backend.
type BackendPlan struct {
	Name          string
	Before, After int // rows
}

// unknownIDs are for backends that have no id yet: far above those that are given first.
const unknownIDs = 0xf00

// Plan says what a change would mean, without making it: from the rows that are in force to those that
// would be, with everybody as fit as now and those who are new fit.
func (c *Controller) Plan(change Change) ([]SetPlan, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	candidate := map[string][]Backend{}
	for name, s := range c.sets {
		candidate[name] = s.members
	}
	if change.Sets != nil {
		candidate = change.Sets
	}
	for _, b := range change.Add {
		if err := bermmaps.CheckName(b.Name); err != nil {
			return nil, fmt.Errorf("add: %w", err)
		}
	}
	says := map[string]Says{}
	for _, o := range change.Orders {
		said, ok := says[o.Backend]
		if !ok {
			said = c.saysOf(o.Backend)
		}
		said, err := o.apply(said)
		if err != nil {
			return nil, err
		}
		says[o.Backend] = said
	}
	names, found := map[uint16]string{}, map[string]bool{}
	var plans []SetPlan
	for _, set := range slices.Sorted(maps.Keys(candidate)) {
		var members []Member
		added := change.Add
		if s := c.sets[set]; s != nil && s.site != "" {
			added = nil // they come to this site
		}
		for _, m := range append(slices.Clone(candidate[set]), added...) {
			found[m.Name] = true
			if slices.Contains(change.Remove, m.Name) || slices.ContainsFunc(members, func(x Member) bool { return x.Name == m.Name }) {
				continue
			}
			member := c.memberOf(m)
			if said, ok := says[m.Name]; ok {
				member = c.memberWith(m, said)
			}
			if member.ID == 0 {
				member.ID = uint16(unknownIDs + len(names))
			}
			members, names[member.ID] = append(members, member), m.Name
		}
		plan, err := c.planSet(set, members, names)
		if err != nil {
			return nil, err
		}
		plans = append(plans, plan)
	}
	for _, name := range append(slices.Collect(maps.Keys(says)), change.Remove...) {
		if !found[name] {
			return nil, fmt.Errorf("backend %q: %w", name, bermmaps.ErrNotFound)
		}
	}
	return plans, nil
}

func (c *Controller) planSet(set string, members []Member, names map[uint16]string) (SetPlan, error) {
	old := make([]bermmaps.Row, bermmaps.RowCount)
	if s := c.sets[set]; s != nil {
		var err error
		if old, err = c.maps.Rows.Read(s.id); err != nil {
			return SetPlan{}, err
		}
	}
	fresh := make([]bermmaps.Row, len(old))
	for i, p := range Assign(members) {
		fresh[i].Owner = p.Owner
	}
	for name, b := range c.backends {
		names[uint16(b.id)] = name
	}
	p := Compare(old, fresh)
	out := SetPlan{Set: set, Moved: p.Moved, Least: p.Least}
	for id, gap := range p.Backends {
		name := names[id]
		if name == "" {
			name = fmt.Sprintf("#%d", id)
		}
		out.Backends = append(out.Backends, BackendPlan{name, gap.Before, gap.After})
	}
	slices.SortFunc(out.Backends, func(a, b BackendPlan) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return out, nil
}
