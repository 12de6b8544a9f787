package control

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bermedge/berm/maps"
)

// ShadowRules lists what is counted and not enforced, with what it would have dropped.
func (l *Local) ShadowRules(context.Context) ([]ShadowRule, error) {
	shadows, err := l.set.Stats.Shadows()
	if err != nil {
		return nil, err
	}
	out := []ShadowRule{}
	add := func(rule, what string, owner maps.Owner, would Counter, shared bool, reasons ...maps.Drop) {
		r := ShadowRule{Rule: rule, What: what, Owner: owner.String(), WouldDrop: would, Shared: shared}
		for _, d := range reasons {
			r.Reasons = append(r.Reasons, d.String())
			if shared {
				r.WouldDrop.Packets += shadows[d].Packets
				r.WouldDrop.Bytes += shadows[d].Bytes
			}
		}
		out = append(out, r)
	}
	if l.set.Config.ObserveOnly() {
		add("observe_only", "nothing at all is enforced", maps.OwnerFile, Counter{}, true, slices.Collect(maps.AllDrops())...)
	}
	for _, d := range l.set.Config.Shadow() {
		add("reason/"+d.String(), "the drop reason "+d.String(), maps.OwnerOperator, Counter{}, true, d)
	}
	for _, find := range []func(addShadow) error{l.shadowVIPs, l.shadowGeo, l.shadowRates, l.shadowVerdicts} {
		if err := find(add); err != nil {
			return nil, err
		}
	}
	return out, nil
}

type addShadow = func(rule, what string, owner maps.Owner, would Counter, shared bool, reasons ...maps.Drop)

func (l *Local) shadowVIPs(add addShadow) error {
	vips, err := l.set.VIPs.List()
	if err != nil {
		return err
	}
	stats, err := l.set.Stats.VIPs()
	if err != nil {
		return err
	}
	for _, v := range vips {
		i := slices.IndexFunc(stats, func(s maps.VIPStats) bool { return s.ID == v.ID })
		if v.Shadow && i >= 0 {
			add("vip/"+v.Name, "every policy of VIP "+v.String(), v.Owner, Counter(stats[i].Shadowed), false)
		}
	}
	return nil
}

func (l *Local) shadowGeo(add addShadow) error {
	policies, err := l.set.Geo.ListPolicies()
	if err != nil {
		return err
	}
	for _, p := range policies {
		if p.Fallback == maps.ActionShadow {
			add("geo/"+p.Name+"/fallback", "countries without a rule of geo policy "+p.Name, p.Owner, Counter{}, true, maps.DropGeo)
		}
		var codes []string
		for c, a := range p.Rules {
			if a == maps.ActionShadow {
				codes = append(codes, c.String())
			}
		}
		slices.Sort(codes)
		for _, c := range codes {
			add("geo/"+p.Name+"/"+c, "country "+c+" of geo policy "+p.Name, p.Owner, Counter{}, true, maps.DropGeo)
		}
	}
	records, err := l.set.Prefixes.Records()
	for _, r := range records {
		if r.ACL == maps.ActionShadow {
			add(fmt.Sprintf("override/%d", r.Rule), fmt.Sprintf("the ACL of geo.overrides[%d]", int(r.Rule)-1), maps.OwnerFile, Counter{}, true, maps.DropACL)
		}
	}
	return err
}

func (l *Local) shadowRates(add addShadow) error {
	classes, err := l.set.Rates.ListClasses()
	for _, c := range classes {
		if c.Shadow {
			add("rate/"+c.Name, "the limits of rate class "+c.Name, c.Owner, Counter{}, true, maps.DropRatePackets, maps.DropRateBytes, maps.DropRateSYN, maps.DropRateInitial, maps.DropRateAggregate, maps.DropRateNetwork)
		}
	}
	return err
}

func (l *Local) shadowVerdicts(add addShadow) error {
	list, err := l.set.Verdicts.List()
	for _, v := range list {
		if v.Action != maps.ActionShadow || !v.Expires.IsZero() && time.Now().After(v.Expires) {
			continue
		}
		rule := "verdict/" + v.Source.String()
		if v.VIP != "" {
			rule += "/" + v.VIP
		}
		add(rule, fmt.Sprintf("the verdict about %s at %s", v.Source, orWord(v.VIP, "every VIP")), v.Owner, Counter{Packets: v.Hits}, false, maps.DropVerdict)
	}
	return err
}

