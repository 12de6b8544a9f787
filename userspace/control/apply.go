package control

import (
	"errors"
	"fmt"

	"github.com/bermedge/berm/maps"
)

// Wanted is what a file wants in the kernel half's tables.
type Wanted struct {
	VIPs        []maps.VIP
	Rates       []maps.RateClass
	Policies    []maps.GeoPolicy
	ObserveOnly bool
}

// Apply makes the file's part of the tables what w says. What operators and the guard wrote stays.
// Backend sets that VIPs name exist already. Everything a VIP needs is written before the VIPs
// flip, and what nothing needs any more goes after; an error leaves a mixture, which applying the
// former file undoes.
func Apply(set *maps.Set, w Wanted) error {
	for _, c := range w.Rates {
		c.Owner = maps.OwnerFile
		if _, err := set.Rates.PutClass(c); err != nil {
			return err
		}
	}
	for _, p := range w.Policies {
		p.Owner = maps.OwnerFile
		if _, err := set.Geo.PutPolicy(p); err != nil {
			return err
		}
	}
	if err := set.VIPs.Replace(maps.OwnerFile, w.VIPs); err != nil {
		return err
	}
	if set.Config.ObserveOnly() != w.ObserveOnly {
		return set.Config.SetObserveOnly(w.ObserveOnly)
	}
	return nil
}

// Tidy removes classes and policies that a file wrote and w no longer has. What an operator's VIP
// or the prefix table in force still names stays: it is told, and goes another time.
func Tidy(set *maps.Set, w Wanted) (kept []string, err error) {
	classes, err := set.Rates.ListClasses()
	if err != nil {
		return nil, err
	}
	policies, err := set.Geo.ListPolicies()
	if err != nil {
		return nil, err
	}
	wanted := map[string]bool{}
	for _, c := range w.Rates {
		wanted["rate class "+c.Name] = true
	}
	for _, p := range w.Policies {
		wanted["geo policy "+p.Name] = true
	}
	var errs []error
	remove := func(kind, name string, owner maps.Owner, do func(string) error) {
		if owner != maps.OwnerFile || wanted[kind+" "+name] {
			return
		}
		switch err := do(name); {
		case errors.Is(err, maps.ErrInUse):
			kept = append(kept, fmt.Sprintf("%s %s is no longer in the file and stays: %v", kind, name, err))
		case err != nil:
			errs = append(errs, err)
		}
	}
	for _, c := range classes {
		remove("rate class", c.Name, c.Owner, set.Rates.RemoveClass)
	}
	for _, p := range policies {
		remove("geo policy", p.Name, p.Owner, set.Geo.RemovePolicy)
	}
	return kept, errors.Join(errs...)
}
