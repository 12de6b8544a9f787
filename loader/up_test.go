package loader

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/bpf"
)

func TestUpAndDown(t *testing.T) {
	h := newHost(t, "a0", "a1")
	h.opts.Self4 = netip.MustParseAddr("192.0.2.1")
	before := h.snapshot()
	rep := h.mustUp()
	if rep.AlreadyUp || len(rep.Interfaces) != 2 || rep.Interfaces[0].Mode != "native" || !rep.Interfaces[0].New {
		t.Errorf("report %+v", rep)
	}
	if rep.Cgroup != h.cgroup || len(rep.Programs) != 4 || rep.TickHz < 100 || rep.Memory == 0 {
		t.Errorf("report %+v", rep)
	}
	s := h.mustStatus()
	if !s.Up || len(s.Problems) > 0 || len(s.Interfaces) != 2 || s.Interfaces[1].Egress == 0 || s.SockOps == nil || !s.SockOps.Attached {
		t.Errorf("status %+v", s)
	}
	if s.RateCells != minRateCells || s.Memory != rep.Memory {
		t.Errorf("rate cells %d, memory %d, the report says %d", s.RateCells, s.Memory, rep.Memory)
	}
	cfg := h.config()
	if cfg.Contract != contract || cfg.RateMask != minRateCells/rateWays-1 || cfg.Seed == [2]uint64{} ||
		cfg.TickUnits != uint32(time.Second/time.Duration(rep.TickHz)/rateUnit) || cfg.Self4.Octets != h.opts.Self4.As16() {
		t.Errorf("config %+v", cfg)
	}

	up := h.snapshot()
	again := h.mustUp()
	if !again.AlreadyUp || len(again.Changed) > 0 || again.Interfaces[1].New {
		t.Errorf("the second Up did something: %+v", again)
	}
	if again.Programs[0].ID != rep.Programs[0].ID || h.config() != cfg {
		t.Error("the second Up replaced programs or configuration")
	}
	samples := h.openMap("berm_sample")
	for i := range samples.MaxEntries() {
		var v bpf.XDPBermSample
		if err := samples.Lookup(i, &v); err != nil || v.Mask != math.MaxUint64 {
			t.Errorf("sample of reason %d: mask %#x, %v; want none", i, v.Mask, err)
		}
	}
	h.wantUnchanged(up)

	h.mustDown()
	h.wantUnchanged(before)
	if gone := h.mustDown(); len(gone.Changed) > 0 {
		t.Errorf("the second Down did something: %+v", gone)
	}
	if s := h.mustStatus(); s.Up || !contains(s.Problems, "is not up") {
		t.Errorf("status %+v", s)
	}
}

func (h *host) config() (cfg bpf.XDPBermConfig) {
	h.t.Helper()
	m := h.openMap("berm_config")
	if err := m.Lookup(uint32(0), &cfg); err != nil {
		h.t.Fatal(err)
	}
	return cfg
}

func (h *host) openMap(name string) *ebpf.Map {
	h.t.Helper()
	m, err := ebpf.LoadPinnedMap(layoutOf(h.opts.Pins).mapPin(name), nil)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { m.Close() })
	return m
}

var errInjected = errors.New("injected")

// failEach lets every step fail in turn and wants everything to be as before.
func (h *host) failEach(steps []step, call func(context.Context, Options) (*Report, error)) {
	h.t.Helper()
	before := h.snapshot()
	for _, s := range steps {
		o := h.opts
		o.hook = func(step string) error {
			if step == s.name {
				return errInjected
			}
			return nil
		}
		if _, err := call(h.ctx(), o); !errors.Is(err, errInjected) || !strings.Contains(err.Error(), s.name) {
			h.t.Fatalf("step %q: error %v", s.name, err)
		} else if strings.Contains(err.Error(), "undo") {
			h.t.Errorf("step %q: error %v", s.name, err)
		}
		if after := h.snapshot(); after != before {
			h.t.Errorf("step %q left something behind.\nbefore:\n%s\nafter:\n%s", s.name, before, after)
		}
	}
}

func TestUpFailsWithoutTrace(t *testing.T) {
	h := newHost(t, "b0", "b1")
	h.failEach(upSteps, Up)
	h.mustUp()
	if s := h.mustStatus(); len(s.Problems) > 0 {
		t.Errorf("after all that: %q", s.Problems)
	}
}

func TestUpFailsWithoutTraceWhenPartlyUp(t *testing.T) {
	h := newHost(t, "b2")
	h.mustUp()
	h.veth("b3")
	h.opts.Interfaces, h.opts.Group = []string{"b2", "b3"}, "12345"
	if err := os.Remove(layoutOf(h.opts.Pins).mapPin("berm_drops")); err != nil {
		t.Fatal(err)
	}
	h.failEach(upSteps, Up)
	h.mustUp()
	if s := h.mustStatus(); len(s.Problems) > 0 {
		t.Errorf("after all that: %q", s.Problems)
	}
}

