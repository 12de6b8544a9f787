package loader

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// upgradeSteps put new programs under the links that are there.
var upgradeSteps = []step{
	{"probe kernel", (*run).probe},
	{"look for pins", (*run).mustBeUp},
	{"open pins", (*run).openPins},
	{"rehearse", (*run).rehearse},
	{"load new programs", (*run).loadNew},
	{"self-test", (*run).selfTest},
	{"pin", (*run).pinNew},
	{"give to group", (*run).giveToGroup},
	{"update links", (*run).updateLinks},
	{"update egress", (*run).updateEgress},
	{"watch", (*run).watch},
	{"replace pins", (*run).replacePins},
	{"sum up", (*run).sumUp},
}

// replacement is a program on its way to take another's place.
type replacement struct {
	name     string
	old, new *ebpf.Program
}

func (r *run) mustBeUp() error {
	if !exists(r.at.dir) {
		return fmt.Errorf("%s: %w", r.at.dir, ErrNotUp)
	}
	r.report.AlreadyUp, r.upgrading = true, true
	return nil
}

// loadNew loads this version's programs against the pinned maps. r.progs holds them afterwards.
func (r *run) loadNew() error {
	if m := r.maps["berm_rate_cells"]; m != nil {
		r.objs.resize("berm_rate_cells", m.MaxEntries()) // as the operator chose it
	}
	made, progs, err := r.objs.load(r.maps)
	if err != nil {
		return err
	}
	for name, m := range made {
		r.maps[name] = m
		r.changed("made map %s, which the running version lacks", name)
	}
	old := r.progs
	r.progs = progs
	for name, p := range progs {
		r.replace = append(r.replace, &replacement{name, old[name], p})
	}
	for _, p := range old {
		r.closeOnEnd(p)
		r.report.Before = append(r.report.Before, describeProgram(p))
	}
	sortPrograms(r.report.Before)
	return nil
}

func newPin(path string) string { return path + "_new" }

// programPin is where the new program is pinned until all is done. Beside another contract's that is its place.
func (r *run) programPin(name string) string {
	if r.migrating() {
		return r.at.program(name)
	}
	return newPin(r.at.program(name))
}

// pinNew pins new programs beside the old, and maps that had no pin.
func (r *run) pinNew() error {
	for _, rep := range r.replace {
		path := newPin(r.at.program(rep.name))
		if err := os.Remove(path); err == nil {
			r.note("swept up %s, left by an interrupted upgrade", path)
		}
		if err := pinClone(rep.new, path); err != nil {
			return err
		}
		r.undoing("remove "+path, func() error { return removeIfThere(path) })
	}
	for name, m := range r.maps {
		path := r.at.mapPin(name)
		if exists(path) {
			continue
		}
		if err := pinClone(m, path); err != nil {
			return err
		}
		r.undoing("remove "+path, func() error { return os.Remove(path) })
	}
	return nil
}

// updateLinks swaps the program under each link. The kernel does each in one step, so no packet
// passes unseen; when one refuses, those before it go back.
func (r *run) updateLinks() error {
	links, err := r.runningLinks()
	if err != nil {
		return err
	}
	r.watched = links
	for _, l := range links {
		rep, err := r.replacementFor(l)
		if err != nil {
			return err
		}
		running, err := ebpf.NewProgramFromID(l.info.Program)
		if err != nil {
			return fmt.Errorf("program under %s: %w", l.path, err)
		}
		r.closeOnEnd(running)
		switch err := r.update(l, rep); {
		case errors.Is(err, unix.ENOLINK), errors.Is(err, unix.ENODEV):
			r.note("%s is detached: its device or cgroup was removed (try: berm kernel up)", l.path)
			continue
		case err != nil:
			return fmt.Errorf("update %s: %w", l.path, err)
		}
		r.undoing("put the old program back under "+l.path, func() error { return l.link.Update(running) })
		if l.ifname != "" {
			a := Attachment{Name: l.ifname, Index: l.ifindex()}
			if on, err := xdpOn(a.Index); err == nil {
				a.Mode = on.mode
			}
			r.report.Interfaces = append(r.report.Interfaces, a)
		}
		r.changed("replaced the program under %s", l.path)
	}
	return nil
}

func (r *run) replacementFor(l pinnedLink) (*replacement, error) {
	name, err := r.objs.sockOpsName()
	if l.ifname != "" {
		name, err = r.objs.xdpName()
	}
	if err != nil {
		return nil, err
	}
	for _, rep := range r.replace {
		if rep.name == name {
			return rep, nil
		}
	}
	return nil, fmt.Errorf("no program %s to put under %s", name, l.path)
}

// update falls back to a program without an expected attach type: the kernel wants old and new to agree in it, and
// programs loaded by other or older libraries have none.
func (r *run) update(l pinnedLink, rep *replacement) error {
	err := l.link.Update(rep.new)
	if !errors.Is(err, unix.EINVAL) || l.ifname == "" {
		return err
	}
	objs := r.objs.copy()
	spec := objs.XDP.Programs[rep.name]
	if spec.AttachType == ebpf.AttachNone {
		spec.AttachType = ebpf.AttachXDP
	} else {
		spec.AttachType = ebpf.AttachNone
	}
	made, progs, lerr := objs.load(r.maps)
	if lerr != nil {
		return errors.Join(err, lerr)
	}
	closeAll(made)
	for name, p := range progs {
		if name != rep.name {
			p.Close()
		}
	}
	other := progs[rep.name]
	if err := l.link.Update(other); err != nil {
		return errors.Join(err, other.Close())
	}
	// From here on this is the new program, also of the links that follow and of the pin.
	r.closeOnEnd(rep.new)
	rep.new, r.progs[rep.name] = other, other
	path := r.programPin(rep.name)
	if err := errors.Join(os.Remove(path), pinClone(other, path)); err != nil {
		return err
	}
	r.note("the old program was loaded without an attach type: loaded the new one likewise")
	return nil
}

// replacePins comes last and renames over the old pins.
func (r *run) replacePins() error {
	for _, rep := range r.replace {
		path := r.at.program(rep.name)
		var st unix.Stat_t
		had := unix.Stat(path, &st) == nil
		if err := os.Rename(newPin(path), path); err != nil {
			return err
		}
		r.undoing("pin the old program again", func() error {
			err := os.Rename(path, newPin(path))
			if err != nil || !had || rep.old == nil {
				return err
			}
			return errors.Join(pinClone(rep.old, path), os.Chown(path, int(st.Uid), int(st.Gid)), unix.Chmod(path, st.Mode&0o7777))
		})
	}
	return nil
}
