// Package scenario holds the labs' topologies and what is run and checked in them: bermlab runs
// it for people, test/e2e as tests. Checks compare figures and never stop a scenario: a reader
// wants all of them.
package scenario

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bermedge/berm/test/rig"
)

// Check is one comparison of what was wanted with what was found.
type Check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Want string `json:"want"`
	Got  string `json:"got"`
	Unit string `json:"unit"`
	// timed ones measure time on a machine that others use as well.
	timed bool
}

// Report is everything a scenario checked.
type Report struct {
	Scenario string  `json:"scenario"`
	OK       bool    `json:"ok"`
	Checks   []Check `json:"checks"`
}

// Scenario is a topology and the steps that are run in it, in order.
type Scenario struct {
	ID      string
	Summary string
	// Up builds the topology and starts everything in it.
	Up func(ctx context.Context, lab *rig.Lab, opts Options) (Topology, error)
}

// Lab is the name that the scenario's lab has unless another is given.
func (s Scenario) Lab() string { return strings.ReplaceAll(s.ID, "-", "") }

// Topology is a lab with everything started.
type Topology interface {
	// Steps are what to run; each leaves the topology as it found it.
	Steps() []Step
	// Guide tells a person what is where.
	Guide() string
	// Watch captures packets until stop is called, which keeps the files or removes them.
	Watch() (stop func(keep bool) ([]string, error), err error)
	// Explain says what a person would look at first when a check failed.
	Explain(ctx context.Context) string
}

// Step is one part of a scenario. An error means that it could not be carried out.
type Step struct {
	Name string
	Run  func(ctx context.Context, r *Recorder) error
	// Loud steps send more than a capture can hold, or measure time: they run without one.
	Loud bool
}

// Options of a run.
type Options struct {
	Bin  string                           // where berm, bermd and bermprobe are; "" = beside this program, then PATH
	Only string                           // run only steps whose name contains it
	Long bool                             // measure more, and longer, where a scenario can
	Out  string                           // directory for figures and charts; "" = none
	Log  func(format string, args ...any) // progress, for people; nil = silent
}

func (o Options) logf(format string, args ...any) {
	if o.Log != nil {
		o.Log(format, args...)
	}
}

// All lists the scenarios.
func All() []Scenario {
	return []Scenario{{
		ID:      "main",
		Summary: "clients, an ECMP router (BIRD), two edges and an origin: from the wire to the cache and back",
		Up:      upMain,
	}, {
		ID:      "quic-rebind",
		Summary: "the same topology: QUIC clients change address and port in downloads, and stay with their edge",
		Up:      upQUICRebind,
	}, {
		ID:      "drain",
		Summary: "edges are added, drained, weighed, lost and removed under flows: none breaks, and without second chances some do",
		Up:      upDrain,
	}, {
		ID:      "two-sites",
		Summary: "a router takes clients from one site to the other in downloads: they go on where they began; spill, regions",
		Up:      upTwoSites,
	}, {
		ID:      "deadman",
		Summary: "an edge's daemon hangs (kill -STOP): new flows go to a peer, without BGP or probes, and old ones wait for it",
		Up:      upDeadman,
	}, {
		ID:      "upgrade",
		Summary: "programs replaced and daemons started again under load: no request lost, no connection broken",
		Up:      upUpgrade,
	}, {
		ID:      "anycast",
		Summary: "edges that announce themselves by BGP and BFD: announced, drained, hung, killed, back",
		Up:      upAnycast,
	}, {
		ID:      "backends",
		Summary: "an edge and four servers that run no Berm, by GUE, IPIP and directly: weighed, drained, lost under flows and floods",
		Up:      upBackends,
	}, {
		ID:      "flood",
		Summary: "the same: SYNs and QUIC Initials of made-up sources at one service, good clients at it and at its neighbour",
		Up:      upFlood,
	}, {
		ID:      "icmp",
		Summary: "the same, and a client behind a narrow link: echo, path MTU, and errors that reach the owner of the flow they quote",
		Up:      upICMP,
	}, {
		ID:      "fragments",
		Summary: "fragments, VLAN tags, IPv4 options and IPv6 extension headers: all that belongs together reaches one edge and is answered",
		Up:      upFragments,
	}, {
		ID:      "cert-rotation",
		Summary: "the same: certificates change, break and mend under load, and sessions resume on every edge",
		Up:      upCertRotation,
	}, {
		ID:      "cc",
		Summary: "two prefixes behind a lossy and a clean link: what CUBIC and BBR bring on each, chosen by berm cc",
		Up:      upCC,
	}, {
		ID:      "cc-mixed",
		Summary: "eight prefixes behind links of all kinds: what CUBIC everywhere, BBR everywhere and what was learned bring in all (six minutes)",
		Up:      upMixed,
	}, {
		ID:      "migration",
		Summary: "a QUIC client leaves home for a mobile network in the middle of a download: it goes on, with the profile of the prefix it moved to",
		Up:      upMigration,
	}, {
		ID:      "zero-rtt",
		Summary: "requests in a QUIC client's first packets: marked for the origin or refused, recorded and sent again in vain; resumption on every edge",
		Up:      upZeroRTT,
	}, {
		ID:      "webrtc",
		Summary: "WebRTC goes to the edge that gave out the ICE username fragment: checks, media, clients that rebind, made-up fragments",
		Up:      upWebRTC,
	}, {
		ID:      "fec",
		Summary: "a live stream over two paths that lose 5 %: edge to edge with relays, and to a client over WebTransport; then clean ones",
		Up:      upFEC,
	}}
}

// ErrUnknown is returned for a scenario that does not exist.
var ErrUnknown = errors.New("no scenario")

