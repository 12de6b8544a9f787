package presubmit

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A module of a version that its patch was not made for ends the build with one sentence, which says what to do.
func TestUnknownVersion(t *testing.T) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for _, module := range []string{"github.com/quic-go/quic-go", "golang.org/x/net"} {
		dir := t.TempDir()
		if err := os.CopyFS(filepath.Join(dir, "scripts/patched"), os.DirFS("scripts/patched")); err != nil {
			t.Fatal(err)
		}
		version := regexp.MustCompile(`(` + regexp.QuoteMeta(module) + `) (v\S+)`)
		known := version.FindSubmatch(mod)
		if known == nil {
			t.Fatalf("go.mod names no %s", module)
		}
		if err := os.WriteFile(filepath.Join(dir, "go.mod"), version.ReplaceAll(mod, []byte("$1 v0.999.0")), 0o644); err != nil {
			t.Fatal(err)
		}
		script := filepath.Join(dir, "scripts/patched/prepare")
		if err := os.Chmod(script, 0o755); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(script).CombinedOutput()
		if err == nil {
			t.Fatalf("accepted: %s", out)
		}
		for _, want := range []string{module + " v0.999.0", "adapt the patch", "go get " + module + "@" + string(known[2])} {
			if !strings.Contains(string(out), want) {
				t.Errorf("does not say %q", want)
			}
		}
		if strings.Count(string(out), "\n") != 1 {
			t.Errorf("more than a sentence:\n%s", out)
		}
		if _, err := os.Stat(filepath.Join(dir, ".build")); err == nil {
			t.Error("it left something behind")
		}
	}
}
