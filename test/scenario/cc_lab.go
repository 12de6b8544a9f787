package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/test/rig/wan"
)

// CC is the main topology with one edge, and two clients with prefixes and links of their own, whose controllers an
// operator chooses:
//
//	lossy ──┐
//	        box ── router ── edge1
//	clean ──┘
type CC struct {
	*Main
	box     *wan.Box
	clients []*pathClient
	figures map[string]goodput // by what was measured
	quic    bool               // the daemon chooses controllers for QUIC, too
}

// pathClient is behind a link of its own.
type pathClient struct {
	name  string // of the node and the link
	node  *rig.Node
	addr  string
	loss  float64 // of the link, on the way to the client
	ports int     // local ports used so far
}

// neighbour is another address of the node.
func (p *pathClient) neighbour() string { return strings.TrimSuffix(p.addr, "2") + "3" }

// router is the address where its link begins.
func (p *pathClient) router() string { return strings.TrimSuffix(p.addr, "2") + "1" }

// goodput is what a download brought.
type goodput struct {
	Loss       float64 `json:"loss"` // of the link, as a share
	Transport  string  `json:"transport"`
	Controller string  `json:"controller"`
	Mbps       float64 `json:"mbps"`
}

// series is what one colour of the chart stands for.
func (g goodput) series() string { return g.Transport + " " + g.Controller }

func (g goodput) percent() string { return figure(100*g.Loss) + " % loss" }

// The links, as long and as wide as many access links are.
const (
	ccRate  = 50_000_000 // bit/s
	ccDelay = 25 * time.Millisecond
	ccQueue = ccRate / 8 / 20 // bytes of one round trip
	ccSeed  = 1
)

// ccPrefixes are the clients' networks, in the range for benchmarks: what is known of paths is known by /24.
const ccPrefixes = "198.18."

// onlyEdge has one edge serve all, and each connection begin as the edge's profiles say.
func (m *Main) onlyEdge() {
	m.listed = 1
	// Else the kernel begins with what the last connection to that address ended with.
	m.edgeSysctls = map[string]string{"net.ipv4.tcp_no_metrics_save": "1"}
	m.routes = func(context.Context) error {
		return errors.Join(m.router.Route(vip4+"/32", m.edges[0].addr4), m.router.Route(vip6+"/128", m.edges[0].addr6))
	}
}

func upCC(ctx context.Context, lab *rig.Lab, opts Options) (Topology, error) {
	c := &CC{Main: newMain(lab, opts), figures: map[string]goodput{}}
	c.onlyEdge()
	if err := c.up(ctx); err != nil {
		return nil, err
	}
	if err := c.connectClients(ctx); err != nil {
		return nil, err
	}
	// What a busy machine does to the daemon would be taken for what its controllers do; the kernel's run before all else.
	if err := c.edges[0].bermd.Realtime(true); err != nil {
		return nil, err
	}
	selectable, err := c.edges[0].metric(ctx, "berm_quic_cc_selectable")
	if err != nil {
		return nil, err
	}
	if c.quic = selectable == 1; !c.quic {
		opts.logf("QUIC is left out: this bermd was built without the patched quic-go (make build), and runs Reno")
	}
	if opts.Long && !hasNgtcp2() {
		opts.logf("ngtcp2's BBR is left out: there is no gtlsserver (Debian's package ngtcp2-server)")
	}
	return c, c.warm(ctx)
}

