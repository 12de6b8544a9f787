package paths

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/test/rig/rigtest"
	"github.com/bermedge/berm/test/rig/wan"
	"github.com/bermedge/berm/test/rig/wan/wantest"
	"github.com/bermedge/berm/userspace/congestion"
)

func TestMain(m *testing.M) { wantest.Main(m) }

const (
	port  = 7000
	small = 768 << 10 // of a connection that is learned from
	large = 8 << 20   // of one that is measured: what controllers differ in before is little of it
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
	// Else the kernel begins with what the last connection to that address ended with.
	if err := edge.Sysctl("net.ipv4.tcp_no_metrics_save", "1"); err != nil {
		t.Fatal(err)
	}
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

// mustServe sends as many bytes as it is asked for, after the name of the connection's controller.
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
	var asked [8]byte
	if _, err := io.ReadFull(c, asked[:]); err != nil {
		return err
	}
	content := make([]byte, min(binary.BigEndian.Uint64(asked[:]), large))
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
	return p.dialFrom(ctx, p.addr)
}

func (p *prefix) dialFrom(ctx context.Context, from netip.Addr) (c net.Conn, err error) {
	err = p.client.Do(func() (err error) {
		d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
		c, err = d.DialContext(ctx, "tcp4", fmt.Sprintf("%s:%d", p.edge, port))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	return c, nil
}

func ask(c net.Conn, size uint64) error {
	_, err := c.Write(binary.BigEndian.AppendUint64(nil, size))
	return errors.Join(err, c.SetDeadline(time.Now().Add(time.Minute)))
}

// get makes a connection, and tells its controller and how long it took.
func (p *prefix) get(ctx context.Context) (controller string, took time.Duration, err error) {
	begun := time.Now()
	c, err := p.dial(ctx, "", "")
	if err != nil {
		return "", 0, err
	}
	defer c.Close()
	if err := ask(c, small); err != nil {
		return "", 0, err
	}
	content, err := io.ReadAll(c)
	if err != nil || len(content) != small {
		return "", 0, fmt.Errorf("%s: %d of %d bytes: %w", p.name, len(content), small, err)
	}
	return unix.ByteSliceToString(content[:16]), time.Since(begun), nil
}

// download is what a client got of a large object, since it connected.
type download struct {
	controller string
	mbps       float64 // until it had all, or had waited for long enough
	first      float64 // in the first second
}

// measure fetches a large object from an address of the prefix, for at most limit. A connection that begins with another
// controller than the one wanted was held out: then another one is made.
func (p *prefix) measure(ctx context.Context, from netip.Addr, want string, limit time.Duration) (d download, err error) {
	for range 32 {
		if d, err = p.fetch(ctx, from, want, limit); err != nil || d.controller == want {
			return d, err
		}
	}
	return d, fmt.Errorf("%s: of 32 connections none has %s, but %s", p.name, want, d.controller)
}

func (p *prefix) fetch(ctx context.Context, from netip.Addr, want string, limit time.Duration) (d download, err error) {
	begun := time.Now()
	c, err := p.dialFrom(ctx, from)
	if err != nil {
		return d, err
	}
	defer c.Close()
	if err := ask(c, large); err != nil {
		return d, err
	}
	var got, second int
	buf := make([]byte, 64<<10)
	for time.Since(begun) < limit && got < large {
		n, err := c.Read(buf)
		if err != nil {
			return d, fmt.Errorf("%s: after %d bytes: %w", p.name, got, err)
		}
		if got == 0 {
			if d.controller = unix.ByteSliceToString(buf[:min(n, 16)]); d.controller != want {
				return d, nil
			}
		}
		if got += n; time.Since(begun) < time.Second {
			second = got
		}
	}
	mbps := func(bytes int, in time.Duration) float64 { return float64(bytes) * 8 / 1e6 / in.Seconds() }
	d.mbps = mbps(got, time.Since(begun))
	d.first = mbps(second, min(time.Second, time.Since(begun)))
	return d, nil
}

// firsts measures visitors as the prefix's first was, who has the default. How soon the first losses hit CUBIC is chance: of four
// on their way at once it is the mean that counts.
func (p *prefix) firsts(ctx context.Context, k *mapstest.Kernel) (mean download, err error) {
	if err := k.CC.PutRule(maps.CCRule{Prefix: netip.PrefixFrom(p.addr, 32), Profile: "cubic"}); err != nil {
		return mean, err
	}
	const width = 4
	var all [width]download
	var errs [width]error
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() { all[i], errs[i] = p.measure(ctx, p.addr, "cubic", coldFor) })
	}
	wg.Wait()
	for _, d := range all {
		mean.mbps, mean.first = mean.mbps+d.mbps/width, mean.first+d.first/width
	}
	return mean, errors.Join(errs[:]...)
}

