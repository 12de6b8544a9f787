package presubmit

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// mayImport lists, for each folder, the folders of ours it may import.
var mayImport = map[string][]string{
	"bpf":       {},
	"maps":      {"bpf"},
	"loader":    {"bpf", "maps"},
	"userspace": {"maps", "userspace"},
	"cmd":       {"loader", "maps", "userspace", "cmd"},
}

// exempt says why a package may import what its folder may not.
var exempt = map[string]string{
	"cmd/berm/internal/bench": "bpf", // it measures the programs, and loads them without pins
}

// siblings are the packages within userspace that every other one may import.
var siblings = []string{"pipeline", "observe", "clock"}

// TestImports holds bpf ← maps ← {loader, userspace} ← cmd, and that packages within userspace
// do not know each other. Tests may import what they test against.
func TestImports(t *testing.T) {
	cmd := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal("go list:", err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		from := ours(fields[0])
		seen[folder(from)] = true
		for _, imported := range fields[1:] {
			if to := ours(imported); to != "" {
				checkImport(t, from, to)
			}
		}
	}
	for dir := range mayImport {
		if !seen[dir] {
			t.Errorf("mayImport names %s, which has no package", dir)
		}
	}
}

func checkImport(t *testing.T, from, to string) {
	t.Helper()
	if folder(from) == "test" || from == "cmd/bermlab" && folder(to) == "test" { // a lab is a test with a command line
		return
	}
	if allowed := mayImport[folder(from)]; folder(from) != folder(to) && !slices.Contains(allowed, folder(to)) && exempt[from] != folder(to) {
		t.Errorf("%s imports %s: %s may import only %v", from, to, folder(from), allowed)
	}
	if to == "userspace/config" && folder(from) != "cmd" {
		t.Errorf("%s imports %s: only cmd may", from, to)
	}
	if folder(from) != "userspace" || folder(to) != "userspace" || from == "userspace/config" {
		return
	}
	if a, b := concern(from), concern(to); a != b && !slices.Contains(siblings, b) {
		t.Errorf("%s imports its sibling %s: declare a small interface, and let cmd pass the value in", from, to)
	}
}

// ours returns a path within the module, or "" for what is not ours.
func ours(importPath string) string {
	rest, ok := strings.CutPrefix(importPath, module+"/")
	if !ok {
		return ""
	}
	return rest
}

// folder is the first element of a path within the module.
func folder(p string) string {
	first, _, _ := strings.Cut(p, "/")
	return first
}

// concern is the second: userspace/cache/internal/x belongs to cache.
func concern(p string) string {
	_, rest, _ := strings.Cut(p, "/")
	return folder(rest)
}
