package loader

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
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
	Stack        int    `json:"stack_bytes"`  // of the program's frame and the two largest others: calls nest no deeper
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
	for _, spec := range objs.both() {
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
			Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
		})
		if err != nil {
			return nil, explainLoad(err)
		}
		for name, p := range coll.Programs {
			v, err := parseVerifierLog(p.VerifierLog)
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

func parseVerifierLog(log string) (v Verified, err error) {
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
		v.Stack = deepest(frames)
	}
	return v, nil
}

// deepest is the stack of a program whose functions call one that calls another at most, its own
// frame being the first.
func deepest(frames []int) (bytes int) {
	slices.Sort(frames[1:])
	slices.Reverse(frames[1:])
	for _, n := range frames[:min(len(frames), 3)] {
		bytes += n
	}
	return bytes
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
