package main

import "github.com/bermedge/berm/cmd/berm/internal/out"

// screen draws over what it drew before, on terminals; elsewhere prints follow each other.
type screen struct {
	p     *out.Printer
	over  bool
	lines int
}

func (a *app) redraw() *screen {
	return &screen{p: a.out, over: isTerminal(a.stdout)}
}

func (s *screen) draw(f func(*out.Printer)) {
	var c lineCounter
	f(&out.Printer{W: &c, Color: s.p.Color})
	if s.over && s.lines > 0 {
		s.p.Printf("\x1b[%dA\x1b[J", s.lines) // up, and clear to the end
	}
	s.p.Printf("%s", c.text)
	s.lines = c.lines
}

type lineCounter struct {
	text  []byte
	lines int
}

func (c *lineCounter) Write(b []byte) (int, error) {
	for _, x := range b {
		if x == '\n' {
			c.lines++
		}
	}
	c.text = append(c.text, b...)
	return len(b), nil
}