// Find returns the scenario of that name.
func Find(id string) (Scenario, error) {
	all := All()
	i := slices.IndexFunc(all, func(s Scenario) bool { return s.ID == id })
	if i < 0 {
		return Scenario{}, fmt.Errorf("%w %q (bermlab list)", ErrUnknown, id)
	}
	return all[i], nil
}

// Recorder collects checks as they happen.
type Recorder struct {
	OnCheck func(Check) // called for each check; nil = nobody
	checks  []Check
	untimed *Recorder // set in what Timed returns
}

// Timed returns a recorder for checks that fail where the machine was busy with something else: RunStep repeats a
// step of which only such ones failed.
func (r *Recorder) Timed() *Recorder { return &Recorder{untimed: r} }

// Checks returns what was recorded so far.
func (r *Recorder) Checks() []Check { return r.checks }

// Add records a check.
func (r *Recorder) Add(c Check) {
	if r.untimed != nil {
		c.timed = true
		r.untimed.Add(c)
		return
	}
	r.checks = append(r.checks, c)
	if r.OnCheck != nil {
		r.OnCheck(c)
	}
}

// Equal checks an exact count.
func (r *Recorder) Equal(name string, want, got uint64, unit string) {
	r.Add(Check{Name: name, OK: want == got, Want: strconv.FormatUint(want, 10), Got: strconv.FormatUint(got, 10), Unit: unit})
}

// AtMost checks an upper bound.
func (r *Recorder) AtMost(name string, limit, got float64, unit string) {
	r.Add(Check{Name: name, OK: got <= limit, Want: "≤ " + figure(limit), Got: figure(got), Unit: unit})
}

// AtLeast checks a lower bound.
func (r *Recorder) AtLeast(name string, limit, got float64, unit string) {
	r.Add(Check{Name: name, OK: got >= limit, Want: "≥ " + figure(limit), Got: figure(got), Unit: unit})
}

// Near checks that got is within a share of want: 0.02 is two per cent.
func (r *Recorder) Near(name string, want, share, got float64, unit string) {
	ok := math.Abs(got-want) <= share*want
	r.Add(Check{Name: name, OK: ok, Want: fmt.Sprintf("%s ± %s %%", figure(want), figure(share*100)), Got: figure(got), Unit: unit})
}

// Same checks a value that is no number.
func (r *Recorder) Same(name, want, got, unit string) {
	r.Add(Check{Name: name, OK: want == got, Want: want, Got: got, Unit: unit})
}

// figure prints four significant digits, and large whole numbers in full.
func figure(v float64) string {
	switch {
	case v == math.Trunc(v) && math.Abs(v) < 1e15:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case math.Abs(v) >= 1000 && math.Abs(v) < 1e15:
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}

// stepLimit is far above what a step needs; it turns a hang into a failure that says where.
const stepLimit = 90 * time.Second

// attempts at a step of which nothing but timed checks fails.
const attempts = 3

// RunStep runs one step; one that cannot be carried out is a failed check of its own. When a
// check fails, what explains it is logged.
func RunStep(ctx context.Context, top Topology, s Step, opts Options, r *Recorder) {
	for i := 1; ; i++ {
		attempt := &Recorder{}
		runStep(ctx, top, s, opts, attempt)
		late := failedTimed(attempt.checks)
		if i == attempts || len(late) == 0 {
			for _, c := range attempt.checks {
				r.Add(c)
			}
			return
		}
		for _, c := range late {
			opts.logf("%s: attempt %d of %d: %s: %s %s, want %s", s.Name, i, attempts, c.Name, c.Got, c.Unit, c.Want)
		}
	}
}

// failedTimed returns the checks that failed if all of them are timed.
func failedTimed(checks []Check) []Check {
	var late []Check
	for _, c := range checks {
		if !c.OK && !c.timed {
			return nil
		}
		if !c.OK {
			late = append(late, c)
		}
	}
	return late
}

func runStep(ctx context.Context, top Topology, s Step, opts Options, r *Recorder) {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	stop := func(bool) ([]string, error) { return nil, nil }
	var err error
	if !s.Loud {
		stop, err = top.Watch()
	}
	if err == nil {
		err = s.Run(ctx, r)
	}
	if err == nil && len(r.checks) == 0 {
		err = errors.New("checked nothing")
	}
	if err != nil {
		r.Add(Check{Name: s.Name + ": carried out", Want: "no error", Got: err.Error()})
	}
	failed := slices.ContainsFunc(r.checks, func(c Check) bool { return !c.OK })
	files, err := stop(failed)
	if err != nil {
		opts.logf("captures: %v", err)
	}
	if failed {
		opts.logf("%s", top.Explain(context.WithoutCancel(ctx)))
		for _, f := range files {
			opts.logf("capture: %s", f)
		}
	}
}

// Run builds a scenario's topology, runs every step and takes it down again unless keep is set.
// The error is about the lab itself; failed checks are in the report.
func Run(ctx context.Context, s Scenario, lab *rig.Lab, opts Options, r *Recorder) (Report, error) {
	top, err := s.Up(ctx, lab, opts)
	if err != nil {
		return Report{Scenario: s.ID}, fmt.Errorf("bring up %s: %w", s.ID, err)
	}
	for _, step := range top.Steps() {
		if !strings.Contains(step.Name, opts.Only) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return Report{Scenario: s.ID, Checks: r.checks}, err
		}
		opts.logf("%s", step.Name)
		RunStep(ctx, top, step, opts, r)
	}
	return NewReport(s.ID, r.checks), nil
}

// NewReport is ok when there are checks and all of them hold.
func NewReport(id string, checks []Check) Report {
	failed := slices.ContainsFunc(checks, func(c Check) bool { return !c.OK })
	return Report{Scenario: id, OK: len(checks) > 0 && !failed, Checks: checks}
}
