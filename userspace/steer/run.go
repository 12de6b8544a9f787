package steer

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	bermmaps "github.com/bermedge/berm/maps"
)

const (
	resolveAgain = time.Second            // next hops change rarely
	resolveSoon  = 100 * time.Millisecond // while one is being asked for
	beatEvery    = time.Second            // a sign of life is written at most this often
	hostAgain    = time.Second            // while its daemon is silent, a host is asked for this often
	forgetEvery  = time.Minute            // rows whose second chances are over are looked for
)

// start runs a prober for each backend but this edge, and the resolver. The caller holds mu.
func (c *Controller) start(key [32]byte) {
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	if c.backends == nil {
		return // nothing was ever applied
	}
	c.wg.Go(func() { c.keepResolved(ctx) })
	c.first = &sync.WaitGroup{}
	for name, b := range c.backends {
		if name == c.self {
			continue
		}
		p, addr, alive := b.probe, b.address, b.alive
		if b.site != "" {
			p = p.far()
		}
		c.first.Add(1)
		first := sync.OnceFunc(c.first.Done)
		f := follower{c: c, name: name, id: b.id, up: b.up, says: b.says, hostUp: func(err error) bool { return p.hostUp(ctx, addr, err) }}
		t := newTunnel(b)
		ask := func(ctx context.Context) (Says, error) {
			if err := t.check(); err != nil {
				return Says{}, err
			}
			return p.ask(ctx, addr, key)
		}
		c.wg.Go(func() {
			defer t.close()
			defer first()
			p.watch(ctx, ask, alive, func(r result) {
				f.follow(r)
				first()
			})
		})
	}
}

// Acquainted returns when each backend has been asked once, and rows say what came of it: within a probe's time limit.
func (c *Controller) Acquainted() {
	c.mu.Lock()
	first := c.first
	c.mu.Unlock()
	if first != nil { // else nothing was ever applied
		first.Wait()
	}
}

// Peers counts the other edges of this site that answer.
func (c *Controller) Peers() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, b := range c.backends {
		if name != c.self && b.via == bermmaps.ViaEdge && b.site == "" && b.alive && b.met {
			n++
		}
	}
	return n
}

// follower makes of a backend's probes what the controller has to know.
type follower struct {
	c      *Controller
	name   string
	id     uint32
	hostUp func(error) bool

	says          Says
	up, met       bool
	beaten, asked time.Time // its sign of life was written; its host was asked for
}

func (f *follower) follow(r result) {
	up := true
	if r.err == nil && !f.met {
		f.met = true
		f.c.meet(f.name)
	}
	if r.err != nil {
		up = f.up
		if !r.alive && (r.changed || time.Since(f.asked) >= hostAgain) {
			up, f.asked = f.hostUp(r.err), time.Now()
		}
	} else if time.Since(f.beaten) >= beatEvery {
		f.beaten = time.Now()
		if err := f.c.maps.Backends.Beat(f.id); err != nil {
			f.c.log.Warn("record a backend's sign of life", "backend", f.name, "error", err)
		}
	}
	if r.err != nil {
		r.says = f.says
	}
	if r.changed || up != f.up || r.says != f.says {
		f.up, f.says = up, r.says
		f.c.turned(f.name, r, up)
	}
}

// meet notes that a backend has answered.
func (c *Controller) meet(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.backends[name].met = true
}

// turned moves rows when a backend went away, returned, or says something else of itself.
func (c *Controller) turned(name string, r result, up bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.backends[name]
	if b.says != r.says {
		c.log.Info("backend says of itself", "backend", name, "draining", r.says.Draining, "weight", r.says.Weight, "share", r.says.Share)
	}
	b.says, b.up = r.says, up
	if !up && !r.alive {
		if err := c.maps.Newcomers.Forget(b.id); err != nil {
			c.log.Error("forget the flows of a backend that is gone", "backend", name, "error", err)
		}
	}
	if r.changed {
		b.alive, b.since, b.why = r.alive, time.Now(), ""
	}
	switch {
	case r.changed && r.alive:
		c.log.Info("backend answers again", "backend", name)
	case r.changed:
		b.why = r.err.Error()
		c.log.Warn("backend does not answer: its rows go to the others", "backend", name, "host_up", up, "error", r.err)
	}
	if err := c.writeRows(); err != nil {
		c.log.Error("rows are not as they should be", "error", err)
	}
}

// keepResolved keeps the next hops of all backends known and right.
func (c *Controller) keepResolved(ctx context.Context) {
	forgot := time.Now()
	for {
		c.mu.Lock()
		if time.Since(forgot) >= forgetEvery {
			forgot = time.Now()
			if err := c.writeRows(); err != nil {
				c.log.Error("rows are not as they should be", "error", err)
			}
		}
		wait := resolveAgain
		for name := range c.backends {
			if !c.resolve(name) {
				wait = resolveSoon
			}
		}
		c.boundTunnels()
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// resolve finds a backend's next hop and writes it when it changed. It says whether it is known. One
// that was known stays in force while it is asked for again. The caller holds mu.
func (c *Controller) resolve(name string) bool {
	b := c.backends[name]
	if name == c.self {
		return true
	}
	hop, err := c.resolver.resolve(b.address, b.via == bermmaps.ViaL2)
	if err != nil {
		if text := err.Error(); text != b.told && !errors.Is(err, ErrUnresolved) {
			c.log.Warn("backend cannot be reached", "backend", name, "error", err)
			b.told = text
		}
		return false
	}
	b.told = ""
	if hop == b.hop {
		return true
	}
	if err := c.maps.Backends.SetNextHop(b.id, hop); err != nil {
		c.log.Warn("write a backend's next hop", "backend", name, "error", err)
		return false
	}
	c.log.Info("next hop", "backend", name, "interface", hop.Interface, "mac", hop.MAC)
	b.hop = hop
	return true
}

// boundTunnels tells the kernel half what the links towards the backends can carry: what does not fit
// is refused with a reason there, instead of being lost on the way. The caller holds mu.
func (c *Controller) boundTunnels() {
	var interfaces []int
	for _, b := range c.backends {
		if b.hop.Ready && !slices.Contains(interfaces, b.hop.Interface) {
			interfaces = append(interfaces, b.hop.Interface)
		}
	}
	mtu, err := c.resolver.MTU(interfaces)
	if err == nil && mtu != 0 && mtu != c.maps.Config.MTU() {
		c.log.Info("largest tunnelled packet", "bytes", mtu)
		err = c.maps.Config.SetMTU(mtu)
	}
	if err != nil {
		c.log.Warn("bound the size of tunnelled packets", "error", err)
	}
}
