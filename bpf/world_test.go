package bpf_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

// The world of the tests: services, backends and sources, by name.
var (
	self4  = netip.MustParseAddr("10.0.0.0")
	self6  = netip.MustParseAddr("2001:db8:f::")
	web4   = netip.MustParseAddr("192.0.2.10")
	web6   = netip.MustParseAddr("2001:db8::10")
	strict = netip.MustParseAddr("192.0.2.20")
	shadow = netip.MustParseAddr("192.0.2.30")
	other4 = netip.MustParseAddr("192.0.2.99")
	other6 = netip.MustParseAddr("2001:db8::99")
	good4  = netip.MustParseAddr("198.51.100.7")
	good6  = netip.MustParseAddr("2a00:1::7")
	bad4   = netip.MustParseAddr("203.0.113.9") // of a country that policy 1 drops
	bad6   = netip.MustParseAddr("2a01:1::9")
	peer4  = netip.MustParseAddr("10.0.1.0")
	peer6  = netip.MustParseAddr("2001:db8:f:1::")
	far4   = netip.MustParseAddr("10.1.1.0")
	far6   = netip.MustParseAddr("2001:db8:e:1::")
)

// Backends.
const (
	backendSelf = iota + 1
	backend4    // ready, IPv4, back through where it came from
	backend6    // ready, IPv6
	backendAway // ready, out of another interface
	backendLost // its next hop is not known
	backendFar4 // at another site, in another region
	backendFar6
	// Servers that run no Berm.
	serverGUE4
	serverGUE6
	serverL2
	serverL2Away
	serverIPIP
	serverEnd
)

const (
	rowMoved     = 1 << 31          // in a row: its second has owned it
	rowNewcomers = rowMoved | 1<<12 // and newcomers are noted
	guePort      = 6080
)

// Sets of backends: what all of their rows say, the second in the high half.
const (
	setNone    = iota
	set4       // owner backend4
	set6       // owner backend6
	setSelf    // owner this edge
	setAway    // owner backendAway
	setSecond  // owner lost, previous backend4
	setOwnLast // owner lost, previous this edge
	setLost    // owner and previous lost
	setNobody  // rows are empty
	setHeir    // owner this edge, second backend4, never moved
	setMoved4  // owner this edge, second backend4, which owned it before
	setMoved6  // and backend6
	setMovedX  // owner this edge, previous lost
	setMovedI  // owner this edge, previous this edge: no table says so
	setMine    // owner backend4, previous this edge
	setFar4    // owner backendFar4
	setFar6    // owner backendFar6
	setFarNext // owner lost, second backendFar4
	setGUE4    // owner the server of that name, as the next ones
	setGUE6
	setL2
	setL2Away
	setIPIP
	setNewcomers  // owner serverL2, former owner serverGUE4, newcomers noted
	setNewcomers6 // owner serverL2, former owner serverGUE6
	setNewcomersX // owner serverL2, former owner lost
	setNewcomersI // owner serverL2, former owner this edge
	setNewcomersS // owner this edge, former owner serverL2
	setReturned   // owner serverL2, which was the former owner too
	setOwnerless  // owner lost, former owner serverL2
	setEnd
)

var rowOf = [setEnd]uint32{
	set4: backend4, set6: backend6, setSelf: backendSelf, setAway: backendAway,
	setSecond: backendLost | backend4<<16, setOwnLast: backendLost | backendSelf<<16, setLost: backendLost | backendLost<<16,
	setHeir: backendSelf | backend4<<16, setMoved4: backendSelf | backend4<<16 | rowMoved, setMoved6: backendSelf | backend6<<16 | rowMoved,
	setGUE4: serverGUE4, setGUE6: serverGUE6, setL2: serverL2, setL2Away: serverL2Away, setIPIP: serverIPIP,
	setNewcomers: serverL2 | serverGUE4<<16 | rowNewcomers, setNewcomers6: serverL2 | serverGUE6<<16 | rowNewcomers,
	setNewcomersX: serverL2 | backendLost<<16 | rowNewcomers, setNewcomersI: serverL2 | backendSelf<<16 | rowNewcomers,
	setNewcomersS: backendSelf | serverL2<<16 | rowNewcomers, setReturned: serverL2 | serverL2<<16 | rowNewcomers,
	setOwnerless: backendLost | serverL2<<16 | rowNewcomers,
	setFar4:      backendFar4, setFar6: backendFar6, setFarNext: backendLost | backendFar4<<16,
	setMovedX: backendSelf | backendLost<<16 | rowMoved, setMovedI: backendSelf | backendSelf<<16 | rowMoved, setMine: backend4 | backendSelf<<16 | rowMoved,
}

