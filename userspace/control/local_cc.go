package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/bermedge/berm/maps"
)

// CC tells what TCP connections begin with.
func (l *Local) CC(context.Context) (CC, error) {
	profiles, err1 := l.set.CC.ListProfiles()
	rules, err2 := l.set.CC.ListRules()
	by, err3 := l.set.CC.Countries()
	stats, err4 := l.set.CC.Stats()
	networks, err5 := l.set.CC.Networks()
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return CC{}, err
	}
	out := CC{Profiles: []CCProfile{}, Prefixes: []CCRule{}, Countries: map[string]string{}, Networks: map[string]string{}, Default: by.Fallback, Host: stats[""].Connections}
	for _, p := range profiles {
		out.Profiles = append(out.Profiles, fromCCProfile(p, stats[p.Name]))
	}
	for _, r := range rules {
		out.Prefixes = append(out.Prefixes, CCRule{Prefix: r.Prefix, Profile: r.Profile, Owner: r.Owner.String()})
	}
	for of, name := range by.Rules {
		out.Countries[of.String()] = name
	}
	for asn, name := range networks {
		out.Networks[fmt.Sprintf("AS%d", asn)] = name
	}
	return out, nil
}

func fromCCProfile(p maps.CCProfile, s maps.CCStats) CCProfile {
	return CCProfile{
		Name: p.Name, Controller: p.Controller, InitialWindow: p.InitialWindow, RTOMin: p.RTOMin.Seconds(), AckDelay: p.AckDelay.Seconds(),
		Connections: s.Connections, Refused: s.Refused, Owner: p.Owner.String(),
	}
}

// SetCCProfile adds or changes a profile.
func (l *Local) SetCCProfile(_ context.Context, p CCProfile) (Changes, error) {
	want := maps.CCProfile{
		Name: p.Name, Owner: maps.OwnerOperator, Controller: p.Controller, InitialWindow: p.InitialWindow,
		RTOMin: fromSeconds(p.RTOMin), AckDelay: fromSeconds(p.AckDelay),
	}
	list, err := l.set.CC.ListProfiles()
	if err != nil {
		return Changes{}, err
	}
	verb := "added"
	for _, old := range list {
		if old.Name == p.Name {
			verb, want.Owner = "changed", old.Owner
		}
	}
	if err := errors.Join(want.Validate(), maps.CheckController(want.Controller)); err != nil {
		return Changes{}, err
	}
	if err := l.set.CC.PutProfile(want); err != nil {
		return Changes{}, err
	}
	return changed("profile %s %s: connections that it is given to begin with %s%s", p.Name, verb, parametersOf(want), fromFile(want.Owner)), nil
}

func fromSeconds(s float64) time.Duration {
	return time.Duration(s * float64(time.Second)).Round(time.Microsecond)
}

// parametersOf describes a profile in words.
func parametersOf(p maps.CCProfile) string {
	var words []string
	if p.Controller != "" {
		words = append(words, p.Controller)
	}
	if p.InitialWindow > 0 {
		words = append(words, fmt.Sprintf("a window of %d segments", p.InitialWindow))
	}
	if p.RTOMin > 0 {
		words = append(words, fmt.Sprintf("a retransmission timeout of %s at least", p.RTOMin))
	}
	if p.AckDelay > 0 {
		words = append(words, fmt.Sprintf("acknowledgements held back for %s at most", p.AckDelay))
	}
	if len(words) == 0 {
		return "the host's own parameters"
	}
	return strings.Join(words, ", ")
}

// SetCC gives a prefix a profile. One of the file's stays the file's.
func (l *Local) SetCC(_ context.Context, r CCRule) (Changes, error) {
	want := maps.CCRule{Prefix: r.Prefix, Profile: r.Profile, Owner: maps.OwnerOperator}
	list, err := l.set.CC.ListRules()
	if err != nil {
		return Changes{}, err
	}
	for _, old := range list {
		if old.Prefix == r.Prefix && old.Owner != maps.OwnerLearner {
			want.Owner = old.Owner
		}
	}
	if err := l.set.CC.PutRule(want); err != nil {
		return Changes{}, err
	}
	return changed("%s: new TCP connections begin with %s%s", r.Prefix, profileWord(r.Profile), fromFile(want.Owner)), nil
}

func profileWord(name string) string {
	if name == "" {
		return "the host's own parameters"
	}
	return "profile " + name
}

// RemoveCC takes a prefix's profile away.
func (l *Local) RemoveCC(_ context.Context, prefix netip.Prefix) (Changes, error) {
	list, err := l.set.CC.ListRules()
	if err != nil {
		return Changes{}, err
	}
	owner := maps.OwnerOperator
	for _, r := range list {
		if r.Prefix == prefix {
			owner = r.Owner
		}
	}
	if err := l.set.CC.RemoveRule(prefix); err != nil {
		return Changes{}, err
	}
	return changed("%s has no profile of its own any more%s", prefix, fromFile(owner)), nil
}

// ExplainCC tells what an address's next TCP connection begins with, and why.
func (l *Local) ExplainCC(_ context.Context, ip netip.Addr) (CCChoice, error) {
	c, err := l.set.CC.Explain(ip)
	if err != nil {
		return CCChoice{}, err
	}
	known, err := l.set.Prefixes.Lookup(ip.Unmap())
	if err != nil {
		return CCChoice{}, err
	}
	out := CCChoice{IP: ip, By: "default", ASN: known.ASN}
	if known.Country != 0 {
		out.Country = known.Country.String()
	}
	by, err := l.set.CC.Countries()
	if err != nil {
		return CCChoice{}, err
	}
	_, named := by.Rules[known.Country]
	switch {
	case c.Prefix.IsValid():
		out.By, out.Prefix, out.Owner = "prefix", c.Prefix.String(), c.Owner.String()
	case c.ASN != 0:
		out.By = "network"
	case named:
		out.By = "country"
	}
	profiles, err1 := l.set.CC.ListProfiles()
	stats, err2 := l.set.CC.Stats()
	if err := errors.Join(err1, err2); err != nil {
		return CCChoice{}, err
	}
	var has maps.CCProfile
	for _, p := range profiles {
		if p.Name == c.Profile {
			has, out.Profile = p, fromCCProfile(p, stats[p.Name])
		}
	}
	if l.onQUIC != nil {
		out.QUIC = l.onQUIC(ip.Unmap(), has)
	}
	out.Path, err1 = l.path(ip, maps.ProtocolTCP)
	out.QUIC.Path, err2 = l.path(ip, maps.ProtocolUDP)
	return out, errors.Join(err1, err2)
}

// path returns what is known of an address's prefix, or nil.
func (l *Local) path(ip netip.Addr, of maps.Protocol) (*Path, error) {
	switch path, err := l.set.Paths.Get(ip, of); {
	case errors.Is(err, maps.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	default:
		return fromPath(path), nil
	}
}

func fromPath(p maps.Path) *Path {
	return &Path{
		Prefix: p.Prefix, Connections: p.Connections, Delivered: p.Delivered, Lost: p.Lost, Retransmitted: p.Retransmitted, Loss: p.Loss(),
		RTT: p.RTT.Seconds(), MinRTT: p.MinRTT.Seconds(), RateKbps: p.RateKbps, Age: time.Since(p.Updated).Seconds(),
	}
}
