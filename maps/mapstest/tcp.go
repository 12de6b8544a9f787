package mapstest

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/bermedge/berm/bpf"
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
	Require(t, errors.New("needs a cgroup2 hierarchy"))
	return ""
}

// InCgroup moves this process into a cgroup of the test's own until the test ends, and returns its path. Processes that it starts
// then are in it too.
func InCgroup(t testing.TB) string {
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

// ObserveTCP has the kernel half's program of TCP connections see those of this process, over k's maps.
func ObserveTCP(t testing.TB, k *Kernel) *ebpf.Program {
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
	l, err := link.AttachCgroup(link.CgroupOptions{Path: InCgroup(t), Attach: ebpf.AttachCGroupSockOps, Program: objs.BermSockOps})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); objs.Close() }) //nolint:errcheck // only descriptors
	return objs.BermSockOps
}
