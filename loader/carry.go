package loader

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// This file takes the content of one contract's maps to another's. The kernel knows the types of both (BTF), so
// members go by their names: what both have is carried, what is new stays as the new version
// made it, and what does not fit is an error, never cut.

// move takes one member of an old value to where the new one has it.
type move struct {
	name     string
	from, to uint32 // offsets
	size     uint32 // bytes taken
	rest     uint32 // bytes behind them that have no room in the new value, and so must be zero
}

var errNotCarried = errors.New("cannot be carried over")

// planMoves compares two types by the names of their members.
func planMoves(name string, old, now btf.Type, from, to uint32) ([]move, error) {
	old, now = btf.UnderlyingType(old), btf.UnderlyingType(now)
	switch n := now.(type) {
	case *btf.Struct:
		if o, ok := old.(*btf.Struct); ok {
			return planMembers(name, o.Members, n.Members, from, to)
		}
	case *btf.Array:
		if o, ok := old.(*btf.Array); ok {
			return planArray(name, o, n, from, to)
		}
	case *btf.Int, *btf.Enum, *btf.Union:
		if fmt.Sprintf("%T", old) == fmt.Sprintf("%T", now) {
			return planScalar(name, old, now, from, to)
		}
	}
	return nil, fmt.Errorf("%s: %w: it was %v and is %v", name, errNotCarried, old, now)
}

func planMembers(name string, old, now []btf.Member, from, to uint32) (moves []move, err error) {
	for _, n := range now {
		for _, o := range old {
			if o.Name != n.Name || isPadding(n.Name) {
				continue
			}
			if o.BitfieldSize != 0 || n.BitfieldSize != 0 {
				return nil, fmt.Errorf("%s.%s: %w: a bit field", name, n.Name, errNotCarried)
			}
			some, err := planMoves(name+"."+n.Name, o.Type, n.Type, from+o.Offset.Bytes(), to+n.Offset.Bytes())
			if err != nil {
				return nil, err
			}
			moves = append(moves, some...)
		}
	}
	return join(moves), nil
}

func isPadding(member string) bool { return strings.HasPrefix(member, "pad") }

func planArray(name string, old, now *btf.Array, from, to uint32) (moves []move, err error) {
	was, err := btf.Sizeof(old.Type)
	if err != nil {
		return nil, err
	}
	is, err := btf.Sizeof(now.Type)
	if err != nil {
		return nil, err
	}
	for i := range min(old.Nelems, now.Nelems) {
		some, err := planMoves(fmt.Sprintf("%s[%d]", name, i), old.Type, now.Type, from+i*uint32(was), to+i*uint32(is))
		if err != nil {
			return nil, err
		}
		moves = append(moves, some...)
	}
	moves = join(moves)
	if old.Nelems > now.Nelems && len(moves) > 0 {
		moves[len(moves)-1].rest += (old.Nelems - now.Nelems) * uint32(was)
	}
	return moves, nil
}

// planScalar carries a number into a wider or narrower one: little-endian, so that its low bytes come first.
func planScalar(name string, old, now btf.Type, from, to uint32) ([]move, error) {
	was, err := btf.Sizeof(old)
	if err != nil {
		return nil, err
	}
	is, err := btf.Sizeof(now)
	if err != nil {
		return nil, err
	}
	if _, union := now.(*btf.Union); union && was != is {
		return nil, fmt.Errorf("%s: %w: a union of another size", name, errNotCarried)
	}
	m := move{name: name, from: from, to: to, size: uint32(min(was, is))}
	m.rest = uint32(was) - m.size
	return []move{m}, nil
}

// join makes one move of neighbours.
func join(moves []move) (joined []move) {
	for _, m := range moves {
		if n := len(joined) - 1; n >= 0 && joined[n].rest == 0 && joined[n].from+joined[n].size == m.from && joined[n].to+joined[n].size == m.to {
			joined[n].size, joined[n].rest = joined[n].size+m.size, m.rest
			continue
		}
		joined = append(joined, m)
	}
	return joined
}

func carryValue(moves []move, old, now []byte) error {
	for _, m := range moves {
		end := m.from + m.size
		if !zero(old[end : end+m.rest]) {
			return fmt.Errorf("%s: %w: its value has no room in the new version", m.name, errNotCarried)
		}
		copy(now[m.to:m.to+m.size], old[m.from:end])
	}
	return nil
}

func zero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

// shape is what the index of an array means, and so where its entries go when the array has grown.
type shape int

const (
	whole  shape = iota // something else: only into an array of the same size
	flat                // an id, or the value of an enum: the same in both
	halves              // two copies behind each other, each with indexes of its own
	anew                // nothing that outlives a version
)

