package presubmit

import (
	"bytes"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// module is the import path that ours begin with.
const module = "github.com/bermedge/berm"

// update rewrites the generated lists instead of comparing them.
var update = flag.Bool("update", false, "write the lists in doc/")

// TestMain runs everything from the top of the repository.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := os.Chdir("../.."); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// tracked lists what git knows or would add, relative to the top of the repository.
var tracked = sync.OnceValues(func() ([]string, error) {
	// The tree may be another user's: git would refuse to look at it under sudo or in a container.
	cmd := exec.Command("git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	var files []string
	for f := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		if _, serr := os.Lstat(f); serr == nil { // listed, but deleted in the work tree
			files = append(files, f)
		}
	}
	return files, err
})

// files returns the tracked files for which keep holds.
func files(t *testing.T, keep func(name string) bool) []string {
	t.Helper()
	all, err := tracked()
	if err != nil {
		t.Fatal("git ls-files:", err)
	}
	var kept []string
	for _, f := range all {
		if keep(f) {
			kept = append(kept, f)
		}
	}
	if len(kept) == 0 {
		t.Fatal("no file of that kind: this test looks at nothing")
	}
	return kept
}

func withSuffix(suffixes ...string) func(string) bool {
	return func(name string) bool {
		for _, s := range suffixes {
			if strings.HasSuffix(name, s) {
				return true
			}
		}
		return false
	}
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// generated says whether a file carries the mark that Go's tools know.
func generated(src []byte) bool {
	head, _, _ := bytes.Cut(src, []byte("\npackage "))
	return bytes.Contains(head, []byte("// Code generated ")) && bytes.Contains(head, []byte(" DO NOT EDIT."))
}

// goFile is a parsed source file of ours; generated files are left out.
type goFile struct {
	name string
	fset *token.FileSet
	*ast.File
}

func (f goFile) test() bool        { return strings.HasSuffix(f.name, "_test.go") }
func (f goFile) dir() string       { return path.Dir(filepath.ToSlash(f.name)) }
func (f goFile) at(n ast.Node) int { return f.fset.Position(n.Pos()).Line }
func (f goFile) lines(n ast.Node) int {
	return f.fset.Position(n.End()).Line - f.at(n) + 1
}

func goFiles(t *testing.T) []goFile {
	t.Helper()
	var parsed []goFile
	for _, name := range files(t, withSuffix(".go")) {
		src := read(t, name)
		if generated(src) {
			continue
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, name, src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, goFile{name, fset, f})
	}
	return parsed
}

// Go has no place for its caches without a home, which env -i and units do not have.
func TestMakeFindsHome(t *testing.T) {
	cmd := exec.Command("make", "--eval", "home: ; @echo $$HOME", "home")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	out, err := cmd.Output()
	if home := strings.TrimSpace(string(out)); err != nil || !path.IsAbs(home) {
		t.Errorf("make without HOME in its environment says %q, %v", home, err)
	}
}
