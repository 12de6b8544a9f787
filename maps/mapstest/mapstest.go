// Package mapstest makes real maps and the real program for tests. It needs root.
package mapstest

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/maps"
)

// rateSets keeps a test's rate cells at 256 KiB; the default is 64 MiB.
const rateSets = 4096

// Require skips a test that the machine cannot run. Where BERM_NO_SKIP is set it fails instead: a
// test that never runs is not a test.
func Require(t testing.TB, err error) {
	t.Helper()
	if err != nil && os.Getenv("BERM_NO_SKIP") != "" {
		t.Fatal("may not skip:", err)
	} else if err != nil {
		t.Skip(err)
	}
}

// NeedRoot skips a test that is not run by root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Require(t, errors.New("needs root, to create maps"))
	}
}

// Kernel is the kernel half with maps of its own, attached to nothing.
type Kernel struct {
	*maps.Set
	Maps    map[string]*ebpf.Map
	Program *ebpf.Program
}

// New loads the kernel half.
func New(t testing.TB) *Kernel {
	t.Helper()
	NeedRoot(t)
	Require(t, rlimit.RemoveMemlock())
	spec, err := bpf.LoadXDP()
	if err != nil {
		t.Fatal(err)
	}
	spec.Maps[bpf.XDPMapBermRateCells].MaxEntries = rateSets
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatalf("load the kernel half: %+v", err)
	}
	t.Cleanup(coll.Close)
	set, err := maps.FromMaps(coll.Maps)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	})
	var random [48]byte
	if _, err := rand.Read(random[:]); err != nil {
		t.Fatal(err)
	}
	err = set.Config.Update(func(c *bpf.XDPBermConfig) {
		c.Contract, c.RateMask, c.TickUnits = maps.Contract, rateSets-1, 4e6/64
		for i := range 2 {
			c.Seed[i] = binary.NativeEndian.Uint64(random[8*i:])
			c.Secret[i] = binary.NativeEndian.Uint64(random[16+8*i:])
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return &Kernel{Set: set, Maps: coll.Maps, Program: coll.Programs[bpf.XDPProgXdpBerm]}
}

// Pin pins the maps in a bpffs of the test's own and returns their directory.
func (k *Kernel) Pin(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	if err := unix.Mount("bpf", root, "bpf", 0, "mode=0755"); err != nil {
		t.Fatal("mount bpffs:", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error("unmount bpffs:", err)
		}
	})
	dir := maps.PinDir(root)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, m := range k.Maps {
		if !strings.HasPrefix(name, "berm_") {
			continue // the program's own
		}
		if err := m.Pin(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Run gives a frame to the program and returns its action and the frame as it left.
func (k *Kernel) Run(t testing.TB, frame []byte) (action uint32, out []byte) {
	t.Helper()
	action, out, err := k.TryRun(frame)
	if err != nil {
		t.Fatal(err)
	}
	return action, out
}

// TryRun is Run for goroutines that may not end the test.
func (k *Kernel) TryRun(frame []byte) (action uint32, out []byte, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for range 100 { // Go's preemption signals interrupt test runs
		out = make([]byte, len(frame)+256)
		opts := &ebpf.RunOptions{Data: frame, DataOut: out}
		action, err = k.Program.Run(opts)
		if !errors.Is(err, syscall.EINTR) {
			return action, opts.DataOut, err
		}
	}
	return 0, nil, fmt.Errorf("test run: %w", err)
}

// Action is the name of an XDP action.
func Action(a uint32) string {
	names := []string{"aborted", "drop", "pass", "tx", "redirect"}
	if int(a) < len(names) {
		return names[a]
	}
	return fmt.Sprint(a)
}

// MustEqual compares two frames.
func MustEqual(t testing.TB, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Fatalf("frame\n got %x\nwant %x", got, want)
	}
}

// Monotonic is the clock of the contract's times.
func Monotonic(t testing.TB) uint64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return uint64(ts.Nano())
}
