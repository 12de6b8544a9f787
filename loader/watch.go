package loader

import (
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/bermedge/berm/bpf"
)

const (
	// probation is how long live packets are looked at after the programs were swapped.
	probation = time.Second
	// glance is how often.
	glance = 20 * time.Millisecond
	// silent: so many packets came in and none was counted. A driver tells of packets in batches (NAPI: 64), later
	// than the program does.
	silent = 500
)

// traffic is what the interfaces and the program say about packets.
type traffic struct {
	received         uint64 // by the interfaces
	counted, aborted uint64 // by the program
}

// watch looks at what the new program does with live packets, and fails when it aborts them (our own failure, which
// the packet does not survive) or does not count them at all. Failing puts the old program back.
func (r *run) watch() error {
	var cfg bpf.XDPBermConfig
	if err := r.maps["berm_config"].Lookup(uint32(0), &cfg); err != nil {
		return fmt.Errorf("read berm_config: %w", err)
	}
	if cfg.Vips == 0 || len(r.report.Interfaces) == 0 {
		return nil // without services nothing is counted
	}
	// Packets that the old program has begun with are its own.
	time.Sleep(glance)
	// What comes between the two readings may count as counted and not received, never the other way around.
	before, err := r.counted()
	if err != nil {
		return err
	}
	before.received = r.received()
	since := before // when it last counted anything: elsewhere, it may be
	for deadline := time.Now().Add(r.opts.watch); time.Now().Before(deadline); {
		time.Sleep(glance) // a probation is a length of time
		received := r.received()
		now, err := r.counted()
		if err != nil {
			return err
		}
		now.received = received
		if err := judge(before, since, now); err != nil {
			return err
		}
		if now.counted != since.counted {
			since = now
			since.received = r.received()
		}
	}
	return nil
}

// judge allows one packet in a hundred to be aborted, and no silence: since is when the program last counted.
func judge(before, since, now traffic) error {
	received, counted, aborted := now.received-since.received, now.counted-before.counted, now.aborted-before.aborted
	switch {
	case now.counted == since.counted && received > silent:
		return fmt.Errorf("%w: the new program counted none of %d packets; the old one is attached again", ErrRolledBack, received)
	case aborted*100 > counted:
		return fmt.Errorf("%w: the new program aborted %d of %d packets; the old one is attached again", ErrRolledBack, aborted, counted)
	}
	return nil
}

// received is what the watched interfaces have got.
func (r *run) received() (packets uint64) {
	for _, l := range r.watched {
		if l.ifname == "" || l.ifindex() == 0 {
			continue
		}
		// Not an error: a link of another namespace, or a device that was just removed.
		if dev, err := netlink.LinkByIndex(l.ifindex()); err == nil && dev.Attrs().Statistics != nil {
			packets += dev.Attrs().Statistics.RxPackets
		}
	}
	return packets
}

// counted is what the program says of packets.
func (r *run) counted() (t traffic, err error) {
	m := r.maps["berm_stage_stats"]
	const exits = uint32(bpf.XDPBermExitBERM_EXIT_MAX)
	for i := range m.MaxEntries() {
		exit := bpf.XDPBermExit(i % exits)
		if exit == bpf.XDPBermExitBERM_EXIT_SHADOW {
			continue // counted beside its real exit
		}
		n, err := packets(m, i)
		if err != nil {
			return t, err
		}
		t.counted += n
		if exit == bpf.XDPBermExitBERM_EXIT_ABORTED {
			t.aborted += n
		}
	}
	return t, nil
}

// packets is a counter's sum over CPUs.
func packets(m *ebpf.Map, i uint32) (sum uint64, err error) {
	var cpus []bpf.XDPBermCounter
	if err := m.Lookup(i, &cpus); err != nil {
		return 0, fmt.Errorf("%s: %w", m, err)
	}
	for _, c := range cpus {
		sum += c.Packets
	}
	return sum, nil
}
