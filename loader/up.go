package loader

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf/rlimit"

	"github.com/bermedge/berm/bpf"
)

// upSteps bring the kernel half up. When parts of it are there already, each step supplies only
// what is missing of its own.
var upSteps = []step{
	{"probe kernel", (*run).probe},
	{"find interfaces", (*run).findInterfaces},
	{"mount bpffs", (*run).mountBPFFS},
	{"look for pins", (*run).look},
	{"make directory", (*run).makeDirectory},
	{"open pins", (*run).openPins},
	{"rehearse", (*run).rehearse},
	{"load", (*run).load},
	{"configure", (*run).configure},
	{"self-test", (*run).selfTest},
	{"pin", (*run).pin},
	{"give to group", (*run).giveToGroup},
	{"attach XDP", (*run).attachXDP},
	{"attach egress", (*run).attachEgress},
	{"attach sock_ops", (*run).attachSockOps},
	{"publish", (*run).publish},
	{"sum up", (*run).sumUp},
}

func (r *run) probe() error {
	var err error
	if r.objs, err = embedded(); err != nil {
		return err
	}
	if err := probe(r.objs); err != nil {
		return err
	}
	if r.opts.spec != nil {
		r.opts.spec(r.objs)
	}
	// Only kernels before 5.11 account BPF memory to this limit; elsewhere this does nothing.
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("lift the memlock limit, to which this kernel accounts maps: %w", err)
	}
	if jit, err := os.ReadFile("/proc/sys/net/core/bpf_jit_enable"); err == nil && strings.TrimSpace(string(jit)) == "0" {
		r.note("the BPF JIT is off, which makes every packet several times dearer (sysctl net.core.bpf_jit_enable=1)")
	}
	r.closers = append(r.closers, &r.tick)
	return r.tick.start()
}

func (r *run) findInterfaces() error {
	for _, name := range r.opts.Interfaces {
		ifc, err := findInterface(name)
		if err != nil {
			return err
		}
		r.ifaces = append(r.ifaces, ifc)
	}
	if len(r.ifaces) == 0 {
		r.note("no interface is named: the programs are loaded and see no packet (kernel.interfaces)")
	}
	return nil
}

