package loader

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/bermedge/berm/maps"
)

// next is a contract whose maps differ from today's in every way that can be carried.
const next = contract + 1

// reshaped makes the objects of contract next: members moved, widened and added; tables grown, also one of two
// copies. Only maps of which the rehearsal writes nothing.
func reshaped(o *objects) {
	newer(o)
	for _, spec := range o.all() {
		for name, change := range map[string]func(*ebpf.MapSpec){
			"berm_verdicts": func(m *ebpf.MapSpec) {
				restruct(m, "reason", "action", "owner", "expires_ns", "hits", "rule", "+weight", "evidence")
			},
			"berm_geo_policies": func(m *ebpf.MapSpec) {
				restruct(m, "+generation", "owner", "used", "name", "fallback")
				m.MaxEntries *= 2
			},
			"berm_paths":          func(m *ebpf.MapSpec) { m.MaxEntries /= 2 },
			"berm_prefix_records": func(m *ebpf.MapSpec) { m.MaxEntries *= 2 },
			"berm_tenant_stats":   func(m *ebpf.MapSpec) { m.MaxEntries *= 2 },
			"berm_sets":           func(m *ebpf.MapSpec) { restruct(m, "used", "owner", "+since", "name") },
		} {
			if m := spec.Maps[name]; m != nil {
				change(m)
			}
		}
	}
}

// restruct lays a map's value out anew, in this order; a name with + is a new number of 64 bits.
func restruct(m *ebpf.MapSpec, order ...string) {
	old := btf.UnderlyingType(m.Value).(*btf.Struct)
	now := &btf.Struct{Name: old.Name}
	at := uint32(0)
	for _, name := range order {
		member := btf.Member{Name: name, Type: &btf.Int{Name: "wide", Size: 8}}
		if i := slices.IndexFunc(old.Members, func(o btf.Member) bool { return o.Name == name }); i >= 0 {
			member = old.Members[i]
		} else if name[0] != '+' {
			panic(name)
		}
		size := sizeOf(member.Type)
		align := min(size, 8)
		if size%8 != 0 && size > 8 {
			align = 1
		}
		at = (at + align - 1) / align * align
		member.Name, member.Offset = strings.TrimPrefix(name, "+"), btf.Bits(at*8)
		now.Members = append(now.Members, member)
		at += size
	}
	now.Size = (at + 7) &^ 7
	m.Value, m.ValueSize = now, now.Size
}

// fill puts something of every kind that must survive into the maps.
func (h *host) fill(udp uint16) {
	h.t.Helper()
	set := h.openSet()
	must := func(_ any, err error) {
		h.t.Helper()
		if err != nil {
			h.t.Fatal(err)
		}
	}
	must(set.Geo.PutPolicy(maps.GeoPolicy{Name: "closed", Fallback: maps.ActionDrop}))
	must(set.Rates.PutClass(maps.RateClass{Name: "slow", Packets: maps.Limit{PerSecond: 9, Burst: 20}}))
	must(set.VIPs.Put(maps.VIP{Name: "open", Address: vip4, Port: udp, Protocol: maps.ProtocolUDP}))
	must(set.VIPs.Put(maps.VIP{Name: "closed", Address: vip6, Port: udp, Protocol: maps.ProtocolUDP, GeoPolicy: "closed"}))
	for i := range 300 {
		must(nil, set.Verdicts.Put(maps.Verdict{
			Source: netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), Action: maps.ActionDrop, Reason: "scanner", Rule: uint32(i), Evidence: uint64(i) << 33,
			Expires: time.Now().Add(time.Hour),
		}))
	}
	must(nil, set.Config.SetSecrets(maps.Secrets{Flow: [2]uint64{1, 2}, Tags: [2]uint64{3, 4}}))
	must(nil, set.Config.SetShadow(maps.DropLand))
	must(nil, set.Config.SetMTU(1480))
}

// content is all that an operator can see of the maps.
func (h *host) content() string {
	h.t.Helper()
	set, err := maps.Open(maps.PinDir(h.opts.Pins))
	if err != nil {
		h.t.Fatal(err)
	}
	defer set.Close()
	var all []any
	add := func(v any, err error) {
		h.t.Helper()
		if err != nil {
			h.t.Fatal(err)
		}
		all = append(all, v)
	}
	cfg := set.Config.Get()
	cfg.TickUnits = 0 // measured anew
	add(cfg, nil)
	add(set.VIPs.List())
	add(set.Geo.ListPolicies())
	add(set.Rates.ListClasses())
	verdicts, err := set.Verdicts.List()
	for i := range verdicts {
		verdicts[i].Expires = verdicts[i].Expires.Round(time.Second) // it is computed from two clocks
	}
	add(verdicts, err)
	add(set.Prefixes.Lookup(netip.MustParseAddr("203.0.113.1")))
	text, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		h.t.Fatal(err)
	}
	return string(text)
}

