package bpf_test

import (
	"errors"
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"github.com/bermedge/berm/bpf"
)

// mostProcessed leaves room below the verifier's million: 6.1 looks at twice as much as 6.18.
const mostProcessed = 400_000

var (
	processedRE = regexp.MustCompile(`processed (\d+) insns`)
	stackRE     = regexp.MustCompile(`stack depth ([0-9+]+)`)
)

// TestVerifierBudget loads every program by itself, prints what it cost, and fails before a kernel does.
func TestVerifierBudget(t *testing.T) {
	if os.Geteuid() != 0 {
		Require(t, errors.New("needs root, to load programs"))
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	for name, load := range map[string]func() (*ebpf.CollectionSpec, error){
		"xdp_ingress": bpf.LoadXDP, "egress": bpf.LoadEgress, "sock_ops": bpf.LoadSockOps, "reuseport": bpf.LoadReuseport, "bench": bpf.LoadBench,
	} {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
		if err != nil {
			t.Fatalf("load %s: %+v", name, err)
		}
		for prog, p := range coll.Programs {
			processed := processedRE.FindStringSubmatch(p.VerifierLog)
			stack := stackRE.FindStringSubmatch(p.VerifierLog)
			if processed == nil || stack == nil {
				t.Fatalf("%s/%s: no figures in the verifier's log: %q", name, prog, p.VerifierLog)
			}
			n, err := strconv.Atoi(processed[1])
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s/%s: %d instructions, %d processed, stack %s", name, prog, len(spec.Programs[prog].Instructions), n, stack[1])
			if n > mostProcessed {
				t.Errorf("%s/%s: the verifier looked at %d instructions; above %d the oldest kernel may refuse it", name, prog, n, mostProcessed)
			}
		}
		coll.Close()
	}
}
