package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/test/rig/wan"
	"github.com/bermedge/berm/userspace/control"
)

// Mixed is the main topology with one edge, and eight clients with prefixes and links of their own, for whom it learns.
type Mixed struct {
	*Main
	box     *wan.Box
	links   []*mixedLink
	holdOut float64 // the learner's
}

// mixedLink is a client's. Some share it with another download of theirs, from elsewhere.
type mixedLink struct {
	name   string
	rate   int64         // bit/s
	rtt    time.Duration // without queues
	jitter time.Duration // of each way
	queue  time.Duration // what the queue holds, at the link's rate
	loss   float64       // each packet on its own
	burst  float64       // in bursts of mixedBurst
	shared bool

	node    *rig.Node
	net     string // without the last octet
	learned *control.Learned
	mbps    map[string]float64 // by arm
}

const mixedBurst = 3

// mixedLinks are four where packets are lost for other reasons than a full queue, or long before one is full, which is what BBR was made for
// (Cardwell et al., 2016), and four where what is lost is a full queue that holds a round trip and more, as in most homes: two of
// them are shared with a download by CUBIC, which takes more of a deep queue than BBR does (Hock et al., 2017; Jaeger et al.,
// 2019). Rates and round trips are those of access networks, but for the fastest ones: eight times them is more than a small machine carries. The set was
// made before the first run, and is not to be changed for what it shows.
func mixedLinks() []*mixedLink {
	const mbit, ms = 1_000_000, time.Millisecond
	return []*mixedLink{
		{name: "fibre", rate: 50 * mbit, rtt: 20 * ms, queue: 20 * ms},
		{name: "cable", rate: 50 * mbit, rtt: 25 * ms, queue: 250 * ms, shared: true},
		{name: "DSL", rate: 20 * mbit, rtt: 40 * ms, queue: 400 * ms, shared: true},
		{name: "LTE", rate: 25 * mbit, rtt: 50 * ms, jitter: 10 * ms, queue: 500 * ms},
		{name: "Wi-Fi", rate: 25 * mbit, rtt: 30 * ms, queue: 60 * ms, loss: 0.01},
		{name: "cell edge", rate: 10 * mbit, rtt: 80 * ms, queue: 200 * ms, burst: 0.05},
		{name: "far", rate: 25 * mbit, rtt: 150 * ms, queue: 150 * ms, loss: 0.005},
		{name: "policed", rate: 20 * mbit, rtt: 40 * ms, queue: 10 * ms},
	}
}

// The arms. What others are compared with is set by operators for an address each; a client's first one is learned about.
const (
	armLearned = "learned"
	armCubic   = "cubic"
	armBBR     = "bbr"
)

func mixedArms() []string { return []string{armCubic, armBBR, armLearned} }

// clientOf is the node and the link of the set's i-th.
func clientOf(i int) string { return fmt.Sprintf("client%d", i+1) }

// host is the client's address for an arm. Its other download has one more.
func (l *mixedLink) host(arm string) string {
	return l.net + map[string]string{armLearned: "2", armCubic: "3", armBBR: "4", "": "5"}[arm]
}

func (l *mixedLink) both() wan.Both {
	way := wan.Profile{Rate: l.rate, Queue: max(l.rate/8*int64(l.queue)/int64(time.Second), 1), Delay: l.rtt / 2, Jitter: l.jitter}
	up := way
	up.Queue = l.rate / 8 // acknowledgements are not what is measured
	way.Loss = l.loss
	if l.burst > 0 {
		way.Burst, way.BurstLength = l.burst, mixedBurst
	}
	return wan.Both{Up: up, Down: way}
}

func (l *mixedLink) String() string {
	s := fmt.Sprintf("%s: %d Mbit/s, %s", l.name, l.rate/1_000_000, l.rtt)
	if l.jitter > 0 {
		s += fmt.Sprintf(" and up to %s more each way", l.jitter)
	}
	s += fmt.Sprintf(", queue %s", l.queue)
	if p := l.loss + l.burst; p > 0 {
		s += fmt.Sprintf(", %s %% lost", figure(100*p))
	}
	if l.burst > 0 {
		s += fmt.Sprintf(" in bursts of %d", mixedBurst)
	}
	if l.shared {
		s += ", shared with another download"
	}
	return s
}

