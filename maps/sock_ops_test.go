package maps_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

// cgroupRoot finds the cgroup2 hierarchy, which is not everywhere at /sys/fs/cgroup.
func cgroupRoot(t testing.TB) string {
	t.Helper()
	mounts, err := os.Open("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	defer mounts.Close() //nolint:errcheck // only read
	for s := bufio.NewScanner(mounts); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) > 2 && f[2] == "cgroup2" {
			return f[1]
		}
	}
	mapstest.Require(t, errors.New("needs a cgroup2 hierarchy"))
	return ""
}

// inCgroup moves this process into a cgroup of the test's own until the test ends.
func inCgroup(t testing.TB) string {
	t.Helper()
	root := cgroupRoot(t)
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	before := root
	for line := range strings.Lines(string(own)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			before = filepath.Join(root, path)
		}
	}
	dir := filepath.Join(root, fmt.Sprintf("berm-test-sockops-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	move := func(to string) error {
		return os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(fmt.Sprint(os.Getpid())), 0o644)
	}
	if err := move(dir); err != nil {
		t.Fatal(errors.Join(err, os.Remove(dir)))
	}
	t.Cleanup(func() {
		if err := errors.Join(move(before), os.Remove(dir)); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// observed has the kernel half's program of TCP connections see those of this process, over k's maps.
func observed(t testing.TB, k *mapstest.Kernel) *ebpf.Program {
	t.Helper()
	var objs bpf.SockOpsObjects
	spec, err := bpf.LoadSockOps()
	if err != nil {
		t.Fatal(err)
	}
	with := map[string]*ebpf.Map{}
	for name := range spec.Maps {
		if m := k.Maps[name]; m != nil {
			with[name] = m
			spec.Maps[name].MaxEntries = m.MaxEntries()
		}
	}
	if err := spec.LoadAndAssign(&objs, &ebpf.CollectionOptions{MapReplacements: with}); err != nil {
		t.Fatalf("%+v", err)
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: inCgroup(t), Attach: ebpf.AttachCGroupSockOps, Program: objs.BermSockOps})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); objs.Close() }) //nolint:errcheck // only descriptors
	return objs.BermSockOps
}

// transfer makes a connection, moves n bytes over it, and waits until both ends are closed. It returns what the
// server's end looked like then.
func transfer(t testing.TB, listen, host string, n int64) (end tcpEnd) {
	t.Helper()
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(t.Context(), "tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() //nolint:errcheck // the test is over
	served := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			served <- err
			return
		}
		tcp := c.(*net.TCPConn)
		_, err = io.CopyN(tcp, zeros{}, n)
		err = errors.Join(err, tcp.CloseWrite())
		_, rerr := io.Copy(io.Discard, tcp) // until the client has everything
		served <- errors.Join(err, rerr, end.read(tcp), tcp.Close())
	}()
	c, err := net.Dial("tcp", net.JoinHostPort(host, fmt.Sprint(ln.Addr().(*net.TCPAddr).Port)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.Copy(io.Discard, c)
	if err := errors.Join(err, c.Close(), <-served); err != nil || got != n {
		t.Fatalf("%d of %d bytes: %v", got, n, err)
	}
	return end
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// tcpEnd is what a socket says of itself.
type tcpEnd struct {
	controller string
	rto        time.Duration
	window     uint32 // segments
}

func (e *tcpEnd) read(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var errs []error
	err = raw.Control(func(fd uintptr) {
		var err error
		e.controller, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		info, err2 := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if errs = append(errs, err, err2); err2 == nil {
			e.rto, e.window = time.Duration(info.Rto)*time.Microsecond, info.Snd_cwnd
		}
	})
	return errors.Join(append(errs, err)...)
}

// Connections write what they learn under their far end's prefix: a /24, a /48, and the /24 of an
// IPv4 client of an IPv6 socket.
func TestPaths(t *testing.T) {
	k := mapstest.New(t)
	observed(t, k)

	const bytes = 4 << 20
	transfer(t, "127.0.0.1:0", "127.0.0.1", bytes)
	transfer(t, "[::1]:0", "::1", bytes)
	four := awaitPath(t, k, "127.0.0.1", 1)
	awaitPath(t, k, "::1", 1)
	if four.Sent < bytes/65536 || four.RTT == 0 || four.RTT > time.Second || four.MinRTT > four.RTT*8+time.Millisecond || time.Since(four.Updated) > time.Minute {
		t.Errorf("path %+v", four)
	}
	if four.Lost != 0 && four.Bursts == [8]uint32{} {
		t.Errorf("losses without bursts: %+v", four)
	}
	transfer(t, "[::]:0", "127.0.0.1", bytes) // a socket of both families
	awaitPath(t, k, "127.0.0.1", 2)
}

// awaitPath polls for an entry until it knows of so many connections and of delivery.
func awaitPath(t testing.TB, k *mapstest.Kernel, of string, connections uint64) (p maps.Path) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond) // sleep: a poll with a deadline; the kernel tells nobody
		p, err := k.Paths.Get(netip.MustParseAddr(of), maps.ProtocolTCP)
		switch {
		case errors.Is(err, maps.ErrNotFound):
		case err != nil:
			t.Fatal(err)
		case p.Connections >= connections && p.Delivered > 0:
			return p
		}
	}
	t.Fatalf("no entry of %s with %d connections: %+v", of, connections, p)
	return p
}

// BenchmarkSockOps measures the program on real connections of 64 KiB each, with 60,000 prefixes that have a
// profile. Budget: 1 µs a callback.
func BenchmarkSockOps(b *testing.B) {
	k := mapstest.New(b)
	prog := observed(b, k)
	if err := k.CC.PutProfile(maps.CCProfile{Name: "p", Controller: "cubic", InitialWindow: 32}); err != nil {
		b.Fatal(err)
	}
	rules := []maps.CCRule{{Prefix: netip.MustParsePrefix("127.0.0.0/24"), Profile: "p"}}
	for i := range 60000 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0})
		rules = append(rules, maps.CCRule{Prefix: netip.PrefixFrom(a, 24), Profile: "p"})
	}
	if err := k.CC.Replace(maps.OwnerFile, rules); err != nil {
		b.Fatal(err)
	}
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close() //nolint:errcheck // only a descriptor
	before, err := prog.Stats()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		transfer(b, "127.0.0.1:0", "127.0.0.1", 64<<10)
	}
	after, err := prog.Stats()
	if err != nil {
		b.Fatal(err)
	}
	runs := after.RunCount - before.RunCount
	b.ReportMetric(float64((after.Runtime-before.Runtime).Nanoseconds())/float64(runs), "ns/callback")
	b.ReportMetric(float64(runs)/float64(b.N), "callbacks/op")
}
