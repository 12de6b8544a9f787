package presubmit

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/config"
	"github.com/bermedge/berm/userspace/observe"
)

// TestLists holds the lists in doc/ to what the code says. make generate writes them.
func TestLists(t *testing.T) {
	for name, list := range map[string]func(*testing.T) []byte{
		"doc/drops.md":    dropList,
		"doc/metrics.md":  metricList,
		"doc/settings.md": settingList,
	} {
		want := list(t)
		if *update {
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, want, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s does not say what the code says (%v): make generate, and commit", name, err)
		}
	}
}

const notByHand = "<!-- Written by make generate from the code. -->\n"

func dropList(t *testing.T) []byte {
	var b bytes.Buffer
	b.WriteString(notByHand + `# Drop reasons

Why the kernel half refuses a packet. Each is counted in ` + "`berm drops`" + ` and as
` + "`berm_drops_total{reason=\"…\"}`" + `; where the rule is a shadow, beside it and not instead. Numbers and names
are for ever.

| | Reason | Why |
|---|---|---|
`)
	for d := range maps.AllDrops() {
		fmt.Fprintf(&b, "| %d | `%s` | %s |\n", d, d, d.Meaning())
	}
	b.WriteString(`
## What becomes of a packet

| | Exit | |
|---|---|---|
`)
	meanings := enumComments(t, "BERM_EXIT_")
	for e := range maps.AllExits() {
		fmt.Fprintf(&b, "| %d | `%s` | %s |\n", e, e, meanings[int(e)])
	}
	return b.Bytes()
}

func settingList(t *testing.T) []byte {
	var b bytes.Buffer
	b.WriteString(notByHand + `# Settings

The keys of ` + "`/etc/berm/berm.yaml`" + `. An empty file is a valid one. ` + "`berm config check`" + ` reports every mistake
at once, by line and column; ` + "`berm reload`" + ` puts a changed file in force, or leaves the old one. NAME is yours to
choose, and [] stands for each entry of a list. Durations are written 200ms, 10s, 5m; sizes 256MiB, 1GiB.
`)
	section := ""
	for _, s := range settings(fieldComments(t), "", reflect.TypeFor[config.Config](), reflect.ValueOf(config.Default()), "") {
		if top, _, _ := strings.Cut(s.key, "."); strings.TrimSuffix(top, "[]") != section {
			section = strings.TrimSuffix(top, "[]")
			fmt.Fprintf(&b, "\n## %s\n\n| Key | Value | Default | |\n|---|---|---|---|\n", section)
		}
		fallback := s.fallback
		if fallback != "" {
			fallback = "`" + fallback + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", s.key, s.kind, fallback, strings.ReplaceAll(s.doc, "|", "\\|"))
	}
	return b.Bytes()
}

func metricList(*testing.T) []byte {
	var b bytes.Buffer
	b.WriteString(notByHand + `# Metrics

At ` + "`/metrics`" + ` of ` + "`admin.metrics`" + `, beside Go's own and the process's. Counters only grow while the
daemon runs; those of the kernel half grow on while it does not.

| Metric | Type | Labels | What it says |
|---|---|---|---|
`)
	for _, m := range observe.Catalogue() {
		kind := "counter"
		if m.Gauge {
			kind = "gauge"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Name, kind, strings.Join(m.Labels, ", "), m.Help)
	}
	return b.Bytes()
}

// enumComments reads what the contract says beside the values of an enum.
func enumComments(t *testing.T, prefix string) map[int]string {
	t.Helper()
	line := regexp.MustCompile(prefix + `[A-Z_]+ = (\d+),\s*(?:/\* (.*?) \*/)?`)
	comments := map[int]string{}
	for _, m := range line.FindAllStringSubmatch(string(read(t, "bpf/include/contract.h")), -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		comments[n] = m[2]
	}
	if len(comments) == 0 {
		t.Fatalf("contract.h has no %s", prefix)
	}
	return comments
}
