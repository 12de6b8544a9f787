package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/bpf"
)

// migrateSteps put this version beside one of another contract, whose maps its programs cannot use: content is
// carried over, the links that are there get the new programs, and then move to the new pins. Until "update links"
// the old version filters, from then on the new one; no packet meets neither.
//
// The order matters to a loader that is killed. The new directory is published while it is without links, so
// that what is half-made can be removed without detaching anything; halfWay tells what is left to do.
var migrateSteps = []step{
	{"probe kernel", (*run).probe},
	{"look for pins", (*run).sweepHalf},
	{"make directory", (*run).makeDirectory},
	{"rehearse", (*run).rehearse},
	{"load new programs", (*run).loadBeside},
	{"configure", (*run).configure},
	{"lock the old maps", (*run).lockOld},
	{"carry content over", (*run).carry},
	{"self-test", (*run).selfTest},
	{"pin", (*run).pin},
	{"give to group", (*run).giveToGroup},
	{"publish", (*run).publish},
	{"update links", (*run).updateLinks},
	{"update egress", (*run).updateEgress},
	{"watch", (*run).watch},
	{"move links", (*run).moveLinks},
	{"sum up", (*run).sumUp},
}

// resumeSteps finish a migration whose loader was killed after links began to run the new programs.
var resumeSteps = []step{
	{"probe kernel", (*run).probe},
	{"open pins", (*run).openPins},
	{"find new programs", (*run).findNew},
	{"update links", (*run).updateLinks},
	{"update egress", (*run).updateEgress},
	{"watch", (*run).watch},
	{"move links", (*run).moveLinks},
	{"sum up", (*run).sumUp},
}

func (r *run) migrating() bool { return r.from != layout{} }

// way chooses the steps of an upgrade by what is pinned.
func (r *run) way() ([]step, error) {
	dirs, err := contracts(r.opts.Pins)
	if err != nil {
		return nil, err
	}
	for _, l := range dirs {
		_, half := cutNew(l.dir)
		switch {
		case half || l == r.at:
		case exists(r.at.dir) && !l.attached():
			r.sweepLater(l)
		case r.migrating():
			return nil, fmt.Errorf("%s and %s: %w, and only one can be taken over (berm kernel down, then up)", r.from.dir, l.dir, ErrContract)
		default:
			r.from = l
		}
	}
	if !r.migrating() {
		return upgradeSteps, nil
	}
	r.report.AlreadyUp = true
	if exists(r.at.dir) {
		resume, err := r.halfWay()
		if err != nil || resume {
			return resumeSteps, err
		}
	}
	r.to = r.at.incoming()
	return migrateSteps, nil
}

// halfWay says whether a link runs the programs pinned by this version: then its maps hold what counts.
func (r *run) halfWay() (bool, error) {
	if r.at.attached() {
		return true, nil
	}
	pinned, err := os.ReadDir(r.at.programs())
	if err != nil {
		return false, nil //nolint:nilerr // half-made: nothing of it runs
	}
	ours := map[ebpf.ProgramID]bool{}
	for _, e := range pinned {
		p, err := ebpf.LoadPinnedProgram(r.at.program(e.Name()), nil)
		if err != nil {
			return false, err
		}
		if info, err := p.Info(); err == nil {
			id, _ := info.ID()
			ours[id] = true
		}
		p.Close()
	}
	links, err := r.runningLinks()
	for _, l := range links {
		if ours[l.info.Program] {
			return true, err
		}
	}
	return false, err
}

// runningLinks are those of the version that runs. After a killed migration, some are the new one's already.
func (r *run) runningLinks() (links []pinnedLink, err error) {
	for _, l := range []layout{r.from, r.at} {
		if l == (layout{}) {
			continue
		}
		some, err := l.openLinks()
		if err != nil {
			return nil, err
		}
		for _, pl := range some {
			r.closeOnEnd(pl.link)
		}
		links = append(links, some...)
	}
	return links, nil
}

// sweepHalf removes what a killed migration made. None of it is attached.
func (r *run) sweepHalf() error {
	for _, l := range []layout{r.at.incoming(), r.at} {
		if !exists(l.dir) {
			continue
		}
		if _, err := l.remove(); err != nil {
			return fmt.Errorf("sweep up after an interrupted upgrade: %w", err)
		}
		r.changed("swept up %s, left by an interrupted upgrade", l.dir)
	}
	return nil
}

