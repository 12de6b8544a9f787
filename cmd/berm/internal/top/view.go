package top

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/userspace/control"
)

// View draws the screen.
func (m *Model) View() tea.View {
	v := tea.NewView(m.render())
	v.AltScreen = true
	v.WindowTitle = "berm top"
	return v
}

// least is the smallest screen on which every section shows a row.
const leastWidth, leastHeight = 60, 14

func (m *Model) render() string {
	if m.width < leastWidth || m.height < leastHeight {
		return fmt.Sprintf("berm top needs a terminal of %dx%d; this one has %dx%d.", leastWidth, leastHeight, m.width, m.height)
	}
	if m.help {
		return m.helpText()
	}
	return m.screen()
}

func (m *Model) screen() string {
	lines := m.header()
	rows := [sections][][]cell{}
	all := [sections]int{}
	for s := range sections {
		rows[s], all[s] = m.rows(s)
	}
	heights := m.share(rows, m.height-len(lines)-1-2*sections)
	for s := range sections {
		lines = append(lines, m.section(s, rows[s], all[s], heights[s])...)
	}
	for len(lines) < m.height-1 {
		lines = append(lines, "")
	}
	lines = append(lines[:m.height-1], m.footer())
	for i, l := range lines {
		lines[i] = ansi.Truncate(l, m.width, "…")
	}
	return strings.Join(lines, "\n")
}

func (m *Model) paint(st out.Style, s string) string { return out.Paint(m.o.Color, st, s) }

func (m *Model) header() []string {
	left := m.paint(out.Bold, "berm top") + "  " + m.o.Title
	state := "every " + m.o.Interval.String()
	if !m.at.IsZero() {
		state += "  " + m.at.Format(time.TimeOnly)
	}
	if m.paused {
		state = m.paint(out.Warn, "PAUSED") + "  " + state
	}
	lines := []string{spread(left, state, m.width)}
	switch {
	case m.err != nil:
		return append(lines, m.paint(out.Bad, "no answer: ")+strings.ReplaceAll(m.err.Error(), "\n", " "), "showing what was known before")
	case m.at.IsZero():
		return append(lines, "asking …", "")
	}
	return append(lines, m.traffic(), m.cache())
}

func (m *Model) traffic() string {
	in, dropped, shadowed, forwarded := Totals(m.top)
	s := fmt.Sprintf("in %s pps %s", m.paint(out.Bold, out.Count(in.Packets)), out.Bits(in.Bytes))
	d := "  dropped " + out.Count(dropped.Packets)
	if in.Packets > 0 {
		d += fmt.Sprintf(" (%.0f %%)", 100*min(dropped.Packets/in.Packets, 1))
	}
	if dropped.Packets > 0 {
		d = m.paint(out.Bad, d)
	}
	s += d
	if shadowed.Packets > 0 {
		s += m.paint(out.Warn, "  shadow "+out.Count(shadowed.Packets))
	}
	return s + "  forwarded " + out.Count(forwarded.Packets)
}

func (m *Model) cache() string {
	if m.o.Note != "" {
		return m.paint(out.Warn, m.o.Note)
	}
	c := m.top.Cache
	s := fmt.Sprintf("requests %s/s  hits %s", m.paint(out.Bold, out.Count(m.top.Requests)), m.paint(out.Bold, fmt.Sprintf("%.1f %%", 100*c.HitRatio)))
	if c.MaxBytes > 0 {
		const width = 8
		share := float64(c.Bytes) / float64(c.MaxBytes)
		b := bar(share, width)
		s += "  [" + b + strings.Repeat(" ", max(width-ansi.StringWidth(b), 0)) + "] " + out.Bytes(float64(c.Bytes)) + " of " + out.Bytes(float64(c.MaxBytes))
	}
	return s + ", " + out.Count(float64(c.Objects)) + " objects"
}

// Totals sums a view: what came in by VIP, what was refused by reason.
func Totals(t control.Top) (in, dropped, shadowed, forwarded control.Rate) {
	for _, v := range t.VIPs {
		in.Packets += v.In.Packets
		in.Bytes += v.In.Bytes
		forwarded.Packets += v.Forwarded.Packets
		forwarded.Bytes += v.Forwarded.Bytes
	}
	for _, d := range t.Drops {
		dropped.Packets += d.Dropped.Packets
		dropped.Bytes += d.Dropped.Bytes
		shadowed.Packets += d.Shadowed.Packets
		shadowed.Bytes += d.Shadowed.Bytes
	}
	return in, dropped, shadowed, forwarded
}

