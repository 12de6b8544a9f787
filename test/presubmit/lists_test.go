package presubmit

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/bermedge/berm/maps"
)

// TestLists holds the lists in doc/ to what the code says. make generate writes them.
func TestLists(t *testing.T) {
	for name, list := range map[string]func(*testing.T) []byte{
		"doc/drops.md": dropList,
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
