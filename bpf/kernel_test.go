package bpf_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"github.com/bermedge/berm/bpf"
)

// Actions of XDP programs.
const (
	xdpAborted = iota
	xdpDrop
	xdpPass
	xdpTX
	xdpRedirect
)

// Require skips a test the machine cannot run. In CI a skip is a failure: a test that never runs is
// not a test.
func Require(t testing.TB, err error) {
	t.Helper()
	if err != nil && os.Getenv("BERM_NO_SKIP") != "" {
		t.Fatal("may not skip:", err)
	} else if err != nil {
		t.Skip(err)
	}
}

// rateSets keeps the rate cells small enough to clear between tests.
const rateSets = 1024

// kernel is the programs with maps of their own.
type kernel struct {
	bpf.XDPTestObjects
	mem map[*ebpf.Map]*ebpf.Memory
}

var (
	loadOnce sync.Once
	loaded   *kernel
	errLoad  error
)

// newKernel returns the programs, loaded once, with everything back as world says and counters
// as they are. Tests with it do not run in parallel.
func newKernel(t testing.TB) *kernel {
	t.Helper()
	if os.Geteuid() != 0 {
		Require(t, errors.New("needs root, to load programs"))
	}
	loadOnce.Do(func() { loaded, errLoad = load() })
	if errLoad != nil {
		t.Fatalf("%+v", errLoad)
	}
	loaded.reset(t)
	return loaded
}

func load() (*kernel, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, err
	}
	spec, err := bpf.LoadXDPTest()
	if err != nil {
		return nil, err
	}
	spec.Maps[bpf.XDPTestMapBermRateCells].MaxEntries = rateSets
	k := &kernel{mem: map[*ebpf.Map]*ebpf.Memory{}}
	return k, spec.LoadAndAssign(&k.XDPTestObjects, nil)
}

// memory is a map's content, to be written to at once.
func (k *kernel) memory(t testing.TB, m *ebpf.Map) *ebpf.Memory {
	t.Helper()
	if k.mem[m] == nil {
		mem, err := m.Memory()
		if err != nil {
			t.Fatal(err)
		}
		k.mem[m] = mem
	}
	return k.mem[m]
}

// run gives a frame to a program.
func run(t testing.TB, prog *ebpf.Program, frame []byte) (action uint32, out []byte) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for range 100 { // Go's preemption signals interrupt test runs
		opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
		action, err := prog.Run(&opts)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			t.Fatal("test run:", err)
		}
		return action, opts.DataOut
	}
	t.Fatal("test run: interrupted 100 times")
	return 0, nil
}

// counts are packets by what counted them: drop/GEO, shadow/GEO, GEO/DROP for a stage and its exit,
// vip/web/in, tenant/7.
type counts map[string]uint64

// tally is packets and bytes.
type tally struct{ packets, bytes uint64 }

// counters reads every counter there is, without those at zero.
func (k *kernel) counters(t testing.TB) map[string]tally {
	t.Helper()
	all := map[string]tally{}
	read := func(m *ebpf.Map, name func(i uint32) string) {
		for i := range m.MaxEntries() {
			var perCPU []bpf.XDPBermCounter
			if err := m.Lookup(i, &perCPU); err != nil {
				t.Fatal(err)
			}
			for _, c := range perCPU {
				add(all, name(i), c.Packets, c.Bytes)
			}
		}
	}
	read(k.BermDrops, func(i uint32) string { return "drop/" + dropName(bpf.XDPBermDrop(i)) })
	read(k.BermShadows, func(i uint32) string { return "shadow/" + dropName(bpf.XDPBermDrop(i)) })
	read(k.BermStageStats, func(i uint32) string { return stages[i/uint32(len(exits))] + "/" + exits[i%uint32(len(exits))] })
	for name, id := range vipIDs {
		var perCPU []bpf.XDPBermVipStats
		if err := k.BermVipStats.Lookup(id, &perCPU); err != nil {
			t.Fatal(err)
		}
		for _, s := range perCPU {
			add(all, "vip/"+name+"/in", s.In.Packets, s.In.Bytes)
			add(all, "vip/"+name+"/dropped", s.Dropped.Packets, s.Dropped.Bytes)
			add(all, "vip/"+name+"/shadowed", s.Shadowed.Packets, s.Shadowed.Bytes)
			add(all, "vip/"+name+"/forwarded", s.Forwarded.Packets, s.Forwarded.Bytes)
			add(all, "vip/"+name+"/answered", s.Answered.Packets, s.Answered.Bytes)
			add(all, "vip/"+name+"/cid", s.Cid.Packets, s.Cid.Bytes)
			add(all, "vip/"+name+"/cid_lost", s.CidLost.Packets, s.CidLost.Bytes)
			add(all, "vip/"+name+"/stun", s.Stun.Packets, s.Stun.Bytes)
			add(all, "vip/"+name+"/stun_lost", s.StunLost.Packets, s.StunLost.Bytes)
			add(all, "vip/"+name+"/newcomer", s.Newcomer.Packets, s.Newcomer.Bytes)
			add(all, "vip/"+name+"/former", s.Former.Packets, s.Former.Bytes)
			add(all, "vip/"+name+"/crowded", s.Crowded.Packets, s.Crowded.Bytes)
		}
	}
	for _, tenant := range []uint32{0, tenantWeb} {
		var perCPU []bpf.XDPBermCounter
		if err := k.BermTenantStats.Lookup(tenant, &perCPU); err != nil {
			t.Fatal(err)
		}
		for _, c := range perCPU {
			add(all, fmt.Sprint("tenant/", tenant), c.Packets, c.Bytes)
		}
	}
	return all
}

