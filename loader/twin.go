package loader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/maps"
)

// Twin is the XDP program once more, over the pinned maps, attached to nothing. What the program
// writes it has for itself: packets that it is given charge no limit, count nowhere and wake
// nobody, and yet meet every table that real ones meet.
type Twin struct {
	Tag     string // of this version's program
	Running string // of the pinned program; another tag is another version

	live *maps.Set            // only read
	pins map[string]*ebpf.Map // the live maps
	own  map[string]*ebpf.Map // and the twin's
	set  *maps.Set            // over what the twin sees; only read
	prog *ebpf.Program

	newcomers map[uint32]maps.VIPStats // counters as of each VIP's last packet
}

// How the twin sees each map. A map that is missing here fails NewTwin, and a test.
const (
	shared = iota // the live one: the program only reads it
	empty         // its own, since the program writes it
	copied        // its own, with the live content of what a run needs
)

var twinMaps = map[string]int{
	bpf.XDPMapBermConfig:   copied, // with room for a few sources' cells
	bpf.XDPMapBermVipSeeds: shared, bpf.XDPMapBermVipSlots: shared, bpf.XDPMapBermVips: shared,
	bpf.XDPMapBermGeoRules: shared, bpf.XDPMapBermGeoPolicies: shared, bpf.XDPMapBermRateClasses: shared,
	bpf.XDPMapBermPrefix4: shared, bpf.XDPMapBermPrefix4Leaves: shared, bpf.XDPMapBermPrefix4Blocks: shared, bpf.XDPMapBermPrefix6Root: shared,
	bpf.XDPMapBermPrefix6Nodes: shared, bpf.XDPMapBermPrefix6Leaves: shared, bpf.XDPMapBermPrefixRecords: shared, bpf.XDPMapBermNetworks: shared,
	bpf.XDPMapBermRateCells: copied, bpf.XDPMapBermVerdictBits: shared, bpf.XDPMapBermVerdicts: copied,
	bpf.XDPMapBermRows: shared, bpf.XDPMapBermSets: shared, bpf.XDPMapBermBackends: shared, bpf.XDPMapBermPeers: shared,
	bpf.XDPMapBermCids: shared, bpf.XDPMapBermSids: shared, bpf.XDPMapBermSidsLong: shared,
	bpf.XDPMapBermStun: copied, bpf.XDPMapBermCarry: shared, bpf.XDPMapBermProbes: shared,
	bpf.XDPMapBermHeart: copied, bpf.XDPMapBermNewcomers: copied,
	bpf.XDPMapBermGates: shared, bpf.XDPMapBermReply: shared, bpf.XDPMapBermGateStates: copied,
	bpf.XDPMapBermDrops: empty, bpf.XDPMapBermShadows: empty, bpf.XDPMapBermStageStats: empty, bpf.XDPMapBermVipStats: empty,
	bpf.XDPMapBermTenantStats: empty, bpf.XDPMapBermSample: empty, bpf.XDPMapBermEvents: empty, bpf.XDPMapBermPaths: empty,
	bpf.XDPMapBermCaptures: empty, bpf.XDPMapBermPackets: empty,
	bpf.XDPMapBermGenerations: shared, bpf.XDPMapBermGenerationPorts: shared, bpf.XDPMapBermGenerationSockets: shared,
	bpf.XDPMapBermCcProfiles: shared, bpf.XDPMapBermCcCountries: shared, bpf.XDPMapBermCcRules: shared, bpf.XDPMapBermCcNetworks: shared, bpf.XDPMapBermCcStats: empty, bpf.XDPMapBermCcResults: empty,
}

// twinSets are the twin's sets of rate cells: enough that those of a source, of its aggregate and network and of
// its shares there lie apart but for ten times in 4096, when the source's own count.
const twinSets = 4096

// Fate is what became of a packet, as the program's own counters tell.
type Fate struct {
	Action  uint32 // XDP's
	Frame   []byte // as it left
	Stage   maps.Stage
	Exit    maps.Exit
	Reason  maps.Drop   // none unless it was dropped
	Shadows []maps.Drop // for which it would have been dropped
	// Newcomer says what the table of newcomers decided: newcomer, former or crowded; empty: it was not asked.
	Newcomer string
	Event    *maps.Event // nil for what is not ours
	Verdict  *maps.Verdict
	Before   []uint64 // the rate cells that it may have charged
	After    []uint64
}

