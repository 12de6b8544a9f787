package anycast

import (
	"strings"
	"testing"
	"time"
)

var (
	well = Health{Alive: true}
	ill  = Health{Alive: true, Problems: []string{"no origin"}}
	hung = Health{}
)

// step is what happens, and what routers are told then.
type step struct {
	after    time.Duration // the step before
	health   Health
	order    *Command
	stop     bool
	want     Phase
	graceful bool
	why      string
}

func order1(c Command) *Command { return &c }

func TestDecide(t *testing.T) {
	cfg := Default()
	cfg.Drain, cfg.Sick = 3*time.Second, Sick{After: time.Second, Hold: 30 * time.Second, Recover: 10 * time.Second}
	forever, abrupt := cfg, cfg
	forever.Sick.Hold = 0
	abrupt.Prepend, abrupt.Drain = 0, 0
	for name, tc := range map[string]struct {
		cfg   Config
		steps []step
	}{
		"announced once it is well": {cfg, []step{
			{0, ill, nil, false, Withdrawn, false, "no origin"},
			{time.Hour, ill, nil, false, Withdrawn, false, "no origin"},
			{time.Second, well, nil, false, Announced, false, "healthy"},
		}},
		"a short problem is nothing": {cfg, []step{
			{0, well, nil, false, Announced, false, "healthy"},
			{time.Second, ill, nil, false, Announced, false, "moment ago: no origin"},
			{999 * time.Millisecond, ill, nil, false, Announced, false, "moment ago"},
			{time.Millisecond / 2, well, nil, false, Announced, false, "healthy"},
			{time.Second, ill, nil, false, Announced, false, "moment ago"}, // counted anew
		}},
		"sick, then gone, then back": {cfg, []step{
			{0, well, nil, false, Announced, false, "healthy"},
			{0, ill, nil, false, Announced, false, ""},
			{time.Second, ill, nil, false, Prepended, false, "no origin"},
			{29 * time.Second, ill, nil, false, Prepended, false, "no origin"},
			{time.Second, ill, nil, false, Withdrawn, false, "no origin"},
			{time.Hour, well, nil, false, Withdrawn, false, "announced in 10s"},
			{9 * time.Second, well, nil, false, Withdrawn, false, "announced in 1s"},
			{time.Second, well, nil, false, Announced, false, "healthy"},
		}},
		"it does not flap": {cfg, []step{
			{0, well, nil, false, Announced, false, ""},
			{0, ill, nil, false, Announced, false, ""},
			{time.Second, ill, nil, false, Prepended, false, ""},
			{time.Second, well, nil, false, Prepended, false, "announced in 10s"},
			{9 * time.Second, ill, nil, false, Prepended, false, ""},
			{time.Second, well, nil, false, Prepended, false, "announced in 10s"},
			{10 * time.Second, well, nil, false, Announced, false, ""},
		}},
		"hold 0 stays prepended": {forever, []step{
			{0, well, nil, false, Announced, false, ""},
			{0, ill, nil, false, Announced, false, ""},
			{time.Hour, ill, nil, false, Prepended, false, ""},
			{24 * time.Hour, ill, nil, false, Prepended, false, ""},
		}},
		"hung is gone at once": {cfg, []step{
			{0, well, nil, false, Announced, false, ""},
			{time.Millisecond, hung, nil, false, Withdrawn, false, "do not get through"},
			{time.Second, well, nil, false, Withdrawn, false, "announced in 10s"},
			{10 * time.Second, well, nil, false, Announced, false, ""},
		}},
		"an operator drains": {cfg, []step{
			{0, well, nil, false, Announced, false, ""},
			{time.Minute, well, order1(Drain), false, Prepended, true, "operator drains"},
			{2 * time.Second, well, order1(Drain), false, Prepended, true, ""}, // again: its time goes on
			{time.Second, ill, nil, false, Withdrawn, false, "operator drains"},
			{time.Hour, well, nil, false, Withdrawn, false, "operator drains"},
			{0, well, order1(Follow), false, Withdrawn, false, "announced in 10s"}, // it was ill lately
			{10 * time.Second, well, nil, false, Announced, false, "healthy"},
			{time.Second, well, order1(Withdraw), false, Withdrawn, false, "operator withdrew"},
			{time.Second, well, order1(Follow), false, Announced, false, "healthy"}, // well all the time
		}},
		"withdraw is stronger than the end": {cfg, []step{
			{0, well, nil, false, Announced, false, ""},
			{0, well, order1(Withdraw), true, Withdrawn, false, "operator withdrew"},
		}},
		"a drain over a restart": {cfg, []step{
			{0, well, order1(Drain), false, Withdrawn, false, "operator drains"},
			{time.Second, well, nil, false, Withdrawn, false, "operator drains"},
		}},
		"the daemon ends": {cfg, []step{
			{0, well, nil, false, Announced, false, ""},
			{0, well, nil, true, Prepended, true, "daemon ends"},
			{2999 * time.Millisecond, hung, nil, false, Prepended, true, ""},
			{time.Millisecond, hung, nil, false, Withdrawn, false, "daemon ends"},
		}},
		"without patience": {abrupt, []step{
			{0, well, nil, false, Announced, false, ""},
			{0, well, order1(Drain), false, Withdrawn, false, "operator drains"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1e9, 0)
			d := newDecider(tc.cfg, now)
			for i, s := range tc.steps {
				now = now.Add(s.after)
				if s.order != nil {
					d.order(*s.order, now)
				}
				if s.stop {
					d.stop(now)
				}
				before := d.now
				got := d.decide(now, s.health)
				if got.phase != s.want || got.graceful != s.graceful || !strings.Contains(got.why, s.why) {
					t.Fatalf("step %d: %+v, want %s (graceful %v) because %q", i, got, s.want, s.graceful, s.why)
				}
				if changed := before.phase != got.phase; changed && got.since != now || !changed && before.graceful == got.graceful && got.since != before.since {
					t.Errorf("step %d: since %s, now %s", i, got.since, now)
				}
			}
		})
	}
}
