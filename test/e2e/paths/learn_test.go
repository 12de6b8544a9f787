package paths

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/maps/mapstest"
	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/test/rig/rigtest"
	"github.com/bermedge/berm/test/rig/wan"
	"github.com/bermedge/berm/test/rig/wan/wantest"
	"github.com/bermedge/berm/userspace/congestion"
)

func TestMain(m *testing.M) { wantest.Main(m) }

const (
	port = 7000
	size = 768 << 10 // of a connection
)

// prefix is a client's network, behind a link of its own.
type prefix struct {
	name   string
	client *rig.Node
	addr   netip.Addr // of the client
	edge   string     // of the edge towards it
}

// mustWorld makes an edge, and clients behind links.
func mustWorld(t *testing.T, links map[string]wan.Both) (*rig.Node, map[string]*prefix) {
	t.Helper()
	lab := rigtest.New(t)
	box, err := wan.AddBox(lab, "box", 1)
	if err != nil {
		t.Fatal(err)
	}
	edge, err := lab.AddNode("edge")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*prefix{}
	for name, both := range links {
		client, err := lab.AddNode("at" + name)
		if err != nil {
			t.Fatal(err)
		}
		n := len(out)
		p := &prefix{name, client, netip.AddrFrom4([4]byte{198, 18, byte(n), 2}), fmt.Sprintf("198.18.%d.1", n)}
		err = box.Connect(t.Context(), name,
			rig.End{Node: edge, Dev: fmt.Sprintf("eth%d", n), Addrs: []string{p.edge + "/24"}},
			rig.End{Node: client, Dev: "eth0", Addrs: []string{p.addr.String() + "/24"}}, 0, both)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = p
	}
	wantest.Start(t, box)
	return edge, out
}

func mustListen(t *testing.T, edge *rig.Node) (ln net.Listener) {
	t.Helper()
	err := edge.Do(func() (err error) {
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(false)
		ln, err = lc.Listen(t.Context(), "tcp4", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// mustServe sends size bytes, after the name of the connection's controller, to whoever connects.
func mustServe(t *testing.T, ln net.Listener) {
	t.Helper()
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { _ = serve(c.(*net.TCPConn)) }) // clients check what they get
		}
	})
	t.Cleanup(func() { ln.Close(); serving.Wait() })
}

func serve(c *net.TCPConn) error {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var name string
	cerr := raw.Control(func(fd uintptr) { name, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION) })
	if err := errors.Join(cerr, err); err != nil {
		return err
	}
	content := make([]byte, size)
	copy(content, name)
	if _, err := c.Write(content); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, c) // until the client has everything
	return err
}

