// Package maps holds typed views of the pinned maps that the kernel half and userspace share.
// It alone knows how their bytes are laid out. Nothing here creates a map or loads a program:
// a process that may open the pins needs no capability.
package maps

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sort"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// Contract is the version of the layout this package was built for: BERM_CONTRACT.
const Contract = 2

// Set is every map of one contract directory.
type Set struct {
	Config   *Config
	VIPs     *VIPs
	Geo      *Geo
	Prefixes *Prefixes
	Rates    *Rates
	Gates    *Gates
	Verdicts *Verdicts
	Sets     *Sets
	Rows     *Rows
	Heart    *Heart
	Backends *Backends
	Peers    *Peers
	Carries  *Carries
	Probes   *Probes
	CIDs     *CIDs
	STUN     *STUN
	Stats    *Stats
	Samples  *Samples
	Events   *Events
	Captures *Captures
	Paths    *Paths
	CC       *CC

	Newcomers   *Newcomers // of rows that have moved to servers
	Generations *Generations

	lock    *lock
	owned   []*ebpf.Map // closed with the set
	windows []*window
}

// PinDir is the contract directory below a pin root.
func PinDir(root string) string { return filepath.Join(root, fmt.Sprintf("v%d", Contract)) }

// names are the maps that a Set needs, by the names of their pins.
var names = []string{
	bpf.XDPMapBermConfig, bpf.XDPMapBermVipSeeds, bpf.XDPMapBermVipSlots, bpf.XDPMapBermVips,
	bpf.XDPMapBermGeoRules, bpf.XDPMapBermGeoPolicies, bpf.XDPMapBermRateClasses,
	bpf.XDPMapBermPrefix4, bpf.XDPMapBermPrefix4Leaves, bpf.XDPMapBermPrefix4Blocks, bpf.XDPMapBermPrefix6Root,
	bpf.XDPMapBermPrefix6Nodes, bpf.XDPMapBermPrefix6Leaves, bpf.XDPMapBermPrefixRecords, bpf.XDPMapBermNetworks,
	bpf.XDPMapBermRateCells, bpf.XDPMapBermVerdictBits, bpf.XDPMapBermVerdicts,
	bpf.XDPMapBermRows, bpf.XDPMapBermNewcomers, bpf.XDPMapBermHeart, bpf.XDPMapBermSets, bpf.XDPMapBermBackends, bpf.XDPMapBermPeers,
	bpf.XDPMapBermCids, bpf.XDPMapBermSids, bpf.XDPMapBermSidsLong, bpf.XDPMapBermStun,
	bpf.XDPMapBermDrops, bpf.XDPMapBermShadows, bpf.XDPMapBermStageStats, bpf.XDPMapBermVipStats,
	bpf.XDPMapBermGates, bpf.XDPMapBermGateStates, bpf.XDPMapBermReply, bpf.XDPMapBermCarry, bpf.XDPMapBermProbes,
	bpf.XDPMapBermTenantStats, bpf.XDPMapBermSample, bpf.XDPMapBermEvents, bpf.XDPMapBermPaths,
	bpf.XDPMapBermCaptures, bpf.XDPMapBermPackets,
	bpf.XDPMapBermGenerations, bpf.XDPMapBermGenerationPorts, bpf.XDPMapBermGenerationSockets,
	bpf.XDPMapBermCcProfiles, bpf.XDPMapBermCcCountries, bpf.XDPMapBermCcRules, bpf.XDPMapBermCcNetworks, bpf.XDPMapBermCcStats, bpf.XDPMapBermCcResults,
}

// Open opens the pinned maps of a contract directory (see PinDir).
func Open(dir string) (_ *Set, err error) {
	var opened []*ebpf.Map
	defer func() {
		if err != nil {
			for _, m := range opened {
				err = errors.Join(err, m.Close())
			}
		}
	}()

	byName := make(map[string]*ebpf.Map, len(names))
	for _, name := range names {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if err != nil {
			return nil, openError(dir, name, err)
		}
		opened = append(opened, m)
		byName[name] = m
	}
	s, err := FromMaps(byName)
	if err != nil {
		return nil, fmt.Errorf("maps in %s: %w", dir, err)
	}
	if s.lock, err = lockDir(dir); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.owned = opened
	return s, nil
}

func openError(dir, name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("map %s in %s: %w (is the kernel half up? run: berm kernel up)", name, dir, ErrNotUp)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("map %s in %s: %w (run as root, or as a member of the group that owns the pins)", name, dir, err)
	}
	return fmt.Errorf("map %s in %s: %w", name, dir, err)
}

