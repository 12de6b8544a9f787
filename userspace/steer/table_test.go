package steer

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/bermedge/berm/maps"
)

func edges(n int) []Member {
	var out []Member
	for i := range n {
		out = append(out, Member{ID: uint16(i + 1), Name: fmt.Sprintf("edge%d", i+1), Weight: 1, Fit: true})
	}
	return out
}

func count(places []Place) map[uint16]int {
	out := map[uint16]int{}
	for _, p := range places {
		out[p.Owner]++
	}
	return out
}

func moved(a, b []Place) (n int) {
	for i := range a {
		if a[i].Owner != b[i].Owner {
			n++
		}
	}
	return n
}

// near fails unless n is within five standard deviations of a share of the rows.
func near(t *testing.T, what string, n int, share float64) {
	t.Helper()
	want := share * maps.RowCount
	if off := 5 * math.Sqrt(want*(1-share)); float64(n) < want-off || float64(n) > want+off {
		t.Errorf("%s: %d rows, want %.0f and at most %.0f more or less", what, n, want, off)
	}
}

func TestRowsAreSharedEvenly(t *testing.T) {
	for _, n := range []int{2, 3, 10, 100} {
		places := Assign(edges(n))
		heirs := map[uint16]int{}
		for _, p := range places {
			heirs[p.Heir]++
			if p.Heir == p.Owner {
				t.Fatalf("%d is its own heir", p.Owner)
			}
		}
		for id, rows := range count(places) {
			near(t, fmt.Sprintf("%d members: %d", n, id), rows, 1/float64(n))
			near(t, fmt.Sprintf("%d members: %d as heir", n, id), heirs[id], 1/float64(n))
		}
	}
	if got := Assign(edges(1)); count(got)[1] != maps.RowCount || got[0].Heir != 0 {
		t.Errorf("one member: %v", count(got))
	}
	if got := count(Assign(nil)); got[0] != maps.RowCount {
		t.Errorf("without members: %v", got)
	}
}

func TestRowsFollowWeights(t *testing.T) {
	m := edges(3)
	m[0].Weight, m[1].Weight, m[2].Weight = 100, 200, 300
	got := count(Assign(m))
	for i, share := range []float64{1, 2, 3} {
		near(t, fmt.Sprint("weight ", m[i].Weight), got[uint16(i+1)], share/6)
	}
}

// Every edge lists the members in its own order, with ids of its own.
func TestEdgesAgree(t *testing.T) {
	here := edges(7)
	here[3].Fit, here[2].Weight, here[5].Share = false, 3, 700
	there := slices.Clone(here)
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(there), func(i, j int) { there[i], there[j] = there[j], there[i] })
	names := map[uint16]string{}
	for i := range there {
		there[i].ID += 100
		names[there[i].ID] = there[i].Name
	}
	a, b := Assign(here), Assign(there)
	for row := range a {
		if here[a[row].Owner-1].Name != names[b[row].Owner] || here[a[row].Heir-1].Name != names[b[row].Heir] {
			t.Fatalf("row %d: %v here, %v there", row, a[row], b[row])
		}
	}
}

// Whatever happens to one member, rows move only from it or to it, and who is second is who had the row
// before or would have it after.
func TestChangesMoveTheLeast(t *testing.T) {
	for name, change := range map[string]func(m []Member) []Member{
		"lost or drained": func(m []Member) []Member { m[1].Fit = false; return m },
		"removed":         func(m []Member) []Member { return slices.Delete(m, 1, 2) },
		"heavier":         func(m []Member) []Member { m[1].Weight = 2; return m },
		"a canary":        func(m []Member) []Member { m[1].Share = 100; return m },
	} {
		for _, n := range []int{2, 3, 5, 20} {
			before, after := Assign(edges(n)), Assign(change(edges(n)))
			gained, lost := 0, 0
			for row := range before {
				b, a := before[row], after[row]
				switch {
				case b.Owner == a.Owner:
				case b.Owner == 2:
					if lost++; a.Owner != b.Heir {
						t.Fatalf("%s: row %d of %v went to %v", name, row, b, a)
					}
				case a.Owner == 2:
					if gained++; a.Heir != b.Owner {
						t.Fatalf("%s: row %d came from %v, and its heir is %v", name, row, b, a)
					}
				default:
					t.Fatalf("%s, %d members: row %d moved between others: %v, %v", name, n, row, b, a)
				}
			}
			t.Logf("%s, of %d members: %d rows left it, %d came", name, n, lost, gained)
			if gained > 0 && lost > 0 && name != "a canary" || gained+lost == 0 {
				t.Errorf("%s, of %d members: %d rows left it, %d came", name, n, lost, gained)
			}
			if back := Assign(edges(n)); moved(before, back) != 0 {
				t.Errorf("%s: not as before afterwards", name)
			}
		}
	}
	m := edges(5)
	for i := range m {
		m[i].Fit = false
	}
	if n := moved(Assign(edges(5)), Assign(m)); n != 0 {
		t.Errorf("with none fit, %d rows differ from all fit", n)
	}
}

