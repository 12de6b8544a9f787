package congestion

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/bermedge/berm/maps"
)

// Tick reads what came of connections, and has the kernel half's rules say what was chosen. What operators and the file
// decided stays.
func (l *Learner) Tick(now time.Time, table *maps.CC) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	mode := l.mode()
	l.trouble = ""
	if mode == Off {
		if l.clean == table {
			return nil
		}
		err := l.withdraw(table)
		if err == nil {
			l.clean = table
		}
		return err
	}
	l.clean = nil
	if err := l.makeArms(table); err != nil {
		l.trouble = err.Error()
		return errors.Join(err, l.withdraw(table))
	}
	results, err := table.Results()
	if err != nil {
		return err
	}
	l.observe(now, results)
	if mode != On {
		return l.withdrawRules(table)
	}
	return l.write(table)
}

// makeArms makes the learner's own profiles, and refuses controllers that the host does not have.
func (l *Learner) makeArms(table *maps.CC) error {
	have, err := table.ListProfiles()
	if err != nil {
		return err
	}
	byName := map[string]maps.CCProfile{}
	for _, p := range have {
		byName[p.Name] = p
	}
	for _, p := range have { // of a file before
		isArm := slices.ContainsFunc(l.arms, func(a learnedArm) bool { return a.name == p.Name })
		if p.Owner == maps.OwnerLearner && !isArm {
			if err := table.RemoveProfile(p.Name); err != nil && !errors.Is(err, maps.ErrInUse) {
				return err
			}
		}
	}
	for _, a := range l.arms {
		if err := maps.CheckController(a.controller); err != nil {
			return fmt.Errorf("profile %s: %w", a.name, err)
		}
		p, there := byName[a.name]
		own := a.name == ownCubic || a.name == ownBBR
		switch {
		case own && !there:
			if err := table.PutProfile(maps.CCProfile{Name: a.name, Owner: maps.OwnerLearner, Controller: a.controller}); err != nil {
				return err
			}
		case !there:
			return fmt.Errorf("profile %s: %w", a.name, maps.ErrNotFound)
		case own && p.Owner != maps.OwnerLearner:
			return fmt.Errorf("profile %s: name %w by a profile of the %s", a.name, maps.ErrOverlap, p.Owner)
		}
	}
	return nil
}

// write changes the rules that differ from what was chosen.
func (l *Learner) write(table *maps.CC) error {
	rules, err := table.ListRules()
	if err != nil {
		return err
	}
	have := map[netip.Prefix]maps.CCRule{}
	var put []maps.CCRule
	var drop []netip.Prefix
	for _, r := range rules {
		if r.Owner != maps.OwnerLearner {
			continue
		}
		have[r.Prefix] = r
		if e := l.prefixes[r.Prefix]; e == nil || e.chosen < 0 {
			drop = append(drop, r.Prefix)
		}
	}
	for p, e := range l.prefixes {
		if e.chosen < 0 {
			continue
		}
		if want := l.rule(p, e); have[p] != want {
			put = append(put, want)
		}
	}
	clear(l.held)
	if len(put)+len(drop) == 0 {
		return nil
	}
	decided, err := table.Learn(put, drop)
	for _, p := range decided {
		l.held[p] = true
	}
	return err
}

// withdraw removes the learner's rules, and its own profiles.
func (l *Learner) withdraw(table *maps.CC) error {
	if err := l.withdrawRules(table); err != nil {
		return err
	}
	profiles, err := table.ListProfiles()
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range profiles {
		if p.Owner != maps.OwnerLearner {
			continue
		}
		// An operator's prefix may have it: then it stays.
		if err := table.RemoveProfile(p.Name); err != nil && !errors.Is(err, maps.ErrInUse) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (l *Learner) withdrawRules(table *maps.CC) error {
	rules, err := table.ListRules()
	if err != nil {
		return err
	}
	var drop []netip.Prefix
	for _, r := range rules {
		if r.Owner == maps.OwnerLearner {
			drop = append(drop, r.Prefix)
		}
	}
	clear(l.held)
	if len(drop) == 0 {
		return nil
	}
	_, err = table.Learn(nil, drop)
	return err
}
