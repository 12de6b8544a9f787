package maps_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

const childEnv = "BERM_TEST_UNPRIVILEGED" // the pins' directory, in the process without privilege

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := writeEverything(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// writeEverything uses every writer once.
func writeEverything(dir string) error {
	caps, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	if !strings.Contains(string(caps), "CapEff:\t0000000000000000") {
		return errors.New("this process has capabilities")
	}
	s, err := maps.Open(dir)
	if err != nil {
		return err
	}
	a := netip.MustParseAddr("192.0.2.1")
	set, err := s.Sets.Put(maps.BackendSet{Name: "edges"})
	backend, err2 := s.Backends.Put(maps.Backend{Name: "edge1", Address: a})
	_, err3 := s.Geo.PutPolicy(maps.GeoPolicy{Name: "eu", Fallback: maps.ActionDrop})
	_, err4 := s.Rates.PutClass(maps.RateClass{Name: "slow", Packets: maps.Limit{PerSecond: 1, Burst: 1}})
	if err := errors.Join(err, err2, err3, err4); err != nil {
		return err
	}
	_, err = s.VIPs.Put(maps.VIP{Name: "web", Address: a, Port: 443, Protocol: maps.ProtocolTCP, Backends: "edges", GeoPolicy: "eu", RateClass: "slow"})
	stats, err2 := s.Stats.VIPs()
	if err2 == nil && len(stats) != 2 {
		err2 = fmt.Errorf("counters of %d services", len(stats))
	}
	rows := make([]maps.Row, maps.RowCount)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err3 = s.Stats.Drops()
	_, err4 = s.Paths.List()
	return errors.Join(err, err2, err3, err4,
		s.Prefixes.Swap(func(t *maps.PrefixTable) error { return t.Add4(1<<24, 1<<25, maps.PrefixRecord{Country: 1}) }),
		s.Verdicts.Put(maps.Verdict{Source: a, Action: maps.ActionDrop, VIP: "web"}),
		s.Verdicts.Remove(a, "web"),
		s.Backends.SetNextHop(backend, maps.NextHop{Ready: true}),
		s.Backends.Beat(backend),
		s.Rows.Write(set, rows),
		s.Peers.Replace(map[netip.Addr]uint32{a: backend}),
		s.Config.SetObserveOnly(true),
		s.Samples.Set(maps.DropGeo, 4),
		s.Events.Read(ctx, func(maps.Event) error { return nil }),
		s.Close())
}

// TestUnprivileged has a process without any capability write everything, as the daemon does.
func TestUnprivileged(t *testing.T) {
	k := mapstest.New(t)
	dir := k.Pin(t)
	const nobody = 65534
	err := filepath.WalkDir(filepath.Dir(dir), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		mode := os.FileMode(0o660)
		if d.IsDir() {
			mode = 0o750
		}
		return errors.Join(os.Chown(path, 0, nobody), os.Chmod(path, mode))
	})
	if err != nil {
		t.Fatal(err)
	}
	for p := filepath.Dir(filepath.Dir(dir)); p != "/tmp" && p != "/"; p = filepath.Dir(p) { // the test's own directories
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	binary := filepath.Join(t.TempDir(), "child")
	raw, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = errors.Join(os.WriteFile(binary, raw, 0o755), os.Chmod(filepath.Dir(binary), 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary)
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if v, err := k.VIPs.Get("web"); err != nil || v.GeoPolicy != "eu" || v.Backends != "edges" || v.RateClass != "slow" {
		t.Errorf("%+v, %v", v, err)
	}
	if r, err := k.Prefixes.Lookup(netip.MustParseAddr("1.2.3.4")); err != nil || r.Country != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if !k.Config.ObserveOnly() || k.Samples.Get(maps.DropGeo) != 4 || k.Samples.Get(maps.DropACL) != 1 {
		t.Errorf("observe only %v, samples 1 in %d and 1 in %d", k.Config.ObserveOnly(), k.Samples.Get(maps.DropGeo), k.Samples.Get(maps.DropACL))
	}
}

func TestOpenErrors(t *testing.T) {
	k := mapstest.New(t)
	dir := k.Pin(t)
	if _, err := maps.Open(filepath.Join(dir, "none")); !errors.Is(err, maps.ErrNotUp) || !strings.Contains(err.Error(), "berm kernel up") {
		t.Errorf("no pins: %v", err)
	}
	s, err := maps.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}

	if err := k.Config.Update(func(c *bpf.XDPBermConfig) { c.Contract = 99 }); err != nil {
		t.Fatal(err)
	}
	if _, err := maps.Open(dir); !errors.Is(err, maps.ErrContract) || !strings.Contains(err.Error(), "contract 99") {
		t.Errorf("another contract: %v", err)
	}

	pin := filepath.Join(dir, bpf.XDPMapBermVips)
	if err := os.Remove(pin); err != nil {
		t.Fatal(err)
	}
	if _, err := maps.Open(dir); !errors.Is(err, maps.ErrNotUp) || !strings.Contains(err.Error(), "berm_vips") {
		t.Errorf("a missing pin: %v", err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 32, MaxEntries: 4096})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	if err := m.Pin(pin); err != nil {
		t.Fatal(err)
	}
	if _, err := maps.Open(dir); !errors.Is(err, maps.ErrContract) || !strings.Contains(err.Error(), "berm_vips is Array") {
		t.Errorf("a map of another shape: %v", err)
	}
	if _, err := maps.FromMaps(map[string]*ebpf.Map{}); !errors.Is(err, maps.ErrNotFound) {
		t.Errorf("no maps: %v", err)
	}
}

// Two sets of the same pins are two processes to the lock: no writer undoes the other's work.
func TestWritersTakeTurns(t *testing.T) {
	dir := mapstest.New(t).Pin(t)
	var wg sync.WaitGroup
	const each = 10
	for w := range 2 {
		s, err := maps.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}()
		for g := range 2 {
			wg.Go(func() {
				for i := range each {
					if _, err := s.VIPs.Put(service(fmt.Sprintf("w%dg%di%d", w, g, i), fmt.Sprintf("192.0.2.%d", 1+w*2+g), uint16(i+1))); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	s, err := maps.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if list, err := s.VIPs.List(); err != nil || len(list) != 4*each {
		t.Errorf("%d services after %d were put, %v", len(list), 4*each, err)
	}
}

func TestConfig(t *testing.T) {
	k := mapstest.New(t)
	a4, a6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	self := maps.Self{Backend: 3, Address4: a4, Address6: a6}
	secrets := maps.Secrets{Flow: [2]uint64{1, 2}, Tags: [2]uint64{3, 4}}
	err := errors.Join(k.Config.SetSelf(self), k.Config.SetSecrets(secrets), k.Config.SetShadow(maps.DropGeo, maps.DropRateSYN))
	if err != nil {
		t.Fatal(err)
	}
	if k.Config.Self() != self || k.Config.Secrets() != secrets || !slices.Equal(k.Config.Shadow(), []maps.Drop{maps.DropGeo, maps.DropRateSYN}) {
		t.Errorf("%+v", k.Config.Get())
	}
	if c := k.Config.Get(); c.Contract != maps.Contract || c.Shadow != 1<<14|1<<17 || c.Self4.Octets[15] != 1 || c.Self4.Octets[10] != 0xff {
		t.Errorf("%+v", c)
	}
	for what, err := range map[string]error{
		"wrong family 4": k.Config.SetSelf(maps.Self{Address4: a6}),
		"wrong family 6": k.Config.SetSelf(maps.Self{Address6: a4}),
		"no reason":      k.Config.SetShadow(maps.DropNone),
		"active index":   k.Config.Update(func(c *bpf.XDPBermConfig) { c.VipActive ^= 1 }),
		"not a power":    k.Samples.Set(maps.DropGeo, 3),
	} {
		if err == nil {
			t.Errorf("%s was accepted", what)
		}
	}
	if k.Config.Self() != self {
		t.Error("a refused change took effect")
	}
}

func TestGeoPolicies(t *testing.T) {
	k := mapstest.New(t)
	de, _ := maps.ParseCountry("DE")
	p := maps.GeoPolicy{Name: "eu", Fallback: maps.ActionDrop, Rules: map[maps.Country]maps.Action{de: maps.ActionAllow, 0: maps.ActionMark}}
	if _, err := k.Geo.PutPolicy(p); err != nil {
		t.Fatal(err)
	}
	got, err := k.Geo.GetPolicy("eu")
	if err != nil || got.Fallback != p.Fallback || len(got.Rules) != 2 || got.Action(de) != maps.ActionAllow || got.Action(0) != maps.ActionMark || got.Action(9) != maps.ActionDrop {
		t.Errorf("%+v, %v", got, err)
	}
	web := service("web", "192.0.2.10", 443)
	web.GeoPolicy = "eu"
	if _, err := k.VIPs.Put(web); err != nil {
		t.Fatal(err)
	}
	if err := k.Geo.RemovePolicy("eu"); !errors.Is(err, maps.ErrInUse) || !strings.Contains(err.Error(), "by VIP web") {
		t.Errorf("a policy in use: %v", err)
	}
	for _, bad := range []maps.GeoPolicy{{Name: "x y", Fallback: maps.ActionDrop}, {Name: "x"}, {Name: "x", Fallback: maps.ActionDrop, Rules: map[maps.Country]maps.Action{de: maps.ActionNone}}} {
		if _, err := k.Geo.PutPolicy(bad); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

func TestBackendsAndPeers(t *testing.T) {
	k := mapstest.New(t)
	a := netip.MustParseAddr("192.0.2.1")
	id, err := k.Backends.Put(maps.Backend{Name: "b", Address: a, Owner: maps.OwnerFile})
	if err != nil {
		t.Fatal(err)
	}
	hop := maps.NextHop{Ready: true, Interface: 4, MAC: maps.MAC{1, 2, 3, 4, 5, 6}, SourceMAC: maps.MAC{6, 5, 4, 3, 2, 1}}
	if err := errors.Join(k.Backends.SetNextHop(id, hop), k.Backends.Beat(id)); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Backends.Put(maps.Backend{Name: "b", Address: a}); err != nil {
		t.Fatal(err)
	}
	if b, _ := k.Backends.ByID(id); b.NextHop != hop || b.Owner != maps.OwnerOperator || time.Since(b.Heartbeat) > time.Minute {
		t.Errorf("%+v", b)
	}
	if _, err := k.Backends.Put(maps.Backend{Name: "b", Address: netip.MustParseAddr("2001:db8::1")}); err != nil {
		t.Fatal(err)
	}
	if b, _ := k.Backends.Get("b"); b.ID != id || b.NextHop.Ready || b.Address != netip.MustParseAddr("2001:db8::1") {
		t.Errorf("after it moved: %+v", b)
	}
	set, err := k.Sets.Put(maps.BackendSet{Name: "s"})
	if err != nil {
		t.Fatal(err)
	}
	rows := make([]maps.Row, maps.RowCount)
	rows[maps.RowCount-1].Owner = uint16(id)
	if err := k.Rows.Write(set, rows); err != nil {
		t.Fatal(err)
	}
	if err := k.Backends.Remove("b"); !errors.Is(err, maps.ErrInUse) {
		t.Errorf("an owner: %v", err)
	}
	if got, _ := k.Rows.Read(set); !slices.Equal(got, rows) {
		t.Error("rows read back differ")
	}
	if err := errors.Join(k.Sets.Remove("s"), k.Backends.Remove("b")); err != nil {
		t.Error(err)
	}
	if k.Rows.Write(0, rows) == nil || k.Rows.Write(64, rows) == nil || k.Rows.Write(1, rows[1:]) == nil {
		t.Error("rows of no set, or too few, were accepted")
	}

	if err := k.Config.Update(func(c *bpf.XDPBermConfig) { c.Spread = 4 }); err != nil {
		t.Fatal(err)
	}
	if err := k.Peers.Replace(map[netip.Addr]uint32{netip.MustParseAddr("192.0.2.33"): 1, netip.MustParseAddr("192.0.2.47"): 2}); err == nil {
		t.Error("two peers with one outer source were accepted")
	}
	for _, list := range []map[netip.Addr]uint32{{netip.MustParseAddr("192.0.2.33"): 1, netip.MustParseAddr("2001:db8::f1"): 2}, {netip.MustParseAddr("192.0.2.34"): 3}} {
		if err := k.Peers.Replace(list); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := k.Peers.List(); err != nil || len(got) != 1 || got[netip.MustParseAddr("192.0.2.32")] != 3 {
		t.Errorf("%v, %v", got, err)
	}
}

func TestEventsAndPaths(t *testing.T) {
	k := mapstest.New(t)
	if _, err := k.VIPs.Put(service("web", "192.0.2.10", 443)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(k.Verdicts.Put(maps.Verdict{Source: client.Addr(), Action: maps.ActionDrop}), k.Samples.Set(maps.DropVerdict, 1)); err != nil {
		t.Fatal(err)
	}
	frame := mapstest.TCP(client, netip.MustParseAddrPort("192.0.2.10:443"), mapstest.SYN)
	k.Run(t, frame)
	e := oneEvent(t, k)
	if e.Reason != maps.DropVerdict || e.Exit != maps.ExitDrop || e.Source != client || e.Destination.String() != "192.0.2.10:443" ||
		e.Protocol != maps.ProtocolTCP || int(e.Length) != len(frame)-14 || e.Weight != 1 || time.Since(e.Time) > time.Minute {
		t.Errorf("%+v", e)
	}

	key := bpf.XDPBermPathKey{Proto: 6}
	key.Prefix.Octets = netip.MustParseAddr("198.51.100.0").As16()
	if err := k.Maps[bpf.XDPMapBermPaths].Put(key, bpf.XDPBermPath{SrttUs: 1500, Lost: 3, UpdatedNs: 1}); err != nil {
		t.Fatal(err)
	}
	p, err := k.Paths.Get(client.Addr(), maps.ProtocolTCP)
	if err != nil || p.RTT != 1500*time.Microsecond || p.Lost != 3 || p.Prefix.String() != "198.51.100.0/24" {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := k.Paths.Get(client.Addr(), maps.ProtocolUDP); !errors.Is(err, maps.ErrNotFound) {
		t.Errorf("no path: %v", err)
	}
	if list, err := k.Paths.List(); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	stages, err := k.Stats.Stages()
	if c := stages[maps.StageExit{Stage: maps.StageVerdict, Exit: maps.ExitDrop}]; err != nil || c.Packets != 1 {
		t.Errorf("%v, %v", stages, err)
	}
}
