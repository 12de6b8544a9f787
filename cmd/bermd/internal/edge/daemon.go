package edge

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/cache"
	"github.com/bermedge/berm/userspace/certs"
	"github.com/bermedge/berm/userspace/config"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/observe"
	"github.com/bermedge/berm/userspace/transport"
)

// Tables calls f with the operations on the kernel half.
func (e *Edge) Tables(f func(control.Tables) error) error {
	return e.kernel.use(func(set *maps.Set) error {
		return f(control.NewLocal(set, e.kernel.compileGeo(set)).WithCIDs(readCID).WithQUIC(e.explainQUIC))
	})
}

// Purge makes the cache forget an object.
func (e *Edge) Purge(_ context.Context, p control.Purge) (control.Changes, error) {
	n, err := e.content.cache.get().Purge(0, p.URL)
	if err != nil {
		return control.Changes{}, err
	}
	e.log.Info("purged", "url", p.URL, "objects", n)
	if n == 0 {
		return control.Changes{Changed: []string{}}, nil
	}
	return control.Changes{Changed: []string{fmt.Sprintf("forgot %d stored %s of %s", n, plural(n, "variant"), p.URL)}}, nil
}

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// Cache tells the state of the cache.
func (e *Edge) Cache(context.Context) (control.Cache, error) {
	return cacheView(e.content.cache.get().Stats()), nil
}

func cacheView(s cache.Stats) control.Cache {
	c := control.Cache{Objects: int(s.Objects), Bytes: s.Bytes, MaxBytes: s.Limit, Hits: s.Hits, Misses: s.Misses + s.Collapsed, Evictions: s.Evicted}
	if n := c.Hits + c.Misses; n > 0 {
		c.HitRatio = float64(c.Hits) / float64(n)
	}
	return c
}

// Status tells how everything is.
func (e *Edge) Status(ctx context.Context) (control.Status, error) {
	cfg := e.cfg.Load()
	s := control.Status{
		Node: cfg.Node.Name, Site: cfg.Node.Site, Version: e.opts.Version, PID: os.Getpid(), Started: e.started,
		Config: control.ConfigInfo{Path: e.opts.Path, Loaded: *e.loaded.Load()},
		VIPs:   []control.VIP{}, Backends: []control.Backend{}, Origins: e.origins(), Requests: e.access.Total(),
		Geo: e.kernel.geoInfo(),
	}
	if why := e.refused.Load(); why != nil {
		s.Config.Error = *why
	}
	h := e.health()
	s.Ready, s.Problems = h.Ready, h.Problems
	s.Cache, _ = e.Cache(ctx)
	st := e.server.Stats()
	s.InFlight = st.H1.InFlight.Load() + st.H2.InFlight.Load() + st.H3.InFlight.Load()
	for _, a := range e.server.Addresses() {
		s.Listeners = append(s.Listeners, control.Listener{Protocols: a.Protocols, Address: a.Address, Network: a.Network})
	}
	s.Generations = []control.Generation{}
	_ = e.kernel.use(func(set *maps.Set) error { // without it there is this process alone
		s.Generations = generations(set)
		return nil
	})
	s.TLS, s.QUIC = e.tlsInfo(), e.quicInfo()
	err := e.kernelStatus(ctx, &s)
	return s, err
}

func (e *Edge) tlsInfo() (out control.TLSInfo) {
	for _, h := range e.tickets.Stats().Handshakes() {
		of := &out.TCP
		if h.Transport == "quic" {
			of = &out.QUIC
		}
		if h.Session == "resumed" {
			of.Resumed += h.N
		} else {
			of.Full += h.N
		}
	}
	if e.tickets.EarlyData() {
		out.Early = e.tickets.EarlyResults()
	}
	return out
}

func (e *Edge) kernelStatus(ctx context.Context, s *control.Status) error {
	cfg := e.cfg.Load()
	s.Kernel = control.KernelInfo{Pins: maps.PinDir(cfg.Kernel.Pins), Contract: maps.Contract}
	err := e.kernel.use(func(set *maps.Set) (err error) {
		s.Kernel.Attached = true
		s.Kernel.ObserveOnly = set.Config.ObserveOnly()
		s.Kernel.Deadman = deadmanOf(set)
		local := control.NewLocal(set, nil)
		if s.VIPs, err = local.VIPs(ctx); err != nil {
			return err
		}
		drops, err := local.Drops(ctx)
		if err != nil {
			return err
		}
		s.Kernel.VIPs = len(s.VIPs)
		total(&s.Kernel, drops)
		if s.Backends, err = e.kernel.backends(set); err != nil {
			return err
		}
		for _, b := range s.Backends {
			if b.Self {
				s.Kernel.Self = b.Name
			}
		}
		return nil
	})
	if err != nil {
		s.Kernel.Error = err.Error()
	}
	return nil
}

