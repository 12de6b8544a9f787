package kernels

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/bermedge/berm/loader"
)

var update = flag.Bool("update", false, "record what the verifiers need now")

// record is what each program needed of each kernel's verifier when it was last looked at. Its diff is the history.
const record = "testdata/verifier.json"

// A program may need so much more than recorded, in per cent: patch releases of a kernel differ, and small
// changes of a program are not worth a diff.
const tolerance = 10

// compare prints what the verifiers need beside what they needed, and fails where it grew.
func compare(t *testing.T, now []loader.Verified) {
	t.Helper()
	var before []loader.Verified
	text, err := os.ReadFile(record)
	if err == nil {
		err = json.Unmarshal(text, &before)
	}
	if err != nil && !*update {
		t.Errorf("%v (write it: make verifier)", err)
	}
	for i := range now {
		now[i].Kernel = series(now[i].Kernel)
	}
	slices.SortFunc(now, inOrder)
	t.Log("what the verifiers need, and how much more than recorded:\n" + render(now, before))
	if *update {
		save(t, now, before)
		return
	}
	for _, v := range now {
		for _, f := range grown(v, find(before, v)) {
			t.Errorf("%s on %s: %s; if that is meant: make verifier", v.Program, v.Kernel, f)
		}
	}
}

// series is the part of a release that names the kernel: 6.1 of 6.1.0-57-cloud-amd64.
func series(release string) string {
	parts := strings.SplitN(release, ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}

func inOrder(a, b loader.Verified) int {
	if c := strings.Compare(a.Program, b.Program); c != 0 {
		return c
	}
	var x, y [2]int
	_, _ = fmt.Sscanf(a.Kernel, "%d.%d", &x[0], &x[1]) // a release that is none sorts first
	_, _ = fmt.Sscanf(b.Kernel, "%d.%d", &y[0], &y[1])
	return slices.Compare(x[:], y[:])
}

// find returns the recorded need of the same program and kernel; zero when there is none.
func find(all []loader.Verified, v loader.Verified) loader.Verified {
	for _, r := range all {
		if r.Program == v.Program && r.Kernel == v.Kernel {
			return r
		}
	}
	return loader.Verified{}
}

type figure struct {
	name        string
	now, before int
}

func figures(now, before loader.Verified) []figure {
	return []figure{
		{"instructions", now.Instructions, before.Instructions},
		{"processed", now.Processed, before.Processed},
		{"states", now.States, before.States},
		{"peak states", now.PeakStates, before.PeakStates},
		{"stack", now.Stack, before.Stack},
	}
}

// grown says what is beyond the tolerance. A kernel without a record has nothing to be compared with.
func grown(now, before loader.Verified) (list []string) {
	if before.Program == "" {
		return nil
	}
	for _, f := range figures(now, before) {
		if f.now*100 > f.before*(100+tolerance) {
			list = append(list, fmt.Sprintf("%d %s, recorded are %d", f.now, f.name, f.before))
		}
	}
	return list
}

func render(now, before []loader.Verified) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "program\tkernel\tinstructions\t\tprocessed\t\tstates\t\tpeak states\t\tstack\t\t")
	for _, v := range now {
		fmt.Fprintf(w, "%s\t%s\t", v.Program, v.Kernel)
		for _, f := range figures(v, find(before, v)) {
			diff := "new"
			if f.before != 0 {
				diff = fmt.Sprintf("%+d %%", (f.now-f.before)*100/f.before)
			}
			fmt.Fprintf(w, "%d\t%s\t", f.now, diff)
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	return b.String()
}

// save keeps what is recorded of kernels that were not asked now.
func save(t *testing.T, now, before []loader.Verified) {
	t.Helper()
	for _, r := range before {
		if find(now, r).Program == "" && slices.ContainsFunc(now, func(v loader.Verified) bool { return v.Program == r.Program }) {
			now = append(now, r)
		}
	}
	slices.SortFunc(now, inOrder)
	var lines []string // one for each, so that a diff reads as a table
	for _, v := range now {
		line, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, string(line))
	}
	if err := os.WriteFile(record, []byte("[\n"+strings.Join(lines, ",\n")+"\n]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A figure beyond the tolerance is told, one within it or a kernel without a record is not.
func TestGrown(t *testing.T) {
	was := loader.Verified{Program: "p", Kernel: "6.1", Instructions: 100, Processed: 1000, States: 50, PeakStates: 20, Stack: 200}
	now := was
	now.Instructions, now.Processed, now.Stack = 110, 1101, 150
	if got := grown(now, was); len(got) != 1 || !strings.Contains(got[0], "1101 processed, recorded are 1000") {
		t.Errorf("%q", got)
	}
	if got := grown(now, loader.Verified{}); got != nil {
		t.Errorf("without a record: %q", got)
	}
	for release, want := range map[string]string{"6.1.0-57-cloud-amd64": "6.1", "6.12.107+deb12-cloud-amd64": "6.12", "7": "7"} {
		if got := series(release); got != want {
			t.Errorf("series of %s is %s", release, got)
		}
	}
}
