package scenario

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// chart is groups of bars, one bar for each series.
type chart struct {
	title, unit    string
	groups, series []string
	value          func(series, group string) (float64, bool) // false: was not measured
}

// Of a drawing, in pixels.
const (
	chartHeight, chartTop, chartLeft = 300, 50, 60
	chartBar, chartGap               = 34, 30
	chartBelow                       = 60 // names of the groups, legend
)

// chartColours can be told apart by people who see few colours (Okabe and Ito).
var chartColours = []string{"#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#000000"}

// svg draws it; heights are of the largest value.
func (c chart) svg() []byte {
	top := 0.0
	for _, s := range c.series {
		for _, g := range c.groups {
			if v, ok := c.value(s, g); ok {
				top = math.Max(top, v)
			}
		}
	}
	top = niceAbove(top)
	group := chartBar*len(c.series) + chartGap
	width := chartLeft + group*len(c.groups) + chartGap
	width = max(width, chartLeft+150*len(c.series), chartLeft+8*len(c.title))
	bottom := chartTop + chartHeight
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", width, bottom+chartBelow)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	fmt.Fprintf(&b, `<text x="%d" y="20" font-size="14">%s</text>`+"\n", chartLeft, html.EscapeString(c.title))
	const lines = 5
	for i := range lines + 1 {
		y := bottom - i*chartHeight/lines
		fmt.Fprintf(&b, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="#ccc"/><text x="%d" y="%d" text-anchor="end">%s</text>`+"\n",
			chartLeft, y, width, y, chartLeft-5, y+4, figure(top*float64(i)/lines))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d">%s</text>`+"\n", chartLeft, chartTop-10, html.EscapeString(c.unit))
	for i, g := range c.groups {
		left := chartLeft + chartGap + i*group
		for k, s := range c.series {
			v, ok := c.value(s, g)
			if !ok {
				continue
			}
			h := v / top * chartHeight
			fmt.Fprintf(&b, `<rect class="bar" x="%d" y="%.1f" width="%d" height="%.1f" fill="%s"><title>%s, %s: %s %s</title></rect>`+"\n",
				left+k*chartBar, float64(bottom)-h, chartBar-4, h, colour(k), html.EscapeString(s), html.EscapeString(g), figure(v), html.EscapeString(c.unit))
			fmt.Fprintf(&b, `<text x="%d" y="%.1f" text-anchor="middle" font-size="10">%.1f</text>`+"\n", left+k*chartBar+chartBar/2-2, float64(bottom)-h-3, v)
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", left+chartBar*len(c.series)/2, bottom+18, html.EscapeString(g))
	}
	for k, s := range c.series {
		x := chartLeft + 150*k
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="12" height="12" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n",
			x, bottom+36, colour(k), x+18, bottom+46, html.EscapeString(s))
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

func colour(series int) string { return chartColours[series%len(chartColours)] }

// niceAbove is 1, 2, 5 or 10 times a power of ten, and not below v.
func niceAbove(v float64) float64 {
	if v <= 0 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, n := range []float64{1, 2, 5} {
		if n*power >= v {
			return n * power
		}
	}
	return 10 * power
}
