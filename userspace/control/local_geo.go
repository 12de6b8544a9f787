package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bermedge/berm/maps"
)

// GeoPolicies lists the geo policies.
func (l *Local) GeoPolicies(context.Context) ([]GeoPolicy, error) {
	list, err := l.set.Geo.ListPolicies()
	if err != nil {
		return nil, err
	}
	out := make([]GeoPolicy, 0, len(list))
	for _, p := range list {
		x := GeoPolicy{Name: p.Name, Fallback: p.Fallback.String(), Owner: p.Owner.String()}
		for c, a := range p.Rules {
			if to := x.list(a); to != nil {
				*to = append(*to, c.String())
			}
		}
		for _, codes := range [][]string{x.Allow, x.Drop, x.Shadow, x.Mark} {
			slices.Sort(codes)
		}
		out = append(out, x)
	}
	return out, nil
}

// list returns where an action's countries stand.
func (p *GeoPolicy) list(a maps.Action) *[]string {
	switch a {
	case maps.ActionAllow:
		return &p.Allow
	case maps.ActionDrop:
		return &p.Drop
	case maps.ActionShadow:
		return &p.Shadow
	case maps.ActionMark:
		return &p.Mark
	case maps.ActionNone:
	}
	return nil
}

// Rules turns a policy into the maps' form, and reports every country that is none or stands twice.
func (p GeoPolicy) Rules() (maps.GeoPolicy, error) {
	out := maps.GeoPolicy{Name: p.Name, Owner: maps.OwnerOperator, Rules: map[maps.Country]maps.Action{}}
	var errs []error
	var err error
	if out.Fallback, err = maps.ParseAction(orWord(p.Fallback, "allow")); err != nil {
		errs = append(errs, fmt.Errorf("fallback: %w", err))
	}
	for _, rule := range []struct {
		action maps.Action
		codes  []string
	}{{maps.ActionAllow, p.Allow}, {maps.ActionDrop, p.Drop}, {maps.ActionShadow, p.Shadow}, {maps.ActionMark, p.Mark}} {
		for i, code := range rule.codes {
			c, err := maps.ParseCountry(code)
			before, twice := out.Rules[c]
			switch {
			case err != nil:
				errs = append(errs, fmt.Errorf("%s[%d]: %w", rule.action, i, err))
			case twice:
				errs = append(errs, fmt.Errorf("%s[%d]: country %s is already under %s", rule.action, i, c, before))
			default:
				out.Rules[c] = rule.action
			}
		}
	}
	return out, errors.Join(errs...)
}

// SetGeoPolicy adds or changes a geo policy.
func (l *Local) SetGeoPolicy(_ context.Context, p GeoPolicy) (Changes, error) {
	want, err := p.Rules()
	if err != nil {
		return Changes{}, fmt.Errorf("geo policy %q: %w", p.Name, err)
	}
	old, err := l.set.Geo.GetPolicy(p.Name)
	verb := "changed"
	switch {
	case errors.Is(err, maps.ErrNotFound):
		verb = "added"
	case err != nil:
		return Changes{}, err
	default:
		want.Owner = old.Owner
	}
	if _, err := l.set.Geo.PutPolicy(want); err != nil {
		return Changes{}, err
	}
	return changed("geo policy %s %s: %s%s", p.Name, verb, rulesOf(want), fromFile(want.Owner)), nil
}

// rulesOf describes a policy in words.
func rulesOf(p maps.GeoPolicy) string {
	by := map[maps.Action][]string{}
	for c, a := range p.Rules {
		if a != p.Fallback {
			by[a] = append(by[a], c.String())
		}
	}
	var words []string
	for _, a := range []maps.Action{maps.ActionAllow, maps.ActionDrop, maps.ActionShadow, maps.ActionMark} {
		if codes := by[a]; len(codes) > 0 {
			slices.Sort(codes)
			words = append(words, fmt.Sprintf("%s %s", a, strings.Join(codes, " ")))
		}
	}
	return strings.Join(append(words, fmt.Sprintf("%s every other source", p.Fallback)), ", ")
}

// LoadGeo compiles databases into the prefix table and switches to it.
func (l *Local) LoadGeo(ctx context.Context, g GeoLoad) (Changes, error) {
	if l.geo == nil {
		return Changes{}, &Error{Message: "no compiler for geo databases here", Hint: "start bermd, which has one"}
	}
	done, err := l.geo(ctx, g.Databases)
	return Changes{Changed: done}, err
}

// GeoSentences tells what a compilation changed.
func GeoSentences(overrides int, info GeoInfo, given bool) []string {
	out := []string{fmt.Sprintf("prefix table compiled from %d networks of %s and %d overrides, in force after %.2f s",
		info.Prefixes-overrides, orWord(strings.Join(info.Databases, ", "), "no database"), overrides, info.Took)}
	if info.Networks > 0 {
		out = append(out, NetworksSentence(info.Networks, info.Numbered))
	}
	if given {
		out = append(out, "the configuration names other databases: a reload brings those back")
	}
	return out
}

// NetworksSentence tells of how many networks there was room in the prefix table.
func NetworksSentence(found, numbered int) string {
	if numbered < found {
		return fmt.Sprintf("%d of %d networks (ASN) are told apart, the largest: of the others only the country is known", numbered, found)
	}
	return fmt.Sprintf("%d networks (ASN) are told apart", found)
}

// TestGeo tells what is known and decided about a source.
func (l *Local) TestGeo(_ context.Context, ip netip.Addr) (GeoTest, error) {
	rec, err := l.set.Prefixes.Lookup(ip)
	if err != nil {
		return GeoTest{}, err
	}
	out := GeoTest{
		IP: ip, ACL: rec.ACL.String(), ASN: rec.ASN, Rule: rec.Rule,
		Policies: map[string]string{}, Verdicts: []Verdict{},
	}
	if rec.Country != 0 {
		out.Country = rec.Country.String()
	}
	if rec.RateClass != 0 {
		ids, err := l.set.Rates.IDs()
		if err != nil {
			return GeoTest{}, err
		}
		for name, id := range ids {
			if id == uint32(rec.RateClass) {
				out.RateClass = name
			}
		}
	}
	policies, err := l.set.Geo.ListPolicies()
	if err != nil {
		return GeoTest{}, err
	}
	for _, p := range policies {
		out.Policies[p.Name] = p.Action(rec.Country).String()
	}
	return out, l.verdictsAbout(ip, &out.Verdicts)
}

func (l *Local) verdictsAbout(ip netip.Addr, into *[]Verdict) error {
	list, err := l.set.Verdicts.List()
	if err != nil {
		return err
	}
	source := maps.SourceOf(ip)
	for _, v := range list {
		if v.Source == source && (v.Expires.IsZero() || time.Now().Before(v.Expires)) {
			*into = append(*into, fromVerdict(v))
		}
	}
	return nil
}

func fromVerdict(v maps.Verdict) Verdict {
	x := Verdict{
		Source: v.Source, VIP: v.VIP, Action: v.Action.String(), Reason: v.Reason, Rule: v.Rule, Evidence: v.Evidence,
		Hits: v.Hits, Owner: v.Owner.String(),
	}
	if !v.Expires.IsZero() {
		x.Seconds = time.Until(v.Expires).Seconds()
	}
	return x
}

var verdictWords = map[maps.Action]string{
	maps.ActionAllow: "allow", maps.ActionDrop: "drop packets from", maps.ActionShadow: "count, and do not drop, packets from", maps.ActionMark: "mark packets from",
}
