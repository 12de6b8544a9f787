package loader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/bpf"
)

// rehearse loads the programs against small maps of their own and puts a service through its paces:
// what may pass must, what must not may not, and each refusal must be counted under its reason. The
// real maps are not touched, so an upgrade rehearses as freely as a start.
func (r *run) rehearse() error {
	if r.complete() {
		return nil // nothing will be loaded
	}
	tick, err := r.tick.length()
	if err != nil {
		return err
	}
	objs := r.objs.copy()
	objs.shrink()
	objs.resize("berm_rate_cells", 1)
	maps, progs, err := objs.load(nil)
	if err != nil {
		return err
	}
	defer closeAll(maps)
	defer closeAll(progs)
	name, err := objs.xdpName()
	if err != nil {
		return err
	}
	s := stage{progs[name], maps}
	if err := s.prepare(tick); err != nil {
		return err
	}
	for _, src := range []netip.AddrPort{nobody4, nobody6} {
		if err := s.play(src); err != nil {
			return err
		}
	}
	if err := s.forward(); err != nil {
		return err
	}
	for _, g := range foreign() { // again, now that there are services
		if err := g.run(s.prog); err != nil {
			return err
		}
	}
	return nil
}

// stage is where a program is rehearsed.
type stage struct {
	prog *ebpf.Program
	maps map[string]*ebpf.Map
}

const (
	rehearsalID    = 1 // of the VIP, geo policy and rate class
	rehearsalSlots = 16384
)

// prepare points every slot of the VIP index at the one entry that play sets: whatever its hash,
// the entry is found, and compared.
func (s stage) prepare(tick time.Duration) error {
	keys := make([]uint32, rehearsalSlots)
	ids := make([]uint64, rehearsalSlots)
	for i := range keys {
		keys[i], ids[i] = uint32(i), rehearsalID
	}
	if _, err := s.maps["berm_vip_slots"].BatchUpdate(keys, ids, nil); err != nil {
		return fmt.Errorf("berm_vip_slots: %w", err)
	}
	// One packet a minute and no burst: the second is too many, however busy this host is.
	var class bpf.XDPBermRateClass
	class.Flags = uint16(bpf.XDPBermRateFlagsBERM_RATE_USED)
	class.Packets.Cost = uint64(time.Minute/rateUnit) << 16
	class.Packets.BurstUnits = 1
	return errors.Join(
		s.put("berm_config", 0, &bpf.XDPBermConfig{Contract: contract, Vips: 1, TickUnits: uint32(tick / rateUnit)}),
		s.put("berm_rate_classes", rehearsalID, &class),
		s.put("berm_geo_rules", rehearsalID*countries, &bpf.XDPBermGeoRule{Action: uint8(bpf.XDPBermActionBERM_ACTION_DROP)}),
	)
}

const countries = 1024 // BERM_COUNTRIES; 0 is the unknown one, where all sources are without a database