// deadmanOf says what the dead man's switch is set to.
func deadmanOf(set *maps.Set) string {
	limit := set.Heart.Limit()
	if limit == 0 {
		return "off"
	}
	return limit.String()
}

// total sums up what became of packets.
func total(k *control.KernelInfo, drops control.Drops) {
	for _, st := range drops.Stages {
		if st.Exit != maps.ExitShadow.String() { // counted beside their real exit
			k.Packets += st.Count.Packets
		}
		switch st.Exit {
		case maps.ExitForward.String():
			k.Forwarded += st.Count.Packets
		case maps.ExitChance.String():
			k.Chances += st.Count.Packets
		case maps.ExitDeadman.String():
			k.Handed += st.Count.Packets
		case maps.ExitCarry.String():
			k.Carried += st.Count.Packets
		case maps.ExitSpill.String():
			k.Spilled += st.Count.Packets
		}
	}
	for _, d := range drops.Drops {
		k.Dropped += d.Dropped.Packets
		k.Shadowed += d.Shadowed.Packets
	}
}

func (e *Edge) origins() []control.Origin {
	out := []control.Origin{}
	for _, o := range e.content.client.now.Load().Stats() {
		for i, s := range o.Servers {
			x := control.Origin{Origin: o.Name, URL: s.URL, Healthy: s.Healthy, Error: s.Why, InFlight: s.Pending}
			if i == 0 { // counted for the pool as a whole
				x.Requests, x.Failures = o.Requests, o.Failed
			}
			out = append(out, x)
		}
	}
	return out
}

// Drops tells the kernel half's drops; none while it is not there.
func (e *Edge) Drops(ctx context.Context) (control.Drops, error) {
	out := control.Drops{}
	_ = e.kernel.use(func(set *maps.Set) (err error) { // without a kernel half nothing is dropped
		out, err = control.NewLocal(set, nil).Drops(ctx)
		return err
	})
	return out, nil
}

// busiest is how many sources `top` may show.
const busiest = 100

// Top tells the rates of the last seconds.
func (e *Edge) Top(_ context.Context, seconds int) (control.Top, error) {
	top := control.Top{
		Sources: []control.TopSource{}, VIPs: []control.TopVIP{}, Drops: []control.TopDrop{},
		Cache: cacheView(e.content.cache.get().Stats()),
	}
	from, to, ok := e.history.Over(seconds)
	if !ok {
		return top, nil
	}
	top.Seconds = to.Time.Sub(from.Time).Seconds()
	per := 1 / top.Seconds
	top.Requests = float64(to.Requests-from.Requests) * per
	top.Cache.HitRatio = 0
	if n := to.Lookups - min(from.Lookups, to.Lookups); n > 0 {
		top.Cache.HitRatio = float64(to.Hits-min(from.Hits, to.Hits)) / float64(n)
	}
	for d := range maps.AllDrops() {
		x := control.TopDrop{Reason: d.String(), Dropped: rate(from.Drops[d], to.Drops[d], per), Shadowed: rate(from.Shadows[d], to.Shadows[d], per)}
		if x.Dropped.Packets+x.Shadowed.Packets > 0 {
			top.Drops = append(top.Drops, x)
		}
	}
	before := map[uint32]maps.VIPStats{}
	for _, v := range from.VIPs {
		before[v.ID] = v
	}
	for _, v := range to.VIPs {
		if v.Name == "" {
			continue
		}
		b := before[v.ID]
		top.VIPs = append(top.VIPs, control.TopVIP{
			Name: v.Name, Address: v.Address.Addr(), Port: v.Address.Port(), Protocol: v.Protocol.String(),
			In: rate(b.In, v.In, per), Dropped: rate(b.Dropped, v.Dropped, per), Shadowed: rate(b.Shadowed, v.Shadowed, per), Forwarded: rate(b.Forwarded, v.Forwarded, per),
		})
	}
	e.topSources(&top, seconds)
	return top, nil
}

