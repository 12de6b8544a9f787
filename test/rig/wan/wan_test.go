package wan_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/test/rig/rigtest"
	"github.com/bermedge/berm/test/rig/wan"
	"github.com/bermedge/berm/test/rig/wan/wantest"
)

func TestMain(m *testing.M) { wantest.Main(m) }

const (
	port  = 7000
	delay = 25 * time.Millisecond
	rate  = 50_000_000
	queue = 312_500 // what 50 Mbit/s carry in 50 ms
)

// ends are a link's nodes; a sends to z.
type ends struct {
	name string
	a, z *rig.Node
	addr string // of z
}

func mustBox(t *testing.T, links map[string]wan.Both) (*wan.Box, []ends) {
	t.Helper()
	lab := rigtest.New(t)
	box, err := wan.AddBox(lab, "box", 1)
	if err != nil {
		t.Fatal(err)
	}
	var all []ends
	for name, both := range links {
		n := len(all)
		e := ends{name: name, a: mustNode(t, lab, name+"a"), z: mustNode(t, lab, name+"z"), addr: fmt.Sprintf("10.77.%d.2", n)}
		err := box.Connect(t.Context(), name,
			rig.End{Node: e.a, Dev: "eth0", Addrs: []string{fmt.Sprintf("10.77.%d.1/24", n), fmt.Sprintf("2001:db8:%d::1/64", n)}},
			rig.End{Node: e.z, Dev: "eth0", Addrs: []string{e.addr + "/24", fmt.Sprintf("2001:db8:%d::2/64", n)}}, 0, both)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	wantest.Start(t, box)
	return box, all
}

func mustNode(t *testing.T, l *rig.Lab, name string) *rig.Node {
	t.Helper()
	n, err := l.AddNode(name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func mustStates(t *testing.T, b *wan.Box) map[string]wan.State {
	t.Helper()
	all, err := b.States(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// arrival is a datagram as the kernel of the other end saw it come, which no scheduler delays.
type arrival struct {
	sent, came time.Time
	size       int
}

// listen collects what arrives at z until stop is called, which waits until nothing has come for a while.
func (e ends) listen(t *testing.T) (stop func() []arrival) {
	t.Helper()
	var c *net.UDPConn
	err := e.z.Do(func() (err error) {
		c, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(e.addr), Port: port})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	cerr := raw.Control(func(fd uintptr) {
		err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	})
	if err := errors.Join(cerr, err); err != nil {
		t.Fatal(err)
	}
	var got []arrival
	done := make(chan error, 1)
	go func() {
		buf, oob := make([]byte, 2048), make([]byte, 128)
		for {
			n, m, _, _, err := c.ReadMsgUDP(buf, oob)
			if err != nil {
				if errors.Is(err, os.ErrDeadlineExceeded) {
					err = nil
				}
				done <- err
				return
			}
			msgs, err := unix.ParseSocketControlMessage(oob[:m])
			if err != nil || len(msgs) != 1 || n < 8 {
				done <- fmt.Errorf("a datagram of %d bytes, control messages %v: %w", n, msgs, err)
				return
			}
			sec, nsec := int64(binary.NativeEndian.Uint64(msgs[0].Data)), int64(binary.NativeEndian.Uint64(msgs[0].Data[8:]))
			got = append(got, arrival{time.Unix(0, int64(binary.BigEndian.Uint64(buf))), time.Unix(sec, nsec), n})
		}
	}()
	return func() []arrival {
		// More than delay and queue take together.
		if err := c.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(<-done, c.Close()); err != nil {
			t.Fatal(err)
		}
		return got
	}
}

// send sends n datagrams of a size, evenly over a time.
func (e ends) send(ctx context.Context, n, size int, over time.Duration) error {
	c, err := e.a.Dial(ctx, &net.Dialer{}, "udp", fmt.Sprintf("%s:%d", e.addr, port))
	if err != nil {
		return err
	}
	defer c.Close()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	buf := make([]byte, size)
	start := time.Now()
	for sent := 0; sent < n; {
		for due := min(n, 1+int(float64(n)*time.Since(start).Seconds()/over.Seconds())); sent < due; sent++ {
			binary.BigEndian.PutUint64(buf, uint64(time.Now().UnixNano()))
			if _, err := c.Write(buf); err != nil {
				return err
			}
		}
		<-tick.C
	}
	return nil
}

// mustSend sends over all links at once, and returns what arrived by link.
func mustSend(t *testing.T, links []ends, n, size int, over time.Duration) map[string][]arrival {
	t.Helper()
	stops, got := map[string]func() []arrival{}, map[string][]arrival{}
	var wg sync.WaitGroup
	for _, e := range links {
		stops[e.name] = e.listen(t)
	}
	for _, e := range links {
		wg.Go(func() {
			if err := e.send(t.Context(), n, size, over); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for name, stop := range stops {
		got[name] = stop()
	}
	return got
}

// rates are what was carried from the first arrival to the last, and in the middle one of stretches of 100 frames: a
// sender that does not get a CPU in time leaves the link idle, which is not the link's fault.
func rates(got []arrival, size int) (whole, middle float64) {
	const stretch = 100
	over := func(frames int, from, to arrival) float64 {
		return float64(frames*size*8) / to.came.Sub(from.came).Seconds()
	}
	var each []float64
	for i := stretch; i < len(got); i += stretch {
		each = append(each, over(stretch, got[i-stretch], got[i]))
	}
	slices.Sort(each)
	return over(len(got)-1, got[0], got[len(got)-1]), each[len(each)/2]
}

// headers of Ethernet, IPv4 and UDP count for the rate.
const headers = 14 + 20 + 8

// Two busy links at once: each keeps its rate and its delay, loses what its profile says, and every frame is
// accounted for.
func TestTwoBusyLinks(t *testing.T) {
	clean := wan.Profile{Rate: rate, Queue: queue, Delay: delay}
	lossy := clean
	lossy.Loss = 0.02
	bursty := wan.Profile{Burst: 0.1, BurstLength: 5, Delay: delay}
	box, links := mustBox(t, map[string]wan.Both{"clean": {Up: clean, Down: bursty}, "lossy": {Up: lossy}})

	// Below the rate: the delay, beside which a frame of 300 bytes takes 48 µs.
	for name, got := range mustSend(t, links, 200, 300-headers, 500*time.Millisecond) {
		var took []time.Duration
		for _, a := range got {
			took = append(took, a.came.Sub(a.sent))
		}
		slices.Sort(took)
		if len(took) < 180 {
			t.Fatalf("%s: %d of 200 datagrams came", name, len(took))
		}
		least, median := took[0], took[len(took)/2]
		t.Logf("%s: delay %s at least, %s in the middle", name, least, median)
		if least < delay || median > delay+3*time.Millisecond {
			t.Errorf("%s: delay %s at least, %s in the middle; want %s and little more", name, least, median, delay)
		}
	}

	// Above it: 60 Mbit/s of frames of 1,250 bytes for two seconds.
	before := mustStates(t, box)
	const n, size = 12000, 1250
	for name, got := range mustSend(t, links, n, size-headers, 2*time.Second) {
		after := mustStates(t, box)[name].Sum.Up
		was := before[name].Sum.Up
		in, sent, lost, dropped := after.In-was.In, after.Sent-was.Sent, after.Lost-was.Lost, after.Dropped-was.Dropped
		most, usual := rates(got, size)
		if name == "lossy" { // what was lost has taken its time, too
			most, usual = most/0.98, usual/0.98
		}
		t.Logf("%s: %.2f Mbit/s in all, %.2f in the middle, %d in, %d sent, %d lost, %d dropped; late %s, at most %s", name, most/1e6, usual/1e6, in, sent, lost, dropped, after.LateMean, after.LateMax)
		if most > 1.02*rate || usual < 0.97*rate || usual > 1.03*rate {
			t.Errorf("%s: %.0f bit/s in all, %.0f in the middle, want %d", name, most, usual, rate)
		}
		// ARP may have come meanwhile.
		if in < n || in > n+10 || in != sent+lost+dropped || after.Waiting != 0 || after.Failed+after.Missed != 0 || dropped == 0 {
			t.Errorf("%s: counters %+v, before %+v", name, after, was)
		}
		if sent < uint64(len(got)) || sent > uint64(len(got))+10 {
			t.Errorf("%s: %d datagrams came, %d frames sent", name, len(got), sent)
		}
		// Five standard deviations of 10,000 frames at 2 % are 0.7 %.
		if share := float64(lost) / float64(sent+lost); name == "lossy" && (share < 0.013 || share > 0.027) || name == "clean" && lost != 0 {
			t.Errorf("%s: lost %.4f", name, share)
		}
	}
}

func TestChangesWhileRunning(t *testing.T) {
	box, links := mustBox(t, map[string]wan.Both{"one": {}})
	one := links[0]
	ping := func(addr, patience string) error {
		_, err := one.a.Run(t.Context(), "ping", "-c", "1", "-W", patience, addr)
		return err
	}
	for _, addr := range []string{one.addr, "2001:db8:0::2"} {
		if err := ping(addr, "5"); err != nil {
			t.Fatal(err)
		}
	}
	gone := wan.Both{Up: wan.Profile{Loss: 1}}
	if err := box.Set(t.Context(), "one", gone); err != nil {
		t.Fatal(err)
	}
	if err := ping(one.addr, "0.2"); err == nil {
		t.Error("answered through a link that loses all")
	}
	s := mustStates(t, box)["one"]
	if s.Both != gone || s.Sum.Up.Lost == 0 || s.Sum.Down.Lost != 0 {
		t.Errorf("the link is %+v", s)
	}
	if err := box.Set(t.Context(), "one", wan.Both{}); err != nil {
		t.Fatal(err)
	}
	if err := ping(one.addr, "5"); err != nil {
		t.Error("after the link is well again:", err)
	}
	for _, c := range []struct {
		name, want string
		both       wan.Both
	}{
		{"two", `no link "two"`, wan.Both{}},
		{"one", "up: loss and burst: 2 and 0", wan.Both{Up: wan.Profile{Loss: 2}}},
	} {
		if err := box.Set(t.Context(), c.name, c.both); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("set %s to %+v: %v, want %q", c.name, c.both, err, c.want)
		}
	}
	if got := mustStates(t, box)["one"].Both; got != (wan.Both{}) {
		t.Errorf("a refused change left %+v", got)
	}
}

func TestServeRefuses(t *testing.T) {
	for _, c := range []struct {
		plan wan.Plan
		want string
	}{
		{wan.Plan{Links: []wan.Link{{Name: "x", Both: wan.Same(wan.Profile{Rate: -1})}}}, "link x: up: rate"},
		{wan.Plan{Links: []wan.Link{{Name: "x", Devs: [2]string{"nothing0", "nothing1"}}}}, "link x: device nothing0"},
	} {
		if err := wan.Serve(t.Context(), c.plan, t.TempDir()+"/s"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Serve(%+v): %v, want %q", c.plan, err, c.want)
		}
	}
	if err := wan.Act(t.Context(), []string{"one"}); err == nil || !strings.Contains(err.Error(), "1 arguments") {
		t.Error("Act with one argument:", err)
	}
}