func TestUpAllInterfacesOrNone(t *testing.T) {
	h := newHost(t, "c0", "c1")
	h.occupy("c1")
	before := h.snapshot()
	for _, mode := range []Mode{Native, Generic, Auto} {
		h.opts.Mode = mode
		_, err := Up(h.ctx(), h.opts)
		if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "c1") {
			t.Errorf("mode %s: %v", mode, err)
		}
		h.wantUnchanged(before)
	}
}

// Loopback has no native XDP.
func TestUpModes(t *testing.T) {
	h := newHost(t)
	h.opts.Interfaces = []string{"lo"}
	before := h.snapshot()
	if _, err := Up(h.ctx(), h.opts); err == nil || !strings.Contains(err.Error(), "attach to lo") {
		t.Errorf("native on lo: %v", err)
	}
	h.wantUnchanged(before)
	h.opts.Mode = Auto
	rep := h.mustUp()
	if a := rep.Interfaces[0]; a.Mode != "generic" || a.Why == "" || !contains(rep.Notes, "generic XDP") {
		t.Errorf("auto on lo: %+v, notes %q", a, rep.Notes)
	}
	if s := h.mustStatus(); s.Interfaces[0].Mode != "generic" {
		t.Errorf("status %+v", s.Interfaces)
	}
}

func TestUpUnknownInterface(t *testing.T) {
	h := newHost(t, "d0")
	h.opts.Interfaces = append(h.opts.Interfaces, "nosuch0")
	before := h.snapshot()
	if _, err := Up(h.ctx(), h.opts); !errors.Is(err, ErrNoInterface) || !strings.Contains(err.Error(), "nosuch0") {
		t.Errorf("error %v", err)
	}
	h.wantUnchanged(before)
}

// The device goes after it was found and before it is attached to.
func TestInterfaceVanishesMeanwhile(t *testing.T) {
	for _, mode := range []Mode{Native, Auto} {
		h := newHost(t, "d1", "d2")
		before := h.snapshot()
		h.opts.Mode = mode
		h.opts.hook = func(step string) error {
			if step == "give to group" {
				h.remove("d2")
			}
			return nil
		}
		if _, err := Up(h.ctx(), h.opts); !errors.Is(err, ErrNoInterface) || !strings.Contains(err.Error(), "d2: vanished") {
			t.Errorf("mode %s: error %v", mode, err)
		}
		h.wantUnchanged(before)
	}
}

func TestInterfaceVanishesAndReturns(t *testing.T) {
	h := newHost(t, "e0", "e.1")
	h.mustUp()
	h.remove("e.1")
	if s := h.mustStatus(); !contains(s.Problems, "e.1: the device was removed") || s.Interfaces[1].Attached == s.Interfaces[0].Attached {
		t.Errorf("status %+v", s)
	}
	h.veth("e.1")
	rep := h.mustUp()
	if !rep.AlreadyUp || rep.Interfaces[0].New || !rep.Interfaces[1].New {
		t.Errorf("report %+v", rep)
	}
	if s := h.mustStatus(); len(s.Problems) > 0 {
		t.Errorf("problems %q", s.Problems)
	}
	h.remove("e0")
	h.mustDown()
}

func TestInterfaceRenamed(t *testing.T) {
	h := newHost(t, "f0")
	h.mustUp()
	l, err := netlink.LinkByName("f0")
	if err == nil {
		err = errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, "wan0"), netlink.LinkSetUp(l))
	}
	if err != nil {
		t.Fatal(err)
	}
	if s := h.mustStatus(); !contains(s.Problems, "is called wan0 now") {
		t.Errorf("problems %q", s.Problems)
	}
	h.opts.Interfaces = []string{"wan0"}
	if rep := h.mustUp(); rep.Interfaces[0].New || !contains(rep.Changed, "is called wan0 now") {
		t.Errorf("report %+v", rep)
	}
	if s := h.mustStatus(); len(s.Problems) > 0 || s.Interfaces[0].Name != "wan0" {
		t.Errorf("status %+v", s)
	}
}