// dial connects the client to the edge, whatever else is asked for.
func (p *prefix) dial(ctx context.Context, _, _ string) (c net.Conn, err error) {
	err = p.client.Do(func() (err error) {
		c, err = (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp4", fmt.Sprintf("%s:%d", p.edge, port))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	return c, nil
}

// get makes a connection, and tells its controller and how long it took.
func (p *prefix) get(ctx context.Context) (controller string, took time.Duration, err error) {
	begun := time.Now()
	c, err := p.dial(ctx, "", "")
	if err != nil {
		return "", 0, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return "", 0, err
	}
	content, err := io.ReadAll(c)
	if err != nil || len(content) != size {
		return "", 0, fmt.Errorf("%s: %d of %d bytes: %w", p.name, len(content), size, err)
	}
	return unix.ByteSliceToString(content[:16]), time.Since(begun), nil
}

// tally is what became of a prefix's connections, by controller.
type tally struct {
	mu   sync.Mutex
	n    map[string]int
	took map[string]time.Duration
}

// mbps is what connections with a controller reached.
func (y *tally) mbps(controller string) float64 {
	y.mu.Lock()
	defer y.mu.Unlock()
	return float64(y.n[controller]) * size * 8 / 1e6 / y.took[controller].Seconds()
}

// run makes connections, width at a time, until done or n of them.
func (p *prefix) run(t *testing.T, n, width int, done func() bool) *tally {
	y := &tally{n: map[string]int{}, took: map[string]time.Duration{}}
	left := make(chan struct{}, n)
	for range n {
		left <- struct{}{}
	}
	close(left)
	var all sync.WaitGroup
	for range width {
		all.Go(func() {
			for range left {
				if done() {
					return
				}
				controller, took, err := p.get(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				y.mu.Lock()
				y.n[controller]++
				y.took[controller] += took
				y.mu.Unlock()
			}
		})
	}
	all.Wait()
	return y
}

// A prefix that loses two packets in a hundred gets BBR, and it stays known what CUBIC would do; a prefix that
// loses none keeps what serves it as well.
func TestLearn(t *testing.T) {
	k := mapstest.New(t)
	mapstest.ObserveTCP(t, k)
	lossy := wan.Profile{Rate: 50_000_000, Queue: 312_500, Delay: 20 * time.Millisecond, Loss: 0.02}
	clean := wan.Profile{Rate: 50_000_000, Queue: 312_500, Delay: 5 * time.Millisecond}
	back := func(p wan.Profile) wan.Both {
		up := p
		up.Loss = 0
		return wan.Both{Up: p, Down: up}
	}
	edge, world := mustWorld(t, map[string]wan.Both{"lossy": back(lossy), "clean": back(clean)})
	mustServe(t, mustListen(t, edge))

	cfg := congestion.Default()
	cfg.Learn.Mode, cfg.Learn.HoldOut = congestion.On, 0.25
	l := congestion.NewLearner("cubic")
	l.Apply(cfg)
	var ticks sync.Mutex
	learned := func(name string) (congestion.Learned, bool) {
		ticks.Lock()
		defer ticks.Unlock()
		if err := l.Tick(time.Now(), k.CC); err != nil {
			t.Error(err)
		}
		return l.Explain(world[name].addr)
	}
	const most = 200
	results := map[string]*tally{}
	var both sync.WaitGroup
	var mu sync.Mutex
	for name, p := range world {
		both.Go(func() {
			y := p.run(t, most, 4, func() bool {
				x, ok := learned(name)
				return ok && x.Learned && x.Profile != ""
			})
			mu.Lock()
			results[name] = y
			mu.Unlock()
		})
	}
	both.Wait()
	for name, y := range results {
		x, _ := learned(name)
		t.Logf("%s: %s after %v connections: %s; CUBIC %.1f, BBR %.1f Mbit/s", name, x.Profile, y.n, x.Why, y.mbps("cubic"), y.mbps("bbr"))
		for _, s := range x.Scores {
			t.Logf("  %+v", s)
		}
	}
	if x, _ := learned("lossy"); x.Profile != "learn-bbr" || !x.Learned {
		t.Errorf("lossy: %+v", x)
	}
	if b, c := results["lossy"].mbps("bbr"), results["lossy"].mbps("cubic"); b < 1.5*c { // 5 to 6 times on a machine with nothing else to do
		t.Errorf("lossy: BBR %.1f, CUBIC %.1f Mbit/s: the link is not what it should be", b, c)
	}
	x, _ := learned("clean") // a dozen short connections scatter by a third
	if chosen, best := results["clean"].mbps(x.Profile[len("learn-"):]), max(results["clean"].mbps("cubic"), results["clean"].mbps("bbr")); chosen < 0.5*best {
		t.Errorf("clean: %s reaches %.1f Mbit/s, the better one %.1f", x.Profile, chosen, best)
	}
	for name, p := range world {
		want, _ := learned(name)
		c, err := k.CC.Explain(p.addr)
		if err != nil || c.Profile != want.Profile || c.Owner.String() != "learner" || c.Prefix != want.Prefix {
			t.Errorf("%s: the kernel half has %+v, %v, want %s", name, c, err, want.Profile)
		}
	}
}
