package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/bpf"
)

// Verdicts is the table of time-limited decisions about sources. Three bits by each source's hash say
// whether the table may hold anything about it; the kernel half asks the table only where all of them
// are set. Bits are set before an entry is added and, since sources share them, rebuilt
// from the table after entries went: a writer that dies half-way leaves bits too many, never
// too few.
type Verdicts struct {
	set  *Set
	bits *window
	m    *ebpf.Map
}

// ReasonLen is the longest reason of a verdict, in bytes.
const ReasonLen = 15

// Verdict is a decision about one source.
type Verdict struct {
	Source   netip.Addr `json:"source"`        // an IPv6 address stands for its /64
	VIP      string     `json:"vip,omitempty"` // name; "" = all
	Action   Action     `json:"action"`
	Owner    Owner      `json:"owner"`
	Reason   string     `json:"reason,omitempty"`
	Rule     uint32     `json:"rule,omitempty"`     // of the guard
	Evidence uint64     `json:"evidence,omitempty"` // id of what led to it
	Expires  time.Time  `json:"expires,omitzero"`   // zero = never
	Hits     uint64     `json:"hits"`               // packets that met it; counted by the kernel half
}

const verdictWords = 1 << 14

// VerdictBits are the bits that say that there may be a verdict about a source, and in which word of the table they are.
func VerdictBits(seed [2]uint64, source netip.Addr) (word uint32, bits uint64) {
	h := SourceHash(seed, source)
	return uint32(h >> 20 % verdictWords), 1<<(h>>34&63) | 1<<(h>>40&63) | 1<<(h>>46&63)
}

// Put adds a verdict, or replaces the one about the same source and VIP; its hits stay. A full table gives up those that
// have expired; when none has, the error is ErrFull.
func (v *Verdicts) Put(x Verdict) error {
	e, err := x.encode()
	if err != nil {
		return err
	}
	return v.set.lock.holdQuietly(func() error {
		key, err := v.key(x.Source, x.VIP)
		if err != nil {
			return err
		}
		return v.putOr(v.sweep, key, e, x.Source)
	})
}

// putOr makes room when the table is full, and tries again if there was some to make.
func (v *Verdicts) putOr(makeRoom func() (int, error), key bpf.XDPBermVerdictKey, e bpf.XDPBermVerdict, source netip.Addr) error {
	err := v.put(key, e, source)
	if !errors.Is(err, ErrFull) {
		return err
	}
	switch n, sweepErr := makeRoom(); {
	case sweepErr != nil:
		return errors.Join(err, sweepErr)
	case n > 0:
		return v.put(key, e, source)
	}
	return err
}

func (v *Verdicts) put(key bpf.XDPBermVerdictKey, e bpf.XDPBermVerdict, source netip.Addr) error {
	var old bpf.XDPBermVerdict
	switch err := v.m.Lookup(&key, &old); {
	case err == nil:
		if standsAgainst(&old, Owner(e.Owner)) {
			return fmt.Errorf("verdict about %s: an operator's stands there: %w", SourceOf(source), ErrOverlap)
		}
		e.Hits = old.Hits // those of the next microseconds are lost
	case !errors.Is(err, ebpf.ErrKeyNotExist):
		return fmt.Errorf("verdict about %s: %w", source, err)
	}
	word, bits := VerdictBits(v.set.Config.Get().Seed, source)
	atomic.OrUint64(&v.bits.words()[word], bits)
	switch err := v.m.Put(&key, &e); {
	case errors.Is(err, unix.E2BIG):
		return fmt.Errorf("verdict about %s: %d others exist: %w (remove some, or decide by prefix: geo.overrides)", source, v.m.MaxEntries(), ErrFull)
	case err != nil:
		return fmt.Errorf("verdict about %s: %w", source, err)
	}
	v.wrote(key, &e)
	return nil
}

