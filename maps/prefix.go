package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// Prefixes is the table that gives a source's record. It exists twice: Swap fills the copy not in
// use and makes it live with one store, so that a packet sees all of one or all of the other.
type Prefixes struct {
	set                                                           *Set
	four, leaves4, blocks, root, nodes, leaves, records, networks *ebpf.Map
}

// Swap builds a new table through fill and makes it live. On an error the old one stays.
func (p *Prefixes) Swap(fill func(*PrefixTable) error) error {
	t := NewPrefixTable()
	if err := fill(t); err != nil {
		return err
	}
	return p.Install(t)
}

// Install makes a table live.
func (p *Prefixes) Install(t *PrefixTable) error {
	if err := t.Finish(); err != nil {
		return err
	}
	return p.set.lock.hold(func() (err error) {
		quiesce()
		ws, closeAll, err := mapWindows(p.four, p.leaves4, p.blocks, p.root, p.nodes, p.leaves, p.records, p.networks)
		if err != nil {
			return fmt.Errorf("prefix table: %w", err)
		}
		defer func() { err = errors.Join(err, closeAll()) }()

		to := p.set.Config.Get().PrefixActive ^ 1
		records := make([]bpf.XDPBermPrefixRecord, prefixRecords) // the tail is cleared
		for i, r := range t.records {
			records[i] = bpf.XDPBermPrefixRecord{
				Country: uint16(r.Country), Acl: uint8(r.ACL), RateClass: r.RateClass,
				Network: t.asns[r.ASN], Rule: r.Rule,
			}
		}
		networks := make([]uint64, prefixNetworks)
		for i, asn := range t.networks {
			networks[i] = uint64(asn)
		}
		for i, content := range [][]byte{bytesOf(t.cells4), bytesOf(t.leaves4), bytesOf(t.blocks), bytesOf(t.root), bytesOf(t.nodes), bytesOf(t.leaves), bytesOf(records), bytesOf(networks)} {
			half := ws[i].b[len(ws[i].b)/2*int(to):][:len(ws[i].b)/2]
			if copy(half, content) < len(content) {
				return fmt.Errorf("prefix table: %d bytes do not fit a copy of %d: %w", len(content), len(half), ErrFull)
			}
		}
		p.set.Config.w.store32(unsafe.Offsetof(bpf.XDPBermConfig{}.PrefixActive), to)
		return nil
	})
}

// Records returns the live table's records, without the empty one.
func (p *Prefixes) Records() ([]PrefixRecord, error) {
	entries, err := all[bpf.XDPBermPrefixRecord](p.records)
	if err != nil {
		return nil, err
	}
	half := len(entries) / 2
	active := int(p.set.Config.Get().PrefixActive & 1)
	networks, err := all[uint64](p.networks)
	if err != nil {
		return nil, err
	}
	networks = networks[active*prefixNetworks:]
	var list []PrefixRecord
	for _, e := range entries[active*half:][:half] {
		if e != (bpf.XDPBermPrefixRecord{}) {
			list = append(list, decodeRecord(e, networks[e.Network%prefixNetworks]))
		}
	}
	return list, nil
}

func decodeRecord(e bpf.XDPBermPrefixRecord, asn uint64) PrefixRecord {
	return PrefixRecord{Country: Country(e.Country), ACL: Action(e.Acl), RateClass: e.RateClass, ASN: uint32(asn), Rule: e.Rule}
}

// Lookup returns the live record of a source, found as the kernel half finds it.
func (p *Prefixes) Lookup(a netip.Addr) (PrefixRecord, error) {
	active := p.set.Config.Get().PrefixActive & 1
	a = a.Unmap()
	find := p.leaf6
	if a.Is4() {
		find = p.leaf4
	}
	leaf, err := find(a, active)
	if err != nil {
		return PrefixRecord{}, fmt.Errorf("prefix record of %s: %w", a, err)
	}
	var e bpf.XDPBermPrefixRecord
	if err := p.records.Lookup(active*prefixRecords+uint32(leaf), &e); err != nil {
		return PrefixRecord{}, fmt.Errorf("prefix record %d of %s: %w", leaf, a, err)
	}
	var asn uint64
	if err := p.networks.Lookup(active*prefixNetworks+uint32(e.Network), &asn); err != nil {
		return PrefixRecord{}, fmt.Errorf("network %d of %s: %w", e.Network, a, err)
	}
	return decodeRecord(e, asn), nil
}

// packedLeaf reads leaf n of a copy whose cells hold four.
func packedLeaf(m *ebpf.Map, active, n uint32) (uint16, error) {
	var cell uint64
	if err := m.Lookup(active*(m.MaxEntries()/2)+n/4, &cell); err != nil {
		return 0, err
	}
	return uint16(cell >> (n % 4 * 16)), nil
}

func (p *Prefixes) leaf4(a netip.Addr, active uint32) (uint16, error) {
	n := be32(a)
	var cell uint64
	if err := p.four.Lookup(active*prefix4Cells+n>>13, &cell); err != nil {
		return 0, err
	}
	leaf, err := packedLeaf(p.leaves4, active, leaf4(cell, n))
	if err != nil || leaf&prefix4Block == 0 {
		return leaf, err
	}
	return packedLeaf(p.blocks, active, uint32(leaf&^prefix4Block)*blockSize+n&0xff)
}

func (p *Prefixes) leaf6(a netip.Addr, active uint32) (uint16, error) {
	hi, _ := halves(a)
	var at uint64
	if err := p.root.Lookup(active*prefix6Root+uint32(hi>>48), &at); err != nil {
		return 0, err
	}
	for level := 0; level < trieLevels && at&prefix6NodeBit != 0; level++ {
		var n bpf.XDPBermPrefix6Node
		if err := p.nodes.Lookup(active*prefix6Nodes+uint32(at&^prefix6NodeBit), &n); err != nil {
			return 0, err
		}
		next, leaf, isLeaf := descend(&n, hi, level)
		if isLeaf {
			return packedLeaf(p.leaves, active, leaf)
		}
		at = prefix6NodeBit | uint64(next)
	}
	return uint16(at), nil
}
