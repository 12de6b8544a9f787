package main

import (
	"context"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/userspace/control"
)

type geoCmd struct {
	Load   geoLoad   `cmd:"" help:"Compile databases into the prefix table and switch to it."`
	Policy geoPolicy `cmd:"" help:"List the policies, show one, or change one."`
	Test   geoTest   `cmd:"" help:"Tell what is known and decided about an address."`
}

// Help is what berm geo --help adds.
func (geoCmd) Help() string {
	return `Examples:

  berm geo load /var/lib/berm/country.mmdb
  berm geo policy default --drop XX,YY
  berm geo test 198.51.100.7`
}

type geoLoad struct {
	Databases []string `arg:"" optional:"" complete:":files" help:"MaxMind-format or CSV files; without any, those of the configuration are read again."`
}

// Help is what berm geo load --help adds.
func (geoLoad) Help() string {
	return `The new table is filled beside the live one and takes effect at one packet boundary. A file that is corrupt, empty or of the wrong kind changes nothing. A later file wins over an earlier one; the overrides of the configuration win over all, and its networks lie beside whatever is given here. CSV lines are PREFIX,COUNTRY.

Examples:

  berm geo load
  berm geo load /var/lib/berm/country.mmdb /etc/berm/own-ranges.csv`
}

func (c *geoLoad) Run(a *app) error {
	l := control.GeoLoad{Databases: make([]string, 0, len(c.Databases))}
	for _, d := range c.Databases {
		p, err := filepath.Abs(d) // the daemon has another working directory
		if err != nil {
			return err
		}
		l.Databases = append(l.Databases, p)
	}
	return a.change(func(ctx context.Context, t control.Tables) (control.Changes, error) { return t.LoadGeo(ctx, l) })
}

type geoPolicy struct {
	Name     string   `arg:"" optional:"" complete:"geo" help:"Policy; without it, all are listed."`
	Fallback *string  `enum:"allow,drop,shadow,mark" placeholder:"ACTION" help:"For countries without a rule and unknown ones: allow, drop, shadow or mark."`
	Allow    []string `placeholder:"CC" help:"Let these countries in."`
	Drop     []string `placeholder:"CC" help:"Refuse these countries."`
	Shadow   []string `placeholder:"CC" help:"Count these countries as if refused, and let them in."`
	Mark     []string `placeholder:"CC" help:"Let these countries in and leave the decision to the daemon."`
	Clear    []string `placeholder:"CC" help:"Take away the rule of these countries: the fallback then holds."`
	Replace  bool     `help:"Forget all rules of the policy first."`
}

// Help is what berm geo policy --help adds.
func (geoPolicy) Help() string {
	return `Countries are ISO 3166 two-letter codes, separated by commas. A country has one rule: naming it again moves it. Rules that are not named stay, unless --replace is given. A policy that does not exist is made, with the fallback allow.

Examples:

  berm geo policy
  berm geo policy default --drop XX,YY
  berm geo policy only-home --replace --fallback drop --allow DE,AT,CH
  berm geo policy default --clear XX`
}

func (c *geoPolicy) changes() bool {
	return c.Fallback != nil || len(c.Allow)+len(c.Drop)+len(c.Shadow)+len(c.Mark)+len(c.Clear) > 0 || c.Replace
}

func (c *geoPolicy) Run(a *app) error {
	if c.changes() && c.Name == "" {
		return badInput("geo policy: name the policy to change, for instance: berm geo policy default --drop XX")
	}
	t, err := a.open()
	if err != nil {
		return err
	}
	all, err := t.GeoPolicies(a.ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(p control.GeoPolicy) bool { return p.Name == c.Name })
	switch {
	case c.Name == "":
		return a.out.Value(orEmpty(all), func() { a.policies(all) })
	case c.changes():
		p := control.GeoPolicy{Name: c.Name, Fallback: "allow"}
		if i >= 0 {
			p = all[i]
		}
		if err := c.apply(&p); err != nil {
			return err
		}
		return a.change(func(ctx context.Context, t control.Tables) (control.Changes, error) { return t.SetGeoPolicy(ctx, p) })
	case i < 0:
		return fail(exitAbsent, "berm geo policy lists them; --fallback, --drop and others make one.", "geo policy %q does not exist", c.Name)
	}
	return a.out.Value(all[i], func() { a.policies(all[i : i+1]) })
}