// standsAgainst: what an operator decided, the guard changes only once it has run out.
func standsAgainst(old *bpf.XDPBermVerdict, owner Owner) bool {
	return owner == OwnerGuard && Owner(old.Owner) == OwnerOperator && (old.ExpiresNs == 0 || old.ExpiresNs > monotonic())
}

// VerdictChange adds a verdict, or takes the one about its source and VIP away.
type VerdictChange struct {
	Verdict
	Remove bool
}

// Change makes many changes, in their order, as one writer; errs has one entry for each, nil where it was
// made. The bits are rebuilt once, however many were removed.
func (v *Verdicts) Change(list []VerdictChange) (errs []error, err error) {
	errs = make([]error, len(list))
	err = v.set.lock.holdQuietly(func() error {
		vips, err := v.set.VIPs.List()
		if err != nil {
			return err
		}
		ids := map[string]uint32{"": 0}
		for _, x := range vips {
			ids[x.Name] = x.ID
		}
		removed := false
		once := v.sweepOnce()
		for i, c := range list {
			id, ok := ids[c.VIP]
			if !ok {
				errs[i] = fmt.Errorf("verdict about %s: VIP %q: %w", c.Source, c.VIP, ErrNotFound)
				continue
			}
			key := bpf.XDPBermVerdictKey{Source: toAddr(SourceOf(c.Source)), Vip: id}
			errs[i] = v.change(once, key, c)
			removed = removed || c.Remove && errs[i] == nil
		}
		if removed {
			return v.rebuild()
		}
		return nil
	})
	return errs, err
}

func (v *Verdicts) change(makeRoom func() (int, error), key bpf.XDPBermVerdictKey, c VerdictChange) error {
	if c.Remove {
		return v.remove(key, c.Source, c.Owner)
	}
	e, err := c.encode()
	if err != nil {
		return err
	}
	return v.putOr(makeRoom, key, e, c.Source)
}

// sweepOnce is a sweep that looks through the table the first time only: of many changes one pays for it.
func (v *Verdicts) sweepOnce() func() (int, error) {
	looked := false
	return func() (int, error) {
		if looked {
			return 0, nil
		}
		looked = true
		return v.sweep()
	}
}

func (v *Verdicts) remove(key bpf.XDPBermVerdictKey, source netip.Addr, owner Owner) error {
	var old bpf.XDPBermVerdict
	err := v.m.Lookup(&key, &old)
	if err == nil && standsAgainst(&old, owner) {
		return fmt.Errorf("remove verdict about %s: it is an operator's: %w", SourceOf(source), ErrOverlap)
	}
	if err == nil {
		err = v.m.Delete(&key)
	}
	switch {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return fmt.Errorf("verdict about %s: %w", SourceOf(source), ErrNotFound)
	case err != nil:
		return fmt.Errorf("remove verdict about %s: %w", source, err)
	}
	v.wrote(key, nil)
	return nil
}

// wrote tells whoever watches for drift.
func (v *Verdicts) wrote(key bpf.XDPBermVerdictKey, e *bpf.XDPBermVerdict) {
	if l := v.set.lock.ledger; l != nil {
		l.verdicts.wrote(key, e)
	}
}

func (x Verdict) expired() bool { return !x.Expires.IsZero() && !x.Expires.After(time.Now()) }

func (x Verdict) encode() (e bpf.XDPBermVerdict, err error) {
	switch {
	case !x.Source.IsValid() || x.Source.IsUnspecified():
		return e, errors.New("verdict: source is missing: want an address")
	case x.Action == ActionNone || x.Action >= actionMax:
		return e, fmt.Errorf("verdict about %s: action %s: want allow, drop, shadow or mark", x.Source, x.Action)
	case len(x.Reason) > ReasonLen:
		return e, fmt.Errorf("verdict about %s: reason %q has %d bytes, at most %d fit", x.Source, x.Reason, len(x.Reason), ReasonLen)
	}
	e = bpf.XDPBermVerdict{Evidence: x.Evidence, Rule: x.Rule, Action: uint8(x.Action), Owner: uint8(x.Owner), Reason: toName(x.Reason)}
	if !x.Expires.IsZero() {
		left := time.Until(x.Expires)
		if left <= 0 {
			return e, fmt.Errorf("verdict about %s: expired %s ago", x.Source, -left.Round(time.Second))
		}
		e.ExpiresNs = monotonic() + uint64(left)
	}
	return e, nil
}