// FromMaps makes a set of maps that the caller holds and closes. Writers of the same maps in
// other processes must use Open, whose lock is the directory; here it is the process's.
func FromMaps(m map[string]*ebpf.Map) (_ *Set, err error) {
	var missing []string
	for _, name := range names {
		if m[name] == nil {
			missing = append(missing, name)
		}
	}
	if missing != nil {
		sort.Strings(missing)
		return nil, fmt.Errorf("maps %s: %w", strings.Join(missing, ", "), ErrNotFound)
	}
	if err := checkShapes(m); err != nil {
		return nil, err
	}

	s := &Set{lock: new(lock)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	return s, s.assemble(m)
}

func (s *Set) assemble(m map[string]*ebpf.Map) error {
	var errs []error
	view := func(name string) *window {
		w, err := mapWindow(m[name])
		if err != nil {
			errs = append(errs, fmt.Errorf("map %s: %w", name, err))
			return nil
		}
		s.windows = append(s.windows, w)
		return w
	}
	s.Config = &Config{set: s, w: view(bpf.XDPMapBermConfig)}
	s.VIPs = &VIPs{
		set: s, seeds: view(bpf.XDPMapBermVipSeeds), slots: view(bpf.XDPMapBermVipSlots),
		m: m[bpf.XDPMapBermVips], stats: m[bpf.XDPMapBermVipStats], gates: m[bpf.XDPMapBermGates],
	}
	s.Gates = &Gates{set: s, reply: m[bpf.XDPMapBermReply], states: view(bpf.XDPMapBermGateStates)}
	s.Geo = &Geo{set: s, rules: view(bpf.XDPMapBermGeoRules), m: m[bpf.XDPMapBermGeoPolicies]}
	s.Prefixes = &Prefixes{
		set: s, four: m[bpf.XDPMapBermPrefix4], leaves4: m[bpf.XDPMapBermPrefix4Leaves], blocks: m[bpf.XDPMapBermPrefix4Blocks],
		root: m[bpf.XDPMapBermPrefix6Root], nodes: m[bpf.XDPMapBermPrefix6Nodes],
		leaves: m[bpf.XDPMapBermPrefix6Leaves], records: m[bpf.XDPMapBermPrefixRecords], networks: m[bpf.XDPMapBermNetworks],
	}
	s.Rates = &Rates{set: s, m: m[bpf.XDPMapBermRateClasses], cells: m[bpf.XDPMapBermRateCells]}
	s.Verdicts = &Verdicts{set: s, bits: view(bpf.XDPMapBermVerdictBits), m: m[bpf.XDPMapBermVerdicts]}
	s.Sets = &Sets{set: s, m: m[bpf.XDPMapBermSets]}
	s.Rows = &Rows{set: s, w: view(bpf.XDPMapBermRows)}
	s.Newcomers = &Newcomers{set: s, w: view(bpf.XDPMapBermNewcomers)}
	s.Heart = &Heart{set: s, w: view(bpf.XDPMapBermHeart)}
	s.Backends = &Backends{set: s, m: m[bpf.XDPMapBermBackends]}
	s.Peers = &Peers{set: s, m: m[bpf.XDPMapBermPeers]}
	s.Carries = &Carries{set: s, m: m[bpf.XDPMapBermCarry]}
	s.Probes = &Probes{set: s, m: m[bpf.XDPMapBermProbes]}
	s.CIDs = &CIDs{set: s, formats: m[bpf.XDPMapBermCids], sids: m[bpf.XDPMapBermSids], large: m[bpf.XDPMapBermSidsLong]}
	s.STUN = &STUN{m: m[bpf.XDPMapBermStun]}
	s.Stats = &Stats{
		set: s, drops: m[bpf.XDPMapBermDrops], shadows: m[bpf.XDPMapBermShadows],
		stages: m[bpf.XDPMapBermStageStats], vips: m[bpf.XDPMapBermVipStats], tenants: m[bpf.XDPMapBermTenantStats],
	}
	s.Samples = &Samples{set: s, w: view(bpf.XDPMapBermSample)}
	s.Events = &Events{m: m[bpf.XDPMapBermEvents]}
	s.Captures = &Captures{set: s, w: view(bpf.XDPMapBermCaptures), ring: m[bpf.XDPMapBermPackets]}
	s.Paths = &Paths{m: m[bpf.XDPMapBermPaths]}
	s.Generations = &Generations{
		set: s, w: view(bpf.XDPMapBermGenerations), ports: m[bpf.XDPMapBermGenerationPorts], sockets: m[bpf.XDPMapBermGenerationSockets],
	}
	s.CC = &CC{
		set: s, profiles: m[bpf.XDPMapBermCcProfiles], countries: m[bpf.XDPMapBermCcCountries],
		networks: m[bpf.XDPMapBermCcNetworks], rules: m[bpf.XDPMapBermCcRules], stats: m[bpf.XDPMapBermCcStats], results: m[bpf.XDPMapBermCcResults],
	}
	if errs != nil {
		return errors.Join(errs...)
	}
	if v := s.Config.Get().Contract; v != Contract && v != 0 {
		return fmt.Errorf("contract %d, this program speaks %d: %w (run: berm kernel upgrade)", v, Contract, ErrContract)
	}
	return nil
}

// checkShapes compares key, value and number of entries with the committed programs: a map of
// another shape under our name would be read as nonsense.
func checkShapes(m map[string]*ebpf.Map) error {
	spec, err := bpf.LoadXDP()
	if err != nil {
		return fmt.Errorf("read embedded programs: %w", err)
	}
	var errs []error
	for _, name := range names {
		want, got := spec.Maps[name], m[name]
		sized := name == bpf.XDPMapBermRateCells // the loader may make it smaller
		if got.KeySize() != want.KeySize || got.ValueSize() != want.ValueSize || got.Type() != want.Type ||
			(got.MaxEntries() != want.MaxEntries && !sized) {
			errs = append(errs, fmt.Errorf("map %s is %s %d→%d ×%d, want %s %d→%d ×%d: %w (run: berm kernel upgrade)", name,
				got.Type(), got.KeySize(), got.ValueSize(), got.MaxEntries(),
				want.Type, want.KeySize, want.ValueSize, want.MaxEntries, ErrContract))
		}
	}
	return errors.Join(errs...)
}

// Close unmaps all memory and closes what Open opened.
func (s *Set) Close() error {
	var errs []error
	for _, w := range s.windows {
		errs = append(errs, w.close())
	}
	for _, m := range s.owned {
		errs = append(errs, m.Close())
	}
	s.windows, s.owned = nil, nil
	return errors.Join(append(errs, s.lock.close())...)
}
