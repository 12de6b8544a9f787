package main

import (
	"context"
	"slices"
	"strings"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/userspace/control"
)

type shadowCmd struct {
	List    shadowList    `cmd:"" help:"List the rules that are only counted, and what they would have dropped."`
	Promote shadowPromote `cmd:"" help:"Enforce a rule from now on."`
	Demote  shadowDemote  `cmd:"" help:"Only count a rule from now on."`
}

// Help is what berm shadow --help adds.
func (shadowCmd) Help() string {
	return `A rule in shadow is counted and sampled as if it had dropped, and lets packets on.

Examples:

  berm shadow list
  berm shadow promote geo/default/XX
  berm shadow demote rate/slow`
}

type shadowList struct{}

// Help is what berm shadow list --help adds.
func (shadowList) Help() string {
	return `Of VIPs and verdicts the count is their own; of countries, classes and reasons it is that of all rules with the same reason. Sources are sampled by the daemon over the last minute.

Examples:

  berm shadow list
  berm shadow list --json | jq -r '.[] | select(.would_drop.packets == 0) | .rule'`
}

func (c *shadowList) Run(a *app) error {
	t, err := a.open()
	if err != nil {
		return err
	}
	rules, err := t.ShadowRules(a.ctx)
	if err != nil {
		return err
	}
	if err := a.evidence(rules); err != nil {
		return err
	}
	return a.out.Value(orEmpty(rules), func() {
		if len(rules) == 0 {
			a.out.Printf("nothing is in shadow: every rule is enforced\n")
			return
		}
		rows := make([][]out.Cell, 0, len(rules))
		for _, r := range rules {
			n := count(r.WouldDrop.Packets)
			if r.Shared {
				n += " (all " + strings.Join(short(r.Reasons), ", ") + ")"
			}
			var sources []string
			for _, s := range r.Sources {
				sources = append(sources, s.Source.String())
			}
			rows = append(rows, out.Row(r.Rule, n, r.Owner, or(strings.Join(short(sources), " "), "-"), r.What))
		}
		a.out.Table([]string{"RULE", "WOULD DROP>", "FROM", "SOURCES", "WHAT"}, rows)
	})
}

// short keeps the first three.
func short(list []string) []string {
	if len(list) > 3 {
		return append(slices.Clone(list[:3]), "...")
	}
	return list
}

// evidence adds the sources that the daemon has sampled, where there is one.
func (a *app) evidence(rules []control.ShadowRule) error {
	client, ok := a.tables.(*control.Client)
	if !ok || len(rules) == 0 {
		return nil
	}
	const window = 60 // seconds
	top, err := client.Top(a.ctx, window)
	if err != nil {
		return err
	}
	for i := range rules {
		for _, s := range top.Sources {
			if s.Dropped == 0 && slices.Contains(rules[i].Reasons, s.Reason) {
				rules[i].Sources = append(rules[i].Sources, s)
			}
		}
	}
	return nil
}

type shadowPromote struct {
	Rule string `arg:"" complete:"shadow" help:"As berm shadow list names it: geo/POLICY/COUNTRY, geo/POLICY/fallback, rate/CLASS, verdict/SOURCE, verdict/SOURCE/VIP, vip/NAME, reason/REASON or observe_only."`
}

// Help is what berm shadow promote --help adds.
func (shadowPromote) Help() string {
	return `It holds from the next packet on. What the file wrote is as the file says again after the next reload: change it there too.

Examples:

  berm shadow promote geo/default/XX
  berm shadow promote verdict/198.51.100.7`
}

func (c *shadowPromote) Run(a *app) error { return a.setShadow(c.Rule, false) }

type shadowDemote struct {
	Rule string `arg:"" help:"As for berm shadow promote."`
}

// Help is what berm shadow demote --help adds.
func (shadowDemote) Help() string {
	return `Examples:

  berm shadow demote rate/slow
  berm shadow demote reason/land`
}

func (c *shadowDemote) Run(a *app) error { return a.setShadow(c.Rule, true) }

func (a *app) setShadow(rule string, on bool) error {
	return a.change(func(ctx context.Context, t control.Tables) (control.Changes, error) {
		return t.SetShadow(ctx, control.ShadowChange{Rule: rule, Shadow: on})
	})
}
