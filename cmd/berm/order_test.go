package main

import (
	"strings"
	"testing"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/userspace/control"
)

// TestPlannedInWords: a plan that leaves nobody says so, and no other does.
func TestPlannedInWords(t *testing.T) {
	for after, warns := range map[int]bool{0: true, 10: false} {
		var b strings.Builder
		(&app{out: &out.Printer{W: &b}}).planned(control.Plan{Sets: []control.SetPlan{
			{Set: "edges", Rows: 20, Moved: 10, Backends: []control.BackendPlan{{Name: "edge1", Before: 10, After: after}, {Name: "edge2", Before: 10}}},
		}})
		if got := strings.Contains(b.String(), "no backend is left"); got != warns {
			t.Errorf("%d rows left: %q", after, b.String())
		}
	}
}
