package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

// Anycast is the main topology with edges that announce themselves: bermd speaks BGP and BFD with
// the router, and there is no BIRD beside it.
type Anycast struct {
	*Main
	password string // path
}

// The lab's password for RFC 2385.
const bgpPassword = "bermlab-bgp"

// Times of the edges' section anycast, short enough to be watched.
const (
	anycastBFD  = 80 * time.Millisecond // three of them: 240 ms
	anycastWait = 15 * time.Second      // for what takes seconds at most
	anycastAS   = "64513"
	prepends    = 3
)

// birdAnycast asks little of the router's own BIRD, which shares two CPUs with all the rest: what is
// measured is how soon it misses an edge, and that is the edge's to ask for.
const birdAnycast = `log stderr { info, remote, warning, error, auth, fatal, bug, trace };
router id %s;
protocol device { scan time 1; }
protocol bfd {
  interface "*" { min rx interval 50 ms; min tx interval 100 ms; idle tx interval 300 ms; multiplier 20; };
}
`

func upAnycast(ctx context.Context, lab *rig.Lab, opts Options) (Topology, error) {
	a := &Anycast{Main: newMain(lab, opts)}
	var err error
	if a.password, err = lab.WriteFile("bgp.key", 0o640, []byte(bgpPassword+"\n")); err != nil {
		return nil, err
	}
	if err := os.Chown(a.password, 0, daemonUser); err != nil {
		return nil, err
	}
	a.routerConfig = birdRouter(birdAnycast, routerID, []*Edge{newEdge(a.Main, 1), newEdge(a.Main, 2)}, "passive yes;", `password "`+bgpPassword+`";`)
	a.edgeConfig = a.section
	if err := a.up(ctx); err != nil {
		return nil, err
	}
	// BFD at these times wants the CPU when it is due, whatever else this machine does.
	for _, p := range []*rig.Proc{a.bird, a.edges[0].bermd, a.edges[1].bermd} {
		if err := p.Realtime(true); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// section is what an edge's file says of its router.
func (a *Anycast) section(e *Edge) string {
	peer := fmt.Sprintf("as: %d, password_file: %s, bfd: {interval: %s, multiplier: 3}", routerAS, a.password, anycastBFD)
	return fmt.Sprintf(`anycast:
  as: %s
  peers:
    - {address: %s, %s}
    - {address: %q, %s}
  communities: ["%s:100"]
  med: 50
  prepend: %d
  drain: 1s
  sick: {after: 300ms, hold: 1500ms, recover: 500ms}
`, anycastAS, e.link4router, peer, e.link6router, peer, anycastAS, prepends)
}

// Guide tells a person what is where.
func (a *Anycast) Guide() string {
	return a.Main.Guide() + fmt.Sprintf(`
  bermlab shell %[1]s edge1     then: berm --config %[2]s anycast status
  bermlab shell %[1]s router    then: birdc -s %[3]s show route all
`, a.lab.Name, a.edges[0].config, a.birdSocket())
}

// Steps end as they began: both edges announced.
func (a *Anycast) Steps() []Step {
	return []Step{
		{Name: "sessions", Run: a.checkSessions},
		{Name: "announce and withdraw", Run: a.checkAnnounce},
		{Name: "a wrong password", Run: a.checkPassword},
		{Name: "drain", Run: a.checkDrain, Loud: true},
		{Name: "a hung daemon", Run: a.checkHang, Loud: true},
		{Name: "kill -9 of a daemon", Run: a.checkKill, Loud: true},
		{Name: "sickness", Run: a.checkSick},
		{Name: "the daemon's end", Run: a.checkEnd},
	}
}

func (a *Anycast) birdSocket() string { return a.lab.Path(a.router.Name + "-bird.ctl") }

// birdc asks the router.
func (a *Anycast) birdc(ctx context.Context, args ...string) (string, error) {
	return a.router.Run(ctx, append([]string{"birdc", "-s", a.birdSocket()}, args...)...)
}

// anycast asks an edge.
func (e *Edge) anycast(ctx context.Context) (s control.Anycast, err error) {
	out, err := e.berm(ctx, "anycast", "status") // its exit code says only whether all is announced
	if len(out) == 0 {
		return s, err
	}
	return s, decode(e, out, &s, "anycast", "status")
}

// awaitWays waits until the router has as many ways to both VIPs, and returns how long it took.
func (a *Anycast) awaitWays(ctx context.Context, want int) (time.Duration, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, anycastWait)
	defer cancel()
	err := rig.Poll(ctx, 2*time.Millisecond, func() (bool, error) {
		for _, vip := range []string{vip4, vip6} {
			if n, err := a.router.Ways(vip); err != nil || n != want {
				return false, err
			}
		}
		return true, nil
	})
	if err != nil {
		return 0, fmt.Errorf("the router has %d ways to each VIP: %w", want, err)
	}
	return time.Since(start), nil
}

// awaitAll waits until both edges are announced, to be seen by the router and by themselves.
func (a *Anycast) awaitAll(ctx context.Context) error {
	if _, err := a.awaitWays(ctx, len(a.edges)); err != nil {
		return err
	}
	for _, e := range a.edges {
		if err := e.awaitAnycast(ctx, "announced and watched", func(s control.Anycast) bool { return s.Phase == "announced" && watched(s) }); err != nil {
			return err
		}
	}
	return nil
}

func watched(s control.Anycast) bool {
	for _, p := range s.Peers {
		if !p.Up || p.BFD == nil || p.BFD.State != "up" {
			return false
		}
	}
	return true
}

func (e *Edge) awaitAnycast(ctx context.Context, what string, ok func(control.Anycast) bool) error {
	var last control.Anycast
	err := rig.Until(ctx, anycastWait, e.Name+" "+what, func() (bool, error) {
		s, err := e.anycast(ctx)
		last = s
		return err == nil && ok(s), nil
	})
	if err != nil {
		return fmt.Errorf("%w; it says: %+v", err, last)
	}
	return nil
}

// checkSessions looks at both ends of what came up.
func (a *Anycast) checkSessions(ctx context.Context, r *Recorder) error {
	if err := a.awaitAll(ctx); err != nil {
		return err
	}
	var up, fast uint64
	for _, e := range a.edges {
		s, err := e.anycast(ctx)
		if err != nil {
			return err
		}
		for _, p := range s.Peers {
			if p.State == "established" {
				up++
			}
			if p.BFD != nil && p.BFD.State == "up" && p.BFD.Interval <= 100 {
				fast++
			}
		}
	}
	r.Equal("sessions: BGP with MD5, both families, established", 4, up, "sessions")
	r.Equal("sessions: BFD up, at 100 ms or less", 4, fast, "sessions")
	metrics, err := a.edges[0].node.Output(ctx, "curl", "-sf", "-m", "5", "http://127.0.0.1:9190/metrics")
	if err != nil {
		return err
	}
	for _, want := range []string{`berm_anycast_phase{phase="announced"} 1`, "berm_anycast_routes 2"} {
		r.Same("sessions: metrics say "+want, "true", fmt.Sprint(strings.Contains(string(metrics), "\n"+want+"\n")), "")
	}
	up = uint64(strings.Count(string(metrics), "\nberm_anycast_peer_up{") + strings.Count(string(metrics), "\nberm_anycast_bfd_up{"))
	r.Equal("sessions: metrics of them", 4, up, "series")
	out, err := a.birdc(ctx, "show", "route", "all", "for", vip4)
	if err != nil {
		return err
	}
	r.Same("sessions: the router sees the community", "2", fmt.Sprint(strings.Count(out, "("+anycastAS+",100)")), "routes")
	r.Same("sessions: the router sees the MED", "2", fmt.Sprint(strings.Count(out, "BGP.med: 50")), "routes")
	return nil
}

// checkAnnounce measures an operator's commands, from the command to the router's kernel.
func (a *Anycast) checkAnnounce(ctx context.Context, r *Recorder) error {
	took := func(command string, ways int) (time.Duration, error) {
		start := time.Now()
		if err := a.order(ctx, a.edges[0], command); err != nil {
			return 0, err
		}
		_, err := a.awaitWays(ctx, ways)
		return time.Since(start), err
	}
	gone, err := took("withdraw", 1)
	if err != nil {
		return err
	}
	back, err := took("announce", 2)
	if err != nil {
		return err
	}
	r.Timed().AtMost("announce: in the router's kernel after", 1000, ms(back), "ms, the command's own time in it")
	r.Timed().AtMost("withdraw: out of it after", 1000, ms(gone), "ms, the command's own time in it")
	return nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (a *Anycast) order(ctx context.Context, e *Edge, command string) error {
	_, err := e.berm(ctx, "anycast", command)
	return err
}

// checkPassword reloads an edge with another password: the router's kernel drops its segments.
func (a *Anycast) checkPassword(ctx context.Context, r *Recorder) error {
	e := a.edges[1]
	refused := func() (uint64, error) {
		c, err := a.router.Counters()
		return c["TcpExt.TCPMD5Failure"], err
	}
	set := func(password string) error {
		if err := os.WriteFile(a.password, []byte(password+"\n"), 0o640); err != nil {
			return err
		}
		_, err := e.berm(ctx, "reload")
		return err
	}
	before, err := refused()
	if err != nil {
		return err
	}
	if err := set("not-" + bgpPassword); err != nil {
		return err
	}
	var after uint64
	err = rig.Until(ctx, anycastWait, "the router refuses segments of both sessions", func() (bool, error) {
		after, err = refused()
		return after >= before+4, err
	})
	if err != nil {
		return err
	}
	s, err := e.anycast(ctx)
	if err != nil {
		return err
	}
	r.Same("a wrong password: sessions that come up", "false false", fmt.Sprint(s.Peers[0].Up, " ", s.Peers[1].Up), "up")
	r.AtLeast("a wrong password: segments that the router's kernel refused", 4, float64(after-before), "segments")
	log, err := os.ReadFile(e.bermd.Log)
	if err != nil {
		return err
	}
	r.Same("a wrong password: is in no log", "false", fmt.Sprint(strings.Contains(string(log), bgpPassword)), "found")
	if err := set(bgpPassword); err != nil {
		return err
	}
	return a.awaitAll(ctx)
}

// checkHang stops a daemon as a deadlock of the whole process would, and waits for the router.
func (a *Anycast) checkHang(ctx context.Context, r *Recorder) error {
	const tries = 3 // a busy machine only ever adds
	e := a.edges[1]
	best := time.Hour
	var why string
	for i := 0; i < tries && best > 300*time.Millisecond; i++ {
		if err := a.awaitAll(ctx); err != nil {
			return err
		}
		if err := e.bermd.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
		took, err := a.awaitWays(ctx, 1)
		if err == nil {
			why, err = a.birdc(ctx, "show", "protocols", "all", e.Name+"_4")
		}
		if err := errors.Join(err, e.bermd.Signal(syscall.SIGCONT)); err != nil {
			return err
		}
		best = min(best, took)
	}
	r.Timed().AtMost("kill -STOP: out of the router's kernel after", 300, ms(best), "ms (BGP's hold time is 9 s)")
	r.Same("kill -STOP: it was BFD that told the router", "true", fmt.Sprint(strings.Contains(why, "BFD session down")), "")
	start := time.Now()
	if err := a.awaitAll(ctx); err != nil {
		return err
	}
	r.Timed().AtMost("kill -CONT: announced again after", anycastWait.Seconds(), time.Since(start).Seconds(), "s")
	return nil
}

// checkSick takes an edge's kernel half, before its daemon is ready and after.
func (a *Anycast) checkSick(ctx context.Context, r *Recorder) error {
	e := a.edges[1]
	var seen seenPaths
	stop := a.watchPaths(ctx, e, &seen)
	defer stop()
	if _, err := e.berm(ctx, "kernel", "down"); err != nil {
		return err
	}
	if _, err := a.awaitWays(ctx, 1); err != nil {
		return err
	}
	err := e.awaitAnycast(ctx, "withdrew", func(s control.Anycast) bool { return s.Phase == "withdrawn" })
	if err != nil {
		return err
	}
	seen.await(ctx)
	stop()
	r.Same("sickness: what the router saw", "announced, prepended, withdrawn", seen.String(), "")
	r.Same("sickness: marked as on purpose", "false", fmt.Sprint(seen.graceful()), "")
	s, err := e.anycast(ctx)
	if err != nil {
		return err
	}
	r.Same("sickness: why", "true", fmt.Sprint(strings.Contains(s.Why, "kernel half is not there")), "")
	r.Same("sickness: sessions stay", "true", fmt.Sprint(watched(s)), "")

	// A daemon that starts sick is not announced before it is well.
	if err := e.bermd.Kill(); err != nil {
		return err
	}
	if err := e.launchDaemon(ctx); err != nil {
		return err
	}
	if err := e.bermd.Realtime(true); err != nil {
		return err
	}
	err = e.awaitAnycast(ctx, "has its sessions", func(s control.Anycast) bool { return watched(s) })
	if err != nil {
		return err
	}
	if s, err = e.anycast(ctx); err != nil {
		return err
	}
	r.Same("restart without the kernel half: told to routers", "withdrawn, 0 routes", fmt.Sprintf("%s, %d routes", s.Phase, len(s.Routes)), "")
	if _, err := e.berm(ctx, "kernel", "up"); err != nil {
		return err
	}
	if err := a.awaitAll(ctx); err != nil {
		return err
	}
	return e.awaitReady(ctx)
}

// checkEnd stops a daemon as an upgrade would.
func (a *Anycast) checkEnd(ctx context.Context, r *Recorder) error {
	e := a.edges[0]
	var seen seenPaths
	stop := a.watchPaths(ctx, e, &seen)
	defer stop()
	err := e.bermd.Stop(20 * time.Second)
	seen.await(ctx)
	stop()
	if err != nil {
		return err
	}
	r.Same("SIGTERM: what the router saw", "announced, prepended, withdrawn", seen.String(), "")
	r.Same("SIGTERM: marked as on purpose", "true", fmt.Sprint(seen.graceful()), "")
	if err := e.startDaemon(ctx); err != nil {
		return err
	}
	if err := e.bermd.Realtime(true); err != nil {
		return err
	}
	start := time.Now()
	if err := a.awaitAll(ctx); err != nil {
		return err
	}
	r.Timed().AtMost("SIGTERM: announced again, after it was ready, within", anycastWait.Seconds(), time.Since(start).Seconds(), "s")
	return nil
}
