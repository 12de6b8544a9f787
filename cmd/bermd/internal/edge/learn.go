package edge

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/config"
	"github.com/bermedge/berm/userspace/congestion"
	"github.com/bermedge/berm/userspace/congestion/quiccc"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/observe"
)

// How often the learner looks at what came of connections, and how often it keeps what it knows.
const (
	learnEvery = time.Second
	keepEvery  = time.Minute
)

// newLearner makes what chooses congestion controllers. It begins with what it knew before once it runs.
func newLearner(cfg *config.Config) *congestion.Learner {
	host, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	if err != nil {
		host = nil // then nothing is known of the host's own
	}
	l := congestion.NewLearner(strings.TrimSpace(string(host)), quiccc.Default)
	l.Apply(cfg.CC)
	return l
}

// learn runs the learner until ctx ends.
func (e *Edge) learn(ctx context.Context) {
	if err := errors.Join(e.learner.Load(e.opts.State, e.clock.Now()), e.quiccc.LoadFloors(e.opts.State)); err != nil {
		e.log.Warn("learner", "error", err)
	}
	e.look() // what is counted from here on is new
	tick := time.NewTicker(learnEvery)
	defer tick.Stop()
	kept := time.Now()
	for {
		select {
		case <-ctx.Done():
			e.keepLearned()
			return
		case <-tick.C:
		}
		e.look()
		if time.Since(kept) >= keepEvery {
			e.keepLearned()
			kept = time.Now()
		}
	}
}

func (e *Edge) keepLearned() {
	if err := errors.Join(e.learner.Save(e.opts.State), e.quiccc.SaveFloors(e.opts.State)); err != nil {
		e.log.Warn("learner", "error", err)
	}
}

// look has the learner look once.
func (e *Edge) look() {
	before := e.learner.Status().Trouble
	err := e.kernel.use(func(set *maps.Set) error { return e.learner.Tick(e.clock.Now(), set.CC) })
	if err != nil && e.kernel.problem() == nil && before != err.Error() {
		e.log.Warn("congestion controllers are not chosen by what they reach", "error", err)
	}
}

// Learning tells what the learner is about.
func (e *Edge) Learning(context.Context) (control.Learning, error) {
	s := e.learner.Status()
	return control.Learning{
		Mode: s.Mode.String(), Said: s.Said, Trouble: s.Trouble, Arms: s.Arms, HoldOut: s.HoldOut, Prefixes: s.Prefixes,
		Chosen: s.Chosen, Held: s.Held, Changes: s.Changes, Evicted: s.Evicted,
	}, nil
}

// SetLearning changes the learner's mode until the file is loaded again.
func (e *Edge) SetLearning(_ context.Context, o control.LearnOrder) (control.Changes, error) {
	var mode congestion.Mode
	if err := mode.UnmarshalText([]byte(o.Mode)); err != nil {
		return control.Changes{}, &control.Error{Status: http.StatusBadRequest, Message: err.Error()}
	}
	was := e.learner.Mode()
	e.learner.Say(mode)
	e.look()
	if was == mode {
		return control.Changes{Changed: []string{}}, nil
	}
	says := map[congestion.Mode]string{
		congestion.Off:    "what was learned is no longer in force, and stays known",
		congestion.Shadow: "it says what it would choose (berm cc explain), and connections begin as operators and the file decided",
		congestion.On:     "prefixes that nobody decided about get the profile that does best",
	}
	return control.Changes{Changed: []string{"learner " + mode.String() + ": " + says[mode] + "; a reload or restart goes by cc.learn.mode again"}}, nil
}

// Learned tells what was learned of an address's prefix.
func (e *Edge) Learned(_ context.Context, ip netip.Addr) (*control.Learned, error) {
	l, ok := e.learner.Explain(ip)
	if !ok {
		return nil, nil //nolint:nilnil // nothing is known, and that is no error
	}
	out := &control.Learned{
		Prefix: l.Prefix, Mode: l.Mode.String(), Profile: l.Profile, Learned: l.Learned, Why: l.Why, Since: l.Since, Held: l.Held,
		HoldOut: l.HoldOut, Scores: []control.LearnedScore{},
	}
	for _, s := range l.Scores {
		out.Scores = append(out.Scores, control.LearnedScore(s))
	}
	return out, nil
}

func (e *Edge) emitLearner(emit observe.Emit) {
	s := e.learner.Status()
	for _, m := range []congestion.Mode{congestion.Off, congestion.Shadow, congestion.On} {
		emit(observe.CCLearnMode, truth(m == s.Mode), m.String())
	}
	for profile, n := range s.Chosen {
		emit(observe.CCLearned, float64(n), profile)
	}
	emit(observe.CCLearnHeld, float64(s.Held))
	emit(observe.CCChanges, float64(s.Changes))
	emit(observe.CCEvicted, float64(s.Evicted))
}
