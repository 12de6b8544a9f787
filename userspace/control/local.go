package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/bermedge/berm/maps"
)

// GeoCompiler compiles databases, and the file's overrides, into the prefix table and switches to
// it. No databases: the configured ones, read again. It says what changed, a sentence each.
type GeoCompiler func(ctx context.Context, databases []string) ([]string, error)

// Local does to the maps what Client asks the daemon for.
type Local struct {
	set     *maps.Set
	geo     GeoCompiler
	readCID CIDReader     // nil: connection IDs are not explained
	onQUIC  QUICExplainer // nil: QUIC is not explained
}

// QUICExplainer tells what a client's QUIC connection that has a profile begins with.
type QUICExplainer func(client netip.Addr, p maps.CCProfile) CCQUIC

// WithQUIC has explained what QUIC connections begin with.
func (l *Local) WithQUIC(onQUIC QUICExplainer) *Local {
	l.onQUIC = onQUIC
	return l
}

var _ Tables = (*Local)(nil)

// NewLocal returns the operations on a set of maps. geo may be nil: then databases cannot be loaded.
func NewLocal(set *maps.Set, geo GeoCompiler) *Local { return &Local{set: set, geo: geo} }

func changed(format string, args ...any) Changes {
	return Changes{Changed: []string{fmt.Sprintf(format, args...)}}
}

// fromFile says what will become of a change to what the file wrote.
func fromFile(owner maps.Owner) string {
	if owner == maps.OwnerFile {
		return "; the file wrote it, and decides again at the next reload"
	}
	return ""
}

// VIPs lists the services with their counters.
func (l *Local) VIPs(context.Context) ([]VIP, error) {
	list, err := l.set.VIPs.List()
	if err != nil {
		return nil, err
	}
	stats, err := l.set.Stats.VIPs()
	if err != nil {
		return nil, err
	}
	byID := make(map[uint32]maps.VIPStats, len(stats))
	for _, s := range stats {
		byID[s.ID] = s
	}
	out := make([]VIP, 0, len(list))
	for _, v := range list {
		s := byID[v.ID]
		out = append(out, VIP{
			ID: v.ID, Name: v.Name, Address: v.Address, Port: v.Port, Protocol: v.Protocol.String(), Backends: v.Backends,
			Geo: v.GeoPolicy, Rate: v.RateClass, Shadow: v.Shadow, Strict: v.Strict, QUIC: v.QUIC, STUN: v.STUN, Owner: v.Owner.String(),
			Gate: v.Gate, Shut: l.set.Gates.Shut(v),
			Counters: VIPCounters{
				In: Counter(s.In), Dropped: Counter(s.Dropped), Shadowed: Counter(s.Shadowed), Forwarded: Counter(s.Forwarded), Answered: Counter(s.Answered),
				CID: Counter(s.CID), CIDLost: Counter(s.CIDLost), STUN: Counter(s.STUN), STUNLost: Counter(s.STUNLost),
				Newcomer: Counter(s.Newcomer), Former: Counter(s.Former), Crowded: Counter(s.Crowded),
			},
		})
	}
	return out, nil
}

// AddVIP adds a service, or changes the one of its name.
func (l *Local) AddVIP(_ context.Context, v VIP) (Changes, error) {
	proto, err := maps.ParseProtocol(v.Protocol)
	if err != nil {
		return Changes{}, fmt.Errorf("VIP %q: %w", v.Name, err)
	}
	want := maps.VIP{
		Name: v.Name, Address: v.Address, Port: v.Port, Protocol: proto, Owner: maps.OwnerOperator,
		Backends: v.Backends, GeoPolicy: v.Geo, RateClass: v.Rate, Shadow: v.Shadow, Strict: v.Strict, QUIC: v.QUIC, STUN: v.STUN,
		Gate: v.Gate,
	}
	old, err := l.set.VIPs.Get(v.Name)
	switch {
	case errors.Is(err, maps.ErrNotFound):
	case err != nil:
		return Changes{}, err
	default:
		want.Owner, want.Tenant = old.Owner, old.Tenant
		want.ID = old.ID
		if want == old {
			return Changes{Changed: []string{}}, nil
		}
	}
	if want.ID, err = l.set.VIPs.Put(want); err != nil {
		return Changes{}, err
	}
	verb := "added"
	if old.Name != "" {
		verb = "changed"
	}
	return changed("VIP %s %s: %s%s", want, verb, policiesOf(want), fromFile(want.Owner)), nil
}

