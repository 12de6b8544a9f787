package top

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/bermedge/berm/userspace/control"
)

// busy is a view with more of everything than fits.
func busy() control.Top {
	t := control.Top{Seconds: 1, Requests: 4890, Cache: control.Cache{Objects: 1204, Bytes: 93e6, MaxBytes: 256 << 20, HitRatio: .982}}
	for i := range 40 {
		s := control.TopSource{Source: netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), Country: "DE", Packets: float64(1000 * (40 - i)), Bytes: float64(i)}
		if i%4 == 3 {
			s = control.TopSource{Source: netip.MustParseAddr(fmt.Sprintf("2001:db8:ffff:%x::", 0xf000+i)), Packets: 5e9, Bytes: 5e12, Dropped: 3e9, Reason: "tunnel_inner"}
		}
		t.Sources = append(t.Sources, s)
	}
	for i := range 12 {
		t.VIPs = append(t.VIPs, control.TopVIP{
			Name: fmt.Sprintf("a-long-name-%03d", i), Address: netip.MustParseAddr("2001:db8:aaaa:bbbb:cccc:dddd:eeee:10"), Port: 65535, Protocol: "udp",
			In: control.Rate{Packets: 1e6, Bytes: 1e9}, Dropped: control.Rate{Packets: float64(i)}, Shadowed: control.Rate{Packets: 1},
		})
	}
	for i := range 20 {
		t.Drops = append(t.Drops, control.TopDrop{Reason: fmt.Sprintf("bad_tcp_flags_%d", i), Dropped: control.Rate{Packets: float64(100 * i), Bytes: 1e6}})
	}
	return t
}

func newModel(t *testing.T, o Options, width, height int) *Model {
	t.Helper()
	if o.Fetch == nil {
		o.Fetch = func(context.Context, int) (control.Top, error) { return busy(), nil }
	}
	if o.Interval == 0 {
		o.Interval = time.Second
	}
	m := New(t.Context(), o)
	m.Update(tea.WindowSizeMsg{Width: width, Height: height})
	m.Update(m.Init()())
	return m
}

func press(m *Model, keys ...string) tea.Cmd {
	var cmd tea.Cmd
	for _, k := range keys {
		msg := tea.KeyPressMsg{Text: k, Code: []rune(k)[0]}
		switch k {
		case "tab":
			msg = tea.KeyPressMsg{Code: tea.KeyTab}
		case "enter":
			msg = tea.KeyPressMsg{Code: tea.KeyEnter}
		case "esc":
			msg = tea.KeyPressMsg{Code: tea.KeyEscape}
		case "backspace":
			msg = tea.KeyPressMsg{Code: tea.KeyBackspace}
		case "down":
			msg = tea.KeyPressMsg{Code: tea.KeyDown}
		}
		_, cmd = m.Update(msg)
	}
	return cmd
}

func TestEveryScreenFits(t *testing.T) {
	for _, size := range [][2]int{{80, 24}, {60, 14}, {132, 43}, {300, 100}} {
		for _, color := range []bool{false, true} {
			for focus := range sections {
				m := newModel(t, Options{Title: "edge1", Color: color}, size[0], size[1])
				m.focus = focus
				lines := strings.Split(m.render(), "\n")
				if len(lines) != size[1] {
					t.Errorf("%dx%d: %d lines", size[0], size[1], len(lines))
				}
				for _, l := range lines {
					if w := ansi.StringWidth(l); w > size[0] {
						t.Errorf("%dx%d: %d wide: %q", size[0], size[1], w, l)
					}
				}
			}
		}
	}
	m := newModel(t, Options{}, 40, 10)
	if s := m.render(); !strings.Contains(s, "60x14") {
		t.Errorf("a small terminal is told: %q", s)
	}
	m = newModel(t, Options{}, 80, 24)
	m.help = true
	for _, l := range strings.Split(m.render(), "\n") {
		if ansi.StringWidth(l) > 80 {
			t.Errorf("help is too wide: %q", l)
		}
	}
}

// Everything an operator looks for must be on the smallest usual screen, whole.
func TestEightyByTwentyFour(t *testing.T) {
	small := busy()
	small.Sources, small.VIPs, small.Drops = small.Sources[:5], small.VIPs[:2], small.Drops[:3]
	m := newModel(t, Options{Title: "edge1", Fetch: func(context.Context, int) (control.Top, error) { return small, nil }}, 80, 24)
	s := m.render()
	for _, want := range []string{
		"berm top  edge1", "every 1s", "in 2.00M pps", "dropped 300", "requests 4.89k/s", "hits 98.2 %", "88.7 MiB of 256 MiB", "1.20k objects",
		"1 SOURCES", "2 VIPS", "3 DROPS", "2001:db8:ffff:f003::/64", "tunnel_inner", "198.51.100.0", "DE", "bad_tcp_flags_2", "PPS▼", "q quit",
	} {
		if !strings.Contains(s, want) {
			t.Errorf("no %q in\n%s", want, s)
		}
	}
	if strings.Contains(s, "bad_tcp_flags_0") {
		t.Error("a quiet drop reason is shown")
	}
}