func add(all map[string]tally, name string, packets, bytes uint64) {
	if packets|bytes != 0 {
		all[name] = tally{all[name].packets + packets, all[name].bytes + bytes}
	}
}

// moved is by how much counters moved.
func moved(before, after map[string]tally) map[string]tally {
	diff := map[string]tally{}
	for name, a := range after {
		b := before[name]
		add(diff, name, a.packets-b.packets, a.bytes-b.bytes)
	}
	return diff
}

func dropName(d bpf.XDPBermDrop) string {
	if int(d) < len(drops) {
		return drops[d]
	}
	return fmt.Sprint(uint32(d))
}

// The enums' names, in their order; TestNames holds them against the contract.
var (
	drops = []string{
		"NONE", "TRUNCATED", "MALFORMED", "BAD_CHECKSUM", "BAD_TCP_FLAGS", "LAND", "BAD_SOURCE", "BAD_FRAGMENT",
		"TUNNEL_PEER", "TUNNEL_TAG", "TUNNEL_INNER", "NO_SERVICE", "VERDICT", "ACL", "GEO", "RATE_PACKETS", "RATE_BYTES",
		"RATE_SYN", "NO_BACKEND", "TOO_BIG", "AMPLIFIED", "BAD_INITIAL", "RATE_INITIAL", "RATE_AGGREGATE",
		"CARRY", "REGION", "RATE_NETWORK",
	}
	stages = []string{"PARSE", "DECAP", "VIP", "VERDICT", "PREFIX", "GEO", "RATE", "STEER", "DELIVER", "GATE", "ICMP"}
	exits  = []string{"FOREIGN", "LOCAL", "DECAP", "FORWARD", "DROP", "SHADOW", "FAIL_OPEN", "ABORTED", "CHANCE", "DEADMAN", "ANSWER", "CARRY", "SPILL"}
)

// want is what becomes of a frame.
type want struct {
	action uint32
	out    []byte // nil = as it came
	bytes  int    // of the IP packet, as counted; 0 = what lies behind the Ethernet header
	counts counts // all that move
}

// check runs a frame and compares action, bytes and every counter, those that must not move included.
func (k *kernel) check(t *testing.T, frame []byte, w want) {
	t.Helper()
	before := k.counters(t)
	action, out := run(t, k.XdpBermAt, frame)
	diff := moved(before, k.counters(t))
	if action != w.action {
		t.Errorf("action %d, want %d", action, w.action)
	}
	expect := w.out
	if expect == nil {
		expect = frame
	}
	if !bytes.Equal(out, expect) {
		t.Errorf("frame\n got %x\nwant %x", out, expect)
	}
	size := uint64(w.bytes)
	if size == 0 {
		size = uint64(len(frame) - l3(frame))
	}
	for _, name := range slices.Sorted(maps.Keys(diff)) {
		if n := w.counts[name]; diff[name] != (tally{n, n * size}) {
			t.Errorf("%s moved by %d packets and %d bytes, want %d and %d", name, diff[name].packets, diff[name].bytes, n, n*size)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(w.counts)) {
		if diff[name].packets == 0 && w.counts[name] != 0 {
			t.Errorf("%s did not move, want %d", name, w.counts[name])
		}
		produced(name)
	}
}

// l3 is the offset of a frame's IP header.
func l3(frame []byte) int {
	at := 12
	for range 2 {
		if at+2 <= len(frame) && (bytes.Equal(frame[at:at+2], []byte{0x81, 0}) || bytes.Equal(frame[at:at+2], []byte{0x88, 0xa8})) {
			at += 4
		}
	}
	return min(at+2, len(frame))
}

var (
	producedMu sync.Mutex
	reasons    = map[string]bool{}
)

// produced remembers the drop and shadow reasons that some test has seen.
func produced(name string) {
	producedMu.Lock()
	defer producedMu.Unlock()
	if strings.HasPrefix(name, "drop/") || strings.HasPrefix(name, "shadow/") {
		reasons[name] = true
	}
}