var shapes = map[string]shape{
	"berm_config": flat, "berm_vips": flat, "berm_geo_policies": flat, "berm_rate_classes": flat, "berm_sets": flat, "berm_backends": flat,
	"berm_verdict_bits": whole, "berm_rate_cells": whole, "berm_rows": whole, "berm_newcomers": whole, "berm_geo_rules": whole,
	"berm_vip_seeds": halves, "berm_vip_slots": halves, "berm_prefix4": halves, "berm_prefix4_leaves": halves, "berm_prefix4_blocks": halves, "berm_prefix6_root": halves,
	"berm_prefix6_nodes": halves, "berm_prefix6_leaves": halves, "berm_prefix_records": halves, "berm_networks": halves,
	"berm_gates": flat, "berm_gate_states": flat, "berm_cids": flat, "berm_carry": flat,
	"berm_drops": flat, "berm_shadows": flat, "berm_vip_stats": flat, "berm_tenant_stats": flat, "berm_sample": flat,
	"berm_cc_profiles": flat, "berm_cc_countries": flat, "berm_cc_networks": flat, "berm_cc_stats": flat,
	"berm_events":   anew,
	"berm_stun":     anew,                       // clients show their fragments again within seconds
	"berm_probes":   anew,                       // the daemon that is there writes its own
	"berm_captures": anew, "berm_packets": anew, // whoever captures asks again
	"berm_generations": anew, "berm_generation_ports": anew, "berm_generation_sockets": anew, // daemons put their sockets there again
}

// carrier copies one map.
type carrier struct {
	name       string
	old, now   *ebpf.Map
	key, value []move
}

// newCarrier plans how old, a map of a running version, goes into now, which spec made.
func newCarrier(name string, old, now *ebpf.Map, spec *ebpf.MapSpec) (c *carrier, err error) {
	c = &carrier{name: name, old: old, now: now}
	if old.Type() != now.Type() {
		return nil, fmt.Errorf("%s: %w: it was a %s and is a %s", name, errNotCarried, old.Type(), now.Type())
	}
	if c.key, err = planOf(name+" key", old, spec.Key, old.KeySize()); err != nil {
		return nil, err
	}
	c.value, err = planOf(name, old, spec.Value, old.ValueSize())
	return c, err
}

// planOf looks the old type up by its name. Plain numbers have none that matters.
func planOf(name string, old *ebpf.Map, now btf.Type, size uint32) ([]move, error) {
	s, ok := btf.UnderlyingType(now).(*btf.Struct)
	if !ok {
		return planMoves(name, &btf.Int{Size: size}, &btf.Int{Size: sizeOf(now)}, 0, 0)
	}
	h, err := old.Handle()
	if err != nil {
		return nil, fmt.Errorf("types of %s: %w", name, err)
	}
	defer h.Close()
	types, err := h.Spec(nil)
	if err != nil {
		return nil, fmt.Errorf("types of %s: %w", name, err)
	}
	var was *btf.Struct
	if err := types.TypeByName(s.Name, &was); err != nil {
		return nil, fmt.Errorf("types of %s: %w", name, err)
	}
	return planMoves(name, was, s, 0, 0)
}

func sizeOf(t btf.Type) uint32 {
	n, err := btf.Sizeof(t)
	if err != nil {
		panic(err) // a map's key or value has a size
	}
	return uint32(n)
}

// identical values are copied as they are, whole maps at once.
func identical(moves []move, was, is uint32) bool {
	return was == is && len(moves) == 1 && moves[0] == move{name: moves[0].name, size: was}
}

// run returns how many entries it carried.
func (c *carrier) run() (int, error) {
	switch c.old.Type() {
	case ebpf.Array:
		if c.old.Flags()&unix.BPF_F_MMAPABLE != 0 && c.now.Flags()&unix.BPF_F_MMAPABLE != 0 {
			return c.mapped()
		}
		return c.array()
	case ebpf.PerCPUArray:
		return c.perCPU()
	case ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie:
		return c.hash()
	default:
		return 0, fmt.Errorf("%s: %w: nothing is known of %s maps", c.name, errNotCarried, c.old.Type())
	}
}

// place is where entry i goes; false: there is no room for it.
func (c *carrier) place(i uint32) (uint32, bool) {
	was, is := c.old.MaxEntries(), c.now.MaxEntries()
	if shapes[c.name] == halves {
		half := i / (was / 2)
		j := i % (was / 2)
		return half*(is/2) + j, j < is/2
	}
	return i, i < is
}

// fits refuses sizes that differ where the index does not say what an entry is.
func (c *carrier) fits() error {
	if c.old.MaxEntries() != c.now.MaxEntries() && shapes[c.name] == whole {
		return fmt.Errorf("%s: %w: it had %d entries and has %d", c.name, errNotCarried, c.old.MaxEntries(), c.now.MaxEntries())
	}
	return nil
}

