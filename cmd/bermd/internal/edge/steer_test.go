package edge

import (
	"slices"
	"testing"

	"github.com/bermedge/berm/userspace/control"
)

func TestOrdersInWords(t *testing.T) {
	on, off, three, none, share := true, false, 3, 0, 25
	for _, c := range []struct {
		order control.Order
		want  []string
	}{
		{control.Order{Backend: "e", Draining: &on}, []string{"e drains: it gets no new flows, and keeps those that it has to their end"}},
		{control.Order{Backend: "e", Draining: &off}, []string{"e gets new flows again"}},
		{control.Order{Backend: "e", Weight: &three, Share: &share}, []string{"e has weight 3", "e is a canary with 0.25 % of the rows"}},
		{control.Order{Backend: "e", Weight: &none, Share: &none}, []string{"e has the file's weight", "e is no canary"}},
		{control.Order{Backend: "e"}, nil},
	} {
		if got := sentences(c.order); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %q, want %q", c.order, got, c.want)
		}
	}
}
