package edge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/config"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/gate"
	"github.com/bermedge/berm/userspace/geo"
	"github.com/bermedge/berm/userspace/observe"
	"github.com/bermedge/berm/userspace/steer"
)

// kernelLink is the daemon's hold on the kernel half. The kernel half may come, go and be replaced
// at any time: the daemon serves without it, and picks it up when it appears.
type kernelLink struct {
	e *Edge

	mu     sync.RWMutex // read-held while set is used: closing it unmaps memory
	set    *maps.Set
	steer  *steer.Controller // of set
	pins   string
	inode  uint64 // of the pins' directory: another one means another kernel half
	why    error  // why there is no set
	broken error  // why the file is not in force there

	spills map[string]steer.Spill // said by operators, by service; guarded by Edge.reloading

	resolver *steer.Resolver // of the way to clients
	gate     *gate.Keeper    // of set
	retry    *maps.Retry     // of set; made anew each second and when services change

	geo   atomic.Pointer[control.GeoInfo]
	drift drift

	stopEvents context.CancelFunc
	events     sync.WaitGroup
}

func newKernelLink(e *Edge, cfg *config.Config) *kernelLink {
	return &kernelLink{e: e, pins: cfg.Kernel.Pins, why: errNotYet}
}

// errNotYet answers those who ask between the opening of the listeners and that of the maps.
var errNotYet = errors.New("its maps are about to be opened")

// use calls f with the maps, which stay open meanwhile, or returns why there are none.
func (k *kernelLink) use(f func(*maps.Set) error) error {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.set == nil {
		return k.why
	}
	return f(k.set)
}

// problem says what is wrong with the kernel half, or nil.
func (k *kernelLink) problem() error {
	k.mu.RLock()
	defer k.mu.RUnlock()
	switch {
	case k.set == nil:
		return fmt.Errorf("the kernel half is not there, so nothing is filtered, limited or steered: %w", k.why)
	case k.broken != nil:
		return fmt.Errorf("the file is not in force in the kernel half: %w", k.broken)
	}
	return nil
}

// run keeps the link until ctx ends.
func (k *kernelLink) run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		k.follow()
		if n%driftEvery == 0 {
			k.lookForDrift()
		}
		k.keepGate()
		k.e.snapshot()
		if k.e.ready.Load() && k.e.sound.Load() {
			k.beat()
		}
	}
}

// heartbeat leaves a healthy daemon four beats in the shortest silence that counts.
const heartbeat = 100 * time.Millisecond

// live tells the kernel half, while this daemon serves, that it does: it has opened its listeners, and
// its last self-check got an answer. A daemon that hangs, or dies, tells nothing.
func (k *kernelLink) live(ctx context.Context) {
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !k.e.ready.Load() || !k.e.sound.Load() {
			continue
		}
		err := k.use(func(*maps.Set) error { return k.steer.Beat() })
		if err != nil && k.problem() == nil {
			k.e.log.Warn("rows do not say that flows may be elsewhere", "error", err)
		}
	}
}

// liveMeanwhile beats until the function that it returns is called: this process serves, and has yet to
// bring tables up to date.
func (k *kernelLink) liveMeanwhile() func() {
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(heartbeat)
		defer tick.Stop()
		for {
			_ = k.use(func(set *maps.Set) error { // opened by whoever calls this
				set.Heart.Beat()
				return nil
			})
			select {
			case <-done:
				return
			case <-tick.C:
			}
		}
	}()
	return func() { close(done); <-ended }
}

// follow connects, or lets go of a kernel half that was taken down or replaced.
func (k *kernelLink) follow() {
	k.e.reloading.Lock() // the configuration stays what it is meanwhile
	defer k.e.reloading.Unlock()
	cfg := k.e.cfg.Load()
	k.mu.RLock()
	have, inode, broken := k.set != nil, k.inode, k.broken
	k.mu.RUnlock()
	switch {
	case !have:
		k.connect(cfg)
	case pinInode(k.pins) != inode:
		k.e.log.Warn("the kernel half was taken down or replaced")
		k.e.generation.part()
		k.close()
		k.connect(cfg)
	case broken != nil:
		if err := k.apply(cfg); err == nil {
			k.e.log.Info("the file is now in force in the kernel half")
		}
	}
	_ = k.use(func(set *maps.Set) error { // without a kernel half there is nothing to follow
		k.e.generation.follow(set)
		return nil
	})
}

func pinInode(pins string) uint64 { return inodeOf(maps.PinDir(pins)) }

