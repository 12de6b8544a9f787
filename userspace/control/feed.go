package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/bermedge/berm/maps"
)

// Feed makes verdicts of lines of JSON (NDJSON), so that any program can decide about sources:
//
//	{"source":"198.51.100.7","for":"10m","reason":"ssh","rule":1001,"evidence":77}
//	{"source":"2001:db8:7::/64","vip":"web","action":"shadow","for":90}
//	{"op":"remove","source":"198.51.100.7"}
//
// A line that is wrong is reported by its number and goes no further; the next one counts again.
type Feed struct {
	Open   func() (Tables, error) // how the tables are reached; called again when that way is gone
	MaxFor time.Duration          // no verdict lasts longer; 0: no bound
	Never  []netip.Prefix         // sources that no line may drop
	Report func(FeedError)
}

// FeedError says what is wrong with a line.
type FeedError struct {
	Line  int    `json:"line"`
	Error string `json:"error"`
}

// FeedStats count lines by what became of them. A line about a prefix counts once.
type FeedStats struct {
	Lines   int `json:"lines"`
	Added   int `json:"added"`
	Removed int `json:"removed"`
	Absent  int `json:"absent"` // to be removed, and not there
	Refused int `json:"refused"`
}

const (
	maxFeedLine = 16 << 10 // bytes
	maxFeedKeys = 256      // sources of one line: an IPv4 /24, an IPv6 /56
	feedBatch   = 512      // sources sent at once, well below the socket's maxRequest
	feedAhead   = 1024     // lines read ahead while a batch is under way
)

// feedLine is one line as it is written.
type feedLine struct {
	Op        string          `json:"op"` // add (the default) or remove
	Source    string          `json:"source"`
	VIP       string          `json:"vip"`
	Action    string          `json:"action"` // drop (the default), shadow, allow or mark
	For       json.RawMessage `json:"for"`    // "10m", or seconds; "forever" or 0
	Reason    string          `json:"reason"`
	Rule      uint32          `json:"rule"`
	Evidence  uint64          `json:"evidence"`
	Validated *bool           `json:"validated"` // false: the source may be forged
}

// defaultFor is how long a verdict lasts that does not say.
const defaultFor = time.Hour

// ParseFeedLine turns a line into the changes it asks for, one for each source of a prefix.
func ParseFeedLine(line []byte) ([]VerdictChange, error) {
	var in feedLine
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		return nil, fmt.Errorf("no JSON object of a verdict: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value in the line")
	}
	sources, err := feedSources(in.Source)
	if err != nil {
		return nil, err
	}
	c := VerdictChange{Verdict: Verdict{VIP: in.VIP, Action: orWord(in.Action, "drop"), Reason: cutReason(in.Reason), Rule: in.Rule, Evidence: in.Evidence}}
	switch in.Op {
	case "", "add":
		if _, err := maps.ParseAction(c.Action); err != nil {
			return nil, err
		}
		if c.Seconds, err = feedFor(in.For); err != nil {
			return nil, err
		}
		if in.Validated != nil && !*in.Validated && c.Action == "drop" {
			c.Action = "shadow" // whoever forges it must not choose whom we drop
		}
	case "remove":
		c.Remove = true
	default:
		return nil, fmt.Errorf("op: %q: want add or remove", in.Op)
	}
	out := make([]VerdictChange, len(sources))
	for i, s := range sources {
		out[i] = c
		out[i].Source = s
	}
	return out, nil
}

// cutReason keeps what fits into an entry.
func cutReason(s string) string {
	for len(s) > maps.ReasonLen {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, s))
}

// feedSources lists the keys of an address, or of a prefix: IPv4 addresses, IPv6 /64s.
func feedSources(s string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" || a.IsUnspecified() {
			return nil, fmt.Errorf("source: %q is no source of packets", s)
		}
		return []netip.Addr{a.Unmap()}, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return nil, fmt.Errorf("source: %q is neither an address nor a prefix", s)
	}
	p = p.Masked()
	unit := 32 // bits of a key
	if !p.Addr().Is4() {
		unit = 64
	}
	free := max(0, unit-p.Bits())
	if 1<<min(free, 30) > maxFeedKeys {
		return nil, fmt.Errorf("source: %s holds more than %d sources (block it by geo.overrides)", p, maxFeedKeys)
	}
	out := make([]netip.Addr, 0, 1<<free)
	for a, i := p.Addr(), 0; i < 1<<free; i++ {
		out = append(out, a)
		a = nextKey(a)
	}
	return out, nil
}

// nextKey is the address, or the /64, behind a.
func nextKey(a netip.Addr) netip.Addr {
	if a.Is4() {
		return a.Next()
	}
	b := a.As16()
	for i := 7; i >= 0; i-- {
		if b[i]++; b[i] != 0 {
			break
		}
	}
	return netip.AddrFrom16(b)
}

// feedFor reads "10m", "7d", "forever" or a number of seconds.
func feedFor(raw json.RawMessage) (float64, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return defaultFor.Seconds(), nil
	}
	var n float64
	if err := json.Unmarshal(raw, &n); err == nil {
		if n < 0 || n > 1e9 {
			return 0, fmt.Errorf("for: %g seconds: want 0 (for ever) to 1e9", n)
		}
		return n, nil
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return 0, fmt.Errorf("for: %s: want a time such as \"10m\", or a number of seconds", raw)
	}
	if s == "forever" {
		return 0, nil
	}
	unit := 1.0
	text := s
	if days, ok := strings.CutSuffix(s, "d"); ok {
		text, unit = days+"h", 24
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 || d.Seconds()*unit > 1e9 {
		return 0, fmt.Errorf("for: %q: want a time such as 90s, 10m, 2h or 7d, or forever", s)
	}
	return d.Seconds() * unit, nil
}

