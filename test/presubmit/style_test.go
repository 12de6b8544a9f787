package presubmit

import (
	"bytes"
	"go/ast"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestPackageComments wants exactly one comment for a package, beginning as Go's documents do.
func TestPackageComments(t *testing.T) {
	comments := map[string][]string{}
	for _, f := range goFiles(t) {
		if f.test() {
			continue
		}
		comments[f.dir()] = comments[f.dir()] // a package without a comment is seen too
		if f.Doc == nil {
			continue
		}
		comments[f.dir()] = append(comments[f.dir()], f.name)
		want := "Package " + f.Name.Name + " "
		if f.Name.Name == "main" {
			want = strings.ToUpper(filepath.Base(f.dir())[:1]) + filepath.Base(f.dir())[1:] + " "
		}
		if got := f.Doc.Text(); !strings.HasPrefix(got, want) && !strings.HasPrefix(got, "Command ") {
			t.Errorf("%s: the package comment begins %.30q, want %q", f.name, got, want)
		}
	}
	for dir, names := range comments {
		if len(names) != 1 {
			t.Errorf("%s: want one package comment, have %d %v", dir, len(names), names)
		}
	}
}

// TestExportedNamesAreDocumented wants a sentence for every exported name outside of tests.
// A group of constants or fields may share one.
func TestExportedNamesAreDocumented(t *testing.T) {
	for _, f := range goFiles(t) {
		if f.test() {
			continue
		}
		for _, decl := range f.Decls {
			for _, name := range undocumented(decl) {
				t.Errorf("%s:%d: %s has no comment", f.name, f.at(decl), name)
			}
		}
	}
}

func undocumented(decl ast.Decl) []string {
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Doc == nil && d.Name.IsExported() && exportedReceiver(d) && !isInterfaceMethod(d) {
			return []string{d.Name.Name}
		}
	case *ast.GenDecl:
		if d.Doc != nil || d.Tok == token.IMPORT {
			return nil
		}
		var names []string
		for _, spec := range d.Specs {
			names = append(names, undocumentedSpec(spec)...)
		}
		return names
	}
	return nil
}

func undocumentedSpec(spec ast.Spec) []string {
	switch s := spec.(type) {
	case *ast.TypeSpec:
		if s.Doc == nil && s.Comment == nil && s.Name.IsExported() {
			return []string{s.Name.Name}
		}
	case *ast.ValueSpec:
		if s.Doc == nil && s.Comment == nil {
			var names []string
			for _, n := range s.Names {
				if n.IsExported() {
					names = append(names, n.Name)
				}
			}
			return names
		}
	}
	return nil
}

// exportedReceiver says whether a function can be called from outside: methods of unexported
// types cannot.
func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return true
	}
	typ := d.Recv.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
		case *ast.IndexExpr:
			typ = x.X
		case *ast.IndexListExpr:
			typ = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return false
		}
	}
}

// isInterfaceMethod names the methods whose meaning the standard library's interface gives.
func isInterfaceMethod(d *ast.FuncDecl) bool {
	known := []string{"Error", "String", "Unwrap", "Is", "MarshalJSON", "UnmarshalJSON", "MarshalText", "UnmarshalText", "Len", "Less", "Swap"}
	return d.Recv != nil && slices.Contains(known, d.Name.Name)
}

// Above these, a reason must be given: "Longer than 500 lines: …" in the file, "Longer than
// 80 lines: …" in the function's comment.
const (
	goFileLines     = 500
	goFunctionLines = 80
	cHeaderLines    = 400
	cFunctionLines  = 80
	bpfMainLines    = 200
)

var longer = regexp.MustCompile(`Longer than \d+ lines: \S+`)