// inodeOf is 0 for what is not there.
func inodeOf(path string) uint64 {
	fi, err := os.Stat(path)
	if err != nil {
		return 0
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return st.Ino
}

// connect opens the maps and puts cfg in force there.
func (k *kernelLink) connect(cfg *config.Config) {
	if k.open(cfg) == nil {
		k.adopt(cfg)
	}
}

// open opens the maps, and writes nothing.
func (k *kernelLink) open(cfg *config.Config) error {
	inode := pinInode(cfg.Kernel.Pins)
	set, err := maps.Open(maps.PinDir(cfg.Kernel.Pins))
	var ctl *steer.Controller
	var resolver *steer.Resolver
	if err == nil {
		if ctl, resolver, err = newSteering(set, k.e.log.Logger); err != nil {
			err = errors.Join(err, set.Close())
			set = nil
		}
	}
	k.mu.Lock()
	first := k.why == nil || errors.Is(k.why, errNotYet)
	k.pins = cfg.Kernel.Pins
	k.set, k.steer, k.why, k.inode = set, ctl, err, inode
	if set != nil {
		k.resolver, k.gate = resolver, gate.New(set, resolver, os.DirFS("/proc/sys"))
	}
	k.mu.Unlock()
	if err != nil {
		if first {
			k.e.log.Warn("running without the kernel half: nothing is filtered, limited or steered until it is up", "error", err)
		}
		return err
	}
	k.e.log.Info("the kernel half's maps are open", "pins", maps.PinDir(k.pins))
	return nil
}

// adopt puts cfg in force in maps that are open.
func (k *kernelLink) adopt(cfg *config.Config) {
	set := k.set
	if err := k.e.generation.join(set); err != nil {
		k.e.log.Warn("connections of QUIC would end with this process", "error", err)
	}
	if err := k.apply(cfg); err != nil {
		k.e.log.Error("the file is not in force in the kernel half: what was there before stays", "error", err)
	} else {
		k.tidy(cfg)
	}
	if err := set.WatchDrift(); err != nil {
		k.e.log.Warn("changes behind the daemon will not be noticed", "error", err)
	}
	k.keepGate()
	k.readEvents()
}

// newSteering makes what writes rows, and what finds the way to clients.
func newSteering(set *maps.Set, log *slog.Logger) (*steer.Controller, *steer.Resolver, error) {
	resolver, err := steer.NewResolver()
	if err != nil {
		return nil, nil, err
	}
	ctl, err := steer.New(set, log)
	if err != nil {
		resolver.Close()
		return nil, nil, err
	}
	return ctl, resolver, nil
}

// readEvents feeds sampled packets to the view of busy sources.
func (k *kernelLink) readEvents() {
	ctx, cancel := context.WithCancel(context.Background())
	k.stopEvents = cancel
	events := k.set.Events
	k.events.Go(func() {
		err := events.Read(ctx, func(ev maps.Event) error {
			k.e.busy.Add(ev)
			return nil
		})
		if err != nil && ctx.Err() == nil {
			k.e.log.Warn("sampled packets cannot be read: no top sources", "error", err)
		}
	})
}

// close lets go of the maps.
func (k *kernelLink) close() {
	if k.stopEvents != nil {
		k.stopEvents()
		k.events.Wait()
		k.stopEvents = nil
	}
	k.e.generation.leave()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.set == nil {
		return
	}
	k.steer.Close()
	k.resolver.Close()
	if err := k.set.Close(); err != nil {
		k.e.log.Warn("let go of the kernel half", "error", err)
	}
	k.set, k.steer, k.why = nil, nil, errors.New("the daemon let go of it")
	k.resolver, k.gate, k.retry = nil, nil, nil
}

// apply puts cfg in force in the kernel half, if that is there.
func (k *kernelLink) apply(cfg *config.Config) error {
	k.mu.RLock()
	set := k.set
	var err error
	if set != nil {
		err = k.applyTo(set, cfg)
	}
	k.mu.RUnlock()
	k.mu.Lock()
	k.broken = err
	k.mu.Unlock()
	if err == nil {
		k.lookForDrift() // of before
		k.drift.settle()
	}
	return err
}

// applyTo writes what is named before what names it: classes, policies and prefixes, backends,
// VIPs. An
// error leaves a mixture, which applying the former configuration undoes.
func (k *kernelLink) applyTo(set *maps.Set, cfg *config.Config) error {
	w := k.wanted(cfg)
	if err := control.ApplyRates(set, w); err != nil {
		return err
	}
	rep, err := geo.New(set).Apply(context.Background(), cfg.Geo)
	if err != nil {
		return err
	}
	k.compiled(cfg.Geo, rep)
	if err := cfg.CC.Apply(set.CC); err != nil {
		return err
	}
	for name, p := range cfg.CC.Profiles {
		if err := maps.CheckController(p.Controller); err != nil {
			k.e.log.Warn("connections keep the host's controller", "profile", name, "error", err)
		}
	}
	steering, err := cfg.ReadSteering()
	if err != nil {
		return err
	}
	key, err := k.steer.Apply(context.Background(), steering)
	if err != nil {
		return err
	}
	k.e.probes.setKey(key)
	return control.ApplyVIPs(set, w)
}

// tidy removes what the file no longer names.
func (k *kernelLink) tidy(cfg *config.Config) {
	_ = k.use(func(set *maps.Set) error { // without a kernel half there is nothing to tidy
		err := geo.New(set).Prune(cfg.Geo)
		kept, rerr := control.TidyRates(set, k.wanted(cfg))
		profiles, cerr := cfg.CC.Tidy(set.CC)
		if err := errors.Join(err, rerr, cerr, k.steer.Tidy()); err != nil {
			k.e.log.Warn("not all that the file no longer names could be removed", "error", err)
		}
		for _, s := range append(kept, profiles...) {
			k.e.log.Info(s)
		}
		return nil
	})
}

// wanted is the file's part of the tables of services and classes, with what was said of services since.
func (k *kernelLink) wanted(cfg *config.Config) control.Wanted {
	w := control.Wanted{ObserveOnly: cfg.Kernel.ObserveOnly}
	for name, c := range cfg.Rate.Classes {
		w.Rates = append(w.Rates, c.Class(name))
	}
	steering := cfg.Steering()
	for _, v := range cfg.VIPs {
		if said, ok := k.spills[v.Name]; ok {
			v.Spill = said
		}
		service := v.Service()
		service.Sites = steering.SitesOf(v.Abroad())
		w.VIPs = append(w.VIPs, service)
	}
	return w
}

// handOver gives this edge's rows to its peers.
func (k *kernelLink) handOver() {
	err := k.use(func(*maps.Set) error { return k.steer.SetDraining(true) })
	if err != nil && k.problem() == nil {
		k.e.log.Warn("rows not handed over: other edges still send flows here", "error", err)
	}
}

// relieved says whether others have this edge's rows, or there is nothing to have, and how many edges there are.
func (k *kernelLink) relieved() (peers int, yes bool) {
	yes = true // without a kernel half
	_ = k.use(func(*maps.Set) error { peers, yes = k.steer.Peers(), k.steer.Relieved(); return nil })
	return peers, yes
}

// acquainted returns when the other edges have been asked, and so have heard of this one.
func (k *kernelLink) acquainted() {
	k.mu.RLock()
	c := k.steer
	k.mu.RUnlock()
	if c != nil {
		c.Acquainted()
	}
}

// beat records this edge's own sign of life.
func (k *kernelLink) beat() {
	err := k.use(func(set *maps.Set) error {
		if self := set.Config.Self().Backend; self != 0 {
			return set.Backends.Beat(self)
		}
		return nil
	})
	if err != nil && k.problem() == nil {
		k.e.log.Warn("record a sign of life", "error", err)
	}
}

// emitHealth tells which backends answer probes.
func (k *kernelLink) emitHealth(emit observe.Emit) {
	_ = k.use(func(*maps.Set) error { // without a kernel half there are none
		known, err := k.steer.Status()
		for _, s := range known {
			emit(observe.BackendUp, truth(s.Alive), s.Set, s.Name)
		}
		return err
	})
}

// backends are what the kernel half's rows name, with what is known of their health.
func (k *kernelLink) backends(set *maps.Set) ([]control.Backend, error) {
	list, err := control.Backends(set)
	if err != nil {
		return nil, err
	}
	known, err := k.steer.Status()
	if err != nil {
		return nil, err
	}
	for _, s := range known {
		i := slices.IndexFunc(list, func(b control.Backend) bool { return b.Set == s.Set && b.Name == s.Name })
		if i < 0 { // without a row: its health, or its weight, has taken all from it
			list = append(list, control.Backend{Set: s.Set, Site: s.Site, Name: s.Name, Address: s.Address, Via: s.Via, Self: s.Self, Ready: s.NextHop.Ready, Seen: -1})
			i = len(list) - 1
			if b, err := set.Backends.Get(s.Name); err == nil {
				list[i].ID, list[i].Seen = b.ID, control.Seen(b)
			}
		}
		b := &list[i]
		b.Site = s.Site
		b.Healthy, b.Error = s.Alive, cmp.Or(s.Why, s.Trouble)
		if !s.Self {
			b.Probe, b.Direct = s.Probe, s.Direct
		}
		b.Moved, b.Draining, b.Weight, b.Share = s.Moved, s.Says.Draining, s.Says.Weight, s.Says.Share
	}
	return list, nil
}

// snapshot keeps this second's counters, and follows the traffic with the sampling.
func (e *Edge) snapshot() {
	st := e.content.cache.get().Stats()
	now := observe.Snapshot{Time: time.Now(), Requests: e.access.Total(), Hits: st.Hits, Lookups: st.Hits + st.Misses + st.Collapsed}
	err := e.kernel.use(func(set *maps.Set) (err error) {
		if now.Drops, err = set.Stats.Drops(); err != nil {
			return err
		}
		if now.Shadows, err = set.Stats.Shadows(); err != nil {
			return err
		}
		now.VIPs, err = set.Stats.VIPs()
		if err != nil {
			return err
		}
		if from, to, ok := e.history.Over(1); ok && from.Drops != nil && to.Drops != nil {
			err = observe.Tune(set.Samples, from, to)
		}
		return err
	})
	e.history.Add(now)
	if err != nil && e.kernel.problem() == nil {
		e.log.Warn("read the kernel half's counters", "error", err)
	}
}