// coldFor is how long CUBIC is watched: where packets are lost it takes half a minute for a large object, and most of what it gets
// more at first it has got in a second.
const coldFor = 3 * time.Second

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
	return float64(y.n[controller]) * small * 8 / 1e6 / y.took[controller].Seconds()
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
	cfg.Profiles = map[string]congestion.Profile{"cubic": {Controller: "cubic"}, "bbr": {Controller: "bbr"}}
	cfg.Default, cfg.Learn.Arms = "cubic", []string{"cubic", "bbr"} // whatever the host's own is
	if err := errors.Join(cfg.Validate(), cfg.Apply(k.CC)); err != nil {
		t.Fatal(err)
	}
	l := congestion.NewLearner("", "")
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
	if x, _ := learned("lossy"); x.Profile != "bbr" || !x.Learned {
		t.Errorf("lossy: %+v", x)
	}
	for name, p := range world {
		want, _ := learned(name)
		c, err := k.CC.Explain(p.addr)
		if err != nil || c.Profile != want.Profile || c.Owner.String() != "learner" || c.Prefix != want.Prefix {
			t.Errorf("%s: the kernel half has %+v, %v, want %s", name, c, err, want.Profile)
		}
	}

	// What is learned is worth it where packets are lost, for who comes next, from the first second on.
	both.Go(func() {
		p := world["lossy"]
		next := p.addr.Next()
		first, err1 := p.firsts(t.Context(), k)
		err2 := p.client.AddAddr("eth0", next.String()+"/24")
		then, err3 := p.measure(t.Context(), next, "bbr", 20*time.Second)
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Error(err)
			return
		}
		t.Logf("lossy: first visitors have %.1f Mbit/s, the next one %.1f, %.1f times as much; in the first second %.1f and %.1f, %.1f times as much",
			first.mbps, then.mbps, then.mbps/first.mbps, first.first, then.first, then.first/first.first)
		if then.mbps < 4*first.mbps || then.first < 2*first.first { // 15 times and 5 times on a machine with nothing else to do
			t.Errorf("lossy: %+v, %+v before anything was learned", then, first)
		}
	})
	// And where none are it costs nothing.
	both.Go(func() {
		p := world["clean"]
		x, _ := learned("clean")
		got := map[string]float64{}
		for _, controller := range cfg.Learn.Arms {
			d, err := p.measure(t.Context(), p.addr, controller, 20*time.Second)
			if err != nil {
				t.Error(err)
				return
			}
			got[controller] = d.mbps
		}
		best := max(got["cubic"], got["bbr"])
		t.Logf("clean: CUBIC %.1f, BBR %.1f Mbit/s; %s was chosen, %.2f of the better one", got["cubic"], got["bbr"], x.Profile, got[x.Profile]/best)
		if got[x.Profile] < 0.8*best { // 0.97 and more on a machine with nothing else to do
			t.Errorf("clean: %s was chosen: %v", x.Profile, got)
		}
	})
	both.Wait()
}