// rate is what came between two readings. A kernel half that was loaded anew counts from zero.
func rate(from, to maps.Counter, per float64) control.Rate {
	return control.Rate{Packets: float64(observe.Since(from.Packets, to.Packets)) * per, Bytes: float64(observe.Since(from.Bytes, to.Bytes)) * per}
}

func (e *Edge) topSources(top *control.Top, seconds int) {
	sources := e.busy.Top(seconds, busiest)
	_ = e.kernel.use(func(set *maps.Set) error { // countries are left out where they cannot be looked up
		for _, s := range sources {
			x := control.TopSource{Source: s.Source, Packets: s.Packets, Bytes: s.Bytes, Dropped: s.Dropped}
			if s.Reason != maps.DropNone {
				x.Reason = s.Reason.String()
			}
			if rec, err := set.Prefixes.Lookup(s.Source); err == nil && rec.Country != 0 {
				x.Country = rec.Country.String()
			}
			top.Sources = append(top.Sources, x)
		}
		return nil
	})
}

// Series tells the last minute's rates for the status page.
func (e *Edge) Series() control.Series {
	var out control.Series
	snaps := e.history.Series()
	for i := 1; i < len(snaps); i++ {
		a, b := snaps[i-1], snaps[i]
		per := 1 / max(b.Time.Sub(a.Time).Seconds(), 0.001)
		var in, dropped [2]uint64
		for j, s := range []observe.Snapshot{a, b} {
			for _, v := range s.VIPs {
				in[j] += v.In.Packets
			}
			for _, c := range s.Drops {
				dropped[j] += c.Packets
			}
		}
		out.Requests = append(out.Requests, float64(observe.Since(a.Requests, b.Requests))*per)
		out.Packets = append(out.Packets, float64(observe.Since(in[0], in[1]))*per)
		out.Dropped = append(out.Dropped, float64(observe.Since(dropped[0], dropped[1]))*per)
	}
	return out
}

// health says whether the edge should get traffic, and what it lacks.
func (e *Edge) health() observe.Health {
	h := observe.Health{Healthy: true, Ready: e.ready.Load(), Problems: []string{}}
	if !h.Ready {
		h.Problems = append(h.Problems, "starting or stopping")
	}
	if err := e.kernel.problem(); err != nil {
		h.Problems = append(h.Problems, err.Error())
	}
	if s := e.kernel.drift.problem(); s != "" {
		h.Problems = append(h.Problems, s)
	}
	h.Problems = append(h.Problems, absent(e.cfg.Load().Kernel.Interfaces)...)
	h.Problems = append(h.Problems, e.kernel.gateProblems()...)
	h.Problems = append(h.Problems, e.certProblems()...)
	h.Problems = append(h.Problems, e.tickets.Problems()...)
	h.Problems = append(h.Problems, e.originProblems()...)
	return h
}

// absent names interfaces of the file that this host does not have: the kernel half cannot be on them.
func absent(names []string) (out []string) {
	for _, name := range names {
		if _, err := net.InterfaceByName(name); err != nil {
			out = append(out, fmt.Sprintf("interface %s of kernel.interfaces is not there: packets through it would pass no policy (once it is back: berm kernel up)", name))
		}
	}
	return out
}

// certProblems names what cannot be used of tls.dir, and certificates that end soon without a successor.
func (e *Edge) certProblems() (out []string) {
	out = append(out, e.certs.Problems()...)
	for _, c := range e.certs.List() {
		switch left := time.Until(c.NotAfter); {
		case c.Replaced || left >= certWarn(c):
		case left <= 0:
			out = append(out, fmt.Sprintf("the certificate in %s ended %s: clients refuse it", c.Path, c.NotAfter.Format(time.DateTime)))
		default:
			out = append(out, fmt.Sprintf("the certificate in %s ends %s", c.Path, c.NotAfter.Format(time.DateTime)))
		}
	}
	return out
}

// certWarn is how long before its end a certificate is complained of: a week, or the last third of one that lives for
// days only.
func certWarn(c certs.Info) time.Duration {
	return min(7*24*time.Hour, c.NotAfter.Sub(c.NotBefore)/3)
}

var _ control.Daemon = (*Edge)(nil)

// Config returns the configuration in force, which is not to be changed.
func (e *Edge) Config() *config.Config { return e.cfg.Load() }

// Listeners returns the open ports.
func (e *Edge) Listeners() []transport.Address { return e.server.Addresses() }
