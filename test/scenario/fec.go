package scenario

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

// FEC is a contributor behind one edge and a viewer of another, and a path that loses between the edges and before the
// viewer. No kernel half takes part.
type FEC struct {
	lab                     *rig.Lab
	opts                    Options
	near, path, far, viewer *rig.Node
	daemons                 []*rig.Proc
}

// Addresses and ports of the lab. The path has each other node on a link of its own.
const (
	fecNear, fecPathNear     = "10.78.1.1", "10.78.1.2"
	fecFar, fecPathFar       = "10.78.2.1", "10.78.2.2"
	fecViewer, fecPathViewer = "10.78.3.1", "10.78.3.2"

	fecIn     = "127.0.0.1:5000" // near: from the contributor
	fecOut    = "127.0.0.1:7000" // far: repaired
	fecStream = "127.0.0.1:7001" // far: to the viewers
	fecBare   = fecFar + ":6002" // far: what came without relays, for comparison
	fecRoute  = "/live/stage"
)

// fecDelay is each way's between the edges. The viewer has the loss alone: QUIC's congestion control would leave
// some 70 packets a second of a path that loses 5 % and takes 80 ms, if it halves its window at each loss.
const fecDelay = 40 * time.Millisecond

// calm is how much a machine that is not busy delays 99 of 100 packets beyond the path's delay, at most.
const calm = 5 * time.Millisecond

// fecBudget is what parity may cost.
const (
	fecResidual = 1e-4
	fecOverhead = 0.35
	fecAdded    = 25 * time.Millisecond
)

func upFEC(ctx context.Context, lab *rig.Lab, opts Options) (Topology, error) {
	f := &FEC{lab: lab, opts: opts}
	for name, n := range map[string]**rig.Node{"near": &f.near, "path": &f.path, "far": &f.far, "viewer": &f.viewer} {
		var err error
		if *n, err = lab.AddNode(name); err != nil {
			return nil, err
		}
	}
	for _, l := range []struct {
		node     *rig.Node
		own, via string
	}{{f.near, fecNear, fecPathNear}, {f.far, fecFar, fecPathFar}, {f.viewer, fecViewer, fecPathViewer}} {
		err := rig.Connect(ctx, rig.End{Node: l.node, Dev: "eth0", Addrs: []string{l.own + "/24"}},
			rig.End{Node: f.path, Dev: l.node.Name, Addrs: []string{l.via + "/24"}}, 0)
		if err != nil {
			return nil, err
		}
	}
	p, err := startActor(f.path, "path", f.counts(),
		fmt.Sprintf("6000,%s:6000,%s,forth", fecFar, fecDelay), fmt.Sprintf("6001,%s:6001,%s,forth", fecFar, fecDelay),
		fmt.Sprintf("6002,%s,%s,forth", fecBare, fecDelay), fmt.Sprintf("443,%s:443,0s,back", fecFar))
	if err != nil {
		return nil, err
	}
	if err := awaitCounts(ctx, p, f.counts()); err != nil {
		return nil, err
	}
	return f, errors.Join(
		f.startDaemon(ctx, f.near, fmt.Sprintf("  relays: [{name: out, role: protect, listen: %q, to: %q}]", fecIn, fecPathNear+":6000")),
		f.startDaemon(ctx, f.far, fmt.Sprintf("  relays: [{name: in, role: repair, listen: %q, to: %q}]\n  streams: [{name: stage, listen: %q, path: %s, page: true, delay: 60ms}]",
			fecFar+":6000", fecOut, fecStream, fecRoute)),
	)
}

func (f *FEC) counts() string            { return f.lab.Path("path.counts") }
func (f *FEC) config(n *rig.Node) string { return f.lab.Path(n.Name + ".yaml") }

