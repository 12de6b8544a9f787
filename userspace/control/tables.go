package control

import (
	"context"
	"net/netip"
)

// Tables are the operations on the kernel half's maps. Client asks the daemon for them, Local
// does them: what an operator can do with the daemon, root can do without it.
type Tables interface {
	VIPs(ctx context.Context) ([]VIP, error)
	AddVIP(ctx context.Context, v VIP) (Changes, error)
	RemoveVIP(ctx context.Context, name string) (Changes, error)

	Rates(ctx context.Context) ([]RateClass, error)
	SetRate(ctx context.Context, r RateClass) (Changes, error)

	CC(ctx context.Context) (CC, error)
	SetCCProfile(ctx context.Context, p CCProfile) (Changes, error)
	SetCC(ctx context.Context, r CCRule) (Changes, error)
	RemoveCC(ctx context.Context, prefix netip.Prefix) (Changes, error)
	ExplainCC(ctx context.Context, ip netip.Addr) (CCChoice, error)

	GeoPolicies(ctx context.Context) ([]GeoPolicy, error)
	SetGeoPolicy(ctx context.Context, p GeoPolicy) (Changes, error)
	LoadGeo(ctx context.Context, l GeoLoad) (Changes, error)
	TestGeo(ctx context.Context, ip netip.Addr) (GeoTest, error)

	Verdicts(ctx context.Context) ([]Verdict, error)
	AddVerdict(ctx context.Context, v Verdict) (Changes, error)
	RemoveVerdict(ctx context.Context, source netip.Addr, vip string) (Changes, error)

	ChangeVerdicts(ctx context.Context, changes []VerdictChange) (VerdictResults, error)

	ShadowRules(ctx context.Context) ([]ShadowRule, error)
	SetShadow(ctx context.Context, c ShadowChange) (Changes, error)

	ExplainSteer(ctx context.Context, f Flow) (Steering, error)
	MintUfrag(ctx context.Context, backend string) (Ufrag, error)
	Drops(ctx context.Context) (Drops, error)
}

var _ Tables = (*Client)(nil)