// NewTwin loads the twin of the kernel half that is pinned below o.Pins. It needs CAP_BPF and
// CAP_NET_ADMIN, as loading does.
func NewTwin(o Options) (_ *Twin, err error) {
	o.fill()
	if n := needPrivilege(); n.Err != nil {
		return nil, fmt.Errorf("replay packets: %w (%s)", fs.ErrPermission, n.Hint)
	}
	at := layoutOf(o.Pins)
	objs, err := embedded()
	if err != nil {
		return nil, err
	}
	t := &Twin{pins: map[string]*ebpf.Map{}, own: map[string]*ebpf.Map{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	if t.live, err = maps.Open(at.dir); err != nil {
		return nil, err
	}
	if err := t.open(at, objs.XDP); err != nil {
		return nil, err
	}
	if err := t.load(objs); err != nil {
		return nil, err
	}
	if err := t.copyMemory(bpf.XDPMapBermNewcomers); err != nil {
		return nil, fmt.Errorf("copy which flows are newcomers: %w", err)
	}
	name, err := objs.xdpName()
	if err != nil {
		return nil, err
	}
	if p, perr := ebpf.LoadPinnedProgram(at.program(name), nil); perr == nil {
		t.Running = describeProgram(p).Tag
		p.Close()
	}
	return t, nil
}

func (t *Twin) open(at layout, spec *ebpf.CollectionSpec) error {
	for name := range spec.Maps {
		if !hasMapPrefix(name) {
			continue
		}
		if _, known := twinMaps[name]; !known {
			return fmt.Errorf("map %s: nobody has said whether a twin may share it", name)
		}
		m, err := ebpf.LoadPinnedMap(at.mapPin(name), nil)
		if err != nil {
			return fmt.Errorf("map %s: %w", name, err)
		}
		t.pins[name] = m
	}
	return nil
}

func (t *Twin) load(objs *objects) error {
	spec := objs.XDP.Copy()
	spec.Maps[bpf.XDPMapBermRateCells].MaxEntries = twinSets
	with := map[string]*ebpf.Map{}
	for name, how := range twinMaps {
		if how == shared && spec.Maps[name] != nil {
			with[name] = t.pins[name]
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: with})
	if err != nil {
		return explainLoad(err)
	}
	defer coll.Close()
	for name := range coll.Maps {
		t.own[name] = coll.DetachMap(name) // clones, of shared ones
	}
	name, err := objs.xdpName()
	if err != nil {
		return err
	}
	t.prog = coll.DetachProgram(name)
	t.Tag = describeProgram(t.prog).Tag
	if t.set, err = maps.FromMaps(t.own); err != nil {
		return err
	}
	every := make([]bpf.XDPBermSample, t.own[bpf.XDPMapBermSample].MaxEntries()) // mask 0: each packet
	keys := make([]uint32, len(every))
	for i := range keys {
		keys[i] = uint32(i)
	}
	_, err = t.own[bpf.XDPMapBermSample].BatchUpdate(keys, every, nil)
	return err
}

// Close lets go of the twin and of the live maps.
func (t *Twin) Close() error {
	var errs []error
	if t.set != nil {
		errs = append(errs, t.set.Close())
	}
	if t.live != nil {
		errs = append(errs, t.live.Close())
	}
	if t.prog != nil {
		errs = append(errs, t.prog.Close())
	}
	closeAll(t.own)
	closeAll(t.pins)
	return errors.Join(errs...)
}

// Tables are the live maps, to explain a fate by. They are not to be written.
func (t *Twin) Tables() *maps.Set { return t.live }

// Run gives the twin a packet of source, as if it came in now.
func (t *Twin) Run(frame []byte, source netip.Addr) (f Fate, err error) {
	if err := t.prepare(source); err != nil {
		return f, err
	}
	before, err := t.counters()
	if err != nil {
		return f, err
	}
	hits := t.hits(source)
	f.Before, err = t.cells(source)
	if err != nil {
		return f, err
	}
	o := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+512)}
	for tries := 0; ; tries++ { // Go's preemption signals interrupt test runs
		if f.Action, err = t.prog.Run(o); !errors.Is(err, unix.EINTR) || tries == 100 {
			break
		}
	}
	if err != nil {
		return f, fmt.Errorf("replay a packet: %w", err)
	}
	f.Frame = o.DataOut
	after, err := t.counters()
	if err != nil {
		return f, err
	}
	f.compare(before, after)
	for key, was := range hits {
		var v bpf.XDPBermVerdict
		if t.own[bpf.XDPMapBermVerdicts].Lookup(&key, &v) == nil && v.Hits > was {
			met, err := t.live.Verdicts.ByKey(key)
			if err != nil {
				return f, err
			}
			f.Verdict = &met
		}
	}
	if f.After, err = t.cells(source); err != nil {
		return f, err
	}
	if f.Exit != maps.ExitForeign {
		f.Event, err = t.event()
	}
	if err == nil && f.Event != nil && f.Event.VIP != 0 {
		f.Newcomer, err = t.newcomer(f.Event.VIP)
	}
	return f, err
}