// to upgrades to contract next, or back to today's.
func (h *host) to(contract int) (*Report, error) {
	h.t.Helper()
	o := h.opts
	o.contract, o.spec = contract, nil
	if contract == next {
		o.spec = reshaped
	}
	rep, err := Upgrade(h.ctx(), o)
	if err != nil {
		return rep, err
	}
	s, err := Status(h.ctx(), o)
	if err != nil || len(s.Problems) > 0 || s.Contract != contract {
		h.t.Errorf("status %+v, %v", s, err)
	}
	return rep, err
}

// Two contracts forth and back, under traffic: content is the same, every datagram of the open service arrives, and not one
// of the closed service does.
func TestMigrate(t *testing.T) {
	h := newHost(t, "ma0", "ma1")
	c := h.newClient("ma0")
	udp, received := h.countUDP()
	h.opts.RateCells = 1024
	h.mustUp()
	h.fill(udp)
	want, links := h.content(), h.linkIDs()
	var open, closed net.Conn
	var err error
	c.in(func() {
		if open, err = net.Dial("udp", netip.AddrPortFrom(vip4, udp).String()); err == nil {
			closed, err = net.Dial("udp", netip.AddrPortFrom(vip6, udp).String())
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	defer closed.Close()
	stop, sent := make(chan struct{}), make(chan int64)
	go func() {
		var n int64
		for tick := time.NewTicker(50 * time.Microsecond); ; n++ {
			select {
			case <-stop:
				tick.Stop()
				sent <- n
				return
			case <-tick.C:
				open.Write([]byte("berm"))
				closed.Write([]byte("berm"))
			}
		}
	}()
	for _, contract := range []int{next, contract, next, contract} {
		rep, err := h.to(contract)
		if err != nil {
			t.Fatal(err)
		}
		if !contains(rep.Changed, "carried ") || len(rep.Interfaces) != 2 || len(rep.Before) != 2 {
			t.Errorf("report %+v", rep)
		}
	}
	close(stop)
	n := <-sent
	eventually(t, fmt.Sprintf("%d datagrams of the open service received, and none of the other", n), func() bool { return received.Load() == n })
	if got := h.content(); got != want {
		t.Errorf("content\n got %s\nwant %s", got, want)
	}
	o := h.opts
	if after := layoutOf(o.Pins); !slices.Equal(h.linkIDs(), links) || exists(filepath.Join(o.Pins, fmt.Sprintf("v%d", next))) || !exists(after.dir) {
		t.Error("links were made anew, or pins of the other contract are left")
	}
	if s := h.mustStatus(); s.RateCells != 1024 {
		t.Errorf("%d rate cells", s.RateCells)
	}
	t.Logf("%d datagrams of each over 4 migrations", n)
	h.mustDown()
}

func TestMigrateFailsWithoutTrace(t *testing.T) {
	h := newHost(t, "mb0", "mb1")
	h.mustUp()
	h.fill(53)
	want := h.content()
	h.opts.Group, h.opts.spec, h.opts.contract = "12345", reshaped, next
	var steps []step // those that an upgrade within a contract does not have, or has elsewhere
	for _, s := range migrateSteps {
		if slices.Contains([]string{"load new programs", "carry content over", "publish", "update links", "move links", "sum up"}, s.name) {
			steps = append(steps, s)
		}
	}
	h.failEach(steps, Upgrade)
	h.opts.Group, h.opts.spec, h.opts.contract = "0", nil, 0
	if got := h.content(); got != want {
		t.Errorf("content\n got %s\nwant %s", got, want)
	}
}

// A loader that is killed, after whatever step, is finished or swept up by the next one.
func TestMigrateKilled(t *testing.T) {
	for _, step := range []string{"publish", "update links", "move links"} {
		t.Run(step, func(t *testing.T) {
			h := newHost(t, "mc0", "mc1")
			h.mustUp()
			h.fill(53)
			want, links := h.content(), h.linkIDs()
			o, err := json.Marshal(h.opts)
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(os.Args[0], "-test.run=^TestKilledHere$") // from this thread, so in its namespaces
			cmd.Env = append(os.Environ(), "BERM_KILL_AFTER="+step, "BERM_KILL_OPTIONS="+string(o))
			var exit *exec.ExitError
			if out, err := cmd.CombinedOutput(); !errors.As(err, &exit) || exit.ExitCode() != 9 {
				t.Fatalf("%v: %s", err, out)
			}
			if _, err := h.to(next); err != nil {
				t.Fatal(err)
			}
			if _, err := h.to(contract); err != nil {
				t.Fatal(err)
			}
			if got := h.content(); got != want || !slices.Equal(h.linkIDs(), links) {
				t.Errorf("links %v, were %v; content\n got %s\nwant %s", h.linkIDs(), links, got, want)
			}
			h.mustDown()
			if left := mustReadDir(t, filepath.Dir(h.opts.Pins)); len(left) > 2 {
				t.Errorf("left %v", left)
			}
		})
	}
}

// TestKilledHere is the loader that TestMigrateKilled kills.
func TestKilledHere(t *testing.T) {
	after := os.Getenv("BERM_KILL_AFTER")
	if after == "" {
		return // as a test of its own it has nothing to do
	}
	var o Options
	if err := json.Unmarshal([]byte(os.Getenv("BERM_KILL_OPTIONS")), &o); err != nil {
		t.Fatal(err)
	}
	o.contract, o.spec = next, reshaped
	o.hook = func(step string) error {
		if step == after {
			os.Exit(9)
		}
		return nil
	}
	_, err := Upgrade(context.Background(), o)
	t.Fatal("not killed: ", err)
}

// What has no room is refused, whole, with the name of what it is.
func TestMigrateRefusesToCut(t *testing.T) {
	h := newHost(t, "md0")
	h.mustUp()
	h.fill(53)
	for want, change := range map[string]func(*ebpf.MapSpec){
		"berm_geo_policies: cannot be carried over: entry 1 is in use, and 1 fit": func(m *ebpf.MapSpec) { m.MaxEntries = 1 },
	} {
		before := h.snapshot()
		h.opts.contract = next
		h.opts.spec = func(o *objects) {
			for _, spec := range o.all() {
				if m := spec.Maps["berm_geo_policies"]; m != nil {
					change(m)
				}
			}
		}
		if _, err := Upgrade(h.ctx(), h.opts); !errors.Is(err, errNotCarried) || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
		h.wantUnchanged(before)
	}
}

func number(size uint32) btf.Type { return &btf.Int{Name: "n", Size: size} }

func record(members ...btf.Member) *btf.Struct {
	s := &btf.Struct{Name: "s", Members: members}
	for _, m := range members {
		s.Size = max(s.Size, m.Offset.Bytes()+sizeOf(m.Type))
	}
	return s
}

func TestPlanMoves(t *testing.T) {
	old := record(
		btf.Member{Name: "a", Type: number(4)}, btf.Member{Name: "b", Type: number(2), Offset: 32}, btf.Member{Name: "pad", Type: number(2), Offset: 48},
		btf.Member{Name: "list", Type: &btf.Array{Type: number(2), Nelems: 3, Index: number(4)}, Offset: 64}, btf.Member{Name: "gone", Type: number(2), Offset: 112},
	)
	now := record(
		btf.Member{Name: "b", Type: number(4)}, btf.Member{Name: "new", Type: number(4), Offset: 32}, btf.Member{Name: "a", Type: number(2), Offset: 64},
		btf.Member{Name: "list", Type: &btf.Array{Type: number(2), Nelems: 2, Index: number(4)}, Offset: 80}, btf.Member{Name: "pad", Type: number(2), Offset: 112},
	)
	moves, err := planMoves("s", old, now, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	in := []byte{1, 2, 0, 0, 3, 4, 9, 9, 5, 6, 7, 8, 0, 0, 10, 11}
	out := slices.Repeat([]byte{0xee}, int(now.Size))
	if err := carryValue(moves, in, out); err != nil {
		t.Fatal(err)
	}
	if want := []byte{3, 4, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 1, 2, 5, 6, 7, 8, 0xee, 0xee}; !reflect.DeepEqual(out, want) {
		t.Errorf("got %v, want %v", out, want)
	}
	for name, at := range map[string]int{"s.a": 2, "s.list": 12} {
		bad := slices.Clone(in)
		bad[at] = 1
		if err := carryValue(moves, bad, out); !errors.Is(err, errNotCarried) || !strings.Contains(err.Error(), name) {
			t.Errorf("a value too large for %s: %v", name, err)
		}
	}
	if _, err := planMoves("s", record(btf.Member{Name: "a", Type: number(4)}), record(btf.Member{Name: "a", Type: record()}), 0, 0); !errors.Is(err, errNotCarried) {
		t.Errorf("a number that becomes a struct: %v", err)
	}
	if !identical(join([]move{{name: "x", size: 4}, {from: 4, to: 4, size: 4}}), 8, 8) || identical(moves, 16, 16) {
		t.Error("identical")
	}
}
