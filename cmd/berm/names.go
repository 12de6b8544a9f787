package main

import (
	"slices"

	"github.com/bermedge/berm/cmd/berm/internal/bench"
)

// names lists what exists of a kind, for completion: nothing when nothing answers.
func (a *app) names(kind string) (found []string) {
	if kind == "case" {
		return bench.Cases()
	}
	t, err := a.open()
	if err != nil {
		return nil
	}
	switch kind {
	case "vip", "set":
		vips, _ := t.VIPs(a.ctx)
		for _, v := range vips {
			if kind == "vip" {
				found = append(found, v.Name)
			} else {
				found = append(found, v.Backends)
			}
		}
	case "geo":
		all, _ := t.GeoPolicies(a.ctx)
		for _, p := range all {
			found = append(found, p.Name)
		}
	case "rate":
		all, _ := t.Rates(a.ctx)
		for _, r := range all {
			found = append(found, r.Name)
		}
	case "profile":
		all, _ := t.CC(a.ctx)
		for _, p := range all.Profiles {
			found = append(found, p.Name)
		}
	case "prefix":
		all, _ := t.CC(a.ctx)
		for _, r := range all.Prefixes {
			found = append(found, r.Prefix.String())
		}
	case "shadow":
		all, _ := t.ShadowRules(a.ctx)
		for _, r := range all {
			found = append(found, r.Rule)
		}
	case "verdict":
		all, _ := t.Verdicts(a.ctx)
		for _, v := range all {
			found = append(found, v.Source.String())
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}
