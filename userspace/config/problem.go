package config

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Problem is one thing that is wrong with the file: what, where, and what to do.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line"` // from 1; 0: the file as a whole
	Column  int    `json:"column"`
	Key     string `json:"key,omitempty"` // by its path in the file: vips[0].port
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// String formats a problem as compilers do, so that editors can jump to it.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.Message)
	if p.Hint != "" {
		b.WriteString(" (" + p.Hint + ")")
	}
	return b.String()
}

// Problems is everything that is wrong with a file, in its order.
type Problems []Problem

// Error lists the problems, a line each.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

func (ps Problems) sort() {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}

// keyed splits "rate.classes.default.packets: must be…" into key and message.
var keyed = regexp.MustCompile(`^([A-Za-z0-9_*/-]+(?:\[\d+\])?(?:\.[A-Za-z0-9_*/-]+(?:\[\d+\])?)*): ((?s).+)$`)

// hinted splits a trailing parenthesis, which by convention is the hint.
var hinted = regexp.MustCompile(`^((?s).+) \(([^()]*)\)$`)

// reportTree adds every leaf of a joined error, each named by its key below section.
func (d *decoder) reportTree(section string, err error) {
	if err == nil {
		return
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range many.Unwrap() {
			d.reportTree(section, e)
		}
		return
	}
	key, message := section, err.Error()
	if m := keyed.FindStringSubmatch(message); m != nil {
		if sub := join(section, m[1]); section == "" || m[1] == section || strings.HasPrefix(m[1], section+".") || strings.HasPrefix(m[1], section+"[") {
			key, message = m[1], m[2]
		} else if d.knows(sub) || d.knows(parent(sub)) {
			key, message = sub, m[2]
		}
	}
	// A name with a space or the like is no key by its looks, but the file has it.
	if at, rest, ok := strings.Cut(message, ": "); ok && key == section && d.knows(at) && at != "" {
		key, message = at, rest
	}
	hint := ""
	if m := hinted.FindStringSubmatch(message); m != nil {
		message, hint = m[1], m[2]
	}
	d.report(key, message, hint)
}

// report adds a problem at a key, or at the nearest key above it that the file has.
// What could not be decoded is not looked at again: its value is not the operator's.
func (d *decoder) report(key, message, hint string) {
	if d.failed[key] {
		return
	}
	at := key
	for at != "" && !d.knows(at) {
		at = parent(at)
	}
	p := d.places[at]
	d.problems = append(d.problems, Problem{File: d.file, Line: p.line, Column: p.column, Key: key, Message: message, Hint: hint})
}

func (d *decoder) knows(key string) bool { _, ok := d.places[key]; return ok }

func join(section, key string) string {
	switch {
	case section == "":
		return key
	case strings.HasPrefix(key, "["):
		return section + key
	}
	return section + "." + key
}

// parent cuts the last step of a path: vips[0].port → vips[0] → vips → "".
func parent(key string) string {
	i := strings.LastIndexAny(key, ".[")
	if i < 0 {
		return ""
	}
	return key[:i]
}

// nearest returns a hint that names the candidate most like word, or lists them all.
func nearest(word string, candidates []string) string {
	best, distance := "", len(word)/3+2
	for _, c := range candidates {
		if n := edits(strings.ToLower(word), strings.ToLower(c)); n < distance {
			best, distance = c, n
		}
	}
	switch {
	case best != "":
		return "did you mean " + best + "?"
	case len(candidates) == 0:
		return ""
	}
	slices.Sort(candidates)
	return "known: " + strings.Join(candidates, ", ")
}

// edits is the Levenshtein distance.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			above := row[j+1]
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			row[j+1] = min(change, above+1, row[j]+1)
			diagonal = above
		}
	}
	return row[len(b)]
}