func findInterface(name string) (*net.Interface, error) {
	ifc, err := net.InterfaceByName(name)
	if err != nil {
		if strings.Contains(err.Error(), "no such network interface") {
			return nil, fmt.Errorf("interface %s: %w", name, ErrNoInterface)
		}
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	return ifc, nil
}

// look decides between a new directory and one that is there, and sweeps up after a loader that
// was killed: nobody else is at work while we hold the lock.
func (r *run) look() error {
	dirs, err := contracts(r.opts.Pins)
	if err != nil {
		return err
	}
	for _, l := range dirs {
		switch _, half := cutNew(l.dir); {
		case half:
			if _, err := l.remove(); err != nil {
				return fmt.Errorf("sweep up after an interrupted start: %w", err)
			}
			r.changed("swept up %s, left by an interrupted start", l.dir)
		case l != r.at && exists(r.at.dir) && !l.attached():
			r.sweepLater(l)
		case l != r.at:
			return fmt.Errorf("%s: %w, this is v%d (try: berm kernel upgrade, which takes it over)", l.dir, ErrContract, r.opts.contract)
		}
	}
	if !exists(r.at.dir) {
		r.to = r.at.incoming()
	}
	return nil
}

func (r *run) fresh() bool { return r.to != r.at }

func (r *run) makeDirectory() error {
	for _, dir := range []string{r.opts.Pins, r.to.dir, r.to.programs(), r.to.links()} {
		made, err := makeDirs(dir)
		if len(made) > 0 {
			r.undoing("remove "+dir, func() error { return removeDirs(made) })
		}
		if err != nil {
			return err
		}
		for _, d := range made {
			if err := os.Chmod(d, 0o700); err != nil { // until giveToGroup
				return err
			}
		}
	}
	if on, err := onBPFFS(r.to.dir); err != nil || !on {
		return errors.Join(err, fmt.Errorf("%s is not on a bpffs, where alone pins can be", r.to.dir))
	}
	return nil
}

// complete: every program and map was found, so that there is nothing to load.
func (r *run) complete() bool {
	if r.upgrading {
		return false
	}
	for _, spec := range r.objs.all() {
		for name := range spec.Programs {
			if r.progs[name] == nil {
				return false
			}
		}
	}
	for name := range r.objs.mapSpecs() {
		if r.maps[name] == nil {
			return false
		}
	}
	return true
}

// load makes and loads whatever openPins did not find.
func (r *run) load() error {
	if r.complete() {
		return nil
	}
	r.sizeMaps(r.objs)
	made, progs, err := r.objs.load(r.maps)
	if err != nil {
		return err
	}
	for name, m := range made {
		r.maps[name] = m
	}
	for name, p := range progs {
		if r.progs[name] != nil {
			p.Close()
			continue
		}
		r.progs[name] = p
	}
	return nil
}

// sizeMaps sets what the operator may choose; a table that is there keeps its size.
func (r *run) sizeMaps(o *objects) {
	sets := uint32(r.opts.RateCells / rateWays)
	if m := r.maps["berm_rate_cells"]; m != nil {
		if m.MaxEntries() != sets {
			r.note("the rate table keeps its %d cells, not the %d asked for, until berm kernel down and up",
				m.MaxEntries()*rateWays, r.opts.RateCells)
		}
		sets = m.MaxEntries()
	}
	o.resize("berm_rate_cells", sets)
}

// configure writes what only the loader knows. A configuration that is there belongs to the daemon.
func (r *run) configure() error {
	tick, err := r.tick.length()
	if err != nil {
		return err
	}
	r.report.TickHz = int(time.Second / tick)
	var cfg bpf.XDPBermConfig
	m := r.maps["berm_config"]
	if err := m.Lookup(uint32(0), &cfg); err != nil {
		return fmt.Errorf("read berm_config: %w", err)
	}
	const observe = uint32(bpf.XDPBermConfigFlagsBERM_CONFIG_OBSERVE_ONLY)
	switch cfg.Contract {
	case uint32(r.opts.contract):
		if running := cfg.Flags&observe != 0; running != r.opts.ObserveOnly {
			r.note("observe-only is %t in the running configuration, which stays", running)
		}
		return nil
	case 0:
	default:
		return fmt.Errorf("%s says contract %d: %w", r.at.dir, cfg.Contract, ErrContract)
	}
	var seed [16]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return fmt.Errorf("seed: %w", err)
	}
	cfg.Contract = uint32(r.opts.contract)
	cfg.Seed = [2]uint64{binary.NativeEndian.Uint64(seed[:]), binary.NativeEndian.Uint64(seed[8:])}
	cfg.TickUnits = uint32(tick / rateUnit)
	cfg.RateMask = r.maps["berm_rate_cells"].MaxEntries() - 1
	if r.opts.ObserveOnly {
		cfg.Flags |= observe
		r.note("observe-only: what would be dropped is counted and passes")
	}
	if a := r.opts.Self4; a.IsValid() {
		cfg.Self4.Octets = a.As16()
	}
	if a := r.opts.Self6; a.IsValid() {
		cfg.Self6.Octets = a.As16()
	}
	if err := r.silence(); err != nil {
		return err
	}
	if err := m.Put(uint32(0), &cfg); err != nil {
		return fmt.Errorf("write berm_config: %w", err)
	}
	if !r.fresh() {
		r.changed("wrote berm_config anew, which somebody had emptied: berm reload puts the file in force again")
	}
	return nil
}

// silence has no packet sampled until somebody asks for samples: a new table's zeros mean every one.
func (r *run) silence() error {
	never := bpf.XDPBermSample{Mask: math.MaxUint64}
	m := r.maps["berm_sample"]
	for i := range m.MaxEntries() {
		if err := m.Put(i, &never); err != nil {
			return fmt.Errorf("write berm_sample: %w", err)
		}
	}
	return nil
}

// pin pins the maps and programs that have no pin yet.
func (r *run) pin() error {
	put := func(path string, pin func(string) error) error {
		if exists(path) {
			return nil
		}
		if err := pin(path); err != nil {
			return err
		}
		r.undoing("remove "+path, func() error { return os.Remove(path) })
		if !r.fresh() {
			r.changed("pinned %s again", path)
		}
		return nil
	}
	for name, m := range r.maps {
		if err := put(r.to.mapPin(name), func(path string) error { return pinClone(m, path) }); err != nil {
			return err
		}
	}
	for name, p := range r.progs {
		if err := put(r.to.program(name), func(path string) error { return pinClone(p, path) }); err != nil {
			return err
		}
	}
	return nil
}

// publish makes the directory appear as a whole, or not at all.
func (r *run) publish() error {
	if !r.fresh() {
		r.report.AlreadyUp = true
		return nil
	}
	from, to := r.to, r.at
	if err := os.Rename(from.dir, to.dir); err != nil {
		return err
	}
	r.undoing("withdraw "+to.dir, func() error { return os.Rename(to.dir, from.dir) })
	r.to = to
	r.changed("pinned programs, links and %d maps under %s", len(r.maps), filepath.Clean(to.dir))
	return nil
}

func (r *run) sumUp() error {
	for _, p := range r.progs {
		r.report.Programs = append(r.report.Programs, describeProgram(p))
	}
	sortPrograms(r.report.Programs)
	for _, m := range r.maps {
		r.report.Memory += mapMemory(m)
	}
	return nil
}
