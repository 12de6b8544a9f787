// Package manual writes manual pages from the model of a command line, so that they say what
// --help says.
package manual

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/alecthomas/kong"
)

// Book is what a command line's model does not know.
type Book struct {
	Date    string // of the release; empty for none, so that the same source gives the same pages
	Version string
	Ending  []Section // of every page: files, environment, exit codes
}

// Section is a titled text; lines that start with a tab are terms, the next line explains.
type Section struct{ Title, Text string }

// Write puts one page for the program and one for each of its commands into dir and returns
// their paths.
func (b *Book) Write(dir string, app *kong.Application) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var paths []string
	nodes := []*kong.Node{app.Node}
	for _, c := range app.Children {
		if !c.Hidden {
			nodes = append(nodes, c)
		}
	}
	for _, n := range nodes {
		path := filepath.Join(dir, page(n)+".1")
		f, err := os.Create(path)
		if err != nil {
			return paths, err
		}
		w := &writer{w: f}
		b.page(w, n)
		if err := f.Close(); err != nil || w.err != nil {
			return paths, fmt.Errorf("write %s: %w", path, firstOf(w.err, err))
		}
		paths = append(paths, path)
	}
	return paths, nil
}

func firstOf(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// page is a page's name: berm, berm-vip.
func page(n *kong.Node) string { return strings.ReplaceAll(n.FullPath(), " ", "-") }

type writer struct {
	w   io.Writer
	err error
}

func (w *writer) printf(format string, args ...any) {
	if w.err == nil {
		_, w.err = fmt.Fprintf(w.w, format, args...)
	}
}

func (b *Book) page(w *writer, n *kong.Node) {
	w.printf(".TH %s 1 %s %s %s\n", quote(strings.ToUpper(page(n))), quote(b.Date), quote("Berm "+b.Version), quote("Berm"))
	summary := n.Help
	if i := strings.IndexAny(summary, ".:\n"); i > 0 {
		summary = summary[:i]
	}
	w.printf(".SH NAME\n%s \\- %s\n", text(page(n)), text(lowerFirst(summary)))
	w.printf(".SH SYNOPSIS\n")
	for _, leaf := range synopses(n) {
		w.printf(".B %s\n%s\n.br\n", text(leaf.FullPath()), text(arguments(leaf)))
	}
	w.printf(".SH DESCRIPTION\n")
	prose, examples := split(n.Detail)
	if n.Parent == nil {
		prose = n.Help // the rest of its help is in sections of its own
	}
	w.paragraphs(prose)
	if n.Parent == nil {
		w.commands(n)
	} else {
		for _, leaf := range n.Children {
			w.subcommand(leaf)
		}
	}
	w.options(n)
	if examples != "" && len(n.Children) == 0 || examples != "" && n.Parent == nil {
		w.printf(".SH EXAMPLES\n")
		w.example(examples)
	}
	for _, s := range b.Ending {
		w.section(s)
	}
	w.printf(".SH SEE ALSO\n%s\n", seeAlso(n))
}

func synopses(n *kong.Node) []*kong.Node {
	if n.Parent == nil || len(n.Children) == 0 {
		return []*kong.Node{n}
	}
	return n.Children
}

func arguments(n *kong.Node) string {
	if n.Parent == nil {
		return "[flags] command ..."
	}
	var words []string
	if len(n.Flags) > 0 {
		words = append(words, "[flags]")
	}
	for _, p := range n.Positional {
		words = append(words, p.Summary())
	}
	return strings.Join(words, " ")
}

// split takes the examples off a help text.
func split(detail string) (prose, examples string) {
	prose, examples, _ = strings.Cut(detail, "Examples:\n")
	return strings.TrimSpace(prose), strings.Trim(examples, "\n")
}

func (w *writer) commands(n *kong.Node) {
	w.printf(".SH COMMANDS\n")
	for _, c := range n.Children {
		if !c.Hidden {
			w.printf(".TP\n.BR %s (1)\n%s\n", text(page(c)), text(c.Help))
		}
	}
}

func (w *writer) subcommand(n *kong.Node) {
	w.printf(".SS %s\n%s\n", quote(n.FullPath()+" "+arguments(n)), text(n.Help))
	prose, examples := split(n.Detail)
	if prose != "" {
		w.printf(".PP\n")
		w.paragraphs(prose)
	}
	w.values(n)
	if examples != "" {
		w.printf(".PP\nExamples:\n")
		w.example(examples)
	}
}

// options lists those of a command without subcommands, and the program's own everywhere.
func (w *writer) options(n *kong.Node) {
	w.printf(".SH OPTIONS\n")
	if n.Parent != nil && len(n.Children) == 0 {
		w.values(n)
	}
	root := n
	for root.Parent != nil {
		root = root.Parent
	}
	w.flags(root.Flags)
}

func (w *writer) values(n *kong.Node) {
	for _, p := range n.Positional {
		w.printf(".TP\n.I %s\n%s\n", text(p.Name), text(p.Help))
	}
	w.flags(n.Flags)
}

func (w *writer) flags(flags []*kong.Flag) {
	for _, f := range flags {
		if f.Hidden {
			continue
		}
		name := "\\fB" + text("--"+f.Name) + "\\fR"
		if f.Tag.Negatable == "_" {
			name += ", \\fB" + text("--no-"+f.Name) + "\\fR"
		}
		if f.Short != 0 {
			name = "\\fB\\-" + string(f.Short) + "\\fR, " + name
		}
		if !f.IsBool() && !f.IsCounter() {
			name += "=\\fI" + text(strings.Trim(f.FormatPlaceHolder(), `"`)) + "\\fR"
		}
		w.printf(".TP\n%s\n%s\n", name, text(f.Help))
	}
}

func (w *writer) section(s Section) {
	w.printf(".SH %s\n", quote(s.Title))
	for line := range strings.Lines(s.Text) {
		line = strings.TrimRight(line, "\n")
		if term, ok := strings.CutPrefix(line, "\t"); ok {
			w.printf(".TP\n.B %s\n", text(term))
		} else if line != "" {
			w.printf("%s\n", text(line))
		}
	}
}

func (w *writer) paragraphs(s string) {
	for i, p := range strings.Split(strings.TrimSpace(s), "\n\n") {
		if i > 0 {
			w.printf(".PP\n")
		}
		w.printf("%s\n", text(strings.Join(strings.Fields(p), " ")))
	}
}

func (w *writer) example(s string) {
	w.printf(".PP\n.RS 4\n.nf\n")
	for line := range strings.Lines(s) {
		w.printf("%s\n", text(strings.TrimSpace(line)))
	}
	w.printf(".fi\n.RE\n")
}

func seeAlso(n *kong.Node) string {
	var refs []string
	root := n
	for root.Parent != nil {
		root = root.Parent
	}
	if n != root {
		refs = append(refs, ".BR "+text(root.Name)+" (1)")
	}
	for _, c := range root.Children {
		if c != n && !c.Hidden {
			refs = append(refs, ".BR "+text(page(c))+" (1)")
		}
	}
	return strings.Join(refs, " ,\n")
}

// text escapes what roff would take for its own.
func text(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "^", `\(ha`, "~", `\(ti`, "`", `\(ga`).Replace(s)
	if strings.HasPrefix(s, ".") {
		s = `\&` + s
	}
	return s
}

func quote(s string) string { return `"` + strings.ReplaceAll(text(s), `"`, `\(dq`) + `"` }

func lowerFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}
