package control

import (
	"errors"
	"fmt"

	"github.com/bermedge/berm/maps"
)

// Wanted is what a file wants in the kernel half's tables, beside its geo and steering parts.
type Wanted struct {
	VIPs        []maps.VIP
	Rates       []maps.RateClass
	ObserveOnly bool
}

// ApplyRates makes the file's classes what w says. They come first: VIPs and prefixes name them.
func ApplyRates(set *maps.Set, w Wanted) error {
	old, err := set.Rates.ListClasses()
	if err != nil {
		return err
	}
	for _, c := range w.Rates {
		c.Owner = maps.OwnerFile
		for _, o := range old {
			if o.Name == c.Name && o.Owner != maps.OwnerFile {
				return fmt.Errorf("rate.classes.%s: name %w by a class of the %s: choose another name", c.Name, maps.ErrOverlap, o.Owner)
			}
		}
		if _, err := set.Rates.PutClass(c); err != nil {
			return fmt.Errorf("rate.classes.%s: %w", c.Name, err)
		}
	}
	return nil
}

// ApplyVIPs makes the file's services what w says, in one flip. What operators wrote stays.
func ApplyVIPs(set *maps.Set, w Wanted) error {
	if err := set.VIPs.Replace(maps.OwnerFile, w.VIPs); err != nil {
		return err
	}
	if set.Config.ObserveOnly() != w.ObserveOnly {
		return set.Config.SetObserveOnly(w.ObserveOnly)
	}
	return nil
}

// TidyRates removes classes that a file wrote and w no longer has. One that an operator's VIP or
// the prefix table in force still names stays: it is told, and goes another time.
func TidyRates(set *maps.Set, w Wanted) (kept []string, err error) {
	classes, err := set.Rates.ListClasses()
	if err != nil {
		return nil, err
	}
	wanted := map[string]bool{}
	for _, c := range w.Rates {
		wanted[c.Name] = true
	}
	var errs []error
	for _, c := range classes {
		if c.Owner != maps.OwnerFile || wanted[c.Name] {
			continue
		}
		switch err := set.Rates.RemoveClass(c.Name); {
		case errors.Is(err, maps.ErrInUse):
			kept = append(kept, fmt.Sprintf("rate class %s is no longer in the file and stays: %v", c.Name, err))
		case err != nil:
			errs = append(errs, err)
		}
	}
	return kept, errors.Join(errs...)
}
