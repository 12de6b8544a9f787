package maps

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unicode"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// Drift is an entry that somebody changed without this process.
type Drift struct {
	Table  string `json:"table"` // the map's name
	Entry  string `json:"entry"`
	Change string `json:"change"`
}

// String is the change in one line.
func (d Drift) String() string { return fmt.Sprintf("%s[%s]: %s", d.Table, d.Entry, d.Change) }

// maxDrift is how many entries of a table are told one by one.
const maxDrift = 8

// ledger remembers what the tables held when this process last wrote them. Its own writers pass the
// lock, which compares before they write and remembers after: so nobody's change hides behind
// theirs. Verdicts, of which there may be thousands a second, are remembered one by one.
//
// The cells of the prefix table (64 MiB and more) are not remembered, only its records, the networks
// that they name, and which copy is live; nor are the server IDs of QUIC (65,536 places, 5 ms to read).
type ledger struct {
	tables   []remembered
	verdicts *rememberedVerdicts
	found    []Drift
	err      error // of a comparison that a writer made
}

// remembered is a table and what it held.
type remembered interface {
	// look reads the table again, and returns what is not as it was.
	look() ([]Drift, error)
}

// WatchDrift remembers the tables as they are. From then on Drift tells what others change. It costs
// a copy of the small tables and of the rows in use, and a comparison with each write but verdicts'.
func (s *Set) WatchDrift() error {
	return s.lock.hold(func() error {
		if s.lock.ledger != nil {
			return nil
		}
		records, err := mapWindow(s.Prefixes.records)
		if err != nil {
			return fmt.Errorf("watch %s: %w", bpf.XDPMapBermPrefixRecords, err)
		}
		networks, err := mapWindow(s.Prefixes.networks)
		if err != nil {
			return errors.Join(fmt.Errorf("watch %s: %w", bpf.XDPMapBermNetworks, err), records.close())
		}
		s.windows = append(s.windows, records, networks)
		l := &ledger{verdicts: &rememberedVerdicts{v: s.Verdicts, known: map[bpf.XDPBermVerdictKey]bpf.XDPBermVerdict{}}}
		l.tables = []remembered{
			&entries[bpf.XDPBermConfig]{name: bpf.XDPMapBermConfig, read: s.Config.decided},
			cells(bpf.XDPMapBermVipSeeds, s.VIPs.seeds), cells(bpf.XDPMapBermVipSlots, s.VIPs.slots),
			array[bpf.XDPBermVip](bpf.XDPMapBermVips, s.VIPs.m), array[bpf.XDPBermGate](bpf.XDPMapBermGates, s.VIPs.gates),
			cells(bpf.XDPMapBermGeoRules, s.Geo.rules), array[bpf.XDPBermGeoPolicy](bpf.XDPMapBermGeoPolicies, s.Geo.m),
			array[bpf.XDPBermRateClass](bpf.XDPMapBermRateClasses, s.Rates.m),
			cells(bpf.XDPMapBermPrefixRecords, records),
			cells(bpf.XDPMapBermNetworks, networks),
			array[bpf.XDPBermSet](bpf.XDPMapBermSets, s.Sets.m),
			&entries[uint64]{name: bpf.XDPMapBermRows, read: s.rowsInUse},
			array[bpf.XDPBermBackend](bpf.XDPMapBermBackends, s.Backends.m),
			array[bpf.XDPBermCcProfile](bpf.XDPMapBermCcProfiles, s.CC.profiles), array[uint32](bpf.XDPMapBermCcCountries, s.CC.countries),
			&entries[peerEntry]{name: bpf.XDPMapBermPeers, read: s.Peers.entries},
			array[bpf.XDPBermCid](bpf.XDPMapBermCids, s.CIDs.formats), array[bpf.XDPBermCarry](bpf.XDPMapBermCarry, s.Carries.m),
		}
		s.lock.ledger = l
		if _, err := l.look(); err != nil {
			s.lock.ledger = nil
			return err
		}
		_, err = l.verdicts.look()
		return err
	})
}

// Drift returns what others have changed since the last call, and takes it for what is there now.
func (s *Set) Drift() (found []Drift, err error) {
	s.lock.mu.Lock()
	defer s.lock.mu.Unlock()
	l := s.lock.ledger
	if l == nil {
		return nil, nil
	}
	more, err := l.look()
	verdicts, verr := l.verdicts.look()
	found = slices.Concat(l.found, more, verdicts)
	err = errors.Join(l.err, err, verr)
	l.found, l.err = nil, nil
	return found, err
}

