package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/maps"
)

// world is the programs with maps of their own, set up as a busy edge's.
type world struct {
	coll    *ebpf.Collection
	ingress *ebpf.Program
	harness bpf.BenchObjects
	maps    *maps.Set
	named   int // family whose backends have server IDs
}

func (w *world) close() {
	_ = w.harness.Close() // only closes descriptors
	if w.maps != nil {
		_ = w.maps.Close()
	}
	if w.coll != nil {
		w.coll.Close()
	}
}

func newWorld() (_ *world, err error) {
	w := new(world)
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if err := rlimit.RemoveMemlock(); err != nil { // kernels before 5.11 only
		return nil, fmt.Errorf("raise the limit of locked memory: %w (needs root)", err)
	}
	if err := w.load(); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("%w (needs root)", err)
		}
		return nil, err
	}
	for _, step := range []func() error{w.setConfig, w.setPolicies, w.setBackends, w.setVIPs, w.setVerdicts} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return w, w.maps.Prefixes.Swap(fill)
}

func (w *world) load() error {
	spec, err := bpf.LoadXDP()
	if err != nil {
		return err
	}
	if w.coll, err = ebpf.NewCollection(spec); err != nil {
		return fmt.Errorf("load the ingress program: %w", err)
	}
	w.ingress = w.coll.Programs[bpf.XDPProgXdpBerm]
	if w.maps, err = maps.FromMaps(w.coll.Maps); err != nil {
		return err
	}
	if spec, err = bpf.LoadBench(); err != nil {
		return err
	}
	shared := map[string]*ebpf.Map{}
	for name, m := range w.coll.Maps {
		if spec.Maps[name] != nil {
			shared[name] = m
		}
	}
	if err := spec.LoadAndAssign(&w.harness, &ebpf.CollectionOptions{MapReplacements: shared}); err != nil {
		return fmt.Errorf("load the harness: %w", err)
	}
	return nil
}

// setConfig: constant secrets, so that every run has the same rows and cells.
func (w *world) setConfig() error {
	err := w.maps.Config.Update(func(c *bpf.XDPBermConfig) {
		c.Contract = maps.Contract
		c.RateMask = w.coll.Maps[bpf.XDPMapBermRateCells].MaxEntries() - 1
		c.TickUnits = 4e6 / 64
		c.Seed = [2]uint64{0x0123456789abcdef, 0xfedcba9876543210}
		c.Secret = [2]uint64{0x0f1e2d3c4b5a6978, 0x8796a5b4c3d2e1f0}
		c.TagSecrets = [2]uint64{0x1122334455667788, 0}
		c.Spread, c.Mtu = 8, 1500
	})
	if err != nil {
		return err
	}
	for d := range maps.AllDrops() {
		if err := w.maps.Samples.Set(d, 0); err != nil {
			return err
		}
	}
	if err := w.maps.Samples.Set(maps.DropNone, 0); err != nil {
		return err
	}
	return nil
}

// setPolicies writes rate classes as they are, since no operator may ask for such limits.
func (w *world) setPolicies() error {
	policies := []maps.GeoPolicy{
		{Name: "open", Fallback: maps.ActionAllow, Rules: map[maps.Country]maps.Action{300: maps.ActionDrop}},
		{Name: "closed", Fallback: maps.ActionDrop},
	}
	for _, p := range policies {
		if _, err := w.maps.Geo.PutPolicy(p); err != nil {
			return err
		}
	}
	// What one packet costs, in 1/65536 of 64 ns, and what a source may run up, in 64 ns.
	const second = 1e9 / 64 * 65536
	var open, tight, shared bpf.XDPBermRateClass
	open.Name, tight.Name, shared.Name = name("open"), name("tight"), name("shared")
	open.Flags = uint16(bpf.XDPBermRateFlagsBERM_RATE_USED)
	tight.Flags = open.Flags
	open.Packets.Cost, open.Packets.BurstUnits = 1<<14, 1<<30 // 62.5 million a second
	open.Syns = open.Packets
	tight.Packets.Cost, tight.Packets.BurstUnits = 250*second, 1 // one in 250 s
	shared.Packets, shared.Aggregate.Packets = open.Packets, open.Packets
	shared.Flags = open.Flags | uint16(bpf.XDPBermRateFlagsBERM_RATE_AGGREGATE)
	classes := map[uint32]bpf.XDPBermRateClass{1: open, 2: tight, 3: shared}
	for id, c := range classes {
		if err := w.coll.Maps[bpf.XDPMapBermRateClasses].Put(id, &c); err != nil {
			return fmt.Errorf("rate class %d: %w", id, err)
		}
	}
	return nil
}

func name(s string) (n [16]int8) {
	for i := range s {
		n[i] = int8(s[i])
	}
	return n
}

// selfName is this host's backend.
const selfName = "self"

