package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// openPins opens what is pinned. What has lost its pin, but still runs, is found through the rest: a
// program through the links that run it, a map through the programs that use it.
func (r *run) openPins() error {
	if r.fresh() {
		return nil
	}
	for name := range r.objs.mapSpecs() {
		m, err := ebpf.LoadPinnedMap(r.at.mapPin(name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("open pin of %s: %w", name, err)
		}
		r.maps[name] = m
	}
	links, err := r.at.openLinks()
	if err != nil {
		return err
	}
	for _, l := range links {
		r.closeOnEnd(l.link)
	}
	names, err := r.objs.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		p, err := r.at.openProgram(name, links)
		if err != nil {
			return err
		}
		if p != nil {
			r.progs[name] = p
		}
	}
	return r.recoverMaps()
}

// openProgram returns nil when neither a pin nor a link holds the program.
func (l layout) openProgram(name string, links []pinnedLink) (*ebpf.Program, error) {
	p, err := ebpf.LoadPinnedProgram(l.program(name), nil)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return p, err
	}
	for _, pl := range links {
		p, err := ebpf.NewProgramFromID(pl.info.Program)
		if err != nil {
			return nil, fmt.Errorf("program of %s: %w", pl.path, err)
		}
		if info, err := p.Info(); err == nil && sameName(info.Name, name) {
			return p, nil
		}
		p.Close()
	}
	return nil, nil
}

func (r *run) recoverMaps() error {
	for _, p := range r.progs {
		info, err := p.Info()
		if err != nil {
			return fmt.Errorf("program info: %w", err)
		}
		ids, _ := info.MapIDs()
		for _, id := range ids {
			m, err := ebpf.NewMapFromID(id)
			if err != nil {
				return fmt.Errorf("map %d: %w", id, err)
			}
			if !r.adopt(m) {
				m.Close()
			}
		}
	}
	return nil
}

// adopt takes m if a shared map of its name has no pin.
func (r *run) adopt(m *ebpf.Map) bool {
	info, err := m.Info()
	if err != nil {
		return false
	}
	for name, spec := range r.objs.mapSpecs() {
		if r.maps[name] == nil && sameName(info.Name, name) && spec.ValueSize == info.ValueSize && spec.Type == info.Type {
			r.maps[name] = m
			return true
		}
	}
	return false
}

// sameName compares a name that the kernel may have cut to 15 bytes with a whole one.
func sameName(kernels, whole string) bool {
	return kernels == whole[:min(len(whole), 15)] || kernels == whole
}

// pinnedLink is a link with where it is pinned.
type pinnedLink struct {
	path   string
	ifname string // of XDP links
	link   link.Link
	info   *link.Info
}

func (p *pinnedLink) ifindex() int {
	if x := p.info.XDP(); x != nil {
		return int(x.Ifindex)
	}
	return 0
}

func openLink(path string) (*pinnedLink, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	info, err := l.Info()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), l.Close())
	}
	return &pinnedLink{path: path, link: l, info: info}, nil
}

// openLinks opens all links, those of XDP first.
func (l layout) openLinks() (links []pinnedLink, err error) {
	defer func() {
		if err != nil {
			for _, pl := range links {
				pl.link.Close()
			}
		}
	}()
	names, err := l.linkNames()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		pl, err := openLink(l.xdpLink(name))
		if err != nil {
			return links, err
		}
		pl.ifname = name
		links = append(links, *pl)
	}
	if exists(l.sockOpsLink()) {
		pl, err := openLink(l.sockOpsLink())
		if err != nil {
			return links, err
		}
		links = append(links, *pl)
	}
	return links, nil
}

// remove detaches and unpins everything of ours below l.dir, and says what it left because it is not ours.
func (l layout) remove() (left []string, err error) {
	links, err := l.openLinks()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, pl := range links {
		if pl.here() {
			errs = append(errs, removeEgress(pl.ifindex()))
		}
		// Removing the pin would do, were it certain that nobody holds the link open.
		if err := pl.link.Detach(); err != nil {
			errs = append(errs, fmt.Errorf("detach %s: %w", pl.path, err))
		}
		errs = append(errs, os.Remove(pl.path), pl.link.Close())
	}
	for _, dir := range []string{l.links(), l.programs(), l.dir} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, e := range entries {
			path := dir + "/" + e.Name()
			if dir == l.dir && !hasMapPrefix(e.Name()) || dir == l.links() || e.IsDir() {
				left = append(left, path)
				continue
			}
			errs = append(errs, os.Remove(path))
		}
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && len(left) == 0 {
			errs = append(errs, err)
		}
	}
	return left, errors.Join(errs...)
}

// pinClone pins a copy, since a handle remembers its pin, and ours are renamed afterwards.
func pinClone[T interface {
	Clone() (T, error)
	Pin(string) error
	Close() error
}](p T, path string) error {
	c, err := p.Clone()
	if err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	if err := errors.Join(c.Pin(path), c.Close()); err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	return nil
}
