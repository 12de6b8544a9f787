// Package pipeline is the one ordered list a request goes through, the same shape as the kernel half:
//
//	identify → guard → route → compute → cache → origin → deliver
//
// # Writing a stage
//
// A stage is a value with a Name and a Run. Run looks at the Exchange, writes what it learnt into it, and returns
// Next, or the final action together with its reason in the same breath:
//
//		func (s *Ban) Run(x *pipeline.Exchange) pipeline.Action {
//			if s.banned(x.Client.Addr()) {
//				return x.Refuse(http.StatusForbidden, ReasonBanned)
//			}
//			return pipeline.Next
//		}
//
//	  - x.Answer(reason) hands x.Status, x.Head, x.Extra and x.Body, which the stage has filled, to the exit.
//	  - x.Refuse(status, reason) answers with a short text that names the reason. A stage whose shadow form is on has
//	    its refusals counted, and the request goes on.
//	  - x.Wrote(reason) says that the stage answered through x.W by itself.
//
// Stages hold no per-request state: it lives in the Exchange, which is pooled. Nothing may keep an Exchange, or a
// slice of it, after Run or Body.Send has returned, except through x.OnAnswer, which runs before the exit.
//
// There is one exit, finish: it runs the OnAnswer hooks, delivers, counts, and tells the observers.
package pipeline

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bermedge/berm/userspace/clock"
)

// Action is what a stage answers.
type Action uint8

// The actions. Everything but Next is final.
const (
	Next   Action = iota // nothing to say: ask the next stage
	Answer               // x.Status, x.Head, x.Extra and x.Body are the answer
	Refuse               // refused with x.Status and a reason
	Wrote                // the stage wrote the answer to x.W itself
)

var actionNames = [...]string{Next: "next", Answer: "answer", Refuse: "refuse", Wrote: "wrote"}

// String returns the action's name as metrics and logs use it.
func (a Action) String() string {
	if int(a) < len(actionNames) {
		return actionNames[a]
	}
	return fmt.Sprintf("action(%d)", uint8(a))
}

// Reason says why an action was taken: a short lower-case word with underscores, the same in metrics, logs and the
// body of a refusal. Stages declare theirs as constants; the set is small and never made from request data.
type Reason string

// Reasons of the pipeline itself.
const (
	ReasonUnanswered Reason = "unanswered" // no stage had an answer: a list without an origin
)

// Stage is one step of the list. Run is called concurrently.
type Stage interface {
	// Name is the stage's word in metrics and logs, "cache" for instance.
	Name() string
	// Run returns Next or a final action with its reason.
	Run(x *Exchange) Action
}

// Outcome is what the exit knows about a finished exchange.
type Outcome struct {
	Stage   string // that had the last word
	Action  Action
	Reason  Reason
	Status  int
	Bytes   int64         // of the body, as sent
	Head    time.Duration // until the head of the answer was known
	Elapsed time.Duration
	Err     error // why the body was cut short: the client left, or the origin did
}

// Observer is told about every finished exchange, on the request's goroutine: metrics and access logs.
// x is valid only during the call.
type Observer interface {
	Exchange(x *Exchange, out Outcome)
}

// Pipeline is the ordered list. It is an http.Handler.
type Pipeline struct {
	slots     []slot
	observers []Observer
	clock     clock.Clock
	counts    counts
	diet      *Diet // nil: none
	pool      sync.Pool
}

// slot is a stage in its place, with its shadow switch.
type slot struct {
	stage  Stage
	name   string
	shadow *atomic.Bool
}

// Option changes a pipeline while it is made.
type Option func(*Pipeline)

// WithObserver adds an observer of finished exchanges.
func WithObserver(o Observer) Option {
	return func(p *Pipeline) { p.observers = append(p.observers, o) }
}

// WithClock replaces the system's clock.
func WithClock(c clock.Clock) Option { return func(p *Pipeline) { p.clock = c } }

// New makes a pipeline of stages, in that order. Names must be unique.
func New(stages []Stage, opts ...Option) (*Pipeline, error) {
	p := &Pipeline{clock: clock.System{}}
	p.pool.New = func() any { return new(Exchange) }
	seen := map[string]bool{}
	var errs []error
	for _, s := range stages {
		if seen[s.Name()] {
			errs = append(errs, fmt.Errorf("pipeline: two stages are named %q", s.Name()))
		}
		seen[s.Name()] = true
		p.slots = append(p.slots, slot{stage: s, name: s.Name(), shadow: new(atomic.Bool)})
	}
	for _, o := range opts {
		o(p)
	}
	return p, errors.Join(errs...)
}

// Stages returns the names of the stages in order.
func (p *Pipeline) Stages() []string {
	names := make([]string, len(p.slots))
	for i := range p.slots {
		names[i] = p.slots[i].name
	}
	return names
}

// SetShadow turns a stage's shadow form on or off: in shadow its refusals are counted and not enforced.
func (p *Pipeline) SetShadow(stage string, on bool) error {
	for i := range p.slots {
		if p.slots[i].name == stage {
			p.slots[i].shadow.Store(on)
			return nil
		}
	}
	return fmt.Errorf("pipeline: no stage %q (there are %v)", stage, p.Stages())
}

// ServeHTTP sends one request through the list.
func (p *Pipeline) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := p.pool.Get().(*Exchange)
	x.W, x.R, x.Start = w, r, p.clock.Now()

	at, act := p.runStages(x)
	err := p.finish(x, at, act)

	sent := x.started
	x.reset()
	p.pool.Put(x)
	if err != nil && sent {
		// The head is out: only breaking the connection (or resetting the stream) tells the client that the
		// body is not whole.
		panic(http.ErrAbortHandler)
	}
}

// runStages returns the final action and the place of the stage that gave it.
func (p *Pipeline) runStages(x *Exchange) (int, Action) {
	for i := range p.slots {
		s := &p.slots[i]
		act := s.stage.Run(x)
		if act == Next {
			continue
		}
		if act == Refuse && s.shadow.Load() {
			p.counts.add(countKey{s.name, act, x.Reason, true})
			x.unrefuse()
			continue
		}
		return i, act
	}
	return -1, x.Refuse(http.StatusNotFound, ReasonUnanswered)
}

// finish is the one exit: hooks, delivery, counting, observers.
func (p *Pipeline) finish(x *Exchange, at int, act Action) error {
	name := "deliver"
	if at >= 0 {
		name = p.slots[at].name
	}
	for _, f := range x.onAnswer {
		f(x)
	}
	var head time.Duration
	if len(p.observers) > 0 {
		head = p.clock.Now().Sub(x.Start)
	}
	n, err := x.deliver(act, p.diet)
	p.counts.add(countKey{name, act, x.Reason, false})
	if len(p.observers) == 0 {
		return err
	}
	out := Outcome{
		Stage: name, Action: act, Reason: x.Reason, Status: x.Status, Bytes: n, Head: head,
		Elapsed: p.clock.Now().Sub(x.Start), Err: err,
	}
	for _, o := range p.observers {
		o.Exchange(x, out)
	}
	return err
}