// SetShadow promotes a rule, as ShadowRules names it, to being enforced, or puts it in shadow. A rule that
// lets packets in is neither: it would end as one that drops them.
func (l *Local) SetShadow(_ context.Context, c ShadowChange) (Changes, error) {
	kind, name, _ := strings.Cut(c.Rule, "/")
	does, action := "is enforced", maps.ActionDrop
	if c.Shadow {
		does, action = "is only counted", maps.ActionShadow
	}
	done := func(what, name string, owner maps.Owner) Changes {
		return changed("%s %s from now on%s", what+name, does, fromFile(owner))
	}
	switch kind {
	case "observe_only":
		return done("what rules refuse", "", maps.OwnerOperator), l.set.Config.SetObserveOnly(c.Shadow)
	case "reason":
		return done("drop reason ", name, maps.OwnerOperator), l.shadowReason(name, c.Shadow)
	case "vip":
		v, err := l.set.VIPs.Get(name)
		if err == nil {
			v.Shadow = c.Shadow
			_, err = l.set.VIPs.Put(v)
		}
		return done("what the policies refuse of VIP ", name, v.Owner), err
	case "rate":
		r, err := l.set.Rates.GetClass(name)
		if err == nil {
			r.Shadow = c.Shadow
			_, err = l.set.Rates.PutClass(r)
		}
		return done("rate class ", name, r.Owner), err
	case "geo":
		policy, country, _ := strings.Cut(name, "/")
		owner, err := l.shadowCountry(policy, country, action)
		return done(country+" of geo policy ", policy, owner), err
	case "verdict":
		return done("the verdict about ", name, maps.OwnerOperator), l.shadowVerdict(name, action)
	case "override":
		return Changes{}, &Error{Message: "shadow rule " + c.Rule + " is compiled from the file", Hint: "change acl in geo.overrides, and run berm reload"}
	}
	return Changes{}, fmt.Errorf("shadow rule %q: %w (berm shadow list names them)", c.Rule, maps.ErrNotFound)
}

func (l *Local) shadowReason(name string, on bool) error {
	d, err := maps.ParseDrop(name)
	if err != nil {
		return err
	}
	list := slices.DeleteFunc(l.set.Config.Shadow(), func(x maps.Drop) bool { return x == d })
	if on {
		list = append(list, d)
	}
	return l.set.Config.SetShadow(list...)
}

func (l *Local) shadowCountry(policy, country string, action maps.Action) (maps.Owner, error) {
	p, err := l.set.Geo.GetPolicy(policy)
	if err != nil {
		return 0, err
	}
	flag := "--fallback " + action.String()
	if country == "fallback" {
		err = refuses(p.Fallback, "the fallback of geo policy "+policy, "berm geo policy "+policy+" "+flag)
		p.Fallback = action
	} else {
		var c maps.Country
		if c, err = maps.ParseCountry(country); err == nil {
			flag = "--" + action.String() + " " + c.String()
			err = refuses(p.Action(c), c.String()+" of geo policy "+policy, "berm geo policy "+policy+" "+flag)
			p.Rules[c] = action
		}
	}
	if err == nil {
		_, err = l.set.Geo.PutPolicy(p)
	}
	return p.Owner, err
}

// refuses holds that a rule drops, or would if it were enforced.
func refuses(now maps.Action, what, instead string) error {
	if now == maps.ActionDrop || now == maps.ActionShadow {
		return nil
	}
	return &Error{
		Status: http.StatusBadRequest, Message: fmt.Sprintf("%s says %s: there is nothing to enforce or to put in shadow", what, now),
		Hint: "To have it refuse, say so: " + instead + ".",
	}
}

func (l *Local) shadowVerdict(name string, action maps.Action) error {
	source, vip, _ := strings.Cut(name, "/")
	a, err := netip.ParseAddr(source)
	if err != nil {
		return fmt.Errorf("shadow rule verdict/%s: %w", name, err)
	}
	v, err := l.set.Verdicts.Get(a, vip)
	if err != nil {
		return err
	}
	instead := "berm verdict add " + v.Source.String() + " --action " + action.String()
	if v.VIP != "" {
		instead += " --vip " + v.VIP
	}
	if err := refuses(v.Action, "the verdict about "+name, instead); err != nil {
		return err
	}
	v.Action = action
	return l.set.Verdicts.Put(v)
}
