package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// Stats is what the kernel half counted since it was loaded.
type Stats struct {
	set                                   *Set
	drops, shadows, stages, vips, tenants *ebpf.Map
}

// Counter counts packets, and bytes of IP packets.
type Counter struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Sub is what was counted since an earlier reading.
func (c Counter) Sub(earlier Counter) Counter {
	return Counter{c.Packets - earlier.Packets, c.Bytes - earlier.Bytes}
}

func (c *Counter) add(v bpf.XDPBermCounter) {
	c.Packets += v.Packets
	c.Bytes += v.Bytes
}

// perCPU reads all entries of a per-CPU array, each as one value a CPU.
func perCPU[T any](m *ebpf.Map, fn func(id int, perCPU []T)) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	n := int(m.MaxEntries())
	keys, values := make([]uint32, n), make([]T, n*cpus)
	var cursor ebpf.MapBatchCursor
	got, err := m.BatchLookup(&cursor, keys, values, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("read %s: %w", m.String(), err)
	}
	for i := range got {
		fn(int(keys[i]), values[i*cpus:][:cpus])
	}
	return nil
}

func counters(m *ebpf.Map) ([]Counter, error) {
	list := make([]Counter, m.MaxEntries())
	err := perCPU(m, func(id int, values []bpf.XDPBermCounter) {
		for _, v := range values {
			list[id].add(v)
		}
	})
	return list, err
}

// Drops returns the dropped packets of every reason, those at zero included.
func (s *Stats) Drops() (map[Drop]Counter, error) { return byReason(s.drops) }

// Shadows returns the packets that each reason would have dropped.
func (s *Stats) Shadows() (map[Drop]Counter, error) { return byReason(s.shadows) }

func byReason(m *ebpf.Map) (map[Drop]Counter, error) {
	list, err := counters(m)
	if err != nil {
		return nil, err
	}
	out := make(map[Drop]Counter, len(list))
	for d := range AllDrops() {
		out[d] = list[d]
	}
	return out, nil
}

// StageExit names a counter: where a packet left the pipeline, and how.
type StageExit struct {
	Stage Stage
	Exit  Exit
}

// Stages returns the packets by stage and exit, without those at zero.
func (s *Stats) Stages() (map[StageExit]Counter, error) {
	list, err := counters(s.stages)
	if err != nil {
		return nil, err
	}
	out := map[StageExit]Counter{}
	for i, c := range list {
		if c != (Counter{}) {
			out[StageExit{Stage(i / int(exitMax)), Exit(i % int(exitMax))}] = c
		}
	}
	return out, nil
}

// Tenants returns the packets of each tenant, without those at zero.
func (s *Stats) Tenants() (map[uint16]Counter, error) {
	list, err := counters(s.tenants)
	if err != nil {
		return nil, err
	}
	out := map[uint16]Counter{}
	for i, c := range list {
		if c != (Counter{}) {
			out[uint16(i)] = c
		}
	}
	return out, nil
}

// VIPStats is what became of one service's packets. For fragments, ICMP and ports without a
// service it is those of the bare address: the name is then empty and the port 0.
type VIPStats struct {
	ID        uint32         `json:"id"`
	Name      string         `json:"name"`
	Address   netip.AddrPort `json:"address"`
	Protocol  Protocol       `json:"protocol"`
	In        Counter        `json:"in"`
	Dropped   Counter        `json:"dropped"`
	Shadowed  Counter        `json:"shadowed"`
	Forwarded Counter        `json:"forwarded"`
	Answered  Counter        `json:"answered"` // from here, in place: SYN cookies
	CID       Counter        `json:"cid"`      // steered by QUIC connection ID
	CIDLost   Counter        `json:"cid_lost"` // by row instead: the ID names no backend, or one that is not ready
	STUN      Counter        `json:"stun"`     // steered by ICE username fragment
	STUNLost  Counter        `json:"stun_lost"`
	// Of rows whose newcomers are noted.
	Newcomer Counter `json:"newcomer"` // of a flow that is noted
	Former   Counter `json:"former"`   // of one that is not: to the row's former owner
	Crowded  Counter `json:"crowded"`  // SYNs that found no place: the same
}

// VIPs returns the counters of every service and every bare address.
func (s *Stats) VIPs() ([]VIPStats, error) {
	records, err := all[bpf.XDPBermVip](s.set.VIPs.m)
	if err != nil {
		return nil, err
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count CPUs: %w", err)
	}
	var list []VIPStats
	values := make([]bpf.XDPBermVipStats, cpus)
	for id := range records {
		r := &records[id]
		if !isUsed(r) {
			continue
		}
		x, err := s.vip(uint32(id), values)
		if err != nil {
			return nil, err
		}
		key := keyOf(r)
		x.Name, x.Address, x.Protocol = fromName(r.Name), netip.AddrPortFrom(key.addr, key.port), key.proto
		list = append(list, x)
	}
	return list, nil
}