func (f *FEC) startDaemon(ctx context.Context, n *rig.Node, section string) error {
	bin, err := rig.Binary(f.opts.Bin, "bermd")
	if err != nil {
		return err
	}
	if bin, err = f.lab.Publish(bin); err != nil {
		return err
	}
	dir := f.lab.Path(n.Name + "-run") // its own: it runs without privilege
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, daemonUser, daemonUser)); err != nil {
		return err
	}
	file := fmt.Sprintf("listen: {http: [\"127.0.0.1:80\"], https: [\"0.0.0.0:443\"]}\nadmin: {socket: %s}\nkernel: {pins: %s}\nfec:\n%s\n",
		dir+"/berm.sock", dir+"/pins", section)
	config, err := f.lab.WriteFile(n.Name+".yaml", 0o644, []byte(file))
	if err != nil {
		return err
	}
	p, err := n.Start(rig.Daemon{
		Name: "bermd", Args: []string{bin, "run", "--config", config},
		UID: daemonUser, GID: daemonUser, Caps: []uintptr{unix.CAP_NET_BIND_SERVICE},
	})
	if err != nil {
		return err
	}
	f.daemons = append(f.daemons, p)
	return rig.Until(ctx, 20*time.Second, p.Name+" answers", func() (bool, error) {
		if done, err := p.Exited(); done {
			return false, fmt.Errorf("%s ended: %w: %s", p.Name, err, p.Tail(5))
		}
		_, err := f.show(ctx, n)
		return err == nil, nil
	})
}

// fecShown is what berm fec show says.
type fecShown struct {
	Relays  []control.Relay      `json:"relays"`
	Streams []control.LiveStream `json:"streams"`
}

func (f *FEC) berm(ctx context.Context, n *rig.Node, into any, args ...string) error {
	bin, err := rig.Binary(f.opts.Bin, "berm")
	if err != nil {
		return err
	}
	out, err := n.Output(ctx, append([]string{bin, "--config", f.config(n), "--json"}, args...)...)
	if err != nil {
		return err
	}
	return json.Unmarshal(out, into)
}

func (f *FEC) show(ctx context.Context, n *rig.Node) (s fecShown, err error) {
	return s, f.berm(ctx, n, &s, "fec", "show")
}

// Guide tells a person what is where.
func (f *FEC) Guide() string {
	return fmt.Sprintf(`A path between the edges near and far (%s each way), and between far and the viewer, loses nothing yet.
Packets for %s in near come out, repaired, at %s in far. The stream that goes in at %s is https://%s:443%s for the viewer.

  bermlab shell %[7]s near       then: berm --config %s fec show
  bermlab down %[7]s
`, fecDelay, fecIn, fecOut, fecStream, fecPathViewer, fecRoute, f.lab.Name, f.config(f.near))
}

// Steps make the paths lose, and heal them.
func (f *FEC) Steps() []Step {
	return []Step{{Name: "lossy paths, then clean ones", Run: f.check, Loud: true}}
}

// Watch captures nothing: the step measures time.
func (f *FEC) Watch() (func(bool) ([]string, error), error) {
	return func(bool) ([]string, error) { return nil, nil }, nil
}

// Explain says what the daemons see.
func (f *FEC) Explain(ctx context.Context) (text string) {
	for _, n := range []*rig.Node{f.near, f.far} {
		s, err := f.show(ctx, n)
		text += fmt.Sprintf("%s: %+v %v\n", n.Name, s, err)
	}
	return text
}

// fecRun is one flow through the lab.
type fecRun struct {
	*FEC
	r        *Recorder
	repaired *tally // behind the relays
	bare     *tally // beside them
	watcher  *watcher
	busy     bool // so is the machine: what is measured is its own delays and losses as well
}