func TestCanary(t *testing.T) {
	m := edges(4)
	before := Assign(m)
	m = append(m, Member{ID: 9, Name: "canary", Weight: 1, Fit: true})
	var last []Place
	for _, share := range []int{1, 100, 101, 5000, whole} {
		m[4].Share = share
		got := Assign(m)
		near(t, fmt.Sprint(share, " basis points"), count(got)[9], float64(share)/whole)
		for row, p := range got {
			if p.Owner != 9 && p != before[row] || p.Owner == 9 && p.Heir != before[row].Owner {
				t.Fatalf("%d basis points: row %d was %v and is %v", share, row, before[row], p)
			}
			if last != nil && last[row].Owner == 9 && p.Owner != 9 {
				t.Fatalf("%d basis points: row %d was the canary's with fewer", share, row)
			}
		}
		last = got
	}
	m[4].Fit = false
	if n := moved(before, Assign(m)); n != 0 {
		t.Errorf("without the canary %d rows differ", n)
	}
	if got := count(Assign(m[4:])); got[9] != maps.RowCount {
		t.Errorf("a canary alone: %v", got)
	}
}

func TestSucceed(t *testing.T) {
	const self = 1
	past := Past{
		Self: self, May: func(id uint16) bool { return id < 8 },
		Settled: func(row int) uint16 { return []uint16{0, 2, 0}[row] }, Old: func(row int) bool { return row == 2 },
		Server: func(id uint16) bool { return id >= 5 },
	}
	for _, c := range []struct {
		name string
		row  int
		old  maps.Row
		to   Place
		want maps.Row
	}{
		{"stays", 0, maps.Row{Owner: 2, Second: 3}, Place{2, 3}, maps.Row{Owner: 2, Second: 3}},
		{"stays, with another heir", 0, maps.Row{Owner: 2, Second: 3}, Place{2, 4}, maps.Row{Owner: 2, Second: 4}},
		{"moves", 0, maps.Row{Owner: 2, Second: 3}, Place{3, 4}, maps.Row{Owner: 3, Second: 2, Moved: true}},
		{"stays moved", 0, maps.Row{Owner: 3, Second: 2, Moved: true}, Place{3, 4}, maps.Row{Owner: 3, Second: 2, Moved: true}},
		{"moved long ago", 2, maps.Row{Owner: 3, Second: 2, Moved: true}, Place{3, 4}, maps.Row{Owner: 3, Second: 4}},
		{"returns", 0, maps.Row{Owner: 3, Second: 2, Moved: true}, Place{2, 3}, maps.Row{Owner: 2, Second: 3, Moved: true}},
		{"returns at once", 1, maps.Row{Owner: 3, Second: 2, Moved: true}, Place{2, 3}, maps.Row{Owner: 2, Second: 3, Moved: true}},
		{"moves on", 0, maps.Row{Owner: 3, Second: 2, Moved: true}, Place{4, 3}, maps.Row{Owner: 4, Second: 3, Moved: true}},
		{"moves on at once: the owner before the burst", 1, maps.Row{Owner: 3, Second: 2, Moved: true}, Place{4, 3}, maps.Row{Owner: 4, Second: 2, Moved: true}},
		{"in a burst, back and elsewhere", 1, maps.Row{Owner: 2, Second: 3, Moved: true}, Place{4, 3}, maps.Row{Owner: 4, Second: 2, Moved: true}},
		{"in a burst, and back", 1, maps.Row{Owner: 4, Second: 3, Moved: true}, Place{2, 3}, maps.Row{Owner: 2, Second: 4, Moved: true}},
		{"from one who is gone", 0, maps.Row{Owner: 9, Second: 3}, Place{3, 4}, maps.Row{Owner: 3, Second: 4}},
		{"from one who is gone, and had it from another", 0, maps.Row{Owner: 9, Second: 5, Moved: true}, Place{3, 4}, maps.Row{Owner: 3, Second: 5, Moved: true}},
		{"the former owner is gone", 0, maps.Row{Owner: 3, Second: 9, Moved: true}, Place{3, 4}, maps.Row{Owner: 3, Second: 4, Moved: true}},
		{"a new table: this edge's", 0, maps.Row{}, Place{self, 2}, maps.Row{Owner: self, Second: 2, Moved: true}},
		{"a new table: another's", 0, maps.Row{}, Place{2, self}, maps.Row{Owner: 2, Second: self}},
		{"a new table: alone", 0, maps.Row{}, Place{self, 0}, maps.Row{Owner: self}},
		{"to a server", 0, maps.Row{Owner: 2, Second: 5}, Place{5, 2}, maps.Row{Owner: 5, Second: 2, Moved: true, Newcomers: true}},
		{"from a server to an edge", 0, maps.Row{Owner: 5, Second: 2}, Place{2, 5}, maps.Row{Owner: 2, Second: 5, Moved: true}},
		{"from server to server", 0, maps.Row{Owner: 5, Second: 6}, Place{6, 5}, maps.Row{Owner: 6, Second: 5, Moved: true, Newcomers: true}},
		{"a server keeps it", 0, maps.Row{Owner: 6, Second: 5, Moved: true, Newcomers: true}, Place{6, 7}, maps.Row{Owner: 6, Second: 5, Moved: true, Newcomers: true}},
		{"a server keeps it for long", 2, maps.Row{Owner: 6, Second: 5, Moved: true, Newcomers: true}, Place{6, 7}, maps.Row{Owner: 6, Second: 7}},
		{"on to a third server", 0, maps.Row{Owner: 6, Second: 5, Moved: true, Newcomers: true}, Place{7, 6}, maps.Row{Owner: 7, Second: 5, Moved: true, Newcomers: true}},
		{"on to a third server, long after", 2, maps.Row{Owner: 6, Second: 5, Moved: true, Newcomers: true}, Place{7, 6}, maps.Row{Owner: 7, Second: 6, Moved: true, Newcomers: true}},
		{"back to the first server", 0, maps.Row{Owner: 6, Second: 5, Moved: true, Newcomers: true}, Place{5, 6}, maps.Row{Owner: 5, Second: 5, Moved: true, Newcomers: true}},
		{"on to an edge", 0, maps.Row{Owner: 6, Second: 5, Moved: true, Newcomers: true}, Place{2, 6}, maps.Row{Owner: 2, Second: 5, Moved: true, Newcomers: true}},
		{"the first server is gone", 0, maps.Row{Owner: 6, Second: 9, Moved: true, Newcomers: true}, Place{6, 7}, maps.Row{Owner: 6, Second: 7}},
		{"the first server is gone, and it moves on", 0, maps.Row{Owner: 6, Second: 9, Moved: true, Newcomers: true}, Place{7, 6}, maps.Row{Owner: 7, Second: 6, Moved: true, Newcomers: true}},
		{"from a server that is gone", 0, maps.Row{Owner: 9, Second: 5}, Place{6, 5}, maps.Row{Owner: 6, Second: 5}},
		{"a new table: a server's", 0, maps.Row{}, Place{5, self}, maps.Row{Owner: 5, Second: self}},
		{"nobody", 0, maps.Row{Owner: 2}, Place{}, maps.Row{}},
	} {
		old, places := make([]maps.Row, 3), make([]Place, 3)
		old[c.row], places[c.row] = c.old, c.to
		if got := Succeed(old, places, past)[c.row]; got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
		past.Off = true
		if got := Succeed(old, places, past)[c.row]; got != (maps.Row{Owner: c.to.Owner, Second: c.to.Heir}) {
			t.Errorf("%s, second chances off: %+v", c.name, got)
		}
		past.Off = false
	}
	p := Compare([]maps.Row{{Owner: 1}, {Owner: 1}, {Owner: 2}, {Owner: 3}, {}}, []maps.Row{{Owner: 2}, {Owner: 1}, {Owner: 1}, {Owner: 3}, {Owner: 1}})
	if p.Moved != 3 || p.Least != 1 || p.Backends[1] != (Gap{2, 3}) || p.Backends[2] != (Gap{1, 1}) {
		t.Errorf("plan %+v", p)
	}
}

func BenchmarkAssign(b *testing.B) {
	m := edges(16)
	m[3].Fit, m[4].Weight = false, 2
	for b.Loop() {
		Assign(m)
	}
}