// newcomer is which of the counters of newcomers has moved.
func (t *Twin) newcomer(vip uint32) (string, error) {
	now, err := t.set.Stats.VIP(vip)
	if err != nil {
		return "", err
	}
	before := t.newcomers[vip]
	if t.newcomers == nil {
		t.newcomers = map[uint32]maps.VIPStats{}
	}
	t.newcomers[vip] = now
	switch {
	case now.Newcomer.Packets > before.Newcomer.Packets:
		return "newcomer", nil
	case now.Former.Packets > before.Former.Packets:
		return "former", nil
	case now.Crowded.Packets > before.Crowded.Packets:
		return "crowded", nil
	}
	return "", nil
}

// prepare gives the twin what the live maps hold about the source now.
func (t *Twin) prepare(source netip.Addr) error {
	cfg := t.live.Config.Get()
	live := cfg.RateMask
	cfg.RateMask &= twinSets - 1
	cfg.Flags |= uint32(bpf.XDPBermConfigFlagsBERM_CONFIG_SAMPLE_PASSED)
	cfg.Flags &^= uint32(bpf.XDPBermConfigFlagsBERM_CONFIG_CAPTURE)
	hashes, err := t.rateHashes(cfg.Seed, source)
	if err != nil {
		return err
	}
	for _, hash := range hashes {
		var set bpf.XDPBermRateSet
		if err := t.pins[bpf.XDPMapBermRateCells].Lookup(hash&live, &set); err != nil {
			return fmt.Errorf("rate cells of %s: %w", source, err)
		}
		if err := t.own[bpf.XDPMapBermRateCells].Put(hash&cfg.RateMask, &set); err != nil {
			return fmt.Errorf("copy the rate cells of %s: %w", source, err)
		}
	}
	var heart bpf.XDPBermHeart
	if err := t.pins[bpf.XDPMapBermHeart].Lookup(uint32(0), &heart); err != nil {
		return fmt.Errorf("heart: %w", err)
	}
	if err := errors.Join(
		t.own[bpf.XDPMapBermConfig].Put(uint32(0), &cfg),
		t.own[bpf.XDPMapBermHeart].Put(uint32(0), &heart),
	); err != nil {
		return fmt.Errorf("copy what a packet of %s would write: %w", source, err)
	}
	if err := t.copyStun(); err != nil {
		return fmt.Errorf("copy whose flows of WebRTC are: %w", err)
	}
	if err := t.copyMemory(bpf.XDPMapBermGateStates); err != nil { // what the services' gates have measured
		return fmt.Errorf("copy which gates are shut: %w", err)
	}
	return t.copyVerdicts(source)
}

// copyStun gives the twin whose flows are that have shown an ICE username fragment.
func (t *Twin) copyStun() error {
	keys, sets := make([]uint32, t.pins[bpf.XDPMapBermStun].MaxEntries()), make([]bpf.XDPBermStunSet, t.pins[bpf.XDPMapBermStun].MaxEntries())
	var at ebpf.MapBatchCursor
	if n, err := t.pins[bpf.XDPMapBermStun].BatchLookup(&at, keys, sets, nil); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	} else if keys, sets = keys[:n], sets[:n]; n == 0 {
		return nil
	}
	_, err := t.own[bpf.XDPMapBermStun].BatchUpdate(keys, sets, nil)
	return err
}

