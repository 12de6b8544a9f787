package loader

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// Verified is what the kernel's verifier needed for one program. Its limits are one million
// instructions and 512 bytes of stack.
type Verified struct {
	Program      string `json:"program"`
	Kernel       string `json:"kernel"`
	Instructions int    `json:"instructions"` // of the program
	Processed    int    `json:"processed"`    // walked, over all paths
	States       int    `json:"states"`       // kept, in total
	PeakStates   int    `json:"peak_states"`  // kept at once
	Stack        int    `json:"stack_bytes"`  // of the deepest chain of calls
}

var (
	verifierLine = regexp.MustCompile(`processed (\d+) insns .*total_states (\d+) peak_states (\d+)`)
	stackLine    = regexp.MustCompile(`stack depth ([\d+]+)`)
)

// Verify has the running kernel verify the embedded programs against maps of their own, attaches
// nothing, and returns what that took.
func Verify() ([]Verified, error) {
	objs, err := embedded()
	if err != nil {
		return nil, err
	}
	objs.shrink()
	var all []Verified
	for _, spec := range objs.all() {
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
			Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
		})
		if err != nil {
			return nil, explainLoad(err)
		}
		for name, p := range coll.Programs {
			v, err := parseVerifierLog(p.VerifierLog, spec.Programs[name].Instructions)
			if err != nil {
				coll.Close()
				return nil, fmt.Errorf("program %s: %w", name, err)
			}
			v.Program, v.Kernel = name, kernelRelease()
			v.Instructions = len(spec.Programs[name].Instructions)
			all = append(all, v)
		}
		coll.Close()
	}
	return all, nil
}

func parseVerifierLog(log string, insns asm.Instructions) (v Verified, err error) {
	m := verifierLine.FindStringSubmatch(log)
	if m == nil {
		return v, fmt.Errorf("the verifier's log has no statistics: %q", log)
	}
	for i, p := range []*int{&v.Processed, &v.States, &v.PeakStates} {
		if *p, err = strconv.Atoi(m[i+1]); err != nil {
			return v, err
		}
	}
	if m := stackLine.FindStringSubmatch(log); m != nil {
		var frames []int
		for _, frame := range strings.Split(m[1], "+") {
			n, err := strconv.Atoi(frame)
			if err != nil {
				return v, err
			}
			frames = append(frames, n)
		}
		v.Stack, err = deepest(insns, frames)
	}
	return v, err
}

// stackUnit is what a frame takes a multiple of, at least one: kernels before 6.9 count so, newer ones
// with less.
const stackUnit = 32

// deepest is the stack of the deepest chain of calls: the verifier's log has each function's own frame,
// in their order, and its limit is for what is on the stack at once. It lets no function call itself.
func deepest(insns asm.Instructions, frames []int) (int, error) {
	calls := map[string][]string{}
	var order []string
	for i := range insns {
		if fn := btf.FuncMetadata(&insns[i]); fn != nil {
			order = append(order, fn.Name)
		}
		if n := len(order); n > 0 && insns[i].IsFunctionCall() {
			calls[order[n-1]] = append(calls[order[n-1]], insns[i].Reference())
		}
	}
	if len(order) != len(frames) {
		return 0, fmt.Errorf("the verifier tells of %d functions, the program has %d", len(frames), len(order))
	}
	depth := map[string]int{}
	var walk func(string) int
	walk = func(name string) int {
		if d, ok := depth[name]; ok {
			return d
		}
		below := 0
		for _, callee := range calls[name] {
			below = max(below, walk(callee))
		}
		frame := max(frames[slices.Index(order, name)], 1)
		depth[name] = below + (frame+stackUnit-1)/stackUnit*stackUnit
		return depth[name]
	}
	return walk(order[0]), nil
}

// shrink makes the large tables small, for programs that never see traffic. A lookup
// beyond the end finds nothing, which the programs take as no opinion.
func (o *objects) shrink() {
	for name, m := range o.mapSpecs() {
		if m.Type == ebpf.Array && m.MaxEntries > shrunk || m.Type == ebpf.LRUHash {
			o.resize(name, min(m.MaxEntries, shrunk))
		}
	}
}

const shrunk = 65536