const tenantWeb = 7

const (
	regionHere = 1
	regionFar  = 2
)

const (
	countryGood = 100
	countryBad  = 200
	policyWeb   = 1
	classWeb    = 1
	recordGood  = 1
	recordBad   = 2
	recordOdd   = 3 // for tests to fill
)

// vip is a service of the world.
type vip struct {
	name  string
	addr  netip.Addr
	port  uint16
	proto byte
	set   uint16
	flags bpf.XDPBermVipFlags
}

var vips = []vip{
	{"web", web4, 443, packet.ProtoTCP, set4, 0},
	{"web-udp", web4, 443, packet.ProtoUDP, set4, 0},
	{"web-addr", web4, 0, 0, set4, bpf.XDPBermVipFlagsBERM_VIP_ADDRESS},
	{"web6", web6, 443, packet.ProtoTCP, set6, 0},
	{"web6-udp", web6, 443, packet.ProtoUDP, set6, 0},
	{"web6-addr", web6, 0, 0, set6, bpf.XDPBermVipFlagsBERM_VIP_ADDRESS},
	{"strict", strict, 80, packet.ProtoTCP, setNone, 0},
	{"strict-addr", strict, 0, 0, setNone, bpf.XDPBermVipFlagsBERM_VIP_ADDRESS | bpf.XDPBermVipFlagsBERM_VIP_STRICT},
	{"shadow", shadow, 443, packet.ProtoTCP, set4, bpf.XDPBermVipFlagsBERM_VIP_SHADOW},
	{"shadow-addr", shadow, 0, 0, set4, bpf.XDPBermVipFlagsBERM_VIP_SHADOW | bpf.XDPBermVipFlagsBERM_VIP_ADDRESS},
}

// vipIDs are the services' ids, 1 and up; TestKernel.reset gives them.
var vipIDs = func() map[string]uint32 {
	ids := map[string]uint32{}
	for i, v := range vips {
		ids[v.name] = uint32(i + 1)
	}
	return ids
}()

func addrOf(a netip.Addr) bpf.XDPBermAddr { return bpf.XDPBermAddr{Octets: a.As16()} }

func swap16(v uint16) uint16 { return v<<8 | v>>8 }

func put(t testing.TB, m *ebpf.Map, key, value any) {
	t.Helper()
	if err := m.Put(key, value); err != nil {
		t.Fatal(err)
	}
}

// words writes 64-bit cells of a map.
func (k *kernel) words(t testing.TB, m *ebpf.Map, first uint32, cells ...uint64) {
	t.Helper()
	b := make([]byte, 8*len(cells))
	for i, c := range cells {
		binary.LittleEndian.PutUint64(b[8*i:], c)
	}
	if _, err := k.memory(t, m).WriteAt(b, int64(first)*8); err != nil {
		t.Fatal(err)
	}
}

// clear zeroes a map as a whole: word by word, the largest would take most of the tests' time.
func (k *kernel) clear(t testing.TB, m *ebpf.Map) {
	t.Helper()
	if size := int(m.MaxEntries() * m.ValueSize()); len(zeroes) < size {
		zeroes = make([]byte, size)
	}
	if _, err := k.memory(t, m).WriteAt(zeroes[:m.MaxEntries()*m.ValueSize()], 0); err != nil {
		t.Fatal(err)
	}
}

var zeroes []byte