// apply edits p: each named country leaves the list it was in.
func (c *geoPolicy) apply(p *control.GeoPolicy) error {
	if c.Replace {
		*p = control.GeoPolicy{Name: p.Name, Fallback: p.Fallback}
	}
	if c.Fallback != nil {
		p.Fallback = *c.Fallback
	}
	lists := []*[]string{&p.Allow, &p.Drop, &p.Shadow, &p.Mark, nil}
	seen := map[string]bool{}
	for i, named := range [][]string{c.Allow, c.Drop, c.Shadow, c.Mark, c.Clear} {
		for _, cc := range named {
			cc = strings.ToUpper(strings.TrimSpace(cc))
			if len(cc) != 2 || cc[0] < 'A' || cc[0] > 'Z' || cc[1] < 'A' || cc[1] > 'Z' {
				return badInput("country %q: want an ISO 3166 code of two letters, such as DE", cc)
			}
			if seen[cc] {
				return badInput("country %s: named twice on the command line", cc)
			}
			seen[cc] = true
			for _, l := range lists[:4] {
				*l = slices.DeleteFunc(*l, func(s string) bool { return s == cc })
			}
			if lists[i] != nil {
				*lists[i] = append(*lists[i], cc)
				slices.Sort(*lists[i])
			}
		}
	}
	return nil
}

func (a *app) policies(all []control.GeoPolicy) {
	if len(all) == 0 {
		a.out.Printf("no geo policies (berm geo policy --help)\n")
		return
	}
	rows := make([][]out.Cell, 0, len(all))
	for _, p := range all {
		join := func(l []string) string { return or(strings.Join(l, ","), "-") }
		rows = append(rows, out.Row(p.Name, p.Fallback, join(p.Allow), join(p.Drop), join(p.Shadow), join(p.Mark), p.Owner))
	}
	a.out.Table([]string{"POLICY", "FALLBACK", "ALLOW", "DROP", "SHADOW", "MARK", "FROM"}, rows)
}

type geoTest struct {
	IP netip.Addr `arg:"" name:"ip" help:"Address of a source."`
}

// Help is what berm geo test --help adds.
func (geoTest) Help() string {
	return `It asks the same tables that packets meet: country, network, operator's rules, policies of the VIPs, verdicts.

Examples:

  berm geo test 198.51.100.7
  berm geo test 2001:db8::1 --json`
}

func (c *geoTest) Run(a *app) error {
	t, err := a.open()
	if err != nil {
		return err
	}
	g, err := t.TestGeo(a.ctx, c.IP)
	if err != nil {
		return err
	}
	return a.out.Value(g, func() {
		a.out.Field("address", "%s", g.IP)
		a.out.Field("country", "%s", or(g.Country, "unknown"))
		if g.ASN != 0 {
			a.out.Field("network", "AS%d", g.ASN)
		}
		if g.Rule != 0 {
			a.out.Field("rule", "override %d of the configuration decided", g.Rule)
		}
		a.out.Field("acl", "%s", a.action(g.ACL))
		if g.RateClass != "" {
			a.out.Field("rate", "class %s", g.RateClass)
		}
		for _, name := range slices.Sorted(maps.Keys(g.Policies)) {
			a.out.Field("policy", "%s: %s", name, a.action(g.Policies[name]))
		}
		for _, v := range g.Verdicts {
			a.out.Field("verdict", "%s at %s%s: %s", a.action(v.Action), or(v.VIP, "every VIP"), lasting(v.Seconds), or(v.Reason, "no reason given"))
		}
	})
}

// action colours what becomes of a packet.
func (a *app) action(s string) string {
	switch s {
	case "drop":
		return a.out.Paint(out.Bad, s)
	case "shadow", "mark":
		return a.out.Paint(out.Warn, s)
	case "allow":
		return a.out.Paint(out.Good, s)
	}
	return or(s, "none")
}