// share divides the lines: everyone gets four, then the focused section what it wants, then
// the others in order.
func (m *Model) share(rows [sections][][]cell, lines int) (heights [sections]int) {
	give := func(s, n int) {
		n = max(min(n, lines), 0)
		heights[s] += n
		lines -= n
	}
	want := func(s int) int { return max(len(rows[s]), 1) }
	for n := range 4 {
		for s := range sections {
			if want(s) > n {
				give(s, 1)
			}
		}
	}
	for _, s := range []int{m.focus, sources, vips, drops} {
		give(s, want(s)-heights[s])
	}
	return heights
}

func (m *Model) section(s int, rows [][]cell, all, height int) []string {
	m.offset[s] = max(min(m.offset[s], len(rows)-height), 0)
	end := min(m.offset[s]+height, len(rows))
	shown := rows[m.offset[s]:end]

	name := [sections]string{"SOURCES", "VIPS", "DROPS"}[s]
	title := fmt.Sprintf("%d %s", s+1, name)
	switch {
	case len(shown) < len(rows):
		title += fmt.Sprintf(" %d-%d of %d", m.offset[s]+1, end, len(rows))
	case m.filter != "" && all != len(rows):
		title += fmt.Sprintf(" %d of %d", len(rows), all)
	}
	cols := m.columns(s)
	lines := m.heading(s, title, cols)
	for _, r := range shown {
		lines = append(lines, m.row(cols, r))
	}
	if len(rows) == 0 && height > 0 {
		lines = append(lines, m.paint(out.Dim, "   "+m.nothing(s, all)))
	}
	return lines
}

func (m *Model) nothing(s, all int) string {
	switch {
	case all > 0:
		return "nothing matches the filter"
	case m.at.IsZero():
		return "…"
	}
	return [sections]string{"no packets seen", "no VIPs (berm vip add)", "nothing dropped"}[s]
}

// heading is the section's bar, reversed where the keys go, and the names of its columns.
func (m *Model) heading(s int, title string, cols []column) []string {
	heads := make([]cell, len(cols))
	for i, c := range cols {
		heads[i] = cell{text: c.name}
		if i == m.sort[s] {
			mark := "▼"
			if m.reverse[s] {
				mark = "▲"
			}
			heads[i].text = c.name + mark
		}
	}
	bar := "─ " + title + " "
	st := out.Bold
	if s == m.focus {
		bar, st = "━ "+title+" ", "7"
	}
	fill := string([]rune(bar)[0])
	bar += strings.Repeat(fill, max(m.width-ansi.StringWidth(bar), 0))
	return []string{m.paint(st, bar), m.paint(out.Dim, m.row(cols, heads))}
}

func (m *Model) row(cols []column, cells []cell) string {
	rest := m.width - 1
	for _, c := range cols {
		rest -= max(c.width, 0) + 1
	}
	var b strings.Builder
	b.WriteByte(' ')
	for i, c := range cols {
		width := c.width
		if width < 0 {
			width = max(min(rest, -width), 8)
		}
		text := ansi.Truncate(cells[i].text, width, "…")
		pad := strings.Repeat(" ", max(width-ansi.StringWidth(text), 0))
		text = m.paint(cells[i].style, text)
		if c.right {
			b.WriteString(pad + text + " ")
		} else {
			b.WriteString(text + pad + " ")
		}
	}
	return b.String()
}

func (m *Model) footer() string {
	switch {
	case m.filtering:
		return "filter: " + m.filter + "█  " + m.paint(out.Dim, "enter keep, esc clear")
	case m.filter != "":
		return m.paint(out.Warn, "filter: "+m.filter) + m.paint(out.Dim, "   / change  esc clear  q quit")
	}
	keys := "q quit  p pause  tab section  s sort  r reverse  / filter  +/- speed  ? help"
	return m.paint(out.Dim, keys)
}

func (m *Model) helpText() string {
	return m.paint(out.Bold, "berm top") + `

  q, ctrl-c   quit
  p, space    pause; again to go on
  tab, 1 2 3  the section that keys work on, and that grows
  s, r        sort by the next column; reverse
  up, down    scroll the section
  /           show only rows that contain a text; esc shows all
  + -         ask more or less often

Rates are of the last interval. Sources are estimated from sampled packets,
so a quiet one may be missing. IPv6 sources are /64 networks. "Dropped" is
what was refused; "shadow" what would have been, were its rule enforced.

Any key goes back.`
}

// spread puts right at the end of the line, if there is room.
func spread(left, right string, width int) string {
	gap := width - ansi.StringWidth(left) - ansi.StringWidth(right)
	if gap < 1 {
		return left
	}
	return left + strings.Repeat(" ", gap) + right
}

func serviceName(v control.TopVIP) string {
	return netip.AddrPortFrom(v.Address, v.Port).String() + "/" + v.Protocol
}
