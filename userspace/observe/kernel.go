package observe

import (
	"errors"
	"strconv"
	"time"

	"github.com/bermedge/berm/maps"
)

// Kernel is a source of the kernel half's metrics. use calls its argument with the open maps, or
// returns why there are none; report is told of maps that cannot be read.
func Kernel(use func(func(*maps.Set) error) error, report func(error)) Source {
	return func(emit Emit) {
		up := false
		err := use(func(s *maps.Set) error {
			up = true
			emit(KernelUp, 1)
			emit(KernelObserve, truth(s.Config.ObserveOnly()))
			var errs []error
			for _, read := range []func(*maps.Set, Emit) error{emitDrops, emitStages, emitVIPs, emitTables, emitBackends} {
				errs = append(errs, read(s, emit))
			}
			return errors.Join(errs...)
		})
		switch {
		case !up:
			emit(KernelUp, 0)
		case err != nil:
			report(err)
		}
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func emitDrops(s *maps.Set, emit Emit) error {
	drops, err := s.Stats.Drops()
	if err != nil {
		return err
	}
	shadows, err := s.Stats.Shadows()
	if err != nil {
		return err
	}
	for d := range maps.AllDrops() {
		emit(Drops, float64(drops[d].Packets), d.String())
		emit(DropBytes, float64(drops[d].Bytes), d.String())
		emit(Shadows, float64(shadows[d].Packets), d.String())
		emit(ShadowBytes, float64(shadows[d].Bytes), d.String())
	}
	return nil
}

func emitStages(s *maps.Set, emit Emit) error {
	stages, err := s.Stats.Stages()
	if err != nil {
		return err
	}
	for at, c := range stages {
		emit(Stages, float64(c.Packets), at.Stage.String(), at.Exit.String())
		emit(StageBytes, float64(c.Bytes), at.Stage.String(), at.Exit.String())
	}
	tenants, err := s.Stats.Tenants()
	if err != nil {
		return err
	}
	for id, c := range tenants {
		emit(TenantPackets, float64(c.Packets), strconv.Itoa(int(id)))
		emit(TenantBytes, float64(c.Bytes), strconv.Itoa(int(id)))
	}
	return nil
}

func emitVIPs(s *maps.Set, emit Emit) error {
	vips, err := s.Stats.VIPs()
	if err != nil {
		return err
	}
	services := 0
	for _, v := range vips {
		name := v.Name
		if name == "" {
			name = "(address)"
		} else {
			services++
		}
		for fate, c := range map[string]maps.Counter{
			"in": v.In, "dropped": v.Dropped, "shadowed": v.Shadowed, "forwarded": v.Forwarded, "answered": v.Answered, "cid": v.CID, "cid_lost": v.CIDLost, "stun": v.STUN, "stun_lost": v.STUNLost,
		} {
			emit(VIPPackets, float64(c.Packets), name, v.Address.String(), v.Protocol.String(), fate)
			emit(VIPBytes, float64(c.Bytes), name, v.Address.String(), v.Protocol.String(), fate)
		}
	}
	emit(MapEntries, float64(services), "vips")
	return nil
}

func emitTables(s *maps.Set, emit Emit) error {
	verdicts, err := s.Verdicts.List()
	if err != nil {
		return err
	}
	classes, err := s.Rates.ListClasses()
	if err != nil {
		return err
	}
	policies, err := s.Geo.ListPolicies()
	if err != nil {
		return err
	}
	paths, err := s.Paths.List()
	if err != nil {
		return err
	}
	peers, err := s.Peers.List()
	if err != nil {
		return err
	}
	emit(MapEntries, float64(len(verdicts)), "verdicts")
	emit(MapEntries, float64(len(classes)), "rate_classes")
	emit(MapEntries, float64(len(policies)), "geo_policies")
	emit(MapEntries, float64(len(paths)), "paths")
	emit(MapEntries, float64(len(peers)), "peers")
	return emitCC(s, emit)
}

func emitCC(s *maps.Set, emit Emit) error {
	rules, err := s.CC.ListRules()
	if err != nil {
		return err
	}
	stats, err := s.CC.Stats()
	if err != nil {
		return err
	}
	emit(MapEntries, float64(len(rules)), "cc_rules")
	for name, c := range stats {
		if name == "" {
			name = "host"
		}
		emit(CCConnections, float64(c.Connections), name)
		emit(CCRefused, float64(c.Refused), name)
	}
	return nil
}

func emitBackends(s *maps.Set, emit Emit) error {
	backends, err := s.Backends.List()
	if err != nil {
		return err
	}
	for _, b := range backends {
		emit(BackendReady, truth(b.NextHop.Ready), b.Name)
		if !b.Heartbeat.IsZero() {
			emit(BackendSeen, time.Since(b.Heartbeat).Seconds(), b.Name)
		}
	}
	emit(MapEntries, float64(len(backends)), "backends")
	emit(Deadman, s.Heart.Limit().Seconds())
	return nil
}