// policiesOf describes a service's settings in words.
func policiesOf(v maps.VIP) string {
	words := []string{"backends " + orWord(v.Backends, "this host"), "geo policy " + orWord(v.GeoPolicy, "none"), "rate class " + orWord(v.RateClass, "none")}
	if v.Shadow {
		words = append(words, "in shadow: drops are counted, not enforced")
	}
	if v.Strict {
		words = append(words, "other ports of the address are dropped")
	}
	if v.QUIC {
		words = append(words, "QUIC goes by connection ID")
	}
	if v.STUN {
		words = append(words, "WebRTC goes by ICE username fragment")
	}
	words = append(words, gateOf(v.Gate)...)
	return strings.Join(words, ", ")
}

// gateOf describes a service's guards in words.
func gateOf(g maps.Gate) (words []string) {
	mode := func(what string, m maps.GateMode, above, otherwise uint64) {
		switch m {
		case maps.GateAuto:
			words = append(words, fmt.Sprintf("%s above %d a second", what, cmp.Or(above, otherwise)))
		case maps.GateOn:
			words = append(words, what+" always")
		case maps.GateOff:
		}
	}
	mode("SYN cookies", g.Cookies, g.CookiesAbove, maps.DefaultCookiesAbove)
	mode("Retry", g.Retry, g.RetryAbove, maps.DefaultRetryAbove)
	if g.BadInitials != maps.ActionNone {
		words = append(words, "bad Initials: "+g.BadInitials.String())
	}
	if g.Amplified != maps.ActionNone {
		words = append(words, "amplified: "+g.Amplified.String())
	}
	return words
}

func orWord(s, none string) string {
	if s == "" {
		return none
	}
	return s
}

// RemoveVIP removes the service of a name.
func (l *Local) RemoveVIP(_ context.Context, name string) (Changes, error) {
	old, err := l.set.VIPs.Get(name)
	if err != nil {
		return Changes{}, err
	}
	if err := l.set.VIPs.Remove(name); err != nil {
		return Changes{}, err
	}
	return changed("VIP %s removed: its packets now pass untouched%s", old, fromFile(old.Owner)), nil
}

// Rates lists the rate classes.
func (l *Local) Rates(context.Context) ([]RateClass, error) {
	list, err := l.set.Rates.ListClasses()
	if err != nil {
		return nil, err
	}
	out := make([]RateClass, 0, len(list))
	for _, c := range list {
		out = append(out, RateClass{
			Name: c.Name, RateLimits: fromLimits(c.Limits()), Aggregate: fromLimits(c.Aggregate), Network: fromLimits(c.Network),
			Shadow: c.Shadow, Owner: c.Owner.String(),
		})
	}
	return out, nil
}

// SetRate adds or changes a rate class.
func (l *Local) SetRate(_ context.Context, r RateClass) (Changes, error) {
	own := r.limits()
	want := maps.RateClass{
		Name: r.Name, Owner: maps.OwnerOperator, Shadow: r.Shadow,
		Packets: own.Packets, Bytes: own.Bytes, SYNs: own.SYNs, Initials: own.Initials,
		Aggregate: r.Aggregate.limits(), Network: r.Network.limits(),
	}
	old, err := l.set.Rates.GetClass(r.Name)
	verb := "changed"
	switch {
	case errors.Is(err, maps.ErrNotFound):
		verb = "added"
	case err != nil:
		return Changes{}, err
	default:
		want.Owner = old.Owner
	}
	if _, err := l.set.Rates.PutClass(want); err != nil {
		return Changes{}, err
	}
	return changed("rate class %s %s: a source may send %s%s", want.Name, verb, limitsOf(want), fromFile(want.Owner)), nil
}