func (c *CC) connectClients(ctx context.Context) (err error) {
	if c.box, err = wan.AddBox(c.lab, "box", ccSeed); err != nil {
		return err
	}
	for i, p := range []*pathClient{{name: "lossy", loss: 0.02}, {name: "clean"}} {
		net := fmt.Sprintf("%s%d.", ccPrefixes, i+1)
		p.addr = net + "2"
		if p.node, err = c.lab.AddNode(p.name); err != nil {
			return err
		}
		err = c.box.Connect(ctx, p.name,
			rig.End{Node: p.node, Dev: "eth0", Addrs: []string{p.addr + "/24", p.neighbour() + "/24"}},
			rig.End{Node: c.router, Dev: p.name, Addrs: []string{p.router() + "/24"}}, 0, path(p.loss))
		if err != nil {
			return err
		}
		if err := p.node.Route("default4", p.router()); err != nil {
			return err
		}
		c.clients = append(c.clients, p)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return c.box.Start(ctx, self, actorArg, "wan")
}

// path loses what goes to the client; what it acknowledges arrives.
func path(loss float64) wan.Both {
	both := wan.Same(wan.Profile{Rate: ccRate, Queue: ccQueue, Delay: ccDelay})
	both.Down.Loss = loss
	return both
}

// warm puts the object into the edge's cache.
func (c *CC) warm(ctx context.Context) error {
	if _, err := c.good.Output(ctx, "curl", "-sSf", "-m", "30", "--cacert", c.cert, "--resolve", edgeName+":443:"+vip4, "-o", "/dev/null", "https://"+edgeName+ccObject); err != nil {
		return fmt.Errorf("warm the cache: %w", err)
	}
	return nil
}

// ccObject is more than a link carries in the longest download: 50 Mbit/s for ten seconds are 60 MiB.
var ccObject = fmt.Sprintf("/big/%d", maxBig)

// Guide tells a person what is where.
func (c *CC) Guide() string {
	return c.Main.Guide() + "\n" + c.box.Guide()
}

// Steps are one for each loss.
func (c *CC) Steps() []Step {
	losses := []float64{0.02}
	if c.opts.Long {
		losses = []float64{0.01, 0.02, 0.03, 0.05}
	}
	var steps []Step
	for _, loss := range losses {
		steps = append(steps, Step{
			Name: fmt.Sprintf("TCP at %s %% loss", figure(100*loss)), Loud: true,
			Run: func(ctx context.Context, r *Recorder) error { return c.check(ctx, r, loss, overTCP, c.curl) },
		})
		if c.quic {
			steps = append(steps, Step{
				Name: fmt.Sprintf("QUIC at %s %% loss", figure(100*loss)), Loud: true,
				Run: func(ctx context.Context, r *Recorder) error { return c.check(ctx, r, loss, overQUIC, c.gtls) },
			})
		}
		if c.opts.Long && c.quic && hasNgtcp2() {
			steps = append(steps, Step{
				Name: fmt.Sprintf("ngtcp2's BBR at %s %% loss", figure(100*loss)), Loud: true,
				Run: func(ctx context.Context, r *Recorder) error { return c.checkNgtcp2(ctx, r, loss) },
			})
		}
	}
	if c.opts.Long && c.quic {
		steps = append(steps, Step{Name: "CUBIC beside BBR", Loud: true, Run: c.checkNeighbours},
			Step{Name: "the next visitor over QUIC", Loud: true, Run: c.checkSecond})
	}
	return steps
}

// downloadFor is how long a download is watched. BBR has measured the path within a second, CUBIC on a clean one too.
func (c *CC) downloadFor() time.Duration {
	if c.opts.Long {
		return 10 * time.Second
	}
	return 2500 * time.Millisecond
}

// The transports, as figures and charts name them.
const (
	overTCP  = "TCP"
	overQUIC = "QUIC"
)

// wantBBR is how many times as much BBR is to bring as CUBIC on the lossy link, wantAlike how much the worse is to bring of the
// better on the clean one, wantKernel how much of what TCP's BBR brings QUIC's is to bring on the lossy link, and wantCubic
// how much of CUBIC on the clean one.
const (
	wantAlike  = 0.75
	wantKernel = 0.9
	wantCubic  = 0.97
)

// A download of CUBIC that is lucky with its first losses brings 6 in two seconds, where QUIC's BBR brings 38.
var wantBBR = map[string]float64{overTCP: 5, overQUIC: 3}

// compare holds one measured goodput against another of the same loss.
func (c *CC) compare(r *Recorder, loss, want float64, one, other goodput) {
	of := func(g goodput) float64 {
		g.Loss = loss
		return c.figures[g.series()+g.percent()].Mbps
	}
	got, than := of(one), of(other)
	if got == 0 || than == 0 {
		return // --only left it out
	}
	if !c.opts.Long { // and a busy machine
		want -= 0.25
	}
	r.Timed().AtLeast(fmt.Sprintf("goodput of %s over that of %s at %s %%", one.series(), other.series(), figure(100*loss)), want, got/than,
		fmt.Sprintf("times (%.1f and %.1f Mbit/s)", got, than))
}

// ccDownload is one over a transport, and the controller that the edge ran for it.
type ccDownload func(context.Context, *pathClient) (mbps float64, controller string, err error)

// check downloads with each controller over both links at once: what the machine does meanwhile does it to both.
func (c *CC) check(ctx context.Context, r *Recorder, loss float64, transport string, download ccDownload) error {
	if err := c.lose(ctx, loss); err != nil {
		return err
	}
	before, err := c.box.States(ctx)
	if err != nil {
		return err
	}
	got := map[string]float64{} // by client and controller
	for _, controller := range []string{"cubic", "bbr"} {
		if err := c.choose(ctx, controller); err != nil {
			return err
		}
		var wg sync.WaitGroup
		runs, mbps, errs := make([]string, len(c.clients)), make([]float64, len(c.clients)), make([]error, len(c.clients))
		for i, p := range c.clients {
			wg.Go(func() { mbps[i], runs[i], errs[i] = download(ctx, p) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		for i, p := range c.clients {
			g := goodput{Loss: p.loss, Transport: transport, Controller: controller, Mbps: mbps[i]}
			c.figures[g.series()+g.percent()] = g
			got[p.name+controller] = g.Mbps
			r.Same(fmt.Sprintf("%s (%s): controller of %s", p.name, g.percent(), transport), controller, runs[i], fmt.Sprintf("(%.1f Mbit/s)", g.Mbps))
		}
	}
	timed := r.Timed()
	for _, p := range c.clients {
		cubic, bbr := got[p.name+"cubic"], got[p.name+"bbr"]
		unit := fmt.Sprintf("times (CUBIC %.1f, BBR %.1f Mbit/s)", cubic, bbr)
		if p.loss > 0 {
			timed.AtLeast(p.name+": goodput of BBR over that of CUBIC", wantBBR[transport], bbr/cubic, unit)
			continue
		}
		timed.AtLeast(p.name+": goodput of the worse over that of the better", wantAlike, min(bbr, cubic)/max(bbr, cubic), unit)
		timed.AtLeast(p.name+": goodput of the better over the link's rate", 0.5, max(bbr, cubic)*1e6/ccRate, unit)
	}
	if transport == overQUIC {
		bbr := goodput{Transport: overQUIC, Controller: "bbr"}
		c.compare(r, loss, wantKernel, bbr, goodput{Transport: overTCP, Controller: "bbr"})
		c.compare(r, 0, wantCubic, bbr, goodput{Transport: overQUIC, Controller: "cubic"})
	}
	if err := c.checkLinks(ctx, r, before); err != nil {
		return err
	}
	return c.write(r)
}

// lose has the lossy link lose that share.
func (c *CC) lose(ctx context.Context, loss float64) error {
	c.clients[0].loss = loss
	return c.box.Set(ctx, c.clients[0].name, path(loss))
}

// choose gives both prefixes a profile with that controller.
func (c *CC) choose(ctx context.Context, controller string) error {
	commands := [][]string{{"cc", "profile", controller, "--controller", controller}}
	for i := range c.clients {
		commands = append(commands, []string{"cc", "set", fmt.Sprintf("%s%d.0/24", ccPrefixes, i+1), controller})
	}
	for _, args := range commands {
		if out, err := c.edges[0].berm(ctx, args...); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	return nil
}

// firstCCPort begins the local ports of downloads: by its port ss tells a connection from the one before.
const firstCCPort = 20000

// curl downloads for a while, and asks ss on the edge what the connection runs.
func (c *CC) curl(ctx context.Context, p *pathClient) (mbps float64, controller string, err error) {
	p.ports++
	port := firstCCPort + p.ports
	seen := make(chan string, 1)
	watch, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		last := ""
		// Its end is that of the download.
		_ = rig.Poll(watch, 100*time.Millisecond, func() (bool, error) {
			if runs, err := runsController(watch, c.edges[0].node, fmt.Sprintf("%s:%d", p.addr, port)); err == nil && runs != "" {
				last = runs
			}
			return false, nil
		})
		seen <- last
	}()
	// Time spent before the request is not the controller's.
	out, err := p.node.Output(ctx, "curl", "-sS", "--http1.1", "-m", fmt.Sprint(c.downloadFor().Seconds()), "--cacert", c.cert,
		"--interface", p.addr, "--local-port", fmt.Sprint(port), "--resolve", edgeName+":443:"+vip4, "-o", "/dev/null",
		"-w", "%{http_code} %{size_download} %{time_pretransfer} %{time_total}", "https://"+edgeName+ccObject)
	stop()
	controller = <-seen
	const timedOut = 28
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != timedOut) {
		return 0, controller, err
	}
	var code int
	var size, began, ended float64
	if _, err := fmt.Sscan(string(out), &code, &size, &began, &ended); err != nil || code != 200 {
		return 0, controller, fmt.Errorf("%s: curl printed %q: %w", p.name, out, err)
	}
	return size * 8 / 1e6 / (ended - began), controller, nil
}

// checkLinks asks what the links did: figures of a link that does not do as it is told are worth nothing.
func (c *CC) checkLinks(ctx context.Context, r *Recorder, before map[string]wan.State) error {
	after, err := c.box.States(ctx)
	if err != nil {
		return err
	}
	for _, p := range c.clients {
		was, is := before[p.name].Sum, after[p.name].Sum
		lost, carried := is.Down.Lost-was.Down.Lost, is.Down.Sent-was.Down.Sent
		if p.loss > 0 {
			// Of 10,000 frames and more, the standard deviation is below a tenth.
			r.Near(p.name+": frames that the link lost", p.loss, 0.3, float64(lost)/float64(lost+carried), "of all")
		} else {
			r.Equal(p.name+": frames that the link lost", 0, lost, "frames")
		}
		r.Equal(p.name+": frames that the link never saw", 0, is.Up.Missed+is.Down.Missed, "frames")
		c.opts.logf("%s: %d frames to the client, %d lost, %d found the queue full; late %s on average, at most %s",
			p.name, carried, lost, is.Down.Dropped-was.Down.Dropped, is.Down.LateMean, is.Down.LateMax)
	}
	return nil
}

// write puts all figures so far, and a chart of them, where the caller wants them.
func (c *CC) write(r *Recorder) error {
	if c.opts.Out == "" {
		return nil
	}
	var all []goodput
	for _, g := range c.figures {
		all = append(all, g)
	}
	slices.SortFunc(all, func(a, b goodput) int {
		if a.Loss != b.Loss {
			return int(1e6 * (a.Loss - b.Loss))
		}
		return strings.Compare(b.series(), a.series())
	})
	text, err := json.MarshalIndent(map[string]any{"rate_mbps": ccRate / 1e6, "rtt_ms": 2 * ccDelay.Milliseconds(), "goodput": all}, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.opts.Out, 0o755); err != nil {
		return err
	}
	for name, data := range map[string][]byte{"cc.json": append(text, '\n'), "cc.svg": ccChart(all).svg()} {
		file := filepath.Join(c.opts.Out, name)
		if err := os.WriteFile(file, data, 0o644); err != nil {
			return err
		}
		c.opts.logf("wrote %s", file)
	}
	r.AtLeast("figures in the chart", 4, float64(len(all)), "figures ("+strconv.Quote(c.opts.Out)+")")
	return nil
}

func ccChart(all []goodput) chart {
	c := chart{title: fmt.Sprintf("Goodput of one download, %d Mbit/s, round trip %s", ccRate/1_000_000, 2*ccDelay), unit: "Mbit/s"}
	values := map[[2]string]float64{}
	for _, g := range all {
		if !slices.Contains(c.groups, g.percent()) {
			c.groups = append(c.groups, g.percent())
		}
		if !slices.Contains(c.series, g.series()) {
			c.series = append(c.series, g.series())
		}
		values[[2]string{g.series(), g.percent()}] = g.Mbps
	}
	c.value = func(series, group string) (float64, bool) {
		v, ok := values[[2]string{series, group}]
		return v, ok
	}
	return c
}
