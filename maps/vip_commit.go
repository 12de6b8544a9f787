package maps

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// commit makes records the whole table, with the gates of those that have one, and returns the id
// of each. The caller holds the lock. Everything that can fail happens before the flip and is
// undone when it does.
func (v *VIPs) commit(records []bpf.XDPBermVip, gates map[serviceKey]bpf.XDPBermGate) (_ map[serviceKey]uint32, err error) {
	current, err := all[bpf.XDPBermVip](v.m)
	if err != nil {
		return nil, err
	}
	currentGates, err := all[bpf.XDPBermGate](v.gates)
	if err != nil {
		return nil, err
	}
	ids, gone, err := assignIDs(current, records)
	if err != nil {
		return nil, err
	}
	config := v.set.Config.Get()
	index, err := buildIndex(config.Seed, ids)
	if err != nil {
		return nil, err
	}
	quiesce()

	var written []uint32
	defer func() {
		for _, id := range written {
			if err != nil {
				err = errors.Join(err, put(v.m, id, current[id]), put(v.gates, id, currentGates[id]))
			}
		}
	}()
	for i := range records {
		id := ids[keyOf(&records[i])]
		gate := gates[keyOf(&records[i])]
		if records[i] == current[id] && gate == currentGates[id] {
			continue
		}
		if keyOf(&current[id]) != keyOf(&records[i]) {
			v.set.Gates.forget(id)
			if err := v.resetStats(id); err != nil {
				return nil, err
			}
		}
		written = append(written, id)
		if err := put(v.gates, id, gate); err != nil {
			return nil, err
		}
		if err := put(v.m, id, records[i]); err != nil {
			return nil, err
		}
	}
	v.flip(config.VipActive^1, index, uint32(len(records)))
	written = nil
	return ids, v.forget(gone)
}

// flip writes the index into a copy and makes it live. The count is stored after the flip when it
// leaves 0, so that no packet looks into an empty copy.
func (v *VIPs) flip(to uint32, index *vipIndex, count uint32) {
	copy(v.seeds.words()[to*vipBuckets:][:vipBuckets], index.seeds[:])
	copy(v.slots.words()[to*vipSlots:][:vipSlots], index.slots[:])
	w := v.set.Config.w
	w.store32(unsafe.Offsetof(bpf.XDPBermConfig{}.VipActive), to)
	w.store32(unsafe.Offsetof(bpf.XDPBermConfig{}.Vips), count)
}

// forget clears the records of services that are gone, and their verdicts, so that whoever gets
// the id next does not inherit them.
func (v *VIPs) forget(gone []uint32) error {
	if len(gone) == 0 {
		return nil
	}
	quiesce()
	var errs []error
	for _, id := range gone {
		errs = append(errs, put(v.m, id, bpf.XDPBermVip{}))
	}
	return errors.Join(append(errs, v.set.Verdicts.removeVIPs(gone))...)
}

func (v *VIPs) resetStats(id uint32) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	if err := v.stats.Put(id, make([]bpf.XDPBermVipStats, cpus)); err != nil {
		return fmt.Errorf("reset counters of VIP %d: %w", id, err)
	}
	return nil
}

// assignIDs keeps the id of every service that stays. New ones get ids that no packet in flight
// can know, and ids that this change frees only when no other is left.
func assignIDs(current, records []bpf.XDPBermVip) (ids map[serviceKey]uint32, gone []uint32, err error) {
	wanted := make(map[serviceKey]bool, len(records))
	for i := range records {
		wanted[keyOf(&records[i])] = true
	}
	if len(wanted) > MaxVIPs {
		return nil, nil, fmt.Errorf("VIPs: %d services and addresses, %d fit: %w (remove some; each address takes an entry of its own)",
			len(wanted), MaxVIPs, ErrFull)
	}

	ids = make(map[serviceKey]uint32, len(records))
	var free, freed []uint32
	for id := uint32(1); int(id) < len(current); id++ {
		switch r := &current[id]; {
		case !isUsed(r):
			free = append(free, id)
		case wanted[keyOf(r)]:
			ids[keyOf(r)] = id
		default:
			freed = append(freed, id)
		}
	}
	free = append(free, freed...)
	reused := map[uint32]bool{}
	for i := range records {
		key := keyOf(&records[i])
		if _, ok := ids[key]; !ok {
			ids[key], reused[free[0]] = free[0], true
			free = free[1:]
		}
	}
	for _, id := range freed {
		if !reused[id] {
			gone = append(gone, id)
		}
	}
	return ids, gone, nil
}