func (s stage) put(name string, key uint32, value any) error {
	if err := s.maps[name].Put(key, value); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// scene is a service, packets to it and their fates.
type scene struct {
	name   string
	vip    bpf.XDPBermVip
	proto  byte
	cut    int // bytes missing at the end
	times  int
	passed int
	reason bpf.XDPBermDrop // of the others
}

func (s stage) play(src netip.AddrPort) error {
	dst := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.10"), 443)
	if src.Addr().Is6() {
		dst = netip.AddrPortFrom(netip.MustParseAddr("2001:db8::10"), 443)
	}
	const used = uint16(bpf.XDPBermVipFlagsBERM_VIP_USED)
	service := bpf.XDPBermVip{Addr: bpf.XDPBermAddr{Octets: dst.Addr().As16()}, Port: bigEndian(443), Proto: unix.IPPROTO_TCP, Flags: used}
	denied, limited := service, service
	denied.GeoPolicy, limited.RateClass = rehearsalID, rehearsalID
	address := bpf.XDPBermVip{Addr: service.Addr, Flags: used | uint16(bpf.XDPBermVipFlagsBERM_VIP_ADDRESS|bpf.XDPBermVipFlagsBERM_VIP_STRICT)}
	for _, sc := range []scene{
		{"a service", service, unix.IPPROTO_TCP, 0, 3, 3, 0},
		{"a service's address, cut short", address, unix.IPPROTO_TCP, 12, 1, 0, bpf.XDPBermDropBERM_DROP_TRUNCATED},
		{"a service that geo denies", denied, unix.IPPROTO_TCP, 0, 3, 0, bpf.XDPBermDropBERM_DROP_GEO},
		{"a service with a rate limit", limited, unix.IPPROTO_TCP, 0, 3, 1, bpf.XDPBermDropBERM_DROP_RATE_PACKETS},
		{"a port without a service", address, unix.IPPROTO_UDP, 0, 1, 0, bpf.XDPBermDropBERM_DROP_NO_SERVICE},
	} {
		frame := packet{src, dst, sc.proto}.frame()
		if err := s.run(sc, frame[:len(frame)-sc.cut]); err != nil {
			return fmt.Errorf("%s to %s: %w", sc.name, dst.Addr(), err)
		}
	}
	return nil
}

// forward has a packet sent to a peer: in a tunnel to its address, unchanged within.
func (s stage) forward() error {
	peer := netip.MustParseAddr("192.0.2.77")
	dst := netip.MustParseAddrPort("192.0.2.10:443")
	keys, rows := make([]uint32, 0, rowCells), make([]uint64, 0, rowCells)
	for i := uint32(rehearsalID * rowCells); i < min(s.maps["berm_rows"].MaxEntries(), 2*rowCells); i++ {
		keys, rows = append(keys, i), append(rows, rehearsalID<<32|rehearsalID)
	}
	if _, err := s.maps["berm_rows"].BatchUpdate(keys, rows, nil); err != nil {
		return fmt.Errorf("berm_rows: %w", err)
	}
	var cfg bpf.XDPBermConfig
	if err := s.maps["berm_config"].Lookup(uint32(0), &cfg); err != nil {
		return fmt.Errorf("berm_config: %w", err)
	}
	cfg.Self, cfg.Self4.Octets = rehearsalID+1, netip.MustParseAddr("192.0.2.66").As16()
	err := errors.Join(
		s.put("berm_config", 0, &cfg),
		s.put("berm_backends", rehearsalID, &bpf.XDPBermBackend{
			Addr: bpf.XDPBermAddr{Octets: peer.As16()}, Mac: [6]uint8{2, 0, 0, 0, 0, 7}, Family: 4,
			Flags: uint16(bpf.XDPBermBackendFlagsBERM_BACKEND_USED | bpf.XDPBermBackendFlagsBERM_BACKEND_READY),
		}),
		s.put("berm_vips", rehearsalID, &bpf.XDPBermVip{
			Addr: bpf.XDPBermAddr{Octets: dst.Addr().As16()}, Port: bigEndian(dst.Port()), Proto: unix.IPPROTO_TCP, Set: rehearsalID,
			Flags: uint16(bpf.XDPBermVipFlagsBERM_VIP_USED),
		}),
	)
	if err != nil {
		return err
	}
	frame := packet{nobody4, dst, unix.IPPROTO_TCP}.frame()
	o := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+512), Repeat: 1}
	got, err := s.prog.Run(o)
	switch out := o.DataOut; {
	case err != nil:
		return err
	case got != xdpTX:
		return fmt.Errorf("%w: a packet for a peer: verdict %d, want %d", ErrSelfTest, got, xdpTX)
	case len(out) < len(frame)+20 || !bytes.HasSuffix(out, frame[etherLen:]):
		return fmt.Errorf("%w: a packet for a peer: changed in its tunnel", ErrSelfTest)
	case !bytes.Equal(out[etherLen+16:etherLen+20], peer.AsSlice()):
		return fmt.Errorf("%w: a packet for a peer: sent to %x, want %s", ErrSelfTest, out[etherLen+16:etherLen+20], peer)
	}
	return nil
}

// rowCells is BERM_ROW_CELLS: two rows each.
const rowCells = 32769

func bigEndian(port uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, port))
}

func (s stage) run(sc scene, frame []byte) error {
	if err := s.put("berm_vips", rehearsalID, &sc.vip); err != nil {
		return err
	}
	before, err := s.drops()
	if err != nil {
		return err
	}
	passed := 0
	for range sc.times {
		o := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+512), Repeat: 1}
		got, err := s.prog.Run(o)
		switch {
		case err != nil:
			return err
		case got == xdpPass && bytes.Equal(o.DataOut, frame):
			passed++
		case got != xdpDrop:
			return fmt.Errorf("%w: verdict %d", ErrSelfTest, got)
		}
	}
	after, err := s.drops()
	if err != nil {
		return err
	}
	if sc.reason != 0 {
		before[sc.reason] += uint64(sc.times - sc.passed)
	}
	if passed != sc.passed {
		return fmt.Errorf("%w: %d of %d packets passed, want %d", ErrSelfTest, passed, sc.times, sc.passed)
	}
	for reason, want := range before {
		if after[reason] != want {
			return fmt.Errorf("%w: %d drops counted under reason %d, want %d", ErrSelfTest, after[reason], reason, want)
		}
	}
	return nil
}

// drops are the packets dropped so far, by reason.
func (s stage) drops() (sum [32]uint64, err error) {
	m := s.maps["berm_drops"]
	for reason := range min(m.MaxEntries(), uint32(len(sum))) {
		var cpus []bpf.XDPBermCounter
		if err := m.Lookup(reason, &cpus); err != nil {
			return sum, fmt.Errorf("berm_drops: %w", err)
		}
		for _, c := range cpus {
			sum[reason] += c.Packets
		}
	}
	return sum, nil
}