func (v *Verdicts) key(source netip.Addr, vip string) (bpf.XDPBermVerdictKey, error) {
	key := bpf.XDPBermVerdictKey{Source: toAddr(SourceOf(source))}
	if vip != "" {
		x, err := v.set.VIPs.Get(vip)
		if err != nil {
			return key, fmt.Errorf("verdict about %s: %w", source, err)
		}
		key.Vip = x.ID
	}
	return key, nil
}

// Get returns the verdict about a source for a VIP ("" = all), or ErrNotFound.
func (v *Verdicts) Get(source netip.Addr, vip string) (Verdict, error) {
	key, err := v.key(source, vip)
	if err != nil {
		return Verdict{}, err
	}
	var e bpf.XDPBermVerdict
	switch err := v.m.Lookup(&key, &e); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return Verdict{}, fmt.Errorf("verdict about %s: %w", SourceOf(source), ErrNotFound)
	case err != nil:
		return Verdict{}, fmt.Errorf("verdict about %s: %w", source, err)
	}
	return decodeVerdict(&key, &e, map[uint32]string{key.Vip: vip}), nil
}

func decodeVerdict(key *bpf.XDPBermVerdictKey, e *bpf.XDPBermVerdict, vips map[uint32]string) Verdict {
	name := vips[key.Vip]
	if name == "" && key.Vip != 0 {
		name = fmt.Sprintf("#%d", key.Vip)
	}
	return Verdict{
		Source: fromAddr(key.Source), VIP: name, Action: Action(e.Action), Owner: Owner(e.Owner),
		Reason: fromName(e.Reason), Rule: e.Rule, Evidence: e.Evidence, Expires: wall(e.ExpiresNs), Hits: e.Hits,
	}
}

// List returns all verdicts, expired ones that nobody swept included, by source.
func (v *Verdicts) List() ([]Verdict, error) {
	vips, err := v.set.VIPs.List()
	if err != nil {
		return nil, err
	}
	byID := map[uint32]string{}
	for _, x := range vips {
		byID[x.ID] = x.Name
	}
	var list []Verdict
	err = v.each(func(key *bpf.XDPBermVerdictKey, e *bpf.XDPBermVerdict) {
		list = append(list, decodeVerdict(key, e, byID))
	})
	slices.SortFunc(list, func(a, b Verdict) int { return a.Source.Compare(b.Source) })
	return list, err
}

// each reads the whole table in batches.
func (v *Verdicts) each(fn func(*bpf.XDPBermVerdictKey, *bpf.XDPBermVerdict)) error {
	const batch = 4096
	keys, values := make([]bpf.XDPBermVerdictKey, batch), make([]bpf.XDPBermVerdict, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := v.m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			fn(&keys[i], &values[i])
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return nil
		case err != nil:
			return fmt.Errorf("read verdicts: %w", err)
		}
	}
}

// Remove takes away the verdict about a source for a VIP ("" = all), or says ErrNotFound.
func (v *Verdicts) Remove(source netip.Addr, vip string) error {
	return v.set.lock.holdQuietly(func() error {
		key, err := v.key(source, vip)
		if err != nil {
			return err
		}
		if err := v.remove(key, source, OwnerOperator); err != nil {
			return err
		}
		return v.rebuild()
	})
}

// Sweep removes verdicts that have expired and says how many.
func (v *Verdicts) Sweep() (int, error) { return v.removeIf(expired()) }

// sweep is Sweep for who holds the lock.
func (v *Verdicts) sweep() (int, error) { return v.removeLocked(expired()) }

