package presubmit

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// The classes of one letter keep this file from matching itself.
var forbidden = []struct {
	why   string
	match *regexp.Regexp
}{
	{"a path of somebody's machine", regexp.MustCompile(`(^|[^A-Za-z0-9_.])/([w]ork|[f]arm|[h]ome/[a-z]+|[U]sers|tmp/[b]erm/|tmp/[t]rees)/`)},
	{"a task without its issue, as in TODO(#12)", regexp.MustCompile(`\b([T]ODO|[F]IXME|[X]XX)\b($|[^(]|\([^#])`)},
	{"a merge left open", regexp.MustCompile(`^(<{7}|>{7}) `)},
}

// TestForbiddenWords looks through every text file.
func TestForbiddenWords(t *testing.T) {
	for _, name := range files(t, func(string) bool { return true }) {
		if info, err := os.Lstat(name); err != nil || !info.Mode().IsRegular() {
			continue
		}
		src := read(t, name)
		if bytes.IndexByte(src, 0) >= 0 || !utf8.Valid(src) {
			continue
		}
		for i, line := range strings.Split(string(src), "\n") {
			for _, f := range forbidden {
				if f.match.MatchString(line) {
					t.Errorf("%s:%d: %s: %.120s", name, i+1, f.why, strings.TrimSpace(line))
				}
			}
		}
	}
}

// TestLicences: LICENSE covers the Go code. What is loaded into the kernel is under a licence of
// its own, and each file says so.
func TestLicences(t *testing.T) {
	const spdx = "SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause"
	for _, name := range files(t, withSuffix(".c", ".h")) {
		lines := strings.Split(string(read(t, name)), "\n")
		head := strings.Join(lines[:min(5, len(lines))], "\n")
		if !strings.Contains(head, spdx) {
			t.Errorf("%s: its first lines lack %q", name, spdx)
		}
		if strings.HasSuffix(name, ".c") && !strings.Contains(head, "//go:build ignore") {
			t.Errorf("%s: its first lines lack //go:build ignore: Go shares the folder", name)
		}
	}
}

// TestGeneratedIsCommitted: a build needs no clang, so the object files are part of the tree.
func TestGeneratedIsCommitted(t *testing.T) {
	for _, name := range files(t, withSuffix("_bpfel.go")) {
		files(t, func(f string) bool { return f == strings.TrimSuffix(name, ".go")+".o" })
	}
	generate := read(t, "bpf/generate.go")
	for _, src := range files(t, withSuffix(".bpf.c")) {
		if !bytes.Contains(generate, []byte(filepath.Base(src))) {
			t.Errorf("%s: bpf/generate.go does not compile it", src)
		}
	}
}

// TestNoBinaries: a test binary or a capture that slips in stays in the history for ever.
func TestNoBinaries(t *testing.T) {
	const most = 1 << 20
	for _, name := range files(t, func(string) bool { return true }) {
		info, err := os.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > most {
			t.Errorf("%s: %d bytes, want at most %d", name, info.Size(), most)
		}
		if src := read(t, name); bytes.HasPrefix(src, []byte("\x7fELF")) && !strings.HasSuffix(name, "_bpfel.o") {
			t.Errorf("%s: a binary", name)
		}
	}
}

// TestScripts: what is run says with what, and can be run.
func TestScripts(t *testing.T) {
	for _, name := range files(t, func(f string) bool { return folder(f) == "scripts" || f == ".ci/run" }) {
		src := read(t, name)
		if !bytes.HasPrefix(src, []byte("#!")) {
			continue
		}
		if info, err := os.Stat(name); err != nil || info.Mode()&0o111 == 0 {
			t.Errorf("%s: has an interpreter line, and cannot be run (%v)", name, err)
		}
		if bytes.HasPrefix(src, []byte("#!/usr/bin/env bash")) && !bytes.Contains(src, []byte("\nset -euo pipefail\n")) {
			t.Errorf("%s: lacks set -euo pipefail", name)
		}
	}
}