func (f *FEC) check(ctx context.Context, r *Recorder) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	run := &fecRun{FEC: f, r: r, repaired: newTally(), bare: newTally()}
	var in, on, beside net.Conn
	var out, bare *net.UDPConn
	err = errors.Join(
		f.near.Do(func() (err error) { in, err = net.Dial("udp4", fecIn); return err }),
		f.far.Do(func() (err error) { on, err = net.Dial("udp4", fecStream); return err }),
		f.near.Do(func() (err error) { beside, err = net.Dial("udp4", fecPathNear+":6002"); return err }),
		f.far.Do(func() (err error) {
			bare, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(fecBare)))
			return err
		}),
		f.far.Do(func() (err error) {
			out, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(fecOut)))
			return err
		}),
	)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close(), on.Close(), beside.Close(), out.Close(), bare.Close()) }()
	_ = out.SetReadBuffer(4 << 20) // the kernel may give less
	go run.repaired.receive(out, on)
	go run.bare.receive(bare, nil)
	if run.watcher, err = watchStream(ctx, f.viewer, fecPathViewer+":443", fecRoute); err != nil {
		return err
	}
	defer run.watcher.Close()
	var any map[string]PathCounts
	if err := askActor(ctx, http.MethodPut, f.counts(), &any); err != nil {
		return err
	}
	go contribute(ctx, in, beside)
	if err := run.lossy(ctx); err != nil {
		return err
	}
	return run.clean(ctx)
}

// plans returns the shapes in force between the edges and for the viewer.
func (x *fecRun) plans(ctx context.Context) (relay control.Relay, viewer control.Subscriber, err error) {
	near, err1 := x.show(ctx, x.near)
	far, err2 := x.show(ctx, x.far)
	if err := errors.Join(err1, err2); err != nil {
		return relay, viewer, err
	}
	if len(near.Relays) != 1 || len(far.Streams) != 1 || len(far.Streams[0].Subscribers) == 0 {
		return relay, viewer, fmt.Errorf("not one relay, or no subscriber: %+v %+v", near, far)
	}
	// One of an attempt before may still be there.
	newest := slices.MinFunc(far.Streams[0].Subscribers, func(a, b control.Subscriber) int { return cmp.Compare(a.Seconds, b.Seconds) })
	return near.Relays[0], newest, nil
}

// fecPackets are measured.
const fecPackets = 5000

func (x *fecRun) lossy(ctx context.Context) error {
	var relay control.Relay
	var viewer control.Subscriber
	enough := func(k, m int) bool { return k >= 10 && exactLimit(lossShare, k, m) <= fecResidual }
	err := rig.Until(ctx, 40*time.Second, "parity for a loss of 5 % on both paths", func() (ok bool, err error) {
		relay, viewer, err = x.plans(ctx)
		return enough(relay.K, relay.M) && enough(viewer.K, viewer.M), err
	})
	if err != nil {
		return fmt.Errorf("%w: relay %+v, subscriber %+v", err, relay, viewer)
	}
	began, before := x.repaired.latest(), x.watcher.Counts()
	from, sent := relay, viewer
	first := began + flowRate/2 // blocks of the shape before are over then
	last := first + fecPackets
	var limits [2][]float64
	err = rig.Until(ctx, 60*time.Second, "5000 packets", func() (bool, error) {
		var err error
		relay, viewer, err = x.plans(ctx)
		limits[0] = append(limits[0], exactLimit(lossShare, relay.K, relay.M))
		limits[1] = append(limits[1], exactLimit(lossShare, viewer.K, viewer.M))
		return x.repaired.latest() > last+flowRate/4 && x.watcher.tally.latest() > last+flowRate/4, err
	})
	if err != nil {
		return err
	}
	after := x.watcher.Counts()
	missing, p99 := x.repaired.between(first, last, 1)
	lost, bare := x.bare.between(first-first%bareEach, last, bareEach)
	// What a busy machine delays packets by that go beside the relays, it may delay those in them by as well, on both edges.
	added, jitter := (p99-fecDelay).Seconds()*1000, (bare-fecDelay).Seconds()*1000
	if jitter > 10*calm.Seconds()*1000 {
		x.busy = true
		x.opts.logf("the machine is too busy to measure anything: packets beside the relays come %.0f ms late", jitter)
		x.r.AtLeast("edge to edge: packets that came", fecPackets/2, float64(fecPackets-missing), "packets, on a machine too busy to measure more")
		return nil
	}
	// Blocks that a busy machine delays by more than all that a decoder remembers are lost to it: then repair has to
	// bring back four of five alone.
	allowed := 0
	if x.busy = jitter > calm.Seconds()*1000; x.busy {
		allowed = fecPackets / 100
	}
	x.judge("edge to edge", missing, fecPackets, relay.M, allowed, limits[0], float64(relay.Parity-from.Parity)/float64(relay.Packets-from.Packets))
	x.opts.logf("edge to edge: added p99 %.1f ms; without relays %.1f ms, and %d of %d missing", added, jitter, lost, fecPackets/bareEach)
	x.r.Timed().AtMost("edge to edge: added p99", fecAdded.Seconds()*1000+3*jitter, added, "ms, at 25 and thrice what is added without relays")

	missing, p99 = x.watcher.tally.between(first-first%viewEach, last, viewEach)
	late := int(viewer.Late - sent.Late) // its connection did not send them: no code can help
	x.judge("to the viewer", missing, fecPackets/viewEach, viewer.M, late+allowed/viewEach, limits[1], float64(viewer.Parity-sent.Parity)/float64(viewer.Sent-sent.Sent))
	_, _, nacks := x.watcher.Kinds()
	x.opts.logf("to the viewer: added p99 %.1f ms, of both paths and blocks of 60 ms; more parity asked for %d times", (p99-fecDelay).Seconds()*1000, nacks)
	share := float64(after.Lost-before.Lost) / float64(after.Expected-before.Expected)
	x.r.Timed().AtLeast("to the viewer: lost before repair", 0.6*lossShare, share, "of symbols")
	x.r.AtMost("packets that came twice", float64(allowed), float64(x.repaired.twice+x.watcher.tally.twice), "packets")
	return nil
}

