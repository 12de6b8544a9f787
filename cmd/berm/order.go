package main

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/userspace/config"
	"github.com/bermedge/berm/userspace/control"
)

// lasts is what holds of every order.
const lasts = `An order for this edge holds on all edges, which learn it from its answers to their probes; one for another backend holds on this edge alone, so say it on each. It lasts until it is changed or the daemon ends: what is to stay goes into the file.`

const whyDaemon = "it keeps the rows, and tells the other edges"

// order sends an order to the daemon.
func (a *app) order(what string, o control.Order) error {
	d, err := a.needDaemon("steer "+what, whyDaemon)
	if err != nil {
		return err
	}
	ch, err := d.Order(a.ctx, o)
	if err != nil {
		return err
	}
	return a.tell(ch, byDaemon)
}

type steerDrain struct {
	Name string `arg:"" optional:"" help:"Backend; this edge if left out."`
}

// Help is what berm steer drain --help adds.
func (steerDrain) Help() string {
	return `New flows go to the others within a second. Flows that the backend has stay with it to their end: the new owners of its rows hand it what they do not know. ` + lasts + `

Examples:

  berm steer plan --drain edge2
  berm steer drain
  berm steer drain edge2`
}

func (c *steerDrain) Run(a *app) error {
	on := true
	return a.order("drain", control.Order{Backend: c.Name, Draining: &on})
}

type steerUndrain struct {
	Name string `arg:"" optional:"" help:"Backend; this edge if left out."`
}

// Help is what berm steer undrain --help adds.
func (steerUndrain) Help() string {
	return `The backend gets the rows back that it had. Flows that began elsewhere meanwhile stay there to their end.

Examples:

  berm steer undrain
  berm steer undrain edge2`
}

func (c *steerUndrain) Run(a *app) error {
	off := false
	return a.order("undrain", control.Order{Backend: c.Name, Draining: &off})
}

type steerWeight struct {
	Weight int    `arg:"" help:"Relative to the others'; 0: what the file says."`
	Name   string `arg:"" optional:"" help:"Backend; this edge if left out."`
}

// Help is what berm steer weight --help adds.
func (steerWeight) Help() string {
	return `Rows move only to or from that backend, and flows stay where they are. ` + lasts + `

Examples:

  berm steer plan --weight edge2=3
  berm steer weight 3 edge2
  berm steer weight 0`
}

func (c *steerWeight) Run(a *app) error {
	return a.order("weight", control.Order{Backend: c.Name, Weight: &c.Weight})
}

type steerCanary struct {
	Name  string `arg:"" optional:"" help:"Backend; this edge if left out."`
	Share string `required:"" placeholder:"1%" help:"Share of the rows, in steps of 0.01%; 0% ends it."`
}

// Help is what berm steer canary --help adds.
func (steerCanary) Help() string {
	return `Which flows go to the canary is decided by their hash: a larger share keeps those of a smaller one, and flows that others have stay with them. ` + lasts + `

Examples:

  berm steer canary edge9 --share 1%
  berm steer canary edge9 --share 0%`
}

func (c *steerCanary) Run(a *app) error {
	share, err := basisPoints(c.Share)
	if err != nil {
		return err
	}
	return a.order("canary", control.Order{Backend: c.Name, Share: &share})
}

// basisPoints reads a share such as 1% or 0.25%.
func basisPoints(s string) (int, error) {
	v, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	points := math.Round(v * 100)
	if err != nil || !strings.HasSuffix(s, "%") || v < 0 || v > 100 || math.Abs(points-v*100) > 1e-6 {
		return 0, badInput("share %q: want 0%% to 100%%, in steps of 0.01%%", s)
	}
	return int(points), nil
}

type steerSpill struct {
	VIP   string `arg:"" help:"Service."`
	To    string `placeholder:"SITE" help:"Site; that of the file if left out."`
	Share string `required:"" placeholder:"2.5%" help:"Share of the new flows, in steps of 0.01%; 0% ends it."`
}

// Help is what berm steer spill --help adds.
func (steerSpill) Help() string {
	return `Which flows begin there is decided by their hash: a larger share keeps those of a smaller one. Flows that are here stay, and those that have begun there stay there, whatever the share is changed to. It holds on this edge alone, for what routers bring to it: say it on each. It lasts until it is changed or the daemon ends: what is to stay goes into the file.

Examples:

  berm steer plan --spill web=fra:2.5%
  berm steer spill web --to fra --share 2.5%
  berm steer spill web --share 0%`
}

func (c *steerSpill) Run(a *app) error {
	points, err := basisPoints(c.Share)
	if err != nil {
		return err
	}
	d, err := a.needDaemon("steer spill", "it knows the other sites")
	if err != nil {
		return err
	}
	ch, err := d.Spill(a.ctx, control.Spill{VIP: c.VIP, To: c.To, BasisPoints: points})
	if err != nil {
		return err
	}
	return a.tell(ch, byDaemon)
}