// copyMemory gives the twin the content of a table that is mapped whole.
func (t *Twin) copyMemory(name string) error {
	from, err := t.pins[name].Memory()
	if err != nil {
		return err
	}
	to, err := t.own[name].Memory()
	if err != nil {
		return err
	}
	content := make([]byte, from.Size())
	if _, err := from.ReadAt(content, 0); err != nil {
		return err
	}
	_, err = to.WriteAt(content, 0)
	return err
}

// copyVerdicts gives the twin the verdicts about a source, and nobody else's.
func (t *Twin) copyVerdicts(source netip.Addr) error {
	own := t.own[bpf.XDPMapBermVerdicts]
	for key := range t.hits(source) {
		if err := own.Delete(&key); err != nil {
			return fmt.Errorf("verdict about %s: %w", source, err)
		}
	}
	keys, err := t.live.Verdicts.Keys(source)
	if err != nil {
		return err
	}
	for _, key := range keys {
		var v bpf.XDPBermVerdict
		switch err := t.pins[bpf.XDPMapBermVerdicts].Lookup(&key, &v); {
		case errors.Is(err, ebpf.ErrKeyNotExist): // it went meanwhile
		case err != nil:
			return fmt.Errorf("verdict about %s: %w", source, err)
		default:
			if err := own.Put(&key, &v); err != nil {
				return fmt.Errorf("verdict about %s: %w", source, err)
			}
		}
	}
	return nil
}

// hits are those of the verdicts about a source that the twin holds.
func (t *Twin) hits(source netip.Addr) map[bpf.XDPBermVerdictKey]uint64 {
	out := map[bpf.XDPBermVerdictKey]uint64{}
	var key bpf.XDPBermVerdictKey
	var v bpf.XDPBermVerdict
	for it := t.own[bpf.XDPMapBermVerdicts].Iterate(); it.Next(&key, &v); {
		out[key] = v.Hits
	}
	return out
}

// rateHashes place a source's cells, its own last.
func (t *Twin) rateHashes(seed [2]uint64, source netip.Addr) (out []uint32, err error) {
	record, err := t.live.Prefixes.Lookup(source)
	if err != nil {
		return nil, err
	}
	if record.ASN != 0 {
		out = []uint32{uint32(maps.NetworkHash(seed, record.ASN)), uint32(maps.NetworkShareHash(seed, record.ASN, source))}
	}
	return append(out,
		uint32(maps.AggregateHash(seed, source)), uint32(maps.ShareHash(seed, source)), uint32(maps.SourceHash(seed, source))), nil
}

// cells are those that a packet of the source may charge, in the twin.
func (t *Twin) cells(source netip.Addr) (cells []uint64, err error) {
	cfg := t.set.Config.Get()
	hashes, err := t.rateHashes(cfg.Seed, source)
	if err != nil {
		return nil, err
	}
	for _, hash := range hashes {
		var set bpf.XDPBermRateSet
		if err := t.own[bpf.XDPMapBermRateCells].Lookup(hash&cfg.RateMask, &set); err != nil {
			return nil, fmt.Errorf("rate cells: %w", err)
		}
		cells = append(cells, set.Cells[:]...)
	}
	return cells, nil
}

// counts are the twin's counters.
type counts struct {
	drops, shadows map[maps.Drop]maps.Counter
	stages         map[maps.StageExit]maps.Counter
}

func (t *Twin) counters() (c counts, err error) {
	var errs [3]error
	c.drops, errs[0] = t.set.Stats.Drops()
	c.shadows, errs[1] = t.set.Stats.Shadows()
	c.stages, errs[2] = t.set.Stats.Stages()
	return c, errors.Join(errs[:]...)
}

func (f *Fate) compare(before, after counts) {
	for d := range maps.AllDrops() {
		if after.drops[d].Packets > before.drops[d].Packets {
			f.Reason = d
		}
		if after.shadows[d].Packets > before.shadows[d].Packets {
			f.Shadows = append(f.Shadows, d)
		}
	}
	for at, n := range after.stages {
		if n.Packets > before.stages[at].Packets && at.Exit != maps.ExitShadow {
			f.Stage, f.Exit = at.Stage, at.Exit
		}
	}
}

// event is what the program told of the packet, if it tells of such packets at all.
func (t *Twin) event() (*maps.Event, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	var got *maps.Event
	err := t.set.Events.Read(ctx, func(e maps.Event) error {
		got = &e
		cancel()
		return nil
	})
	return got, err
}