// configure changes the configuration.
func (k *kernel) configure(t testing.TB, change func(*bpf.XDPBermConfig)) {
	t.Helper()
	var c bpf.XDPBermConfig
	if err := k.BermConfig.Lookup(uint32(0), &c); err != nil {
		t.Fatal(err)
	}
	change(&c)
	put(t, k.BermConfig, uint32(0), &c)
}

var baseConfig = bpf.XDPBermConfig{
	Contract: 1, Secret: [2]uint64{0x0706050403020100, 0x0f0e0d0c0b0a0908}, TagSecrets: [2]uint64{0x1111, 0},
	Seed: [2]uint64{0xaaaa5555, 0x12345678}, TickUnits: 62500, Self: backendSelf,
	Self4: addrOf(self4), Self6: addrOf(self6), RateMask: rateSets - 1, Vips: uint32(len(vips)),
}

// reset makes the world as it is described above.
func (k *kernel) reset(t testing.TB) {
	t.Helper()
	put(t, k.BermConfig, uint32(0), &baseConfig)
	k.words(t, k.BermVerdictBits, 0, make([]uint64, k.BermVerdictBits.MaxEntries())...)
	k.words(t, k.BermRateCells, 0, make([]uint64, 8*rateSets)...)
	k.words(t, k.BermSample, 0, fill(len(drops), ^uint64(0))...)
	k.words(t, k.BermGeoRules, policyWeb*1024, make([]uint64, 1024)...)
	k.words(t, k.BermGeoRules, policyWeb*1024+countryBad, uint64(bpf.XDPBermActionBERM_ACTION_DROP))
	for _, m := range []*ebpf.Map{k.BermVerdicts, k.BermPeers} {
		clearMap(t, m)
	}
	put(t, k.BermRateClasses, uint32(classWeb), &bpf.XDPBermRateClass{})
	k.setRecord(t, recordGood, bpf.XDPBermPrefixRecord{Country: countryGood})
	k.setRecord(t, recordBad, bpf.XDPBermPrefixRecord{Country: countryBad})
	k.setRecord(t, recordOdd, bpf.XDPBermPrefixRecord{})
	k.setPrefix4(t, netip.MustParsePrefix("198.51.100.0/24"), recordGood)
	k.setPrefix4(t, netip.MustParsePrefix("203.0.113.0/24"), recordBad)
	k.words(t, k.BermPrefix6Root, 0x2a00, recordGood, recordBad)
	k.resetBackends(t)
	k.clear(t, k.BermNewcomers)
	put(t, k.BermHeart, uint32(0), &bpf.XDPBermHeart{})
	put(t, k.BermReply, uint32(0), &bpf.XDPBermReply{})
	for _, i := range stunSets {
		put(t, k.BermStun, i, &bpf.XDPBermStunSet{})
	}
	put(t, k.BermCarry, uint32(0), &bpf.XDPBermCarry{})
	for i, v := range vips {
		k.setVIP(t, uint32(i+1), v)
		put(t, k.BermGates, uint32(i+1), &bpf.XDPBermGate{})
		put(t, k.BermGateStates, uint32(i+1), &bpf.XDPBermGateState{})
	}
	k.indexVIPs(t)
	k.at(t, 1_000_000_000_000)
}

func fill(n int, v uint64) []uint64 {
	s := make([]uint64, n)
	for i := range s {
		s[i] = v
	}
	return s
}

func clearMap(t testing.TB, m *ebpf.Map) {
	t.Helper()
	for {
		key, err := m.NextKeyBytes(nil)
		if err != nil {
			t.Fatal(err)
		}
		if key == nil {
			return
		}
		if err := m.Delete(key); err != nil {
			t.Fatal(err)
		}
	}
}

