package main

import (
	"strings"
	"time"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/userspace/control"
)

type ccLearn struct {
	Mode string `arg:"" optional:"" default:"" enum:",on,off,shadow" help:"on, off, or shadow: say what would be chosen, and change nothing. Without it: show how it goes."`
}

// Help is what berm cc learn --help adds.
func (ccLearn) Help() string {
	return `The learner gives each IPv4 /24 and IPv6 /48 the profile whose connections reach most there: goodput, less what it costs others in queues and retransmissions. It holds out a share of the connections for the other profiles, so that it stays known what they would do. What operators and the file decided about a prefix stays. A mode said here holds until the file is loaded again or the daemon restarts: cc.learn.mode keeps it.

Examples:

  berm cc learn shadow
  berm cc learn on
  berm cc learn --json | jq .chosen
  berm cc explain 203.0.113.7`
}

func (c *ccLearn) Run(a *app) error {
	d, err := a.needDaemon("cc learn", "the learner lives in the daemon")
	if err != nil {
		return err
	}
	if c.Mode != "" {
		done, err := d.SetLearning(a.ctx, control.LearnOrder{Mode: c.Mode})
		if err != nil {
			return err
		}
		return a.tell(done, byDaemon)
	}
	s, err := d.Learning(a.ctx)
	if err != nil {
		return err
	}
	return a.out.Value(s, func() { a.learning(s) })
}

func (a *app) learning(s control.Learning) {
	mode := s.Mode
	if s.Said {
		mode += " (until the file is loaded again)"
	}
	a.out.Field("mode", "%s", mode)
	if s.Trouble != "" {
		a.out.Field("trouble", "%s", a.out.Paint(out.Bad, s.Trouble))
	}
	a.out.Field("chooses", "among %s; %.1f %% of the connections are held out for the others", strings.Join(s.Arms, ", "), 100*s.HoldOut)
	a.out.Field("prefixes", "%d known, %d decided by operators or the file, %d forgotten for room", s.Prefixes, s.Held, s.Evicted)
	a.out.Field("changes", "%s of a choice since the daemon started", count(s.Changes))
	rows := make([][]out.Cell, 0, len(s.Arms))
	for _, name := range s.Arms {
		rows = append(rows, out.Row(name, sprintf("%d", s.Chosen[name])))
	}
	a.out.Printf("\n")
	a.out.Table([]string{"PROFILE", "PREFIXES>"}, rows)
}

// learned tells what was learned of an address's prefix.
func (a *app) learned(l *control.Learned) {
	if l == nil {
		return
	}
	says := map[bool]string{true: "would choose", false: "chose"}[l.Mode == "shadow"]
	switch {
	case l.Profile == "":
		a.out.Field("learner", "%s: nothing is chosen: %s", l.Prefix, l.Why)
	case l.Held:
		a.out.Field("learner", "%s: would choose %s, and others have decided: %s", l.Prefix, l.Profile, l.Why)
	default:
		a.out.Field("learner", "%s: %s %s %s ago: %s", l.Prefix, says, l.Profile, out.Duration(time.Since(l.Since)), l.Why)
	}
	rows := make([][]out.Cell, 0, len(l.Scores))
	for _, s := range l.Scores {
		gain := "-"
		if s.Paired > 0 {
			gain = sprintf("%+.0f %%", 100*s.Gain)
		}
		row := out.Row(s.Profile, sprintf("%.0f", s.Connections), sprintf("%.0f", s.QUIC), kbps(s.GoodputKbps), sprintf("%.0f %%", 100*s.Queueing), sprintf("%.2f %%", 100*s.Retransmitted), kbps(s.RewardKbps), gain)
		if s.Profile == l.Profile {
			row[0].Style = out.Good
		}
		rows = append(rows, row)
	}
	a.out.Printf("\n")
	a.out.Table([]string{"PROFILE", "CONNECTIONS>", "QUIC>", "GOODPUT>", "QUEUES>", "SENT AGAIN>", "SCORE>", "AGAINST CHOSEN>"}, rows)
}
