package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/test/rig/wan"
)

// Migration is the main topology with one edge, and a client that has a link at home and one on its way, each with a
// prefix of its own:
//
//	        ┌─ home ──── box ─┐
//	roamer ─┤             │   ├── router ── edge1
//	        └─ mobile ── box ─┘
type Migration struct {
	*Main
	box    *wan.Box
	roamer *rig.Node
	quic   bool // the daemon chooses controllers for QUIC
}

// The roamer's networks, by link.
var roamed = []struct {
	link, dev, net, profile string
	both                    wan.Both
}{
	{"home", "eth0", ccPrefixes + "1.", "fixed", wan.Same(wan.Profile{Rate: 50_000_000, Queue: 250_000, Delay: 20 * time.Millisecond})},
	{"mobile", "eth1", ccPrefixes + "2.", "mobile", wan.Both{
		Up:   wan.Profile{Rate: 30_000_000, Queue: 300_000, Delay: 40 * time.Millisecond},
		Down: wan.Profile{Rate: 30_000_000, Queue: 300_000, Delay: 40 * time.Millisecond, Loss: 0.02},
	}},
}

func upMigration(ctx context.Context, lab *rig.Lab, opts Options) (Topology, error) {
	m := &Migration{Main: newMain(lab, opts)}
	m.listed = 1
	m.routes = func(context.Context) error {
		return errors.Join(m.router.Route(vip4+"/32", m.edges[0].addr4), m.router.Route(vip6+"/128", m.edges[0].addr6))
	}
	if err := m.up(ctx); err != nil {
		return nil, err
	}
	if err := m.connect(ctx); err != nil {
		return nil, err
	}
	selectable, err := m.edges[0].metric(ctx, "berm_quic_cc_selectable")
	if err != nil {
		return nil, err
	}
	if m.quic = selectable == 1; !m.quic {
		opts.logf("controllers are left out: this bermd was built without the patched quic-go (make build), and runs Reno")
	}
	for _, at := range roamed {
		if err := m.choose(ctx, at.net, at.profile); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *Migration) connect(ctx context.Context) (err error) {
	if m.box, err = wan.AddBox(m.lab, "box", ccSeed); err != nil {
		return err
	}
	if m.roamer, err = m.lab.AddNode("roamer"); err != nil {
		return err
	}
	for _, at := range roamed {
		err := m.box.Connect(ctx, at.link,
			rig.End{Node: m.roamer, Dev: at.dev, Addrs: []string{at.net + "2/24"}},
			rig.End{Node: m.router, Dev: at.link, Addrs: []string{at.net + "1/24"}}, 0, at.both)
		if err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return m.box.Start(ctx, self, actorArg, "wan")
}

// choose gives the clients of a network a profile.
func (m *Migration) choose(ctx context.Context, net, profile string) error {
	if out, err := m.edges[0].berm(ctx, "cc", "set", net+"0/24", profile); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// Guide tells a person what is where.
func (m *Migration) Guide() string { return m.Main.Guide() + "\n" + m.box.Guide() }

// Steps end with the control: with the controller of home the same is slow.
func (m *Migration) Steps() []Step {
	return []Step{{Name: "a client that leaves home in the middle of a download", Run: m.check, Loud: true}}
}

const (
	roamAfter = time.Second // at home, after the handshake
	roamWatch = 2 * time.Second
	roamSize  = 10 << 20 // more than home carries before
)

var roamObject = fmt.Sprintf("/big/%d", roamSize)

// roam is how a download went.
type roam struct {
	mbps     float64 // in the first time on the way
	complete bool
	took     time.Duration
}

// check compares the profile of the network that the client moved to with that of home.
func (m *Migration) check(ctx context.Context, r *Recorder) error {
	if _, err := m.good.Output(ctx, "curl", "-sSf", "-m", "30", "--cacert", m.cert, "--resolve", edgeName+":443:"+vip4, "-o", "/dev/null", "https://"+edgeName+roamObject); err != nil {
		return fmt.Errorf("warm the cache: %w", err)
	}
	before, err := m.began(ctx)
	if err != nil {
		return err
	}
	links, err := m.box.States(ctx)
	if err != nil {
		return err
	}
	follows, err := m.download(ctx, true)
	if err != nil {
		return err
	}
	after, err := m.began(ctx)
	if err != nil {
		return err
	}
	now, err := m.box.States(ctx)
	if err != nil {
		return err
	}
	r.Same("the download is complete", "true", fmt.Sprint(follows.complete), fmt.Sprintf("(after %.1f s)", follows.took.Seconds()))
	for _, at := range roamed {
		frames := now[at.link].Sum.Down.Sent - links[at.link].Sum.Down.Sent
		r.AtLeast("frames to the client by "+at.link, 500, float64(frames), "frames")
	}
	if !m.quic {
		return nil
	}
	// One connection, which began twice: nobody connected again.
	for i, series := range roamSeries {
		r.Equal("paths that begin with "+series, 1, after[i]-before[i], "paths")
	}
	if err := m.choose(ctx, roamed[1].net, roamed[0].profile); err != nil {
		return err
	}
	stays, err := m.download(ctx, false)
	if err := errors.Join(err, m.choose(ctx, roamed[1].net, roamed[1].profile)); err != nil {
		return err
	}
	r.Timed().AtLeast("goodput on the way over what home's profile brings there", 2, follows.mbps/stays.mbps,
		fmt.Sprintf("times (%.1f, %.1f Mbit/s)", follows.mbps, stays.mbps))
	return nil
}

// roamSeries are what a path begins with in each of the networks.
var roamSeries = []string{
	`berm_quic_cc_connections_total{controller="cubic",profile="fixed",refused="false"}`,
	`berm_quic_cc_connections_total{controller="bbr",profile="mobile",refused="false"}`,
}

// began counts the edge's paths by roamSeries.
func (m *Migration) began(ctx context.Context) (counts [2]uint64, err error) {
	for i, series := range roamSeries {
		n, err := m.edges[0].metric(ctx, series)
		if err != nil {
			return counts, err
		}
		counts[i] = uint64(n)
	}
	return counts, nil
}

// download fetches the object with ngtcp2's client, which changes its address once the kernel leads by the other link; to
// its end, or as long as it is watched.
func (m *Migration) download(ctx context.Context, whole bool) (d roam, err error) {
	dir := m.lab.Path("roamer-h3")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755), m.roamer.Route("default4", roamed[0].net+"1")); err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	start := time.Now()
	proc, err := m.roamer.Start(rig.Daemon{Name: "gtlsclient", Args: []string{
		"chrt", "-f", "1", "gtlsclient", "--no-quic-dump", "--no-http-dump", "--quiet", "--exit-on-all-streams-close", "--change-local-addr=" + roamAfter.String(),
		"--sni=" + edgeName, "--download=" + dir, vip4, "443", "https://" + edgeName + roamObject,
	}})
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, proc.Kill()) }()
	file := filepath.Join(dir, filepath.Base(roamObject))
	size := func() int64 {
		if info, err := os.Stat(file); err == nil {
			return info.Size()
		}
		return 0
	}
	alive := func() error {
		if done, err := proc.Exited(); done {
			return fmt.Errorf("gtlsclient ended: %w: %s", err, proc.Tail(5))
		}
		return nil
	}
	if err := rig.Until(ctx, 10*time.Second, "the download to begin", func() (bool, error) { return size() > 0, alive() }); err != nil {
		return d, err
	}
	if err := m.roamer.Route("default4", roamed[1].net+"1"); err != nil {
		return d, err
	}
	sent, err := m.onTheWay(ctx)
	if err != nil {
		return d, err
	}
	err = rig.Until(ctx, 10*time.Second, "the client to be on its way", func() (bool, error) {
		now, err := m.onTheWay(ctx)
		return now > sent+10, errors.Join(err, alive())
	})
	if err != nil {
		return d, err
	}
	moved, had := time.Now(), size()
	watched, cancel := context.WithTimeout(ctx, roamWatch)
	defer cancel()
	_ = proc.Wait(watched) // it may be done before
	d.mbps = float64(size()-had) * 8 / 1e6 / time.Since(moved).Seconds()
	if !whole {
		return d, nil
	}
	limited, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := proc.Wait(limited); err != nil {
		m.opts.logf("gtlsclient: %v: %s", err, proc.Tail(5))
	}
	d.took = time.Since(start)
	got, err := os.ReadFile(file)
	if err != nil {
		return d, err
	}
	want, err := m.good.Output(ctx, "curl", "-sSf", "-m", "30", "--cacert", m.cert, "--resolve", edgeName+":443:"+vip4, "https://"+edgeName+roamObject)
	d.complete = bytes.Equal(got, want)
	return d, err
}

// onTheWay counts frames to the client by its second link.
func (m *Migration) onTheWay(ctx context.Context) (uint64, error) {
	links, err := m.box.States(ctx)
	return links[roamed[1].link].Sum.Down.Sent, err
}