func upMixed(ctx context.Context, lab *rig.Lab, opts Options) (Topology, error) {
	m := &Mixed{Main: newMain(lab, opts), links: mixedLinks(), holdOut: mixedHoldOut}
	m.onlyEdge()
	m.edgeConfig = func(*Edge) string { return fmt.Sprintf("cc: {learn: {mode: on, hold_out: %g}}\n", m.holdOut) }
	if err := m.up(ctx); err != nil {
		return nil, err
	}
	if err := m.connectLinks(ctx); err != nil {
		return nil, err
	}
	if err := m.edges[0].bermd.Realtime(true); err != nil {
		return nil, err
	}
	return m, errors.Join(m.setArms(ctx), m.share())
}

func (m *Mixed) connectLinks(ctx context.Context) (err error) {
	if m.box, err = wan.AddBox(m.lab, "box", ccSeed); err != nil {
		return err
	}
	for i, l := range m.links {
		l.net, l.mbps = fmt.Sprintf("%s%d.", ccPrefixes, i+1), map[string]float64{}
		node := clientOf(i)
		if l.node, err = m.lab.AddNode(node); err != nil {
			return err
		}
		var addrs []string
		for _, arm := range append(mixedArms(), "") {
			addrs = append(addrs, l.host(arm)+"/24")
		}
		err := m.box.Connect(ctx, node, rig.End{Node: l.node, Dev: "eth0", Addrs: addrs},
			rig.End{Node: m.router, Dev: node, Addrs: []string{l.net + "1/24"}}, 0, l.both())
		if err != nil {
			return err
		}
		if err := l.node.Route("default4", l.net+"1"); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return m.box.Start(ctx, self, actorArg, "wan")
}

// setArms has an operator decide about the addresses of the two that are compared with, and puts the objects into the cache.
func (m *Mixed) setArms(ctx context.Context) error {
	var commands [][]string
	for _, arm := range []string{armCubic, armBBR} {
		commands = append(commands, []string{"cc", "profile", arm, "--controller", arm})
		for _, l := range m.links {
			commands = append(commands, []string{"cc", "set", l.host(arm) + "/32", arm})
		}
	}
	for _, l := range m.links { // the host's own controller may be another
		commands = append(commands, []string{"cc", "set", l.host("") + "/32", armCubic})
	}
	for _, args := range commands {
		if out, err := m.edges[0].berm(ctx, args...); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	if _, err := m.good.Output(ctx, "curl", "-sSf", "-m", "30", "--cacert", m.cert, "--resolve", edgeName+":443:"+vip4, "-o", "/dev/null", "https://"+edgeName+ccObject); err != nil {
		return fmt.Errorf("warm the cache: %w", err)
	}
	return nil
}

// Guide tells a person what is where.
func (m *Mixed) Guide() string {
	var b strings.Builder
	for i, l := range m.links {
		fmt.Fprintf(&b, "%s  %s\n", clientOf(i), l)
	}
	return m.Main.Guide() + "\n" + b.String() + m.box.Guide()
}

// Steps have to be run all of them: what is measured is worth something only together.
func (m *Mixed) Steps() []Step {
	var steps []Step
	for i := range mixedLearn {
		steps = append(steps, Step{Name: fmt.Sprintf("it learns, %d of %d", i+1, mixedLearn), Run: m.learn, Loud: true})
	}
	steps = append(steps, Step{Name: "what it has learned", Run: m.known, Loud: true})
	for i := range mixedRounds {
		steps = append(steps, Step{Name: fmt.Sprintf("downloads, %d of %d", i+1, mixedRounds), Run: m.round, Loud: true})
	}
	return append(steps, Step{Name: "in all", Run: m.judge, Loud: true})
}

const (
	// mixedHoldOut is while it learns, so that it need not take 160 downloads of each client; then the usual one counts.
	mixedHoldOut = 0.25
	usualHoldOut = 0.05

	mixedLearn  = 3               // steps at most
	mixedWatch  = 5 * time.Second // a download: it is learned from what is measured
	mixedRounds = 3
)

// known looks at what was learned; from now on it is used.
func (m *Mixed) known(ctx context.Context, r *Recorder) error {
	for _, l := range m.links {
		if l.learned == nil {
			m.opts.logf("%s: nothing learned", l)
			continue
		}
		m.opts.logf("%s: %s, %s", l, l.learned.Profile, l.learned.Why)
		for _, s := range l.learned.Scores {
			m.opts.logf("    %s: %.0f connections, %.1f Mbit/s, queues %.0f %% of the round trip, %.1f %% sent again, reward %.1f Mbit/s",
				s.Profile, s.Connections, s.GoodputKbps/1000, 100*s.Queueing, 100*s.Retransmitted, s.RewardKbps/1000)
		}
	}
	m.checkChosen(r)
	m.holdOut = usualHoldOut
	return m.edges[0].reload(ctx)
}

// round has each arm measured, one after the other.
func (m *Mixed) round(ctx context.Context, r *Recorder) error {
	for _, arm := range mixedArms() {
		mbps, err := m.measure(ctx, arm)
		if err != nil {
			return err
		}
		r.AtLeast(arm+": in all", 1, mbps, "Mbit/s")
	}
	return nil
}

// share starts what shares some of the links, until the lab ends.
func (m *Mixed) share() error {
	for _, l := range m.links {
		if !l.shared {
			continue
		}
		if _, err := l.node.Start(rig.Daemon{Name: "other", Args: []string{
			"sh", "-c", fmt.Sprintf("while :; do curl -s --http1.1 -o /dev/null --cacert %s --interface %s --resolve %s:443:%s https://%[3]s%[5]s; done",
				m.cert, l.host(""), edgeName, vip4, ccObject),
		}}); err != nil {
			return err
		}
	}
	return nil
}

// learn has each client download, one download after the other, until enough is known of its prefix.
func (m *Mixed) learn(ctx context.Context, r *Recorder) error {
	limit, cancel := context.WithTimeout(ctx, stepLimit-2*mixedWatch)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(m.links))
	for i, l := range m.links {
		wg.Go(func() {
			for errs[i] == nil && limit.Err() == nil && (l.learned == nil || !l.learned.Learned) {
				if _, errs[i] = m.download(ctx, l, armLearned); errs[i] != nil {
					return
				}
				var choice struct {
					Learned *control.Learned `json:"learned"`
				}
				errs[i] = m.edges[0].ask(ctx, &choice, "cc", "explain", l.host(armLearned))
				l.learned = choice.Learned
			}
		})
	}
	wg.Wait()
	m.checkChosen(r)
	return errors.Join(errs...)
}

// checkChosen wants a choice for each link. That of one where too few were held out is by the rule for a start.
func (m *Mixed) checkChosen(r *Recorder) {
	chosen, learned := 0, 0
	for _, l := range m.links {
		if l.learned != nil && l.learned.Profile != "" {
			chosen++
		}
		if l.learned != nil && l.learned.Learned {
			learned++
		}
	}
	r.Equal("links that it chose for", uint64(len(m.links)), uint64(chosen), fmt.Sprintf("links (%d by what both controllers brought)", learned))
}

// measure downloads over all links at once, with what the arm gives each.
func (m *Mixed) measure(ctx context.Context, arm string) (sum float64, err error) {
	var wg sync.WaitGroup
	errs, mbps := make([]error, len(m.links)), make([]float64, len(m.links))
	for i, l := range m.links {
		wg.Go(func() { mbps[i], errs[i] = m.download(ctx, l, arm) })
	}
	wg.Wait()
	line := ""
	for i, l := range m.links {
		l.mbps[arm] += mbps[i] / mixedRounds
		line += fmt.Sprintf(" %s %.1f", l.name, mbps[i])
		sum += mbps[i]
	}
	m.opts.logf("%s:%s Mbit/s", arm, line)
	return sum, errors.Join(errs...)
}

// download takes an object from the edge that it does not get to the end of. Where packets are lost in bursts that may be over before it has begun: it
// has brought nothing then.
func (m *Mixed) download(ctx context.Context, l *mixedLink, arm string) (mbps float64, err error) {
	out, err := l.node.Output(ctx, "curl", "-sS", "--http1.1", "-m", fmt.Sprint(mixedWatch.Seconds()), "--cacert", m.cert,
		"--interface", l.host(arm), "--resolve", edgeName+":443:"+vip4, "-o", "/dev/null",
		"-w", "%{http_code} %{size_download} %{time_pretransfer} %{time_total}", "https://"+edgeName+ccObject)
	const timedOut = 28
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != timedOut) {
		return 0, err
	}
	var code int
	var size, began, ended float64
	if _, scanErr := fmt.Sscan(string(out), &code, &size, &began, &ended); scanErr != nil || code != 200 && err == nil {
		return 0, fmt.Errorf("%s: curl printed %q: %w", l.name, out, scanErr)
	}
	return size * 8 / 1e6 / (ended - began), nil
}

