package steer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/bermedge/berm/maps"
)

func edges(n int) []Member {
	var out []Member
	for i := range n {
		out = append(out, Member{ID: uint16(i + 1), Name: fmt.Sprintf("edge%d", i+1), Weight: 1, Alive: true})
	}
	return out
}

func count(owners []uint16) map[uint16]int {
	out := map[uint16]int{}
	for _, o := range owners {
		out[o]++
	}
	return out
}

func moved(a, b []uint16) (n int) {
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

func TestOwnersShareEvenly(t *testing.T) {
	for _, n := range []int{1, 2, 3, 10, 100} {
		for id, rows := range count(Owners(edges(n))) {
			if want := maps.RowCount / n; rows < want || rows > want+1 {
				t.Errorf("%d members: %d has %d rows, want %d or one more", n, id, rows, want)
			}
		}
	}
	if got := count(Owners(nil)); got[0] != maps.RowCount {
		t.Errorf("without members: %v", got)
	}
}

func TestOwnersFollowWeights(t *testing.T) {
	m := edges(3)
	m[0].Weight, m[1].Weight, m[2].Weight = 100, 200, 300
	got := count(Owners(m))
	for i, share := range []int{1, 2, 3} {
		if want := maps.RowCount * share / 6; got[uint16(i+1)] < want-600 || got[uint16(i+1)] > want+600 {
			t.Errorf("weight %d00: %d rows, want about %d", share, got[uint16(i+1)], want)
		}
	}
}

// Every edge lists the members in its own order, with ids of its own.
func TestOwnersAgreeBetweenEdges(t *testing.T) {
	here := edges(7)
	here[3].Alive = false
	there := slices.Clone(here)
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(there), func(i, j int) { there[i], there[j] = there[j], there[i] })
	names := map[uint16]string{}
	for i := range there {
		there[i].ID += 100
		names[there[i].ID] = there[i].Name
	}
	a, b := Owners(here), Owners(there)
	for row := range a {
		if here[a[row]-1].Name != names[b[row]] {
			t.Fatalf("row %d: %s here, %s there", row, here[a[row]-1].Name, names[b[row]])
		}
	}
}

func TestDeathMovesOnlyRowsOfTheDead(t *testing.T) {
	m := edges(5)
	before := Owners(m)
	m[1].Alive = false
	after := Owners(m)
	for row := range before {
		if before[row] != 2 && before[row] != after[row] {
			t.Fatalf("row %d of %d, which lives, moved to %d", row, before[row], after[row])
		}
	}
	for id, n := range count(after) {
		if want := maps.RowCount / 4; id == 2 || n < want-200 || n > want+200 {
			t.Errorf("%d has %d rows of about %d", id, n, want)
		}
	}
	m[1].Alive = true
	if n := moved(before, Owners(m)); n != 0 {
		t.Errorf("after its return %d rows differ from before", n)
	}
	for i := range m {
		m[i].Alive = false
	}
	if n := moved(before, Owners(m)); n != 0 {
		t.Errorf("with all dead, %d rows differ from all living", n)
	}
}

// A new member takes its share; that rows move between others as well is the price of Maglev's
// even shares: a few percent.
func TestAdditionMovesLittle(t *testing.T) {
	for _, n := range []int{2, 5, 20} {
		m := edges(n + 1)
		got := moved(Owners(m[:n]), Owners(m))
		share := maps.RowCount / (n + 1)
		t.Logf("%d to %d members: %d rows move, the newcomer's share is %d", n, n+1, got, share)
		if got < share || got > share+maps.RowCount/20 {
			t.Errorf("%d to %d members: %d rows move", n, n+1, got)
		}
	}
}

func TestSucceed(t *testing.T) {
	old := []maps.Row{{Owner: 1}, {Owner: 1, Previous: 2}, {Owner: 2, Previous: 1}, {Owner: 3, Previous: 9}, {}, {Owner: 2, Previous: 3}}
	got := Succeed(old, []uint16{2, 1, 1, 3, 1, 3}, func(id uint16) bool { return id == 9 })
	want := []maps.Row{{Owner: 2, Previous: 1}, {Owner: 1, Previous: 2}, {Owner: 1, Previous: 2}, {Owner: 3}, {Owner: 1}, {Owner: 3, Previous: 2}}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	p := Compare(old, got)
	if p.Moved != 4 || p.Backends[2] != (Gap{2, 1}) || p.Backends[3] != (Gap{1, 2}) {
		t.Errorf("plan %+v", p)
	}
}

func BenchmarkOwners(b *testing.B) {
	m := edges(16)
	m[3].Alive = false
	for b.Loop() {
		Owners(m)
	}
}