func (k *kernel) resetBackends(t testing.TB) {
	t.Helper()
	ready := uint16(bpf.XDPBermBackendFlagsBERM_BACKEND_USED | bpf.XDPBermBackendFlagsBERM_BACKEND_READY)
	remote := uint16(bpf.XDPBermBackendFlagsBERM_BACKEND_REMOTE)
	for id, b := range map[uint32]bpf.XDPBermBackend{
		backendSelf: {Addr: addrOf(self4), Flags: ready, Family: 4},
		backend4:    {Addr: addrOf(peer4), Flags: ready, Family: 4, Mac: [6]byte{2, 1, 0, 0, 0, 4}},
		backend6:    {Addr: addrOf(peer6), Flags: ready, Family: 6, Mac: [6]byte{2, 1, 0, 0, 0, 6}},
		backendAway: {
			Addr: addrOf(peer4), Flags: ready, Family: 4, Mac: [6]byte{2, 1, 0, 0, 0, 7},
			Ifindex: 4242, SrcMac: [6]byte{2, 1, 0, 0, 0, 8},
		},
		backendFar4: {Addr: addrOf(far4), Flags: ready | remote, Family: 4, Mac: [6]byte{2, 1, 0, 0, 0, 10}, Region: regionFar},
		backendFar6: {Addr: addrOf(far6), Flags: ready | remote, Family: 6, Mac: [6]byte{2, 1, 0, 0, 0, 11}, Region: regionFar},
		backendLost: {Addr: addrOf(peer4), Flags: uint16(bpf.XDPBermBackendFlagsBERM_BACKEND_USED), Family: 4},
		serverGUE4: {
			Addr: addrOf(peer4), Flags: ready, Family: 4, Mac: [6]byte{2, 1, 0, 0, 0, 4},
			Via: uint8(bpf.XDPBermViaBERM_VIA_GUE), Port: swap16(guePort),
		},
		serverGUE6: {
			Addr: addrOf(peer6), Flags: ready, Family: 6, Mac: [6]byte{2, 1, 0, 0, 0, 6},
			Via: uint8(bpf.XDPBermViaBERM_VIA_GUE), Port: swap16(guePort),
		},
		serverL2: {Addr: addrOf(peer4), Flags: ready, Family: 4, Mac: [6]byte{2, 1, 0, 0, 0, 9}, Via: uint8(bpf.XDPBermViaBERM_VIA_L2)},
		serverL2Away: {
			Addr: addrOf(peer4), Flags: ready, Family: 4, Mac: [6]byte{2, 1, 0, 0, 0, 9}, Via: uint8(bpf.XDPBermViaBERM_VIA_L2),
			Ifindex: 4242, SrcMac: [6]byte{2, 1, 0, 0, 0, 8},
		},
		serverIPIP: {Addr: addrOf(peer4), Flags: ready, Family: 4, Mac: [6]byte{2, 1, 0, 0, 0, 4}, Via: uint8(bpf.XDPBermViaBERM_VIA_IPIP)},
	} {
		put(t, k.BermBackends, id, &b)
	}
	for set, row := range rowOf {
		cells := bytes.Repeat(binary.LittleEndian.AppendUint64(nil, uint64(row)<<32|uint64(row)), 32769)
		if _, err := k.memory(t, k.BermRows).WriteAt(cells, int64(set)*32769*8); err != nil {
			t.Fatal(err)
		}
	}
}

func (k *kernel) setVIP(t testing.TB, id uint32, v vip) {
	t.Helper()
	record := bpf.XDPBermVip{
		Addr: addrOf(v.addr), Port: swap16(v.port), Proto: v.proto, Set: v.set, GeoPolicy: policyWeb, RateClass: classWeb,
		Flags: uint16(v.flags | bpf.XDPBermVipFlagsBERM_VIP_USED),
	}
	if v.addr == web4 || v.addr == web6 {
		record.Tenant = tenantWeb
	}
	put(t, k.BermVips, id, &record)
}

// changeVIP changes a service's record until the next reset.
func (k *kernel) changeVIP(t testing.TB, name string, change func(*bpf.XDPBermVip)) {
	t.Helper()
	var record bpf.XDPBermVip
	if err := k.BermVips.Lookup(vipIDs[name], &record); err != nil {
		t.Fatal(err)
	}
	change(&record)
	put(t, k.BermVips, vipIDs[name], &record)
}