// wantMixed is how much what is learned has to bring of the better controller everywhere, in all: as much, but for the share held out. A
// published bar for choosing by network is 1.16 times; how far real packets are above or below it is printed.
const wantMixed = 1 - usualHoldOut

// judge prints what each link had, and compares the sums.
func (m *Mixed) judge(ctx context.Context, r *Recorder) error {
	states, err := m.box.States(ctx)
	if err != nil {
		return err
	}
	total := map[string]float64{}
	for i, l := range m.links {
		for _, arm := range mixedArms() {
			total[arm] += l.mbps[arm]
		}
		down := states[clientOf(i)].Sum.Down
		chosen := "nothing"
		if l.learned != nil {
			chosen = l.learned.Profile
		}
		m.opts.logf("%-10s CUBIC %5.1f, BBR %5.1f, learned %5.1f Mbit/s (%s); the link was late %s on average, at most %s",
			l.name, l.mbps[armCubic], l.mbps[armBBR], l.mbps[armLearned], chosen, down.LateMean, down.LateMax)
	}
	r.AtLeast("goodput of what was learned over that of the better controller everywhere", wantMixed, total[armLearned]/max(total[armCubic], total[armBBR]),
		fmt.Sprintf("times (CUBIC everywhere %.1f, BBR everywhere %.1f, learned %.1f Mbit/s)", total[armCubic], total[armBBR], total[armLearned]))
	return m.write(total)
}

