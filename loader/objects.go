package loader

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// objects are the programs to load, with the maps they declare.
type objects struct {
	XDP, Egress, SockOps, Reuseport *ebpf.CollectionSpec
}

func embedded() (*objects, error) {
	xdp, err := bpf.LoadXDP()
	if err != nil {
		return nil, fmt.Errorf("read embedded XDP program: %w", err)
	}
	egress, err := bpf.LoadEgress()
	if err != nil {
		return nil, fmt.Errorf("read embedded egress program: %w", err)
	}
	sockOps, err := bpf.LoadSockOps()
	if err != nil {
		return nil, fmt.Errorf("read embedded sock_ops program: %w", err)
	}
	reuseport, err := bpf.LoadReuseport()
	if err != nil {
		return nil, fmt.Errorf("read embedded sk_reuseport program: %w", err)
	}
	return &objects{xdp, egress, sockOps, reuseport}, nil
}

func (o *objects) copy() *objects {
	return &objects{o.XDP.Copy(), o.Egress.Copy(), o.SockOps.Copy(), o.Reuseport.Copy()}
}

func (o *objects) all() []*ebpf.CollectionSpec {
	return []*ebpf.CollectionSpec{o.XDP, o.Egress, o.SockOps, o.Reuseport}
}

// mapSpecs are the shared maps, those that are pinned.
func (o *objects) mapSpecs() map[string]*ebpf.MapSpec {
	all := map[string]*ebpf.MapSpec{}
	for _, spec := range o.all() {
		for name, m := range spec.Maps {
			if strings.HasPrefix(name, mapPrefix) {
				all[name] = m
			}
		}
	}
	return all
}

// resize gives the map name room for n entries.
func (o *objects) resize(name string, n uint32) {
	for _, spec := range o.all() {
		if m := spec.Maps[name]; m != nil {
			m.MaxEntries = n
		}
	}
}

// The hooks, by which programs are found in specs, collections and pins.
func programName(spec *ebpf.CollectionSpec, t ebpf.ProgramType) (string, error) {
	for name, p := range spec.Programs {
		if p.Type == t {
			return name, nil
		}
	}
	return "", fmt.Errorf("no %s program among %v", t, slices.Collect(maps.Keys(spec.Programs)))
}

func (o *objects) xdpName() (string, error)     { return programName(o.XDP, ebpf.XDP) }
func (o *objects) egressName() (string, error)  { return programName(o.Egress, ebpf.SchedCLS) }
func (o *objects) sockOpsName() (string, error) { return programName(o.SockOps, ebpf.SockOps) }

// reuseportName is that of the program that daemons attach to their own sockets: no link holds it.
func (o *objects) reuseportName() (string, error) { return programName(o.Reuseport, ebpf.SkReuseport) }

// names are those of all programs.
func (o *objects) names() ([]string, error) {
	var names []string
	for _, f := range []func() (string, error){o.xdpName, o.egressName, o.sockOpsName, o.reuseportName} {
		name, err := f()
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}

// load loads all programs against the maps in have and makes those that are missing.
// It returns the new maps; the caller owns what it gets.
func (o *objects) load(have map[string]*ebpf.Map) (made map[string]*ebpf.Map, progs map[string]*ebpf.Program, err error) {
	made, progs = map[string]*ebpf.Map{}, map[string]*ebpf.Program{}
	defer func() {
		if err != nil {
			closeAll(made)
			closeAll(progs)
		}
	}()
	for _, spec := range o.all() {
		with := map[string]*ebpf.Map{}
		for name := range spec.Maps {
			if m := cmpOr(made[name], have[name]); m != nil {
				with[name] = m
			}
		}
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: with})
		if err != nil {
			return nil, nil, explainLoad(err)
		}
		for name := range coll.Maps {
			if strings.HasPrefix(name, mapPrefix) && with[name] == nil {
				made[name] = coll.DetachMap(name)
			}
		}
		for name := range coll.Programs {
			progs[name] = coll.DetachProgram(name)
		}
		coll.Close() // its clones of replacements, and private maps, which programs hold
	}
	return made, progs, nil
}

func cmpOr(a, b *ebpf.Map) *ebpf.Map {
	if a != nil {
		return a
	}
	return b
}

func closeAll[T interface{ Close() error }](m map[string]T) {
	for _, c := range m {
		c.Close()
	}
}

// explainLoad adds the verifier's own words, and what to do where that is known.
func explainLoad(err error) error {
	var ve *ebpf.VerifierError
	switch {
	case errors.As(err, &ve):
		tail := ve.Log[max(0, len(ve.Log)-8):]
		return fmt.Errorf("load: %w\n\t%s\n(the kernel's verifier refused a program that newer kernels take; "+
			"please report it with this text)", ve.Cause, strings.Join(tail, "\n\t"))
	case errors.Is(err, ebpf.ErrMapIncompatible):
		return fmt.Errorf("load: %w: the pinned map has another shape under the same contract; berm kernel down, then up, loses its content: %w",
			ErrContract, err)
	}
	return fmt.Errorf("load: %w", err)
}