// VIP returns the counters of one VIP, without its name.
func (s *Stats) VIP(id uint32) (VIPStats, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return VIPStats{}, fmt.Errorf("count CPUs: %w", err)
	}
	return s.vip(id, make([]bpf.XDPBermVipStats, cpus))
}

func (s *Stats) vip(id uint32, values []bpf.XDPBermVipStats) (VIPStats, error) {
	x := VIPStats{ID: id}
	if err := s.vips.Lookup(id, &values); err != nil {
		return x, fmt.Errorf("counters of VIP %d: %w", id, err)
	}
	for _, v := range values {
		x.In.add(v.In)
		x.Dropped.add(v.Dropped)
		x.Shadowed.add(v.Shadowed)
		x.Forwarded.add(v.Forwarded)
		x.Answered.add(v.Answered)
		x.CID.add(v.Cid)
		x.CIDLost.add(v.CidLost)
		x.STUN.add(v.Stun)
		x.STUNLost.add(v.StunLost)
		x.Newcomer.add(v.Newcomer)
		x.Former.add(v.Former)
		x.Crowded.add(v.Crowded)
	}
	return x, nil
}

// Paths is the table of network facts by prefix.
type Paths struct{ m *ebpf.Map }

// Path is what was measured towards a prefix: an IPv4 /24 or an IPv6 /48.
type Path struct {
	Prefix        netip.Prefix  `json:"prefix"`
	Protocol      Protocol      `json:"protocol"` // UDP is QUIC
	Updated       time.Time     `json:"updated"`
	Connections   uint64        `json:"connections"` // ever established
	Sent          uint64        `json:"sent"`        // segments or packets
	Delivered     uint64        `json:"delivered"`
	Lost          uint64        `json:"lost"`
	Retransmitted uint64        `json:"retransmitted"`
	RTT           time.Duration `json:"rtt"` // moving average over connections
	MinRTT        time.Duration `json:"min_rtt"`
	RTTVar        time.Duration `json:"rtt_var"`
	RateKbps      uint32        `json:"rate_kbps"` // moving average of the best of each report
	Bursts        [8]uint32     `json:"bursts"`    // losses in a row: 1, 2, 3-4, 5-8 … 65 and more
}

// Loss is the share of what was sent that was lost.
func (p Path) Loss() float64 {
	if n := p.Delivered + p.Lost; n > 0 {
		return float64(p.Lost) / float64(n)
	}
	return 0
}

// Burst is how many were lost in a row on average, by the middle of each class of Bursts; 1 when nothing was.
func (p Path) Burst() float64 {
	middle := [...]float64{1, 2, 3.5, 6.5, 12.5, 24.5, 48.5, 97}
	var runs, lost float64
	for i, n := range p.Bursts {
		runs += float64(n)
		lost += float64(n) * middle[i]
	}
	if runs == 0 {
		return 1
	}
	return lost / runs
}

// PathPrefix is the prefix that network facts about an address are kept under: ::/48 for ::1, whose key is all zeros.
func PathPrefix(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	n := 48
	if a.Is4() {
		n = 24
	}
	return netip.PrefixFrom(a, n).Masked()
}

// List returns all network facts.
func (p *Paths) List() ([]Path, error) {
	const batch = 4096
	keys, values := make([]bpf.XDPBermPathKey, batch), make([]bpf.XDPBermPath, batch)
	var cursor ebpf.MapBatchCursor
	var list []Path
	for {
		n, err := p.m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			list = append(list, decodePath(&keys[i], &values[i]))
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return list, nil
		case err != nil:
			return nil, fmt.Errorf("read paths: %w", err)
		}
	}
}

// Get returns the network facts of an address's prefix, or ErrNotFound.
func (p *Paths) Get(a netip.Addr, proto Protocol) (Path, error) {
	prefix := PathPrefix(a)
	key := bpf.XDPBermPathKey{Prefix: toAddr(prefix.Addr()), Proto: uint32(proto)}
	var v bpf.XDPBermPath
	switch err := p.m.Lookup(&key, &v); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return Path{}, fmt.Errorf("path of %s, %s: %w", prefix, proto, ErrNotFound)
	case err != nil:
		return Path{}, fmt.Errorf("path of %s, %s: %w", prefix, proto, err)
	}
	return decodePath(&key, &v), nil
}

func decodePath(key *bpf.XDPBermPathKey, v *bpf.XDPBermPath) Path {
	us := func(n uint32) time.Duration { return time.Duration(n) * time.Microsecond }
	return Path{
		Prefix: PathPrefix(netip.AddrFrom16(key.Prefix.Octets)), Protocol: Protocol(key.Proto), Updated: wall(v.UpdatedNs),
		Connections: v.Connections, Sent: v.Sent, Delivered: v.Delivered, Lost: v.Lost, Retransmitted: v.Retransmitted,
		RTT: us(v.SrttUs), MinRTT: us(v.MinRttUs), RTTVar: us(v.RttvarUs), RateKbps: v.RateKbps, Bursts: v.Bursts,
	}
}