// write puts figures, and a chart of them, where the caller wants them.
func (m *Mixed) write(total map[string]float64) error {
	if m.opts.Out == "" {
		return nil
	}
	type row struct {
		Link   string             `json:"link"`
		Chosen string             `json:"chosen"`
		Why    string             `json:"why"`
		Mbps   map[string]float64 `json:"mbps"`
	}
	var rows []row
	c := chart{
		title: fmt.Sprintf("Goodput over eight links at once; in all CUBIC %.0f, BBR %.0f, learned %.0f Mbit/s", total[armCubic], total[armBBR], total[armLearned]),
		unit:  "Mbit/s", series: mixedArms(),
	}
	for _, l := range m.links {
		x := row{Link: l.String(), Mbps: l.mbps}
		if l.learned != nil {
			x.Chosen, x.Why = l.learned.Profile, l.learned.Why
		}
		rows = append(rows, x)
		c.groups = append(c.groups, l.name)
	}
	c.value = func(series, group string) (float64, bool) {
		for _, l := range m.links {
			if l.name == group {
				return l.mbps[series], true
			}
		}
		return 0, false
	}
	text, err := json.MarshalIndent(map[string]any{"links": rows, "total_mbps": total}, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(m.opts.Out, 0o755); err != nil {
		return err
	}
	for name, data := range map[string][]byte{"cc-mixed.json": append(text, '\n'), "cc-mixed.svg": c.svg()} {
		file := filepath.Join(m.opts.Out, name)
		if err := os.WriteFile(file, data, 0o644); err != nil {
			return err
		}
		m.opts.logf("wrote %s", file)
	}
	return nil
}