func fromLimits(l maps.Limits) RateLimits {
	return RateLimits{
		Packets: l.Packets.PerSecond, PacketsBurst: l.Packets.Burst, Bytes: l.Bytes.PerSecond, BytesBurst: l.Bytes.Burst,
		SYNs: l.SYNs.PerSecond, SYNsBurst: l.SYNs.Burst, Initials: l.Initials.PerSecond, InitialsBurst: l.Initials.Burst,
	}
}

func (l RateLimits) limits() maps.Limits {
	return maps.Limits{
		Packets:  maps.Limit{PerSecond: l.Packets, Burst: l.PacketsBurst},
		Bytes:    maps.Limit{PerSecond: l.Bytes, Burst: l.BytesBurst},
		SYNs:     maps.Limit{PerSecond: l.SYNs, Burst: l.SYNsBurst},
		Initials: maps.Limit{PerSecond: l.Initials, Burst: l.InitialsBurst},
	}
}

// limitsOf describes a class in words.
func limitsOf(c maps.RateClass) string {
	said := wordsOf(c.Limits())
	if c.Aggregate != (maps.Limits{}) {
		said += ", all of its /24 or IPv6 /48: " + wordsOf(c.Aggregate)
	}
	if c.Network != (maps.Limits{}) {
		said += ", all of its network: " + wordsOf(c.Network)
	}
	if c.Shadow {
		said += ", in shadow: more is counted, not dropped"
	}
	return said
}

func wordsOf(l maps.Limits) string {
	var words []string
	for what, limit := range l.All() {
		if limit.PerSecond > 0 {
			words = append(words, fmt.Sprintf("%d %s a second (%d at once)", limit.PerSecond, what, limit.Burst))
		}
	}
	return orWord(strings.Join(words, ", "), "without limit")
}

// Verdicts lists the verdicts in force.
func (l *Local) Verdicts(context.Context) ([]Verdict, error) {
	list, err := l.set.Verdicts.List()
	if err != nil {
		return nil, err
	}
	out := make([]Verdict, 0, len(list))
	for _, v := range list {
		if x := fromVerdict(v); v.Expires.IsZero() || x.Seconds > 0 {
			out = append(out, x)
		}
	}
	return out, nil
}

// RemoveVerdict forgets the decision about a source; vip "" names the one for all VIPs.
func (l *Local) RemoveVerdict(_ context.Context, source netip.Addr, vip string) (Changes, error) {
	if err := l.set.Verdicts.Remove(source, vip); err != nil {
		return Changes{}, err
	}
	return changed("verdict about %s for %s removed", maps.SourceOf(source), orWord(vip, "every VIP")), nil
}

// Drops tells the refused packets by reason, those at zero included, and where packets left the
// pipeline.
func (l *Local) Drops(context.Context) (Drops, error) {
	drops, err := l.set.Stats.Drops()
	if err != nil {
		return Drops{}, err
	}
	shadows, err := l.set.Stats.Shadows()
	if err != nil {
		return Drops{}, err
	}
	stages, err := l.set.Stats.Stages()
	if err != nil {
		return Drops{}, err
	}
	out := Drops{Drops: []Drop{}, Stages: []Stage{}}
	for d := range maps.AllDrops() {
		out.Drops = append(out.Drops, Drop{Reason: d.String(), Number: uint32(d), Dropped: Counter(drops[d]), Shadowed: Counter(shadows[d])})
	}
	for s := range maps.AllStages() {
		for e := range maps.AllExits() {
			if c, ok := stages[maps.StageExit{Stage: s, Exit: e}]; ok {
				out.Stages = append(out.Stages, Stage{s.String(), e.String(), Counter(c)})
			}
		}
	}
	return out, nil
}
