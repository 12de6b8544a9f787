package scenario

import (
	"encoding/xml"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
)

func TestChart(t *testing.T) {
	values := map[string]float64{"a 0": 40, "a 2": 10, "<b> 0": 20}
	c := chart{
		title: "goodput & more", unit: "Mbit/s", groups: []string{"0", "2"}, series: []string{"a", "<b>"},
		value: func(s, g string) (float64, bool) { v, ok := values[s+" "+g]; return v, ok },
	}
	var heights []float64
	dec := xml.NewDecoder(strings.NewReader(string(c.svg())))
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		e, ok := tok.(xml.StartElement)
		if !ok || e.Name.Local != "rect" {
			continue
		}
		attr := map[string]string{}
		for _, a := range e.Attr {
			attr[a.Name.Local] = a.Value
		}
		if attr["class"] != "bar" {
			continue
		}
		h, err := strconv.ParseFloat(attr["height"], 64)
		if err != nil {
			t.Fatal(err)
		}
		y, err := strconv.ParseFloat(attr["y"], 64)
		if err != nil {
			t.Fatal(err)
		}
		if y+h != chartTop+chartHeight {
			t.Errorf("a bar from %v, %v high, does not stand on the line", y, h)
		}
		heights = append(heights, h)
	}
	// The axis ends at 50.
	if len(heights) != 3 || heights[0] != 240 || heights[1] != 120 || heights[2] != 60 {
		t.Errorf("heights %v, want 240, 120, 60", heights)
	}
	for v, want := range map[float64]float64{0: 1, 0.3: 0.5, 1: 1, 1.1: 2, 47: 50, 51: 100} {
		if got := niceAbove(v); got != want {
			t.Errorf("niceAbove(%v) = %v, want %v", v, got, want)
		}
	}
}