// TestSizes holds the limits above. Tests, harnesses and generated files are exempt.
func TestSizes(t *testing.T) {
	for _, f := range goFiles(t) {
		if f.test() {
			continue
		}
		src := read(t, f.name)
		if n := bytes.Count(src, []byte("\n")); n > goFileLines && !longer.Match(src) {
			t.Errorf("%s: %d lines, with no reason (\"Longer than %d lines: …\")", f.name, n, goFileLines)
		}
		for _, decl := range f.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if ok && fn.Body != nil && f.lines(fn.Body) > goFunctionLines && !longer.MatchString(fn.Doc.Text()) {
				t.Errorf("%s:%d: %s has %d lines, with no reason", f.name, f.at(fn), fn.Name.Name, f.lines(fn.Body))
			}
		}
	}
	for _, name := range files(t, withSuffix(".c", ".h")) {
		if base := filepath.Base(name); !strings.Contains(base, "test") && !strings.Contains(base, "bench") {
			checkCSizes(t, name)
		}
	}
}

func checkCSizes(t *testing.T, name string) {
	t.Helper()
	src := read(t, name)
	limit := cHeaderLines
	if strings.HasSuffix(name, ".bpf.c") {
		limit = bpfMainLines
	}
	if n := bytes.Count(src, []byte("\n")); n > limit && !longer.Match(src) {
		t.Errorf("%s: %d lines, with no reason (\"Longer than %d lines: …\")", name, n, limit)
	}
	start := 0 // kernel style: a function's braces stand in the first column, each on its line
	for i, line := range strings.Split(string(src), "\n") {
		switch {
		case line == "{":
			start = i + 1
		case line == "}" && start > 0:
			if n := i - start + 2; n > cFunctionLines {
				t.Errorf("%s:%d: a function of %d lines", name, start, n)
			}
			start = 0
		}
	}
}

// TestSkips wants tests to skip only where BERM_NO_SKIP, which CI sets, turns that into a failure.
// A fuzz target may pass over an input.
func TestSkips(t *testing.T) {
	for _, f := range goFiles(t) {
		for _, decl := range f.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || fn.Body == nil || mentions(fn, "\"BERM_NO_SKIP\"") || strings.HasPrefix(fn.Name.Name, "Fuzz") {
				continue
			}
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				if on, name := called(n); on != "" && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, name) {
					t.Errorf("%s:%d: %s.%s where BERM_NO_SKIP is not asked", f.name, f.at(n), on, name)
				}
				return true
			})
		}
	}
}

// TestSleeps wants tests to poll with a deadline, or to run in a bubble of testing/synctest,
// where sleeping takes no time. The pause of a poll says "// poll", any other sleep why: "// sleep: …".
func TestSleeps(t *testing.T) {
	reason := regexp.MustCompile(`// (poll\b|sleep: \S+)`)
	for _, f := range goFiles(t) {
		if !f.test() && folder(f.dir()) != "test" {
			continue
		}
		lines := strings.Split(string(read(t, f.name)), "\n")
		for _, decl := range f.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || fn.Body == nil || inBubble(fn) {
				continue
			}
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				if on, name := called(n); on == "time" && name == "Sleep" && !reason.MatchString(lines[f.at(n)-1]) {
					t.Errorf("%s:%d: time.Sleep with no reason (\"// sleep: …\")", f.name, f.at(n))
				}
				return true
			})
		}
	}
}

// called returns x and F of a call x.F(…) or of a value x.F, when x is a plain name.
func called(n ast.Node) (on, name string) {
	if sel, ok := n.(*ast.SelectorExpr); ok {
		if x, ok := sel.X.(*ast.Ident); ok {
			return x.Name, sel.Sel.Name
		}
	}
	return "", ""
}

// mentions says whether a literal stands in a function.
func mentions(fn *ast.FuncDecl, literal string) bool {
	found := false
	ast.Inspect(fn.Body, func(n ast.Node) bool {
		lit, ok := n.(*ast.BasicLit)
		found = found || ok && lit.Value == literal
		return !found
	})
	return found
}

func inBubble(fn *ast.FuncDecl) bool {
	found := false
	ast.Inspect(fn.Body, func(n ast.Node) bool {
		on, _ := called(n)
		found = found || on == "synctest"
		return !found
	})
	return found
}