func expired() func(*bpf.XDPBermVerdictKey, *bpf.XDPBermVerdict) bool {
	now := monotonic()
	return func(_ *bpf.XDPBermVerdictKey, e *bpf.XDPBermVerdict) bool {
		return e.ExpiresNs != 0 && e.ExpiresNs <= now
	}
}

// RemoveOwner removes all verdicts of one owner and says how many.
func (v *Verdicts) RemoveOwner(owner Owner) (int, error) {
	return v.removeIf(func(_ *bpf.XDPBermVerdictKey, e *bpf.XDPBermVerdict) bool { return Owner(e.Owner) == owner })
}

func (v *Verdicts) removeIf(fits func(*bpf.XDPBermVerdictKey, *bpf.XDPBermVerdict) bool) (n int, err error) {
	err = v.set.lock.holdQuietly(func() error {
		n, err = v.removeLocked(fits)
		return err
	})
	return n, err
}

func (v *Verdicts) removeVIPs(ids []uint32) error {
	_, err := v.removeLocked(func(key *bpf.XDPBermVerdictKey, _ *bpf.XDPBermVerdict) bool {
		return slices.Contains(ids, key.Vip)
	})
	return err
}

func (v *Verdicts) removeLocked(fits func(*bpf.XDPBermVerdictKey, *bpf.XDPBermVerdict) bool) (int, error) {
	var doomed []bpf.XDPBermVerdictKey
	err := v.each(func(key *bpf.XDPBermVerdictKey, e *bpf.XDPBermVerdict) {
		if fits(key, e) {
			doomed = append(doomed, *key)
		}
	})
	if err != nil || len(doomed) == 0 {
		return 0, err
	}
	for i := range doomed {
		if err := v.m.Delete(&doomed[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return i, fmt.Errorf("remove verdict about %s: %w", fromAddr(doomed[i].Source), err)
		}
		v.wrote(doomed[i], nil)
	}
	return len(doomed), v.rebuild()
}

// Rebuild makes the bits say what the table holds, as after a writer died or the seed changed.
func (v *Verdicts) Rebuild() error { return v.set.lock.holdQuietly(v.rebuild) }

func (v *Verdicts) rebuild() error {
	seed := v.set.Config.Get().Seed
	fresh := make([]uint64, verdictWords)
	err := v.each(func(key *bpf.XDPBermVerdictKey, _ *bpf.XDPBermVerdict) {
		word, bits := VerdictBits(seed, fromAddr(key.Source))
		fresh[word] |= bits
	})
	if err != nil {
		return err
	}
	words := v.bits.words()
	for i, w := range fresh {
		if atomic.LoadUint64(&words[i]) != w {
			atomic.StoreUint64(&words[i], w)
		}
	}
	return nil
}

// Keys lists the keys of the verdicts about a source, in the order in which the kernel half asks:
// one for a VIP goes before one for all.
func (v *Verdicts) Keys(source netip.Addr) (keys []bpf.XDPBermVerdictKey, err error) {
	want := toAddr(SourceOf(source))
	err = v.each(func(key *bpf.XDPBermVerdictKey, _ *bpf.XDPBermVerdict) {
		if key.Source == want {
			keys = append(keys, *key)
		}
	})
	slices.SortFunc(keys, func(a, b bpf.XDPBermVerdictKey) int { return int(b.Vip) - int(a.Vip) })
	return keys, err
}

// ByKey returns the verdict with a key, or ErrNotFound.
func (v *Verdicts) ByKey(key bpf.XDPBermVerdictKey) (Verdict, error) {
	var e bpf.XDPBermVerdict
	switch err := v.m.Lookup(&key, &e); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return Verdict{}, fmt.Errorf("verdict about %s: %w", fromAddr(key.Source), ErrNotFound)
	case err != nil:
		return Verdict{}, fmt.Errorf("verdict about %s: %w", fromAddr(key.Source), err)
	}
	names := map[uint32]string{}
	vips, err := v.set.VIPs.List()
	for _, x := range vips {
		names[x.ID] = x.Name
	}
	return decodeVerdict(&key, &e, names), err
}
