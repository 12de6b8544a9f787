package presubmit

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bermedge/berm/userspace/config"
)

// TestExamples loads every configuration that a page shows, as an edge would.
func TestExamples(t *testing.T) {
	var shown []string
	secret := filepath.Join(t.TempDir(), "secret") // where an operator has one
	if err := os.WriteFile(secret, []byte(strings.Repeat("0123456789abcdef", 4)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, page := range files(t, withSuffix(".md")) {
		for i, block := range blocks(string(read(t, page)), "yaml") {
			shown = append(shown, page)
			block = strings.ReplaceAll(block, "/etc/berm/secret", secret)
			if _, err := config.Parse(fmt.Sprintf("%s, example %d", page, i+1), []byte(block)); err != nil {
				t.Error(err)
			}
		}
	}
	for _, concern := range []string{
		"loader", "userspace/transport", "userspace/certs", "userspace/control", "userspace/geo",
		"userspace/cache", "userspace/cache/dictionary", "userspace/origin", "userspace/quiclb", "userspace/pipeline", "userspace/observe", "userspace/anycast",
	} {
		if !slices.Contains(shown, path.Join(concern, "README.md")) {
			t.Errorf("%s: has settings, and no README.md with an example of them", concern)
		}
	}
}

// blocks returns the fenced blocks of a page in one language.
func blocks(page, language string) []string {
	var all []string
	var block *strings.Builder
	for line := range strings.Lines(page) {
		switch fence := strings.TrimSpace(line); {
		case block == nil && fence == "```"+language:
			block = &strings.Builder{}
		case block != nil && fence == "```":
			all = append(all, block.String())
			block = nil
		case block != nil:
			block.WriteString(line)
		}
	}
	return all
}