func (l *ledger) look() (found []Drift, err error) {
	var errs []error
	for _, t := range l.tables {
		d, err := t.look()
		found, errs = append(found, d...), append(errs, err)
	}
	return found, errors.Join(errs...)
}

// before and after enclose a write of this process.
func (l *ledger) before() {
	d, err := l.look()
	l.found, l.err = append(l.found, d...), errors.Join(l.err, err)
}

func (l *ledger) after() {
	_, err := l.look()
	l.err = errors.Join(l.err, err)
}

// entries is a table with a small number of entries.
type entries[T comparable] struct {
	name  string
	read  func() ([]T, error)
	known []T
	fresh bool // known has been read
}

func array[T comparable](name string, m *ebpf.Map) *entries[T] {
	return &entries[T]{name: name, read: func() ([]T, error) { return all[T](m) }}
}

func cells(name string, w *window) *entries[uint64] {
	return &entries[uint64]{name: name, read: func() ([]uint64, error) { return w.words(), nil }}
}

func (t *entries[T]) look() (found []Drift, err error) {
	now, err := t.read()
	if err != nil {
		return nil, err
	}
	if !t.fresh || len(now) != len(t.known) {
		if t.fresh {
			found = append(found, Drift{t.name, "all", fmt.Sprintf("%d entries, there were %d", len(now), len(t.known))})
		}
		t.known, t.fresh = slices.Clone(now), true
		return found, nil
	}
	n := 0
	for i := range now {
		if now[i] == t.known[i] {
			continue
		}
		v := now[i] // of shared memory, read once
		if change := difference(t.known[i], v); change != "" {
			if n++; n <= maxDrift {
				found = append(found, Drift{t.name, fmt.Sprint(i), change})
			}
		}
		t.known[i] = v
	}
	if n > maxDrift {
		found = append(found, Drift{t.name, "more", fmt.Sprintf("%d other entries changed", n-maxDrift)})
	}
	return found, nil
}

// difference tells which fields of an entry changed. Heartbeats are signs of life, not decisions.
func difference(old, now any) string {
	a, b := reflect.ValueOf(old), reflect.ValueOf(now)
	if a.Kind() != reflect.Struct {
		return fmt.Sprintf("%#x, was %#x", now, old)
	}
	var words []string
	for i := range a.NumField() {
		f := a.Type().Field(i)
		if !f.IsExported() || strings.Contains(f.Name, "Heartbeat") {
			continue
		}
		x, y := a.Field(i).Interface(), b.Field(i).Interface()
		if x == y {
			continue
		}
		if strings.Contains(f.Name, "Secret") || strings.HasPrefix(f.Name, "Key") || f.Name == "Seed" {
			words = append(words, snake(f.Name)+" is another")
			continue
		}
		words = append(words, fmt.Sprintf("%s is %s, was %s", snake(f.Name), plain(y), plain(x)))
	}
	return strings.Join(words, "; ")
}

// plain writes a field as people know it.
func plain(v any) string {
	switch v := v.(type) {
	case [nameLen]int8:
		return fmt.Sprintf("%q", fromName(v))
	case bpf.XDPBermAddr:
		return fromAddr(v).String()
	case bpf.XDPBermLimit:
		return fmt.Sprintf("%d a second", decodeLimit(v.Cost, v.BurstUnits).PerSecond)
	}
	return fmt.Sprint(v)
}

const nameLen = len(bpf.XDPBermVip{}.Name)

