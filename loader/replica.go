package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/maps"
)

// Replica is the XDP program with a clock that the caller sets, attached to nothing, over the live
// tables or over tables of its own: recorded packets are given to it at their recorded times.
type Replica struct {
	Set *maps.Set // of a replica with its own tables: to be filled. Of one over the live tables: not to be written

	own    map[string]*ebpf.Map
	prog   *ebpf.Program
	ns     *ebpf.Variable
	ticks  *ebpf.Variable
	tick   uint64 // ns
	began  uint64 // CLOCK_MONOTONIC of the replay's start
	events *ringbuf.Reader
}

// replicaRateSets hold 512 Ki sources.
const replicaRateSets = 1 << 16

// NewReplicas returns a replica over the live tables, and one with tables of its own, which holds
// nothing but the live secrets: nobody's packets fare otherwise for that. Limits start afresh in both.
func NewReplicas(o Options) (running, candidate *Replica, err error) {
	o.fill()
	if n := needPrivilege(); n.Err != nil {
		return nil, nil, fmt.Errorf("replay packets: %w (%s)", fs.ErrPermission, n.Hint)
	}
	at := layoutOf(o.Pins)
	live, err := maps.Open(at.dir)
	if err != nil {
		return nil, nil, err
	}
	cfg := live.Config.Get()
	if err := live.Close(); err != nil {
		return nil, nil, err
	}
	cfg.RateMask = replicaRateSets - 1
	cfg.Flags |= uint32(bpf.XDPBermConfigFlagsBERM_CONFIG_SAMPLE_PASSED)
	cfg.Flags &^= uint32(bpf.XDPBermConfigFlagsBERM_CONFIG_CAPTURE)
	defer func() {
		if err != nil {
			err = errors.Join(err, running.Close(), candidate.Close())
		}
	}()
	if running, err = newReplica(&at, cfg); err != nil {
		return running, nil, err
	}
	fresh := bpf.XDPBermConfig{
		Contract: cfg.Contract, Secret: cfg.Secret, TagSecrets: cfg.TagSecrets, Seed: cfg.Seed, TickUnits: cfg.TickUnits,
		Self4: cfg.Self4, Self6: cfg.Self6, RateMask: cfg.RateMask, Spread: cfg.Spread,
		Flags: uint32(bpf.XDPBermConfigFlagsBERM_CONFIG_SAMPLE_PASSED),
	}
	candidate, err = newReplica(nil, fresh)
	return running, candidate, err
}

// newReplica shares what packets only read with the pins at a place, or nothing.
func newReplica(at *layout, cfg bpf.XDPBermConfig) (_ *Replica, err error) {
	spec, err := bpf.LoadXDPTest() // the same stages; its clock is a variable
	if err != nil {
		return nil, fmt.Errorf("read embedded program: %w", err)
	}
	spec.Maps[bpf.XDPMapBermRateCells].MaxEntries = replicaRateSets
	pins := map[string]*ebpf.Map{}
	defer closeAll(pins)
	with := map[string]*ebpf.Map{}
	if at != nil {
		for name, how := range twinMaps {
			m, err := ebpf.LoadPinnedMap(at.mapPin(name), nil)
			if err != nil {
				return nil, fmt.Errorf("map %s: %w", name, err)
			}
			pins[name] = m
			if how == shared {
				with[name] = m
			}
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: with})
	if err != nil {
		return nil, explainLoad(err)
	}
	defer coll.Close()
	r := &Replica{own: map[string]*ebpf.Map{}, ns: coll.Variables["test_now_ns"], ticks: coll.Variables["test_jiffies"], tick: uint64(cfg.TickUnits) * uint64(rateUnit)}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	for name := range coll.Maps {
		if hasMapPrefix(name) {
			r.own[name] = coll.DetachMap(name)
		}
	}
	r.prog = coll.DetachProgram(bpf.XDPTestProgXdpBermAt)
	if err := r.own[bpf.XDPMapBermConfig].Put(uint32(0), &cfg); err != nil {
		return r, fmt.Errorf("write berm_config: %w", err)
	}
	if m := pins[bpf.XDPMapBermVerdicts]; m != nil {
		if err := copyAll(m, r.own[bpf.XDPMapBermVerdicts]); err != nil {
			return r, err
		}
	}
	if r.Set, err = maps.FromMaps(r.own); err != nil {
		return r, err
	}
	if r.events, err = ringbuf.NewReader(r.own[bpf.XDPMapBermEvents]); err != nil {
		return r, fmt.Errorf("read events: %w", err)
	}
	if r.tick == 0 {
		return r, errors.New("the kernel half does not know its tick (run: berm kernel up)")
	}
	r.began = uint64(now())
	return r, nil
}

func copyAll(from, to *ebpf.Map) error {
	var key bpf.XDPBermVerdictKey
	var v bpf.XDPBermVerdict
	it := from.Iterate()
	for it.Next(&key, &v) {
		if err := to.Put(&key, &v); err != nil {
			return fmt.Errorf("copy verdicts: %w", err)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("copy verdicts: %w", err)
	}
	return nil
}

func now() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0 // cannot happen
	}
	return ts.Nano()
}

// Close lets go of the replica.
func (r *Replica) Close() error {
	if r == nil {
		return nil
	}
	var errs []error
	if r.events != nil {
		errs = append(errs, r.events.Close())
	}
	if r.Set != nil {
		errs = append(errs, r.Set.Close())
	}
	if r.prog != nil {
		errs = append(errs, r.prog.Close())
	}
	closeAll(r.own)
	return errors.Join(errs...)
}

// Judgement is what a replica does with a packet.
type Judgement struct {
	Ours   bool // for a VIP; else it passes untouched
	Source netip.Addr
	Reason maps.Drop // none: it is not dropped
	Shadow maps.Drop // for which it would have been dropped
}

// Run gives the replica a packet that came at a time since the first one.
func (r *Replica) Run(frame []byte, after time.Duration) (j Judgement, err error) {
	at := r.began + uint64(max(0, after))
	if err := errors.Join(r.ns.Set(at), r.ticks.Set(at/r.tick)); err != nil {
		return j, fmt.Errorf("set the replica's clock: %w", err)
	}
	o := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+512)}
	for tries := 0; ; tries++ { // Go's preemption signals interrupt test runs
		if _, err = r.prog.Run(o); !errors.Is(err, unix.EINTR) || tries == 100 {
			break
		}
	}
	if err != nil {
		return j, fmt.Errorf("replay a packet of %d bytes: %w", len(frame), err)
	}
	r.events.SetDeadline(time.Unix(1, 0)) // what there is, is there
	rec, err := r.events.Read()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return j, nil
	case err != nil:
		return j, fmt.Errorf("read events: %w", err)
	}
	var e bpf.XDPBermEvent
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&e)), unsafe.Sizeof(e)), rec.RawSample)
	return Judgement{true, netip.AddrFrom16(e.Source.Octets).Unmap(), maps.Drop(e.Reason), maps.Drop(e.Shadow)}, nil
}
