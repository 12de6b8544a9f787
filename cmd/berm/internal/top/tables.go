package top

import (
	"cmp"
	"slices"
	"strings"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/userspace/control"
)

// column is one column of a section. A negative width takes what the others leave, up to
// its amount: on wide screens numbers stay near the names.
type column struct {
	name  string
	width int
	right bool
}

// cell is what a column shows and sorts by.
type cell struct {
	text  string
	value float64 // sorted by it, unless text is what counts (value 0 in every row)
	style out.Style
}

func (m *Model) columns(section int) []column {
	switch section {
	case sources:
		return []column{{"SOURCE", -40, false}, {"CC", 3, false}, {"PPS", 8, true}, {"BIT/S", 8, true}, {"DROPPED", 8, true}, {"MOSTLY", 14, false}}
	case vips:
		return []column{{"NAME", 15, false}, {"SERVICE", -48, false}, {"PPS", 6, true}, {"BIT/S", 7, true}, {"DROPPED", 8, true}, {"SHADOW", 7, true}, {"FORWARD", 8, true}}
	}
	return []column{{"REASON", -40, false}, {"PPS", 8, true}, {"BIT/S", 8, true}, {"SHADOW", 8, true}, {"SHARE", 20, false}}
}

// byPPS is the column that each section is sorted by at first.
var byPPS = [sections]int{sources: 2, vips: 2, drops: 1}

// rows returns a section's rows, filtered and sorted, and how many there are in all.
func (m *Model) rows(section int) (rows [][]cell, all int) {
	switch section {
	case sources:
		rows = m.sourceRows()
	case vips:
		rows = m.vipRows()
	default:
		rows = m.dropRows()
	}
	all = len(rows)
	if f := strings.ToLower(m.filter); f != "" {
		rows = slices.DeleteFunc(rows, func(r []cell) bool {
			return !slices.ContainsFunc(r, func(c cell) bool { return strings.Contains(strings.ToLower(c.text), f) })
		})
	}
	by := m.sort[section]
	slices.SortStableFunc(rows, func(a, b []cell) int {
		n := cmp.Or(cmp.Compare(b[by].value, a[by].value), cmp.Compare(a[by].text, b[by].text))
		if m.reverse[section] {
			return -n
		}
		return n
	})
	return rows, all
}

func rate(n float64) cell { return cell{text: out.Count(n), value: n} }
func bits(n float64) cell { return cell{text: out.Count(8 * n), value: n} }

func alarming(n float64, st out.Style) cell {
	c := rate(n)
	if n > 0 {
		c.style = st
	}
	return c
}

func (m *Model) sourceRows() (rows [][]cell) {
	for _, s := range m.top.Sources {
		addr := s.Source.String()
		if s.Source.Is6() && !s.Source.Is4In6() {
			addr += "/64"
		}
		country := s.Country
		if country == "" {
			country = "--"
		}
		rows = append(rows, []cell{{text: addr}, {text: country}, rate(s.Packets), bits(s.Bytes), alarming(s.Dropped, out.Bad), {text: s.Reason, style: out.Dim}})
	}
	return rows
}

func (m *Model) vipRows() (rows [][]cell) {
	for _, v := range m.top.VIPs {
		service := serviceName(v)
		rows = append(rows, []cell{
			{text: v.Name, style: out.Bold},
			{text: service},
			rate(v.In.Packets), bits(v.In.Bytes),
			alarming(v.Dropped.Packets, out.Bad), alarming(v.Shadowed.Packets, out.Warn), rate(v.Forwarded.Packets),
		})
	}
	return rows
}

// dropRows leaves out reasons that are quiet: there are twenty, and few of them matter at once.
func (m *Model) dropRows() (rows [][]cell) {
	var total float64
	for _, d := range m.top.Drops {
		total += d.Dropped.Packets
	}
	for _, d := range m.top.Drops {
		if d.Dropped.Packets == 0 && d.Shadowed.Packets == 0 {
			continue
		}
		share := 0.0
		if total > 0 {
			share = d.Dropped.Packets / total
		}
		rows = append(rows, []cell{
			{text: d.Reason},
			alarming(d.Dropped.Packets, out.Bad), bits(d.Dropped.Bytes), alarming(d.Shadowed.Packets, out.Warn),
			{text: bar(share, 20), value: share, style: out.Bad},
		})
	}
	return rows
}

// bar draws a share of 0 to 1 in eighths of a cell.
func bar(share float64, width int) string {
	eighths := int(share*float64(width)*8 + 0.5)
	s := strings.Repeat("█", eighths/8)
	if eighths%8 > 0 {
		s += string([]rune("▏▎▍▌▋▊▉")[eighths%8-1])
	}
	return s
}

// Table is a section as plain text has it.
type Table struct {
	Header []string
	Rows   [][]out.Cell
}

// Text returns the sections of a view, sorted as the screen has them at first.
func Text(t control.Top, filter string) []Table {
	m := &Model{top: t, filter: filter, sort: byPPS}
	tables := make([]Table, sections)
	for s := range sections {
		for i, c := range m.columns(s) {
			name := c.name
			if i == 0 {
				name = [sections]string{"SOURCES ", "VIPS ", "DROPS "}[s] + name
			}
			if c.right {
				name += ">"
			}
			tables[s].Header = append(tables[s].Header, name)
		}
		rows, _ := m.rows(s)
		for _, r := range rows {
			cells := make([]out.Cell, len(r))
			for i, c := range r {
				cells[i] = out.Cell{Text: c.text, Style: c.style}
			}
			tables[s].Rows = append(tables[s].Rows, cells)
		}
	}
	return tables
}
