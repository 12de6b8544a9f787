// Package top is the live view of an edge: sources, VIPs, drops and the cache in one screen.
package top

import (
	"context"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/bermedge/berm/userspace/control"
)

// Fetch asks for the rates over about the last seconds.
type Fetch func(ctx context.Context, seconds int) (control.Top, error)

// Options say what is watched and how.
type Options struct {
	Fetch    Fetch
	Interval time.Duration
	Title    string // of the edge
	Note     string // what this view cannot know, and why
	Color    bool
	Filter   string
}

// The sections, in the order of the screen.
const (
	sources = iota
	vips
	drops
	sections
)

// Model is the screen's state. Only Update changes it.
type Model struct {
	o             Options
	ctx           context.Context
	width, height int
	top           control.Top
	at            time.Time // of top; zero before the first answer
	err           error
	paused        bool
	help          bool
	filtering     bool // keys go to the filter
	filter        string
	focus         int
	sort          [sections]int
	reverse       [sections]bool
	offset        [sections]int // first row shown
	generation    int           // of the timer: a changed interval starts a new one
}

// New returns a model for a terminal of 80x24 until the terminal says otherwise.
func New(ctx context.Context, o Options) *Model {
	return &Model{o: o, ctx: ctx, width: 80, height: 24, filter: o.Filter, sort: byPPS}
}

type (
	answer struct {
		top control.Top
		err error
		at  time.Time
	}
	tick struct{ generation int }
)

// Init asks at once.
func (m *Model) Init() tea.Cmd { return m.fetch() }

func (m *Model) fetch() tea.Cmd {
	seconds := max(int(m.o.Interval.Round(time.Second)/time.Second), 1)
	return func() tea.Msg {
		t, err := m.o.Fetch(m.ctx, seconds)
		return answer{t, err, time.Now()}
	}
}

func (m *Model) wait() tea.Cmd {
	g := m.generation
	return tea.Tick(m.o.Interval, func(time.Time) tea.Msg { return tick{g} })
}

// Update takes a key, a new size, an answer or the timer.
func (m *Model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case answer:
		if !m.paused {
			m.err = msg.err
			if msg.err == nil {
				m.top, m.at = msg.top, msg.at
			}
		}
		return m, m.wait()
	case tick:
		switch {
		case msg.generation != m.generation:
			return m, nil // an older timer
		case m.paused:
			return m, m.wait()
		}
		return m, m.fetch()
	case tea.KeyPressMsg:
		return m.key(msg)
	}
	return m, nil
}

func (m *Model) key(k tea.KeyPressMsg) (tea.Model, tea.Cmd) {
	if k.String() == "ctrl+c" {
		return m, tea.Quit
	}
	if m.filtering {
		m.edit(k)
		return m, nil
	}
	if m.help {
		m.help = false
		return m, nil
	}
	switch k.String() {
	case "q":
		return m, tea.Quit
	case "p", "space":
		m.paused = !m.paused
	case "?", "h":
		m.help = true
	case "/":
		m.filtering = true
	case "esc":
		m.filter = ""
	case "tab":
		m.focus = (m.focus + 1) % sections
	case "shift+tab":
		m.focus = (m.focus + sections - 1) % sections
	case "1", "2", "3":
		m.focus = int(k.String()[0] - '1')
	case "s":
		m.sort[m.focus] = (m.sort[m.focus] + 1) % len(m.columns(m.focus))
	case "r":
		m.reverse[m.focus] = !m.reverse[m.focus]
	case "down", "j":
		m.offset[m.focus]++ // the view holds it within the rows
	case "up", "k":
		m.offset[m.focus] = max(m.offset[m.focus]-1, 0)
	case "+", "=":
		return m, m.faster(2)
	case "-":
		return m, m.faster(0.5)
	}
	return m, nil
}

// edit is a line editor of one line without a cursor: the filter is short.
func (m *Model) edit(k tea.KeyPressMsg) {
	switch s := k.String(); s {
	case "enter":
		m.filtering = false
	case "esc":
		m.filtering, m.filter = false, ""
	case "backspace":
		if r := []rune(m.filter); len(r) > 0 {
			m.filter = string(r[:len(r)-1])
		}
	case "ctrl+u":
		m.filter = ""
	default:
		m.filter += strings.TrimFunc(k.Text, func(r rune) bool { return r < ' ' })
	}
}

// faster multiplies how often is asked; at once, with a timer of its own.
func (m *Model) faster(by float64) tea.Cmd {
	next := time.Duration(float64(m.o.Interval) / by)
	if next < time.Second/2 || next > time.Minute {
		return nil
	}
	m.o.Interval = next
	m.generation++
	return m.wait()
}
