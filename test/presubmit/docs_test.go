package presubmit

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// documents are the pages that must be there.
var documents = []string{
	"README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "bpf/LICENSE",
	"doc/settings.md", "doc/metrics.md", "doc/drops.md",
}

// TestDocuments wants every page there and every relative link to lead somewhere.
func TestDocuments(t *testing.T) {
	for _, name := range documents {
		if info, err := os.Stat(name); err != nil || info.Size() == 0 {
			t.Errorf("%s: missing or empty", name)
		}
	}
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	for _, page := range files(t, withSuffix(".md")) {
		for _, m := range link.FindAllStringSubmatch(string(read(t, page)), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
			}
		}
	}
}

// commands returns the lines of a page's fenced blocks for the shell, without prompts.
func commands(page string) []string {
	var lines []string
	inside := false
	for line := range strings.Lines(page) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "```"):
			inside = !inside && (line == "```sh" || line == "```console")
		case inside && line != "" && !strings.HasPrefix(line, "#"):
			lines = append(lines, strings.TrimPrefix(line, "$ "))
		}
	}
	return lines
}

// TestReadmeTargets wants every make target that the pages name in the Makefile, with its line
// of help.
func TestReadmeTargets(t *testing.T) {
	targets := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z0-9-]+):.*## `).FindAllStringSubmatch(string(read(t, "Makefile")), -1) {
		targets[m[1]] = true
	}
	for _, page := range []string{"README.md", "CONTRIBUTING.md"} {
		lines := commands(string(read(t, page)))
		if len(lines) == 0 {
			t.Errorf("%s shows no command", page)
		}
		for _, line := range lines {
			for _, m := range regexp.MustCompile(`\bmake ([a-z0-9-]+)`).FindAllStringSubmatch(line, -1) {
				if !targets[m[1]] {
					t.Errorf("%s: make %s is not a documented target", page, m[1])
				}
			}
		}
	}
	if ci := string(read(t, ".ci/run")); !regexp.MustCompile(`(?m)^exec make test\b`).MatchString(ci) {
		t.Error(".ci/run does not run make test, as README.md tells people to")
	}
}

// TestChangelog holds its form: a heading for each release, newest first, and under it what is
// breaking, new and fixed.
func TestChangelog(t *testing.T) {
	release := regexp.MustCompile(`^## (Unreleased|\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\))$`)
	var headings []string
	for line := range strings.Lines(string(read(t, "CHANGELOG.md"))) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "## "):
			if !release.MatchString(line) {
				t.Errorf("%q: want \"## Unreleased\" or \"## 1.2.3 (2026-01-31)\"", line)
			}
			headings = append(headings, line)
		case strings.HasPrefix(line, "### "):
			if !slices.Contains([]string{"### Breaking", "### New", "### Fixed"}, line) {
				t.Errorf("%q: want Breaking, New or Fixed", line)
			}
		}
	}
	if len(headings) == 0 || headings[0] != "## Unreleased" {
		t.Errorf("the first heading must be \"## Unreleased\", have %v", headings)
	}
}
