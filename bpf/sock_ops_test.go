package bpf_test

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
	"github.com/cilium/ebpf/rlimit"

	"github.com/bermedge/berm/bpf"
)

// cgroupRoot finds the cgroup2 hierarchy, which is not everywhere at /sys/fs/cgroup.
func cgroupRoot(t *testing.T) string {
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
	Require(t, errors.New("needs a cgroup2 hierarchy"))
	return ""
}

// inCgroup moves this process into a cgroup of the test's own until the test ends.
func inCgroup(t *testing.T) string {
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

// transfer makes a connection and moves n bytes over it, and waits until both ends are closed.
func transfer(t *testing.T, listen, host string, n int64) {
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
		_, err = io.CopyN(c, zeros{}, n)
		served <- errors.Join(err, c.Close())
	}()
	c, err := net.Dial("tcp", net.JoinHostPort(host, fmt.Sprint(ln.Addr().(*net.TCPAddr).Port)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.Copy(io.Discard, c)
	if err := errors.Join(err, c.Close(), <-served); err != nil || got != n {
		t.Fatalf("%d of %d bytes: %v", got, n, err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// Connections write what they learn under their far end's prefix: a /24, a /48, and the /24 of an
// IPv4 client of an IPv6 socket.
func TestPaths(t *testing.T) {
	if os.Geteuid() != 0 {
		Require(t, errors.New("needs root, to attach to a cgroup"))
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	var objs bpf.SockOpsObjects
	if err := bpf.LoadSockOpsObjects(&objs, nil); err != nil {
		t.Fatalf("%+v", err)
	}
	defer objs.Close() //nolint:errcheck // only descriptors
	dir := inCgroup(t)
	l, err := link.AttachCgroup(link.CgroupOptions{Path: dir, Attach: ebpf.AttachCGroupSockOps, Program: objs.BermSockOps})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // only a descriptor

	const bytes = 4 << 20
	transfer(t, "127.0.0.1:0", "127.0.0.1", bytes)
	transfer(t, "[::1]:0", "::1", bytes)
	four := wait(t, objs.BermPaths, netip.MustParseAddr("127.0.0.0"), 1)
	wait(t, objs.BermPaths, netip.MustParseAddr("::"), 1)
	if four.Sent < bytes/65536 || four.SrttUs == 0 || four.SrttUs > 1_000_000 || four.MinRttUs > four.SrttUs*8+1000 || four.UpdatedNs == 0 {
		t.Errorf("path %+v", four)
	}
	if four.Lost != 0 && four.Bursts == [8]uint32{} {
		t.Errorf("losses without bursts: %+v", four)
	}
	transfer(t, "[::]:0", "127.0.0.1", bytes) // a socket of both families
	wait(t, objs.BermPaths, netip.MustParseAddr("127.0.0.0"), 2)
}

// wait polls for an entry until it knows of so many connections and of delivery.
func wait(t *testing.T, m *ebpf.Map, prefix netip.Addr, connections uint64) bpf.XDPBermPath {
	t.Helper()
	key := bpf.XDPBermPathKey{Prefix: addrOf(prefix), Proto: 6}
	var v bpf.XDPBermPath
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) { // poll
		switch err := m.Lookup(&key, &v); {
		case errors.Is(err, ebpf.ErrKeyNotExist):
		case err != nil:
			t.Fatal(err)
		case v.Connections >= connections && v.Delivered > 0:
			return v
		}
	}
	t.Fatalf("no entry of %s with %d connections: %+v", prefix, connections, v)
	return v
}
