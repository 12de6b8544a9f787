// Package out prints what commands found: aligned text for people, JSON for machines.
package out

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// Printer knows how the operator wants to read.
type Printer struct {
	W     io.Writer
	JSON  bool
	Color bool
}

// Value prints v as indented JSON, or calls text.
func (p *Printer) Value(v any, text func()) error {
	if !p.JSON {
		text()
		return nil
	}
	e := json.NewEncoder(p.W)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// Line prints v as one line of JSON, or calls text: for streams.
func (p *Printer) Line(v any, text func()) error {
	if !p.JSON {
		text()
		return nil
	}
	e := json.NewEncoder(p.W)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// Printf prints text as it is.
func (p *Printer) Printf(format string, args ...any) { fmt.Fprintf(p.W, format, args...) }

// Style is a way to emphasise; it is nothing without colour.
type Style string

// The styles in use: meaning first, colour second.
const (
	Plain Style = ""
	Bold  Style = "1"
	Dim   Style = "2"
	Good  Style = "32"
	Warn  Style = "33"
	Bad   Style = "31"
)

// Paint emphasises s if colour is wanted.
func (p *Printer) Paint(st Style, s string) string { return Paint(p.Color, st, s) }

// Paint emphasises s if on.
func Paint(on bool, st Style, s string) string {
	if !on || st == Plain || s == "" {
		return s
	}
	return "\x1b[" + string(st) + "m" + s + "\x1b[0m"
}

// Cell is one place of a table.
type Cell struct {
	Text  string
	Style Style
}

// Table prints rows under a header. Columns whose name ends in ">" are aligned right.
func (p *Printer) Table(header []string, rows [][]Cell) {
	right := make([]bool, len(header))
	head := make([]Cell, len(header))
	for i, h := range header {
		head[i] = Cell{strings.TrimSuffix(h, ">"), Dim}
		right[i] = strings.HasSuffix(h, ">")
	}
	width := make([]int, len(header))
	all := append([][]Cell{head}, rows...)
	for _, r := range all {
		for i, c := range r {
			width[i] = max(width[i], utf8.RuneCountInString(c.Text))
		}
	}
	for _, r := range all {
		var b strings.Builder
		for i, c := range r {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c.Text))
			switch {
			case right[i]:
				b.WriteString(pad + p.Paint(c.Style, c.Text))
			case i == len(r)-1:
				b.WriteString(p.Paint(c.Style, c.Text))
			default:
				b.WriteString(p.Paint(c.Style, c.Text) + pad)
			}
			if i < len(r)-1 {
				b.WriteString("  ")
			}
		}
		fmt.Fprintln(p.W, strings.TrimRight(b.String(), " "))
	}
}

// Row makes plain cells.
func Row(text ...string) []Cell {
	r := make([]Cell, len(text))
	for i, t := range text {
		r[i].Text = t
	}
	return r
}

// Field prints "name   value" with the names of a block aligned.
func (p *Printer) Field(name, format string, args ...any) {
	p.Printf("%s %s\n", p.Paint(Dim, fmt.Sprintf("%-10s", name)), fmt.Sprintf(format, args...))
}

// Count writes n with a decimal suffix: 999, 12.3k, 4.56M.
func Count(n float64) string {
	const suffixes = "kMGTPE"
	switch {
	case n < 0:
		return "-" + Count(-n)
	case n == 0:
		return "0"
	case n < 9.95 && n != float64(int64(n)):
		return fmt.Sprintf("%.1f", n)
	case n < 999.5:
		return fmt.Sprintf("%.0f", n)
	}
	i := -1
	for n >= 999.5 && i < len(suffixes)-1 {
		n /= 1000
		i++
	}
	return three(n) + suffixes[i:i+1]
}

// three writes n below 1000 with three significant digits.
func three(n float64) string {
	switch {
	case n < 9.995:
		return fmt.Sprintf("%.2f", n)
	case n < 99.95:
		return fmt.Sprintf("%.1f", n)
	}
	return fmt.Sprintf("%.0f", n)
}

// Bytes writes n with a binary suffix: 512 B, 1.50 KiB, 256 MiB.
func Bytes(n float64) string {
	const suffixes = "KMGTPE"
	if n < 1023.5 {
		return fmt.Sprintf("%.0f B", n)
	}
	i := -1
	for n >= 1023.5 && i < len(suffixes)-1 {
		n /= 1024
		i++
	}
	if n > 999.5 {
		return fmt.Sprintf("%.0f %ciB", n, suffixes[i])
	}
	return three(n) + " " + suffixes[i:i+1] + "iB"
}

// Bits writes a rate of bytes as bits: 12.3 Mbit/s.
func Bits(bytesPerSecond float64) string {
	c := Count(bytesPerSecond * 8)
	if c[len(c)-1] >= 'A' {
		return c[:len(c)-1] + " " + c[len(c)-1:] + "bit/s"
	}
	return c + " bit/s"
}

// Duration writes d in its two largest units: 3d4h, 5m10s, 12s, 0.3s.
func Duration(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%.0fs", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}