// numbered is a line with its number.
type numbered struct {
	n    int
	text []byte
	err  error // why there is no text
}

// Run makes verdicts of what r says until it ends or ctx does. What goes wrong with single lines is
// reported and counted; an error means that r could not be read.
func (f *Feed) Run(ctx context.Context, r io.Reader) (stats FeedStats, err error) {
	lines := make(chan numbered, feedAhead)
	failed := make(chan error, 1)
	// Nothing can interrupt a read of standard input: when ctx ends first, the reader is left to
	// end with the process.
	go func() {
		failed <- readLines(ctx, r, lines)
		close(lines)
	}()
	for {
		var first numbered
		var more bool
		select {
		case <-ctx.Done():
			return stats, nil
		case first, more = <-lines:
		}
		if !more {
			return stats, <-failed
		}
		f.batch(ctx, first, lines, &stats)
	}
}

func readLines(ctx context.Context, r io.Reader, out chan<- numbered) error {
	br := bufio.NewReaderSize(r, maxFeedLine)
	for n := 1; ; n++ {
		l := numbered{n: n}
		text, err := br.ReadSlice('\n')
		for errors.Is(err, bufio.ErrBufferFull) {
			l.err = fmt.Errorf("longer than %d bytes", maxFeedLine)
			_, err = br.ReadSlice('\n')
		}
		if l.err == nil {
			l.text = bytes.Clone(bytes.TrimSpace(text))
		}
		if len(l.text) > 0 || l.err != nil {
			select {
			case out <- l:
			case <-ctx.Done():
				return nil
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read verdicts: line %d: %w", n, err)
		}
	}
}

// batch sends a line and those that have come behind it meanwhile.
func (f *Feed) batch(ctx context.Context, l numbered, lines <-chan numbered, stats *FeedStats) {
	var (
		changes []VerdictChange
		of      []numbered // the line of each change
		all     []numbered
	)
	for more := true; more; {
		stats.Lines++
		if list, err := f.parse(l); err != nil {
			f.refuse(l.n, err, stats)
		} else {
			all = append(all, l)
			for _, c := range list {
				changes, of = append(changes, c), append(of, l)
			}
		}
		more = false
		if len(changes) < feedBatch {
			select {
			case l, more = <-lines:
			default: // who feeds slowly is not kept waiting
			}
		}
	}
	if len(changes) == 0 {
		return
	}
	res, err := f.send(ctx, changes)
	if err != nil {
		for _, l := range all {
			f.refuse(l.n, err, stats)
		}
		return
	}
	f.count(changes, of, res, stats)
}

func (f *Feed) parse(l numbered) ([]VerdictChange, error) {
	if l.err != nil {
		return nil, l.err
	}
	list, err := ParseFeedLine(l.text)
	if err != nil {
		return nil, err
	}
	for i := range list {
		c := &list[i]
		if c.Remove {
			continue
		}
		if most := f.MaxFor.Seconds(); most > 0 && (c.Seconds == 0 || c.Seconds > most) {
			c.Seconds = most
		}
		for _, p := range f.Never {
			if c.Action == "drop" && p.Overlaps(keyPrefix(c.Source)) {
				return nil, fmt.Errorf("source: %s is in %s, which no verdict may drop", c.Source, p)
			}
		}
	}
	return list, nil
}

// keyPrefix is what a verdict about the address covers.
func keyPrefix(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(a, 32)
	}
	return netip.PrefixFrom(a, 64).Masked()
}

func (f *Feed) refuse(line int, err error, stats *FeedStats) {
	stats.Refused++
	f.Report(FeedError{line, err.Error()})
}

// send tries again, by whatever way is open then, while a daemon restarts.
func (f *Feed) send(ctx context.Context, changes []VerdictChange) (res VerdictResults, err error) {
	const tries = 6
	for i := range tries {
		if i > 0 {
			select {
			case <-ctx.Done():
				return res, err
			case <-time.After(25 * time.Millisecond << i): // 1.6 s in all
			}
		}
		var t Tables
		if t, err = f.Open(); err != nil {
			continue
		}
		res, err = t.ChangeVerdicts(ctx, changes)
		if e := (*Error)(nil); err == nil || errors.As(err, &e) && e.Status < 500 {
			return res, err // an answer, if not the one that was hoped for
		}
	}
	return res, err
}

// count sums up a batch by lines: one is refused if any of its sources was.
func (f *Feed) count(changes []VerdictChange, of []numbered, res VerdictResults, stats *FeedStats) {
	refused := map[int]VerdictRefused{}
	for _, r := range res.Refused {
		refused[r.Index] = r
	}
	for i := 0; i < len(changes); {
		line, absent := of[i].n, 0
		var bad *VerdictRefused
		from := i
		for ; i < len(changes) && of[i].n == line; i++ {
			r, ok := refused[i]
			switch {
			case ok && r.Absent:
				absent++
			case ok && bad == nil:
				bad = &r
			}
		}
		switch {
		case bad != nil:
			f.refuse(line, errors.New(bad.Error), stats)
		case absent == i-from:
			stats.Absent++
		case changes[from].Remove:
			stats.Removed++
		default:
			stats.Added++
		}
	}
}