// indexVIPs finds displacements that leave no two services in one slot, the largest buckets first.
func (k *kernel) indexVIPs(t testing.TB) {
	t.Helper()
	buckets := map[uint64][]uint32{}
	hash := map[uint32]uint64{}
	for i, v := range vips {
		id := uint32(i + 1)
		hash[id] = vipHash(baseConfig.Seed, v.addr, v.port, v.proto)
		buckets[hash[id]&4095] = append(buckets[hash[id]&4095], id)
	}
	seeds, slots := make([]uint64, 4096), make([]uint64, 16384)
	for size := len(vips); size > 0; size-- {
		for bucket, ids := range buckets {
			if len(ids) != size {
				continue
			}
			for d := uint64(0); ; d++ {
				if place(slots, ids, hash, d) {
					seeds[bucket] = d
					break
				}
			}
		}
	}
	k.words(t, k.BermVipSeeds, 0, seeds...)
	k.words(t, k.BermVipSlots, 0, slots...)
}

func place(slots []uint64, ids []uint32, hash map[uint32]uint64, d uint64) bool {
	taken := map[uint64]uint32{}
	for _, id := range ids {
		h := hash[id]
		slot := (h>>12 + d*(h>>40|1)) & 16383
		if slots[slot] != 0 || taken[slot] != 0 {
			return false
		}
		taken[slot] = id
	}
	for slot, id := range taken {
		slots[slot] = uint64(id)
	}
	return true
}

func (k *kernel) setRecord(t testing.TB, id uint32, r bpf.XDPBermPrefixRecord) {
	t.Helper()
	put(t, k.BermPrefixRecords, id, &r)
}

// setPrefix4 points a /24 to a record, or to a block. Each /24 that a cell stands for gets a leaf of
// its own, so that setting one leaves the others alone; /19s 2^14 apart would share them.
func (k *kernel) setPrefix4(t testing.TB, p netip.Prefix, record uint16) {
	t.Helper()
	a := p.Addr().As4()
	n := binary.BigEndian.Uint32(a[:])
	base := n >> 13 % (1 << 14) * 32
	leaf := base + n>>8&31
	k.words(t, k.BermPrefix4, n>>13, uint64(base+31)<<32|0x7fffffff)
	var cell uint64
	if err := k.BermPrefix4Leaves.Lookup(leaf/4, &cell); err != nil {
		t.Fatal(err)
	}
	shift := leaf % 4 * 16
	cell = cell&^(0xffff<<shift) | uint64(record)<<shift
	k.words(t, k.BermPrefix4Leaves, leaf/4, cell)
}

// at sets both clocks.
func (k *kernel) at(t testing.TB, ns uint64) {
	t.Helper()
	if err := k.TestNowNs.Set(ns); err != nil {
		t.Fatal(err)
	}
	if err := k.TestJiffies.Set(ns / (62500 * 64)); err != nil {
		t.Fatal(err)
	}
}

// class sets the limits of the services' class.
func (k *kernel) class(t testing.TB, c bpf.XDPBermRateClass) {
	t.Helper()
	c.Flags |= uint16(bpf.XDPBermRateFlagsBERM_RATE_USED)
	put(t, k.BermRateClasses, uint32(classWeb), &c)
}

// limit is a limit of so many a second, with a burst.
func limit(perSecond, burst uint64) (cost, units uint64) {
	cost = 15_625_000 << 16 / perSecond
	return cost, cost * burst >> 16
}

// verdict writes a verdict and its bits.
func (k *kernel) verdict(t testing.TB, source netip.Addr, vip uint32, v bpf.XDPBermVerdict) {
	t.Helper()
	h := sourceHash(baseConfig.Seed, source)
	at := uint32(h >> 20 & (1<<14 - 1))
	var word uint64
	if err := k.BermVerdictBits.Lookup(at, &word); err != nil {
		t.Fatal(err)
	}
	k.words(t, k.BermVerdictBits, at, word|1<<(h>>34&63)|1<<(h>>40&63)|1<<(h>>46&63))
	put(t, k.BermVerdicts, &bpf.XDPBermVerdictKey{Source: addrOf(sourceOf(source)), Vip: vip}, &v)
}
