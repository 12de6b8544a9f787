package edge

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/bermedge/berm/userspace/anycast"
	"github.com/bermedge/berm/userspace/anycast/bfd"
	"github.com/bermedge/berm/userspace/config"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/observe"
)

// newAnycast makes what tells routers of this edge. It speaks once a configuration is applied.
func (e *Edge) newAnycast() *anycast.Announcer {
	return anycast.New(anycast.Options{
		Clock: e.clock, Log: e.log.Logger, State: e.opts.State, Health: e.anycastHealth, Alive: e.heart.beating,
	})
}

func (e *Edge) applyAnycast(ctx context.Context, cfg *config.Config) error {
	if err := e.anycast.Apply(ctx, cfg.Anycast, cfg.Announces()); err != nil {
		return errors.Join(errAnycast, err)
	}
	return nil
}

// errAnycast says which section an error of its parts belongs to.
var errAnycast = errors.New("section anycast is not in force")

// anycastHealth is what matters to who decides where clients go. A certificate that ends soon does
// not: moving clients to another edge would not help them.
func (e *Edge) anycastHealth() anycast.Health {
	h := anycast.Health{Alive: e.heart.beating()}
	if !e.ready.Load() {
		h.Problems = append(h.Problems, "starting or stopping")
	}
	if err := e.kernel.problem(); err != nil {
		h.Problems = append(h.Problems, err.Error())
	}
	h.Problems = append(h.Problems, e.originProblems()...)
	return h
}

// Anycast tells what routers are told.
func (e *Edge) Anycast(context.Context) (control.Anycast, error) {
	s := e.anycast.Status()
	if !s.Enabled {
		return control.Anycast{}, anycastOff()
	}
	return anycastView(s), nil
}

func anycastOff() error {
	return &control.Error{Status: http.StatusNotFound, Message: "nothing is announced by this edge", Hint: "name peers in section anycast of the file"}
}

// orders are an operator's words for commands.
var orders = map[string]anycast.Command{"announce": anycast.Follow, "drain": anycast.Drain, "withdraw": anycast.Withdraw} //nolint:gochecknoglobals // constant

// OrderAnycast overrides health until the command "announce".
func (e *Edge) OrderAnycast(_ context.Context, o control.AnycastOrder) (control.Anycast, error) {
	c, ok := orders[o.Command]
	if !ok {
		return control.Anycast{}, &control.Error{Status: http.StatusBadRequest, Message: "no command is called " + o.Command, Hint: "announce, drain or withdraw"}
	}
	before := e.anycast.Status()
	s, err := e.anycast.Order(c)
	if errors.Is(err, anycast.ErrOff) {
		return control.Anycast{}, anycastOff()
	}
	if err != nil {
		return control.Anycast{}, err
	}
	out := anycastView(s)
	out.Changed = []string{}
	if before.Phase != s.Phase {
		out.Changed = append(out.Changed, string(before.Phase)+" before, "+string(s.Phase)+" now: "+s.Why)
	} else if before.Command != s.Command {
		out.Changed = append(out.Changed, string(s.Phase)+" as before, now because: "+s.Why)
	}
	return out, nil
}

func anycastView(s anycast.Status) control.Anycast {
	out := control.Anycast{
		AS: s.AS, Phase: string(s.Phase), Why: s.Why, Since: s.Since, Command: string(s.Command),
		Routes: []control.AnycastRoute{}, Peers: []control.AnycastPeer{},
	}
	for _, r := range s.Routes {
		x := control.AnycastRoute{Prefix: r.Prefix, NextHop: "self", Communities: []string{}, MED: r.MED, Prepend: r.Prepend}
		if !r.NextHop.IsUnspecified() {
			x.NextHop = r.NextHop.String()
		}
		for _, c := range r.Communities {
			x.Communities = append(x.Communities, c.String())
		}
		out.Routes = append(out.Routes, x)
	}
	for _, p := range s.Peers {
		x := control.AnycastPeer{
			Address: p.Address, AS: p.AS, State: p.State, Up: p.Up, Since: p.Since, Sessions: p.Sessions, Error: p.Error,
			HoldTime: p.HoldTime.Seconds(), Received: p.Received,
		}
		if b := p.BFD; b != nil {
			x.BFD = &control.AnycastBFD{
				State: b.State.String(), Since: b.Since, Interval: millis(b.Interval), Detection: millis(b.Detection),
				Sent: b.Sent, Received: b.Received, Held: b.Held,
			}
		}
		out.Peers = append(out.Peers, x)
	}
	return out
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func (e *Edge) emitAnycast(emit observe.Emit) {
	s := e.anycast.Status()
	if !s.Enabled {
		return
	}
	for _, p := range anycast.Phases() {
		emit(observe.AnycastPhase, truth(p == s.Phase), string(p))
		emit(observe.AnycastChanges, float64(s.Changes[p]), string(p))
	}
	emit(observe.AnycastRoutes, float64(len(s.Routes)))
	emit(observe.AnycastIgnored, float64(s.Ignored))
	for _, p := range s.Peers {
		name := p.Address.String()
		emit(observe.AnycastPeerUp, truth(p.Up), name)
		emit(observe.AnycastSessions, float64(p.Sessions), name)
		emit(observe.AnycastReceived, float64(p.Received), name)
		if b := p.BFD; b != nil {
			emit(observe.AnycastBFDUp, truth(b.State == bfd.Up), name)
			emit(observe.AnycastBFD, float64(b.Sent), name, "sent")
			emit(observe.AnycastBFD, float64(b.Received), name, "received")
			emit(observe.AnycastBFD, float64(b.Held), name, "held")
		}
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// stopAnycast drains: within listen.drain at most, since the requests in flight have to wait for it.
func (e *Edge) stopAnycast(ctx context.Context) {
	cfg := e.cfg.Load()
	ctx, cancel := context.WithTimeout(ctx, min(cfg.Anycast.Drain, cfg.Listen.Drain)+time.Second)
	defer cancel()
	if err := e.anycast.Stop(ctx); err != nil {
		e.log.Warn("routers may send flows here until the sessions end", "error", err)
	}
}

// originProblems names origins that nobody answers for.
func (e *Edge) originProblems() (out []string) {
	well := map[string]bool{}
	for _, o := range e.origins() {
		well[o.Origin] = well[o.Origin] || o.Healthy
	}
	for name, ok := range well {
		if !ok {
			out = append(out, "no server of origin "+name+" is healthy")
		}
	}
	slices.Sort(out)
	return out
}