// What lost its pin still runs: Up finds it again, with its content.
func TestUpRestoresPins(t *testing.T) {
	h := newHost(t, "g0")
	rep := h.mustUp()
	at := layoutOf(h.opts.Pins)
	class := bpf.XDPBermRateClass{Flags: 1}
	if err := h.openMap("berm_rate_classes").Put(uint32(7), &class); err != nil {
		t.Fatal(err)
	}
	gone := []string{at.mapPin("berm_rate_classes"), at.mapPin("berm_paths"), at.sockOpsLink()}
	for _, p := range rep.Programs {
		gone = append(gone, at.program(p.Name))
	}
	for _, path := range gone {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if s := h.mustStatus(); !contains(s.Problems, "pin of map berm_rate_classes was removed") || !contains(s.Problems, "attached to no cgroup") {
		t.Errorf("problems %q", s.Problems)
	}
	again := h.mustUp()
	if s := h.mustStatus(); len(s.Problems) > 0 {
		t.Errorf("problems %q", s.Problems)
	}
	var got bpf.XDPBermRateClass
	if err := h.openMap("berm_rate_classes").Lookup(uint32(7), &got); err != nil || got.Flags != 1 {
		t.Errorf("class %+v, %v: the map lost its content", got, err)
	}
	if x := h.mustStatus().Interfaces[0].Program; x != again.Programs[3].ID {
		t.Errorf("interface runs %d, programs are %+v", x, again.Programs)
	}
}

func TestUpRefusesOtherContract(t *testing.T) {
	h := newHost(t, "h0")
	h.mustUp()
	at := layoutOf(h.opts.Pins)
	if err := os.Rename(at.dir, filepath.Join(h.opts.Pins, "v999")); err != nil {
		t.Fatal(err)
	}
	before := h.snapshot()
	if _, err := Up(h.ctx(), h.opts); !errors.Is(err, ErrContract) {
		t.Errorf("Up: %v", err)
	}
	h.wantUnchanged(before)
	if s := h.mustStatus(); s.Up || !contains(s.Problems, "berm kernel upgrade takes it over") {
		t.Errorf("status %+v", s)
	}
	h.mustDown() // of either version
	if contains(strings.Split(h.snapshot(), "\n"), "v999") {
		t.Error("Down left the other contract's pins")
	}
}

// TestUpMendsConfig: somebody has emptied the map that the program asks first.
func TestUpMendsConfig(t *testing.T) {
	h := newHost(t, "h0")
	h.mustUp()
	m, err := ebpf.LoadPinnedMap(filepath.Join(layoutOf(h.opts.Pins).dir, "berm_config"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Put(uint32(0), &bpf.XDPBermConfig{}); err != nil {
		t.Fatal(err)
	}
	if s := h.mustStatus(); !contains(s.Problems, "somebody has overwritten it (try: berm kernel up)") {
		t.Errorf("status %+v", s.Problems)
	}
	if r := h.mustUp(); !contains(r.Changed, "wrote berm_config anew") {
		t.Errorf("changed %q", r.Changed)
	}
	if s := h.mustStatus(); len(s.Problems) > 0 {
		t.Errorf("status %+v", s.Problems)
	}
}

func TestDownLeavesOthers(t *testing.T) {
	h := newHost(t, "i0")
	h.mustUp()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	theirs := filepath.Join(layoutOf(h.opts.Pins).dir, "theirs")
	if err := m.Pin(theirs); err != nil {
		t.Fatal(err)
	}
	filter := egressFilter(ifindex(t, "i0"))
	filter.Handle, filter.Name = 7, "theirs"
	id, err := egressOn(filter.LinkIndex)
	if err != nil {
		t.Fatal(err)
	}
	prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	filter.Fd = prog.FD()
	if err := netlink.FilterReplace(filter); err != nil {
		t.Fatal(err)
	}
	if gone := h.mustDown(); !contains(gone.Notes, theirs) || !exists(theirs) {
		t.Errorf("%+v; there: %t", gone, exists(theirs))
	}
	if on, err := xdpOn(ifindex(t, "i0")); err != nil || on.program != 0 {
		t.Errorf("still attached: %+v, %v", on, err)
	}
	if left, err := filtersAt(filter.LinkIndex, netlink.HANDLE_MIN_EGRESS); err != nil || len(left) != 1 || left[0].(*netlink.BpfFilter).Name != "theirs" {
		t.Errorf("filters at egress %v, %v: want theirs alone", left, err)
	}
	m.Unpin()
	h.mustDown()
	if exists(theirs) || exists(h.opts.Pins) && len(mustReadDir(t, h.opts.Pins)) > 0 {
		t.Error("left something of our own")
	}
}

func mustReadDir(t *testing.T, path string) []os.DirEntry {
	t.Helper()
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func ifindex(t *testing.T, name string) int {
	t.Helper()
	ifc, err := findInterface(name)
	if err != nil {
		t.Fatal(err)
	}
	return ifc.Index
}

// On a systemd host bpffs is mounted for root alone.
func TestGroupReachesPins(t *testing.T) {
	h := newHost(t, "j0")
	point := filepath.Dir(h.opts.Pins) + "/bpf"
	if err := errors.Join(os.Mkdir(point, 0o755), unix.Mount("bpf", point, "bpf", 0, "mode=0700")); err != nil {
		t.Fatal(err)
	}
	h.opts.Pins, h.opts.Group = point+"/berm", "54321"
	rep := h.mustUp()
	if !contains(rep.Changed, "let others pass "+point) {
		t.Errorf("changed %q", rep.Changed)
	}
	at := layoutOf(h.opts.Pins)
	for path, want := range map[string]string{
		point: "41701 0", h.opts.Pins: "40750 54321", at.dir: "40750 54321", at.links(): "40700 0", at.programs(): "40750 54321",
		at.mapPin("berm_config"): "100660 54321", at.program(rep.Programs[3].Name): "100660 54321", at.xdpLink("j0"): "100600 0",
	} {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%o %d", st.Mode, st.Gid); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	h.mustDown()
	if on, _ := onBPFFS(point); !on {
		t.Error("Down unmounted a bpffs that it had not mounted")
	}
	h.opts.Group = "no-such-group"
	if rep := h.mustUp(); !contains(rep.Notes, "no-such-group") {
		t.Errorf("notes %q", rep.Notes)
	}
}

func TestUpConcurrently(t *testing.T) {
	h := newHost(t, "k0")
	// The bpffs must be one that all see: each has this thread's mount namespace.
	netns, mntns := mustOpen(t, "/proc/thread-self/ns/net"), mustOpen(t, "/proc/thread-self/ns/mnt")
	var wg sync.WaitGroup
	reports := make([]*Report, 4)
	for i := range reports {
		wg.Go(func() {
			runtime.LockOSThread()
			err := errors.Join(unix.Unshare(unix.CLONE_FS),
				unix.Setns(int(mntns.Fd()), unix.CLONE_NEWNS), unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET))
			if err == nil {
				reports[i], err = Up(context.Background(), h.opts)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	first := 0
	for _, rep := range reports {
		if rep != nil && !rep.AlreadyUp {
			first++
		}
	}
	if first != 1 {
		t.Errorf("%d calls brought it up, want 1", first)
	}
	if s := h.mustStatus(); len(s.Problems) > 0 {
		t.Errorf("problems %q", s.Problems)
	}
}

func mustOpen(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestLockHeld(t *testing.T) {
	h := newHost(t)
	lock, err := takeLock(h.ctx(), h.opts.Lock)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	ctx, cancel := context.WithTimeout(h.ctx(), 50*time.Millisecond)
	defer cancel()
	if _, err := Up(ctx, h.opts); !errors.Is(err, ErrLocked) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

// A loader that is killed cannot undo; the next one does.
func TestUpAfterKill(t *testing.T) {
	const child = "BERM_TEST_KILLED_UP"
	if root := os.Getenv(child); root != "" {
		o := Options{
			Interfaces: []string{"l0"}, Mode: Native, Pins: root + "/pins", Lock: root + "/lock", Group: "0",
			RateCells: minRateCells, Cgroup: os.Getenv(child + "_CGROUP"),
			hook: func(step string) error {
				if step == "attach sock_ops" {
					unix.Kill(os.Getpid(), unix.SIGKILL)
				}
				return nil
			},
		}
		_, err := Up(context.Background(), o)
		t.Fatal("survived:", err)
	}
	h := newHost(t, "l0")
	root := filepath.Dir(h.opts.Pins)
	cmd := exec.Command(os.Args[0], "-test.run=^TestUpAfterKill$")
	cmd.Env = append(os.Environ(), child+"="+root, child+"_CGROUP="+h.cgroup)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.Sys().(interface{ Signal() unix.Signal }).Signal() != unix.SIGKILL {
		t.Fatalf("child: %v\n%s", err, out)
	}
	if s := h.mustStatus(); !contains(s.Problems, "interrupted start") || s.Up {
		t.Errorf("status %+v", s)
	}
	rep := h.mustUp()
	if rep.AlreadyUp || !contains(rep.Changed, "swept up") {
		t.Errorf("report %+v", rep)
	}
	if s := h.mustStatus(); len(s.Problems) > 0 {
		t.Errorf("problems %q", s.Problems)
	}
}

func TestWith(t *testing.T) {
	h := newHost(t, "m0")
	before := h.snapshot()
	err := With(h.ctx(), h.opts, func(rep *Report) error {
		if s := h.mustStatus(); !s.Up {
			t.Error("not up within With")
		}
		return errInjected
	})
	if !errors.Is(err, errInjected) {
		t.Errorf("error %v", err)
	}
	h.wantUnchanged(before)

	h.mustUp()
	up := h.snapshot()
	if err := With(h.ctx(), h.opts, func(rep *Report) error { return nil }); err != nil {
		t.Error(err)
	}
	h.wantUnchanged(up) // somebody else's
}