func TestSortReverseAndScroll(t *testing.T) {
	m := newModel(t, Options{}, 80, 24)
	first := func() string {
		rows, _ := m.rows(m.focus)
		return rows[m.offset[m.focus]][0].text
	}
	press(m, "2")
	if got := first(); got != "a-long-name-000" {
		t.Errorf("by PPS, equal everywhere, the first VIP is %s", got)
	}
	press(m, "s", "s") // BIT/S, DROPPED
	if got := first(); got != "a-long-name-011" {
		t.Errorf("by drops the first VIP is %s", got)
	}
	press(m, "r")
	if got := first(); got != "a-long-name-000" {
		t.Errorf("by drops, reversed, the first VIP is %s", got)
	}
	press(m, "down", "down")
	m.render()
	if got := first(); got != "a-long-name-002" {
		t.Errorf("scrolled by two, the first VIP is %s", got)
	}
	for range 50 {
		press(m, "down")
	}
	if s := m.render(); !strings.Contains(s, "of 12") || m.offset[vips] >= 12 {
		t.Errorf("scrolled beyond the end: offset %d\n%s", m.offset[vips], s)
	}
}

func TestFilter(t *testing.T) {
	m := newModel(t, Options{}, 80, 24)
	press(m, "/", "F", "0", "0", "7", "q", "backspace")
	if !m.filtering || m.filter != "F007" {
		t.Fatalf("filtering %v for %q", m.filtering, m.filter)
	}
	if cmd := press(m, "enter"); cmd != nil || m.filtering {
		t.Error("enter keeps the filter and goes back to the keys")
	}
	s := m.render()
	if !strings.Contains(s, "2001:db8:ffff:f007::/64") || !strings.Contains(s, "1 of 40") || !strings.Contains(s, "nothing matches") {
		t.Errorf("filtered:\n%s", s)
	}
	press(m, "esc")
	if m.filter != "" {
		t.Error("esc clears the filter")
	}
}

func TestPauseKeepsTheView(t *testing.T) {
	n := 0
	m := newModel(t, Options{Fetch: func(context.Context, int) (control.Top, error) {
		n++
		return control.Top{Requests: float64(n)}, nil
	}}, 80, 24)
	press(m, "p")
	if !strings.Contains(m.render(), "PAUSED") {
		t.Error("the pause is not shown")
	}
	m.Update(answer{top: control.Top{Requests: 99}, at: time.Now()}) // was on its way
	if m.top.Requests != 1 {
		t.Errorf("the view moved to %g while paused", m.top.Requests)
	}
	_, cmd := m.Update(tick{m.generation})
	if cmd == nil {
		t.Fatal("the timer stopped with the pause")
	}
	press(m, "p")
	_, cmd = m.Update(tick{m.generation})
	m.Update(cmd())
	if m.top.Requests != 2 {
		t.Errorf("after the pause the view is %g, want 2", m.top.Requests)
	}
}

func TestErrorsAreShownAndForgotten(t *testing.T) {
	m := newModel(t, Options{}, 80, 24)
	m.Update(answer{err: errors.New("bermd is not running")})
	s := m.render()
	if !strings.Contains(s, "no answer: bermd is not running") || !strings.Contains(s, "2001:db8:ffff:f003::/64") {
		t.Errorf("an error takes the view away:\n%s", s)
	}
	m.Update(answer{top: busy(), at: time.Now()})
	if strings.Contains(m.render(), "no answer") {
		t.Error("an old error is still shown")
	}
}

func TestSpeedStartsANewTimer(t *testing.T) {
	m := newModel(t, Options{}, 80, 24)
	old := tick{m.generation}
	if press(m, "-") == nil || m.o.Interval != 2*time.Second {
		t.Errorf("interval %s", m.o.Interval)
	}
	if _, cmd := m.Update(old); cmd != nil {
		t.Error("the old timer still asks")
	}
	for range 10 {
		press(m, "+")
	}
	if m.o.Interval != time.Second/2 {
		t.Errorf("interval %s, want the least, 500ms", m.o.Interval)
	}
}

func TestQuit(t *testing.T) {
	for _, k := range []tea.KeyPressMsg{{Text: "q", Code: 'q'}, {Code: 'c', Mod: tea.ModCtrl}} {
		m := newModel(t, Options{}, 80, 24)
		_, cmd := m.Update(k)
		if cmd == nil {
			t.Fatalf("%s does nothing", k)
		}
		if _, ok := cmd().(tea.QuitMsg); !ok {
			t.Errorf("%s does not quit", k)
		}
	}
}