// one carries an entry's value into dst, which holds what the new version put there.
func (c *carrier) one(i uint32, value, dst []byte) error {
	if err := carryValue(c.value, value, dst); err != nil {
		return fmt.Errorf("entry %d: %w", i, err)
	}
	return nil
}

func (c *carrier) noRoom(i uint32) error {
	return fmt.Errorf("%s: %w: entry %d is in use, and %d fit", c.name, errNotCarried, i, c.now.MaxEntries())
}

// mapped goes through memory, where a large table takes milliseconds.
func (c *carrier) mapped() (n int, err error) {
	if err := c.fits(); err != nil {
		return 0, err
	}
	from, err := c.old.Memory()
	if err != nil {
		return 0, fmt.Errorf("%s: %w", c.name, err)
	}
	to, err := c.now.Memory()
	if err != nil {
		return 0, fmt.Errorf("%s: %w", c.name, err)
	}
	in, out := make([]byte, from.Size()), make([]byte, to.Size())
	if _, err := from.ReadAt(in, 0); err != nil {
		return 0, fmt.Errorf("%s: %w", c.name, err)
	}
	if c.old.MaxEntries() == c.now.MaxEntries() && identical(c.value, c.old.ValueSize(), c.now.ValueSize()) {
		out = in
	} else {
		if _, err := to.ReadAt(out, 0); err != nil {
			return 0, fmt.Errorf("%s: %w", c.name, err)
		}
		// The kernel rounds values up to 8 bytes.
		was, is := (c.old.ValueSize()+7)&^7, (c.now.ValueSize()+7)&^7
		for i := range c.old.MaxEntries() {
			value := in[i*was : (i+1)*was]
			j, ok := c.place(i)
			switch {
			case !ok && !zero(value):
				return 0, c.noRoom(i)
			case !ok:
				continue
			}
			if err := c.one(i, value, out[j*is:(j+1)*is]); err != nil {
				return 0, err
			}
		}
	}
	if _, err := to.WriteAt(out, 0); err != nil {
		return 0, fmt.Errorf("%s: %w", c.name, err)
	}
	return int(c.old.MaxEntries()), nil
}

// array asks for each entry, and leaves alone what is zero.
func (c *carrier) array() (n int, err error) {
	if err := c.fits(); err != nil {
		return 0, err
	}
	for i := range c.old.MaxEntries() {
		value, err := c.old.LookupBytes(i)
		if err != nil {
			return n, fmt.Errorf("%s: entry %d: %w", c.name, i, err)
		}
		if zero(value) {
			continue
		}
		j, ok := c.place(i)
		if !ok {
			return n, c.noRoom(i)
		}
		dst, err := c.now.LookupBytes(j)
		if err != nil {
			return n, fmt.Errorf("%s: entry %d: %w", c.name, j, err)
		}
		if err := c.one(i, value, dst); err != nil {
			return n, err
		}
		if err := c.now.Put(j, dst); err != nil {
			return n, fmt.Errorf("%s: entry %d: %w", c.name, j, err)
		}
		n++
	}
	return n, nil
}

// startsOver tells counters that cannot be carried: they may start at zero, as after a reboot.
func (c *carrier) startsOver() bool {
	return c.old.Type() == ebpf.PerCPUArray && (c.fits() != nil || !identical(c.value, c.old.ValueSize(), c.now.ValueSize()))
}

// perCPU carries counters, each CPU's own.
func (c *carrier) perCPU() (n int, err error) {
	for i := range min(c.old.MaxEntries(), c.now.MaxEntries()) {
		raw, err := c.old.LookupBytes(i)
		if err != nil {
			return n, fmt.Errorf("%s: entry %d: %w", c.name, i, err)
		}
		if zero(raw) {
			continue
		}
		if err := c.now.Put(i, slices.Collect(slices.Chunk(raw, int(c.old.ValueSize())))); err != nil {
			return n, fmt.Errorf("%s: entry %d: %w", c.name, i, err)
		}
		n++
	}
	return n, nil
}

// hash walks the keys. In an LRU table the kernel may throw out the key we stand on, which starts the
// walk over: entries are written again, and the walk is bounded.
func (c *carrier) hash() (n int, err error) {
	key, err := c.old.NextKeyBytes(nil)
	for steps := uint32(0); err == nil && key != nil && steps < 2*c.old.MaxEntries(); steps++ {
		var value []byte
		if value, err = c.old.LookupBytes(key); err != nil {
			break
		}
		if value != nil {
			k, v := make([]byte, c.now.KeySize()), make([]byte, c.now.ValueSize())
			err = errors.Join(carryValue(c.key, key, k), carryValue(c.value, value, v))
			if err == nil {
				err = c.now.Put(k, v)
			}
			if err != nil {
				break
			}
			n++
		}
		key, err = c.old.NextKeyBytes(key)
	}
	if err != nil {
		return n, fmt.Errorf("%s: %w", c.name, err)
	}
	return n, nil
}