// snake turns GeoPolicy into geo_policy, as the contract writes it.
func snake(name string) string {
	var b strings.Builder
	for i, r := range name {
		if unicode.IsUpper(r) && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// passing are flags that come and go with those who look on.
const passing = uint32(bpf.XDPBermConfigFlagsBERM_CONFIG_SAMPLE_PASSED | bpf.XDPBermConfigFlagsBERM_CONFIG_CAPTURE)

// decided is the entry without what says only who looks on.
func (c *Config) decided() ([]bpf.XDPBermConfig, error) {
	v := c.Get()
	v.Flags &^= passing
	return []bpf.XDPBermConfig{v}, nil
}

// rowsInUse are the cells of the sets that exist.
func (s *Set) rowsInUse() ([]uint64, error) {
	sets, err := all[bpf.XDPBermSet](s.Sets.m)
	if err != nil {
		return nil, err
	}
	last := 0
	for id := range sets {
		if sets[id].Used != 0 {
			last = id + 1
		}
	}
	return s.Rows.w.words()[:last*rowCells], nil
}

// peerEntry is a peer as an entry of a list.
type peerEntry struct {
	Source  bpf.XDPBermAddr
	Backend uint32
}

func (p *Peers) entries() ([]peerEntry, error) {
	list, err := p.List()
	if err != nil {
		return nil, err
	}
	out := make([]peerEntry, 0, len(list))
	for addr, id := range list {
		out = append(out, peerEntry{toAddr(addr), id})
	}
	slices.SortFunc(out, func(a, b peerEntry) int { return fromAddr(a.Source).Compare(fromAddr(b.Source)) })
	return out, nil
}

// rememberedVerdicts are kept by key, since their table has no order.
type rememberedVerdicts struct {
	v     *Verdicts
	known map[bpf.XDPBermVerdictKey]bpf.XDPBermVerdict
	fresh bool
	dark  int // verdicts whose bits are not set, when last seen
}

// wrote notes what this process did; nil removes.
func (t *rememberedVerdicts) wrote(key bpf.XDPBermVerdictKey, e *bpf.XDPBermVerdict) {
	if e == nil {
		delete(t.known, key)
		return
	}
	x := *e
	x.Hits = 0 // the kernel half's
	t.known[key] = x
}

func (t *rememberedVerdicts) look() ([]Drift, error) {
	const table = bpf.XDPMapBermVerdicts
	now := make(map[bpf.XDPBermVerdictKey]bpf.XDPBermVerdict, len(t.known))
	err := t.v.each(func(key *bpf.XDPBermVerdictKey, e *bpf.XDPBermVerdict) {
		x := *e
		x.Hits = 0
		now[*key] = x
	})
	if err != nil {
		return nil, err
	}
	var found []Drift
	about := func(key bpf.XDPBermVerdictKey, format string, args ...any) {
		entry := fromAddr(key.Source).String()
		if key.Vip != 0 {
			entry += fmt.Sprintf(" at VIP %d", key.Vip)
		}
		found = append(found, Drift{table, entry, fmt.Sprintf(format, args...)})
	}
	for key, e := range now {
		switch old, known := t.known[key]; {
		case !known:
			about(key, "added: action %s, reason %q", Action(e.Action), fromName(e.Reason))
		case old != e:
			about(key, "%s", difference(old, e))
		}
	}
	// A full table makes room by itself, and whoever rides on an expired one does no harm.
	crowded := len(t.known) > int(t.v.m.MaxEntries())/2
	for key, e := range t.known {
		if _, there := now[key]; !there && !crowded && (e.ExpiresNs == 0 || e.ExpiresNs > monotonic()) {
			about(key, "removed: action %s, reason %q", Action(e.Action), fromName(e.Reason))
		}
	}
	found = append(found, t.blind(now)...)
	first := !t.fresh
	t.known, t.fresh = now, true
	if first {
		return nil, nil
	}
	slices.SortFunc(found, func(a, b Drift) int { return strings.Compare(a.Entry, b.Entry) })
	if n := len(found) - maxDrift; n > 0 {
		found = append(found[:maxDrift], Drift{table, "more", fmt.Sprintf("%d other entries changed", n)})
	}
	return found, nil
}

// blind finds verdicts that the kernel half does not look for, since their bits were cleared.
func (t *rememberedVerdicts) blind(now map[bpf.XDPBermVerdictKey]bpf.XDPBermVerdict) []Drift {
	seed, n := t.v.set.Config.Get().Seed, 0
	for key := range now {
		word, bits := VerdictBits(seed, fromAddr(key.Source))
		if t.v.bits.words()[word]&bits != bits {
			n++
		}
	}
	before := t.dark
	if t.dark = n; n <= before {
		return nil
	}
	return []Drift{{bpf.XDPMapBermVerdictBits, "all", fmt.Sprintf("%d verdicts are not looked for: their bits were cleared", n)}}
}
