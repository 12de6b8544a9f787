package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

type inner struct {
	Size  uint16        `yaml:"size"`
	Wait  time.Duration `yaml:"wait"`
	Codes []string      `yaml:"codes"`
}

type outer struct {
	Name   string            `yaml:"name"`
	On     bool              `yaml:"on"`
	Addr   netip.Addr        `yaml:"addr"`
	Nets   []netip.Prefix    `yaml:"nets"`
	Inner  inner             `yaml:"inner"`
	Named  map[string]inner  `yaml:"named"`
	Labels map[string]string `yaml:"labels"`
	Ratio  float64           `yaml:"ratio"`
	Left   int32             `yaml:"left"`
}

func decodeOuter(src string) (outer, Problems) {
	d := newDecoder("f")
	preset(d, inner{Size: 7, Wait: time.Second})
	out := outer{Name: "default", Inner: inner{Size: 1}}
	d.decode([]byte(src), &out)
	d.problems.sort()
	return out, d.problems
}

func TestDecodeGood(t *testing.T) {
	_, ps := decodeOuter(`
# a comment
base: &base {size: 3, wait: 2s}
`)
	if len(ps) != 1 || ps[0].Key != "base" {
		t.Fatalf("want one unknown key, have %v", ps)
	}
	out, ps := decodeOuter(`
name: "quoted: text"
on: true
addr: 2001:db8::1
nets: [192.0.2.0/24, "2001:db8::/32"]
inner: &base
  size: 0x10
  wait: 1m30s
  codes: [NO, DE, "on"]
named:
  a: *base
  b: {<<: *base, size: 65535}
  c: {}
  d:
labels: {x: 1, y: two}
ratio: 2.5
left: -5
`)
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	want := outer{
		Name: "quoted: text", On: true, Addr: netip.MustParseAddr("2001:db8::1"),
		Nets:   []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")},
		Inner:  inner{16, 90 * time.Second, []string{"NO", "DE", "on"}},
		Labels: map[string]string{"x": "1", "y": "two"}, Ratio: 2.5, Left: -5,
		Named: map[string]inner{
			"a": {16, 90 * time.Second, []string{"NO", "DE", "on"}}, "b": {65535, 90 * time.Second, []string{"NO", "DE", "on"}},
			"c": {Size: 7, Wait: time.Second}, "d": {Size: 7, Wait: time.Second},
		},
	}
	if got := fmt.Sprintf("%+v", out); got != fmt.Sprintf("%+v", want) {
		t.Errorf("have %s\nwant %+v", got, want)
	}
}

func TestDecodeEmptyIsDefault(t *testing.T) {
	for _, src := range []string{"", "\n", "# only a comment\n", "---\n", "inner:\n"} {
		if out, ps := decodeOuter(src); len(ps) > 0 || out.Name != "default" || out.Inner.Size != 1 {
			t.Errorf("%q: %+v %v", src, out, ps)
		}
	}
}

func TestDecodeReportsEverything(t *testing.T) {
	_, ps := decodeOuter(`nmae: x
on: yes
addr: 192.0.2.1/24
nets:
  - 192.0.2.0
  - 10.0.0.0/8
inner: {size: 65536, wait: 10, codes: DE, zzz: 1}
named:
  a: [1]
  b: {size: -1}
  b: {size: 2}
ratio: .nan
left: 4e9
labels: {k: true, l: [a]}
`)
	want := `f:1:1: nmae: unknown key (did you mean name?)
f:2:5: on: want true or false, have "yes"
f:3:7: addr: "192.0.2.1/24" is no IP address (write the address without /length)
f:5:5: nets[0]: "192.0.2.0" is no IP prefix (write address/length, such as 192.0.2.0/24)
f:7:15: inner.size: want a whole number from 0 to 65535, have "65536"
f:7:28: inner.wait: "10" is no duration (add a unit: 10s or 10ms)
f:7:39: inner.codes: want a list, have "DE" (write [a, b], or a line each with - before it)
f:7:43: inner.zzz: unknown key (known: codes, size, wait)
f:9:6: named.a: want keys and values, have a list
f:10:13: named.b.size: want a whole number from 0 to 65535, have "-1"
f:11:3: named.b: stands twice; first in line 10 (remove one)
f:12:8: ratio: want a number, have ".nan"
f:13:7: left: want a whole number up to 2147483647, have "4e9"
f:14:13: labels.k: want text, have the truth value true (put it in quotes: "true")
f:14:22: labels.l: want text, have a list`
	if got := ps.Error(); got != want {
		t.Errorf("have\n%s\nwant\n%s", got, want)
	}
}

func TestDecodeBrokenFiles(t *testing.T) {
	for src, want := range map[string]string{
		"a: [":                         "f:1:4: ",
		"\tname: x":                    "f:1:",
		"name: x\n---\nname: y":        "second YAML document",
		"- a\n- b":                     "want keys and values, have a list",
		"just text":                    `want keys and values, have "just text"`,
		strings.Repeat("long ", 1000):  `have "long long long long long long long long long long long long "…`,
		"inner: *nowhere":              "names no anchor",
		"inner: &a\n  codes: *a":       "want a list",
		"inner: &x {<<: *x}":           "nests too deeply",
		strings.Repeat("a: ", 10000):   "f",
		strings.Repeat("#", maxSize+1): "bytes long",
	} {
		_, ps := decodeOuter(src)
		if len(ps) == 0 || !strings.Contains(ps.Error(), want) {
			t.Errorf("%.40q: %v, want %q", src, ps, want)
		}
	}
}

// Doubling aliases: 2^24 steps if nobody counts.
func TestDecodeBoundsAliases(t *testing.T) {
	var b strings.Builder
	b.WriteString("named:\n  x0: &x0 {size: 1}\n")
	for i := range 24 {
		fmt.Fprintf(&b, "  x%d: &x%d {<<: *x%d, <<: *x%d}\n", i+1, i+1, i, i)
	}
	if _, ps := decodeOuter(b.String()); !strings.Contains(ps.Error(), "aliases make this file too large") {
		t.Error(ps)
	}
}

func TestReportTreeFindsPlaces(t *testing.T) {
	d := newDecoder("f")
	var out outer
	d.decode([]byte("inner:\n  size: 3\nnamed:\n  a:\n    wait: 1s\n"), &out)
	d.reportTree("inner", errors.Join(
		errors.New("size: too small (at least 4)"),
		errors.Join(errors.New("wait: must be set"), errors.New("broken in general")),
		errors.New("inner.size: full name")))
	d.reportTree("", errors.New("named.a.wait: too short"))
	want := `f:2:3: inner.size: too small (at least 4)
f:1:1: inner.wait: must be set
f:1:1: inner: broken in general
f:2:3: inner.size: full name
f:5:5: named.a.wait: too short`
	if got := d.problems.Error(); got != want {
		t.Errorf("have\n%s\nwant\n%s", got, want)
	}
}

// Whatever the file holds, the decoder reports problems and does not panic or hang.
func FuzzDecode(f *testing.F) {
	f.Add("name: x\ninner: {size: 3}")
	f.Add("a: &a [*a]\n<<: *a")
	f.Add("named: {a: &x {size: 1}, b: {<<: *x}}")
	f.Fuzz(func(t *testing.T, src string) {
		if strings.Contains(src, "preset") {
			return
		}
		_, ps := decodeOuter(src)
		for _, p := range ps {
			if p.Message == "" {
				t.Error("a problem without words")
			}
		}
	})
}