// judge compares what stayed lost with what no code of the shapes in force could have brought back.
func (x *fecRun) judge(what string, missing, of, m, allowed int, limits []float64, overhead float64) {
	var mean float64
	for _, l := range limits {
		mean += l / float64(len(limits))
	}
	// Of so few packets chance alone takes two blocks now and then; a block that fails lacks a packet more than it has parity.
	most := 1.5*mean*float64(of) + float64(2*(m+1)+allowed)
	x.opts.logf("%s: %d of %d packets stay lost (%.2g; exact limit %.2g; %d allowed beyond it), parity %.1f %%", what, missing, of, float64(missing)/float64(of), mean, allowed, 100*overhead)
	x.r.Timed().AtMost(what+": exact limit of the shapes in force", fecResidual, mean, "of packets")
	x.r.Timed().AtMost(what+": stay lost", most, float64(missing), fmt.Sprintf("of %d packets: 1.5 times the exact limit, and two blocks", of))
	x.r.AtMost(what+": overhead", fecOverhead, overhead, "packets of parity for each packet")
}

// clean heals the paths: parity ends.
func (x *fecRun) clean(ctx context.Context) error {
	var counts map[string]PathCounts
	if err := askActor(ctx, http.MethodDelete, x.counts(), &counts); err != nil {
		return err
	}
	healed := time.Now()
	err := rig.Until(ctx, 20*time.Second, "parity ends", func() (bool, error) {
		relay, _, err := x.plans(ctx)
		return relay.M == 0, err
	})
	if err != nil {
		return err
	}
	soon, added := 5.0, 0.02
	if x.busy {
		soon, added = 15, 0.1
	}
	x.opts.logf("edge to edge: no parity after %.1f s", time.Since(healed).Seconds())
	x.r.Timed().AtMost("edge to edge: no parity after", soon, time.Since(healed).Seconds(), "s")
	// All that is added then: payload IDs, and what fills up blocks that are closed early.
	var from, to map[string]PathCounts
	if err := readCounts(ctx, x.counts(), &from); err != nil {
		return err
	}
	first := x.repaired.latest()
	err = rig.Until(ctx, 20*time.Second, "a second of packets", func() (bool, error) { return x.repaired.latest() >= first+flowRate, nil })
	if err != nil {
		return err
	}
	carried := float64(x.repaired.latest() - first)
	if err := readCounts(ctx, x.counts(), &to); err != nil {
		return err
	}
	wire := to["6000"].Bytes + to["6001"].Bytes - from["6000"].Bytes - from["6001"].Bytes
	x.r.Timed().AtMost("edge to edge: overhead of a clean path", added, float64(wire)/(carried*flowPacket)-1, "of bytes")
	return nil
}