type steerPlan struct {
	File    string            `placeholder:"FILE" complete:":files" help:"A candidate configuration."`
	Drain   []string          `placeholder:"NAME" help:"Backends that drain."`
	Undrain []string          `placeholder:"NAME" help:"Backends that get flows again."`
	Weight  map[string]int    `placeholder:"NAME=N" help:"Backends' weights."`
	Canary  map[string]string `placeholder:"NAME=1%" help:"Backends' shares as canaries."`
	Spill   map[string]string `placeholder:"VIP=SITE:1%" help:"Services' shares that begin at other sites."`
	Add     []string          `placeholder:"NAME" help:"Backends that come, to every set."`
	Remove  []string          `placeholder:"NAME" help:"Backends that go."`
}

// Help is what berm steer plan --help adds.
func (steerPlan) Help() string {
	return `It compares the rows in force with those after the change, everybody being as healthy as now. A row is 1/65537 of the flows. Flows of rows that move stay where they are; new ones go to the new owner.

Examples:

  berm steer plan --file /etc/berm/berm.yaml.new
  berm steer plan --drain edge2
  berm steer plan --weight edge2=3 --canary edge9=1%`
}

func (c *steerPlan) request() (p control.PlanRequest, err error) {
	p.Add, p.Remove = c.Add, c.Remove
	for on, names := range map[bool][]string{true: c.Drain, false: c.Undrain} {
		for _, name := range names {
			p.Orders = append(p.Orders, control.Order{Backend: name, Draining: &on})
		}
	}
	for name, weight := range c.Weight {
		p.Orders = append(p.Orders, control.Order{Backend: name, Weight: &weight})
	}
	for name, text := range c.Canary {
		share, err := basisPoints(text)
		if err != nil {
			return p, err
		}
		p.Orders = append(p.Orders, control.Order{Backend: name, Share: &share})
	}
	for vip, text := range c.Spill {
		site, share, _ := strings.Cut(text, ":")
		points, err := basisPoints(share)
		if err != nil {
			return p, err
		}
		p.Spills = append(p.Spills, control.Spill{VIP: vip, To: site, BasisPoints: points})
	}
	if c.File == "" {
		return p, nil
	}
	cfg, err := config.Load(c.File)
	if err != nil && exists(c.File) {
		return p, badInput("%w", err)
	} else if err != nil {
		return p, err
	}
	p.Sets = map[string][]control.Member{}
	for set, members := range cfg.Backends {
		for _, m := range members {
			p.Sets[set] = append(p.Sets[set], control.Member{Name: m.Name, Weight: m.Weight})
		}
	}
	return p, nil
}

func (c *steerPlan) Run(a *app) error {
	p, err := c.request()
	if err != nil {
		return err
	}
	d, err := a.needDaemon("steer plan", "it knows who is healthy")
	if err != nil {
		return err
	}
	plan, err := d.Plan(a.ctx, p)
	if err != nil {
		return err
	}
	return a.out.Value(plan, func() { a.planned(plan) })
}

func (a *app) planned(plan control.Plan) {
	percent := func(n, of int) string { return sprintf("%.2f %%", 100*float64(n)/float64(max(of, 1))) }
	for _, s := range plan.Spills {
		share := func(x control.Spill) string {
			return sprintf("%.2f %% to %s", float64(x.BasisPoints)/100, or(x.To, "nowhere"))
		}
		a.out.Field("spill of "+s.VIP, "%s, now %s: %.2f %% of the new flows begin elsewhere than before", share(s.After), share(s.Before), float64(s.Moved)/100)
	}
	for _, s := range plan.Sets {
		a.out.Field("set", "%s", s.Set)
		a.out.Field("rows moved", "%s (%d of %d)", percent(s.Moved, s.Rows), s.Moved, s.Rows)
		a.out.Field("beyond the minimum", "%s (%d)", percent(s.Moved-s.Least, s.Rows), s.Moved-s.Least)
		var rows [][]out.Cell
		for _, b := range s.Backends {
			rows = append(rows, out.Row(b.Name, strconv.Itoa(b.Before), strconv.Itoa(b.After), sprintf("%+d", b.After-b.Before), percent(b.After, s.Rows)))
		}
		a.out.Table([]string{"BACKEND", "BEFORE>", "AFTER>", "CHANGE>", "SHARE>"}, rows)
		if s.Moved > 0 && !slices.ContainsFunc(s.Backends, func(b control.BackendPlan) bool { return b.After > 0 }) {
			a.out.Printf("%s\n", a.out.Paint(out.Bad, "no backend is left: nobody gets the set's packets (no_backend)"))
		}
	}
}