// setBackends makes a set of 100 backends for each family, and rows that name them at random; and
// another, whose rows have moved from them to this edge.
func (w *world) setBackends() error {
	const backends = 100
	self, err := w.maps.Backends.Put(maps.Backend{Name: selfName, Address: netip.MustParseAddr("10.0.0.0")})
	if err != nil {
		return err
	}
	err = w.maps.Config.SetSelf(maps.Self{
		Backend: self, Address4: netip.MustParseAddr("10.0.0.0"), Address6: netip.MustParseAddr("2001:db8:1::"),
	})
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(3, 4))
	for _, family := range []int{4, 6} {
		table, moved := make([]maps.Row, maps.RowCount), make([]maps.Row, maps.RowCount)
		ids := make([]uint16, backends)
		for i := range ids {
			addr := netip.AddrFrom4([4]byte{10, 0, 1, byte(i)})
			if family == 6 {
				addr = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 2, 15: byte(i)})
			}
			id, err := w.maps.Backends.Put(maps.Backend{Name: fmt.Sprintf("edge%d-%d", family, i), Address: addr})
			if err != nil {
				return err
			}
			if err := w.maps.Backends.SetNextHop(id, maps.NextHop{Ready: true, MAC: maps.MAC{2, 1, 0, 0, 0, byte(i)}}); err != nil {
				return err
			}
			ids[i] = uint16(id)
		}
		for i := range table {
			table[i] = maps.Row{Owner: ids[r.IntN(backends)], Second: ids[r.IntN(backends)]}
			moved[i] = maps.Row{Owner: uint16(self), Second: table[i].Owner, Moved: true}
		}
		for name, rows := range map[string][]maps.Row{"edges": table, "moved": moved} {
			set, err := w.maps.Sets.Put(maps.BackendSet{Name: fmt.Sprint(name, family)})
			if err != nil {
				return err
			}
			if err := w.maps.Rows.Write(set, rows); err != nil {
				return err
			}
		}
	}
	return nil
}

// Formats of connection IDs: a server ID of one byte, so that every ID names somebody; the encrypted one
// is a single block.
var (
	plainCID     = maps.CIDFormat{ID: 0, ServerIDLen: 1, NonceLen: 8}
	encryptedCID = maps.CIDFormat{ID: 1, ServerIDLen: 1, NonceLen: 15, Key: []byte("0123456789abcdef")}
)

// nameServers gives all server IDs of one byte to the backends of a family's set.
func (w *world) nameServers(family int) error {
	if w.named == family {
		return nil
	}
	sets, err := w.maps.Sets.List()
	if err != nil {
		return err
	}
	backends, err := w.maps.Backends.List()
	if err != nil {
		return err
	}
	var of []uint32
	for _, b := range backends {
		if b.Name != selfName && b.Address.Is4() == (family == 4) {
			of = append(of, b.ID)
		}
	}
	var servers []maps.Server
	for id := range 256 {
		for _, s := range sets {
			if s.Name == fmt.Sprintf("edges%d", family) {
				servers = append(servers, maps.Server{ID: uint64(id), Backend: of[id%len(of)], Sets: []uint32{s.ID}})
			}
		}
	}
	w.named = family
	return w.maps.CIDs.Replace([]maps.CIDFormat{plainCID, encryptedCID}, servers)
}

func (w *world) setVIPs() error {
	var list []maps.VIP
	set := "edges"
	add := func(name string, port uint16, proto maps.Protocol, geo, rate string) {
		for family, addr := range map[int]netip.Addr{4: vip4, 6: vip6} {
			list = append(list, maps.VIP{
				Name: fmt.Sprintf("%s-%d", name, family), Address: addr, Port: port, Protocol: proto,
				Backends: fmt.Sprint(set, family), GeoPolicy: geo, RateClass: rate, Owner: maps.OwnerFile,
				QUIC: port == portQUIC,
			})
		}
	}
	add("tcp", portService, maps.ProtocolTCP, "open", "open")
	add("udp", portService, maps.ProtocolUDP, "open", "open")
	add("geo", portGeo, maps.ProtocolTCP, "closed", "open")
	add("rate", portRate, maps.ProtocolTCP, "open", "tight")
	add("shared", portShared, maps.ProtocolTCP, "open", "shared")
	add("quic", portQUIC, maps.ProtocolUDP, "open", "open")
	add("verdict", portVerdict, maps.ProtocolTCP, "open", "open")
	set = "moved"
	add("moved", portMoved, maps.ProtocolTCP, "open", "open")
	add("cookie", portCookie, maps.ProtocolTCP, "open", "open")
	for i := range list {
		if list[i].Port == portCookie {
			list[i].Backends, list[i].Gate.Cookies = "", maps.GateOn
		}
	}
	return w.maps.VIPs.Replace(maps.OwnerFile, list)
}

// setVerdicts writes the entries in one call: one by one they take a minute.
func (w *world) setVerdicts() error {
	vips, err := w.maps.VIPs.List()
	if err != nil {
		return err
	}
	var keys []bpf.XDPBermVerdictKey
	for _, v := range vips {
		if v.Port != portVerdict {
			continue
		}
		for n := range uint32(verdictSources) {
			source := source6(verdictFirst + n)
			if v.Address.Is4() {
				source = source4(verdictFirst + n)
			}
			keys = append(keys, bpf.XDPBermVerdictKey{Source: bpf.XDPBermAddr{Octets: source.As16()}, Vip: v.ID})
		}
	}
	values := make([]bpf.XDPBermVerdict, len(keys))
	for i := range values {
		values[i].Action = uint8(maps.ActionDrop)
	}
	if _, err := w.coll.Maps[bpf.XDPMapBermVerdicts].BatchUpdate(keys, values, nil); err != nil {
		return fmt.Errorf("verdicts: %w", err)
	}
	return w.maps.Verdicts.Rebuild()
}