// loadBeside makes this version's maps and programs, with what the operator chose for the old.
func (r *run) loadBeside() error {
	if m, err := ebpf.LoadPinnedMap(r.from.mapPin("berm_rate_cells"), nil); err == nil {
		r.objs.resize("berm_rate_cells", m.MaxEntries())
		m.Close()
	}
	made, progs, err := r.objs.load(nil)
	if err != nil {
		return err
	}
	r.maps, r.progs = made, progs
	for name, p := range progs {
		r.replace = append(r.replace, &replacement{name: name, new: p})
	}
	links, err := r.runningLinks()
	if err != nil {
		return err
	}
	seen := map[ebpf.ProgramID]bool{}
	for _, l := range links {
		if seen[l.info.Program] {
			continue
		}
		seen[l.info.Program] = true
		p, err := ebpf.NewProgramFromID(l.info.Program)
		if err != nil {
			return fmt.Errorf("program under %s: %w", l.path, err)
		}
		r.report.Before = append(r.report.Before, describeProgram(p))
		p.Close()
	}
	sortPrograms(r.report.Before)
	return nil
}

// lockOld keeps writers from the old maps: what they wrote after it was read would be lost.
func (r *run) lockOld() error {
	dir, err := os.Open(r.from.dir)
	if err != nil {
		return err
	}
	r.closeOnEnd(dir)
	for {
		if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// carry takes the content of the old maps to the new.
func (r *run) carry() error {
	var mine bpf.XDPBermConfig
	if err := r.maps["berm_config"].Lookup(uint32(0), &mine); err != nil {
		return fmt.Errorf("read berm_config: %w", err)
	}
	var old []*ebpf.Map
	entries, carried := 0, 0
	for name, spec := range r.objs.mapSpecs() {
		m, err := ebpf.LoadPinnedMap(r.from.mapPin(name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue // this version is the first that has it
		}
		if err != nil {
			return fmt.Errorf("open %s: %w", name, err)
		}
		r.closeOnEnd(m)
		old = append(old, m)
		if shapes[name] == anew {
			continue
		}
		c, err := newCarrier(name, m, r.maps[name], spec)
		if err != nil {
			return err
		}
		if c.startsOver() {
			r.note("the counters of %s start over: this version counts them otherwise", name)
			continue
		}
		n, err := c.run()
		if err != nil {
			return err
		}
		entries, carried = entries+n, carried+1
	}
	r.noteDropped()
	r.last = append(r.last, func() { r.retire(old) })
	r.changed("carried %d entries of %d maps over from %s", entries, carried, r.from.dir)
	return r.reclaim(mine)
}

// reclaim puts back what only the loader knows, of the configuration that was carried.
func (r *run) reclaim(mine bpf.XDPBermConfig) error {
	var cfg bpf.XDPBermConfig
	m := r.maps["berm_config"]
	if err := m.Lookup(uint32(0), &cfg); err != nil {
		return fmt.Errorf("read berm_config: %w", err)
	}
	cfg.Contract, cfg.TickUnits, cfg.RateMask = mine.Contract, mine.TickUnits, mine.RateMask
	if err := m.Put(uint32(0), &cfg); err != nil {
		return fmt.Errorf("write berm_config: %w", err)
	}
	return nil
}

func (r *run) noteDropped() {
	entries, err := os.ReadDir(r.from.dir)
	if err != nil {
		return // what is there was opened a moment ago
	}
	known := r.objs.mapSpecs()
	for _, e := range entries {
		if hasMapPrefix(e.Name()) && !e.IsDir() && known[e.Name()] == nil {
			r.note("%s is gone: this version has no such map", e.Name())
		}
	}
}

func (r *run) findNew() error {
	for name, p := range r.progs {
		r.replace = append(r.replace, &replacement{name: name, new: p})
	}
	r.last = append(r.last, func() { r.retire(nil) })
	r.changed("took up an upgrade that was interrupted")
	return nil
}

func (r *run) moveLinks() error {
	names, err := os.ReadDir(r.from.links())
	if err != nil {
		return err
	}
	for _, e := range names {
		from, to := filepath.Join(r.from.links(), e.Name()), filepath.Join(r.at.links(), e.Name())
		if err := os.Rename(from, to); err != nil {
			return err
		}
		r.undoing("move "+to+" back", func() error { return os.Rename(to, from) })
	}
	return nil
}

// retire removes the old version, of which nothing is attached any more. A program that still holds its maps, such
// as a CLI that waits for their lock, is refused rather than heard by nobody.
func (r *run) retire(old []*ebpf.Map) {
	for _, m := range old {
		_ = m.Freeze() // busy where the old daemon maps it into memory; that one looks for new pins every second
	}
	r.sweep(r.from)
	r.changed("removed %s", r.from.dir)
}

// sweepLater removes another contract's directory from which a killed loader has moved the links.
func (r *run) sweepLater(l layout) {
	r.last = append(r.last, func() {
		r.sweep(l)
		r.changed("swept up %s, left by an interrupted upgrade", l.dir)
	})
}

func (r *run) sweep(l layout) {
	left, err := l.remove()
	for _, path := range left {
		r.note("%s is not Berm's: left it", path)
	}
	if err != nil {
		r.note("%s could not be removed: %v (try: berm kernel upgrade again)", l.dir, err)
	}
}
