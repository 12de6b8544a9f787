// Package anycast tells routers by BGP which addresses are reached through this edge, watched by
// BFD: announced while it is healthy, made unattractive (prepended) while it is sick or drains, and
// withdrawn after that. BGP is GoBGP's, inside the daemon; it takes no privilege. Nothing that
// routers send is used.
package anycast

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/bermedge/berm/userspace/clock"
)

// Options are what an Announcer is given.
type Options struct {
	Clock clock.Clock
	Log   *slog.Logger
	State string // directory where an operator's command outlives the daemon; "" for none
	// Health tells how the edge is, often. Alive says, more often, whether requests get through it;
	// while they do not, BFD is silent.
	Health func() Health
	Alive  func() bool
}

// every is how often health is looked at.
const every = 100 * time.Millisecond

// Announcer announces.
type Announcer struct {
	opts Options

	mu      sync.Mutex
	cfg     Config
	vips    []netip.Addr
	speaker *speaker // nil: nothing is configured
	decider *decider
	told    Phase // last logged
	changes map[Phase]uint64
}

// New makes an Announcer, which speaks with nobody before Apply.
func New(opts Options) *Announcer {
	a := &Announcer{opts: opts, changes: map[Phase]uint64{}, told: Withdrawn}
	a.decider = newDecider(Default(), opts.Clock.Now())
	if c, err := a.recall(); err != nil {
		opts.Log.Warn("an operator's command of before the start is not known", "error", err)
	} else if c != Follow {
		a.decider.order(c, opts.Clock.Now())
	}
	return a
}

// Apply puts a configuration in force. vips are what is announced unless it says otherwise. On an
// error the one before is in force again.
func (a *Announcer) Apply(ctx context.Context, cfg Config, vips []netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.cfg
	if err := a.switchTo(ctx, cfg); err != nil {
		if back := a.switchTo(ctx, old); back != nil {
			err = errors.Join(err, fmt.Errorf("and the configuration before could not be put back: %w", back))
		}
		return err
	}
	a.cfg, a.vips = cfg, vips
	a.decider.configure(cfg)
	return a.follow()
}

func (a *Announcer) switchTo(ctx context.Context, cfg Config) (err error) {
	if s := a.speaker; s != nil && cfg.Enabled() && s.sameRoot(cfg) {
		return s.apply(ctx, cfg)
	}
	if a.speaker != nil {
		err := a.speaker.close()
		a.speaker = nil
		if err != nil {
			return err
		}
	}
	if cfg.Enabled() {
		a.speaker, err = newSpeaker(cfg, a.opts.Clock, a.opts.Log, a.opts.Alive)
	}
	return err
}

// Run follows health until ctx ends.
func (a *Announcer) Run(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	said := "" // an error that stays is told once
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		a.mu.Lock()
		err := a.follow()
		a.mu.Unlock()
		if err == nil {
			said = ""
		} else if err.Error() != said {
			said = err.Error()
			a.opts.Log.Error("routers are not told what they should be", "error", err)
		}
	}
}

// follow tells routers what is decided now.
func (a *Announcer) follow() error {
	if a.speaker == nil {
		return nil
	}
	dec := a.decider.decide(a.opts.Clock.Now(), a.opts.Health())
	if dec.phase != a.told {
		a.opts.Log.Info("anycast", "phase", string(dec.phase), "before", string(a.told), "why", dec.why)
		a.told = dec.phase
		a.changes[dec.phase]++
	}
	return a.speaker.announce(a.cfg.routes(a.vips, dec))
}

// Order takes an operator's command, and returns what routers are told from now on.
func (a *Announcer) Order(c Command) (Status, error) {
	a.mu.Lock()
	if a.speaker == nil {
		a.mu.Unlock()
		return Status{}, ErrOff
	}
	a.decider.order(c, a.opts.Clock.Now())
	a.opts.Log.Info("anycast: an operator's command", "command", string(c))
	err := errors.Join(a.follow(), a.remember(c))
	a.mu.Unlock()
	return a.Status(), err
}

// ErrOff is returned while the configuration names no peer.
var ErrOff = errors.New("nothing is announced by this edge (name peers in section anycast of the file)")

// Stop drains: routers are told to prefer others, then that nothing is reached here, then the
// sessions end. It ends early when nobody listens, or with ctx.
func (a *Announcer) Stop(ctx context.Context) error {
	a.mu.Lock()
	a.decider.stop(a.opts.Clock.Now())
	err := a.follow()
	a.mu.Unlock()
	tick := time.NewTicker(every / 4)
	defer tick.Stop()
	for err == nil && !a.silent() {
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-tick.C:
			a.mu.Lock()
			err = a.follow()
			a.mu.Unlock()
		}
	}
	return err
}

// silent tells whether no router is told anything.
func (a *Announcer) silent() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.speaker == nil || a.speaker.established() == 0 || len(a.speaker.routes) == 0
}

// Close ends all sessions.
func (a *Announcer) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.speaker == nil {
		return nil
	}
	err := a.speaker.close()
	a.speaker = nil
	return err
}

// order is the file in which a command outlives the daemon: one that was withdrawn for repairs must
// not come back by itself after a restart.
type order struct {
	Command Command   `json:"command"`
	Time    time.Time `json:"time"`
}

func (a *Announcer) file() string { return filepath.Join(a.opts.State, "anycast.json") }

func (a *Announcer) remember(c Command) error {
	if a.opts.State == "" {
		return nil
	}
	if c == Follow {
		if err := os.Remove(a.file()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget the command: %w", err)
		}
		return nil
	}
	b, err := json.Marshal(order{c, time.Now()})
	if err == nil {
		err = os.WriteFile(a.file(), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("the command is in force, but will be forgotten when the daemon ends: %w", err)
	}
	return nil
}

func (a *Announcer) recall() (Command, error) {
	if a.opts.State == "" {
		return Follow, nil
	}
	b, err := os.ReadFile(a.file())
	if errors.Is(err, fs.ErrNotExist) {
		return Follow, nil
	}
	if err != nil {
		return Follow, err
	}
	var o order
	if err := json.Unmarshal(b, &o); err != nil {
		return Follow, fmt.Errorf("%s: %w", a.file(), err)
	}
	if o.Command != Drain && o.Command != Withdraw {
		return Follow, fmt.Errorf("%s: %q is no command", a.file(), o.Command)
	}
	return o.Command, nil
}
