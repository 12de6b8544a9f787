package congestion

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bermedge/berm/maps"
)

// Learner chooses a profile for each prefix by what connections reached with each. All its methods may be called at
// any time.
type Learner struct {
	mu       sync.Mutex
	cfg      Learn
	said     *Mode        // by an operator, instead of the file's
	arms     []learnedArm // to choose among
	host     hosts
	prefixes map[netip.Prefix]*entry
	last     map[resultOf]maps.CCResult // as of the last look
	held     map[netip.Prefix]bool      // where others have decided
	changes  uint64
	evicted  uint64   // prefixes forgotten for room
	dirty    bool     // since the last save
	trouble  string   // why nothing is chosen
	clean    *maps.CC // from which all was withdrawn
}

// hosts are the controllers that connections have which no profile has a say about, by protocol.
type hosts [len(protocols)]string

type learnedArm struct {
	name       string
	controller string               // "" the host's
	plain      [len(protocols)]bool // no parameters but that
}

type resultOf struct {
	prefix   netip.Prefix
	protocol int
	arm      int
	host     bool // of connections that the host's own parameters made an arm's
}

// entry is what is known of a prefix.
type entry struct {
	arms    []arm
	chosen  int       // -1: nothing yet
	learned bool      // by results of both, not by the rule for a start
	why     string    // in words
	since   time.Time // of the choice
	conns   float64   // since then
	seen    time.Time // when there was a result
	faded   time.Time
	fresh   bool // read from a file: what the kernel half has counted until now is in it
}

// NewLearner returns one that knows nothing. tcp and quic are the controllers that connections have without a profile.
func NewLearner(tcp, quic string) *Learner {
	return &Learner{host: hosts{tcp, quic}, prefixes: map[netip.Prefix]*entry{}, last: map[resultOf]maps.CCResult{}, held: map[netip.Prefix]bool{}, cfg: DefaultLearn()}
}

// Apply makes c what counts. What an operator has said of the mode ends.
func (l *Learner) Apply(c Config) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cfg, l.said = c.Learn, nil
	arms := []learnedArm{newArm(ownCubic, Profile{Controller: "cubic"}), newArm(ownBBR, Profile{Controller: "bbr"})}
	if len(c.Learn.Arms) > 0 {
		arms = nil
		for _, name := range c.Learn.Arms {
			p, _ := c.Profile(name)
			arms = append(arms, newArm(name, p))
		}
	}
	if slices.Equal(arms, l.arms) {
		return
	}
	for _, e := range l.prefixes {
		e.rearrange(l.arms, arms)
	}
	l.arms = arms
	clear(l.last)
	for _, e := range l.prefixes {
		e.fresh = true
	}
}

func newArm(name string, p Profile) learnedArm {
	a := learnedArm{name: name, controller: p.Controller}
	a.plain[overTCP] = p.InitialWindow == 0 && p.RTOMin == 0 && p.AckDelay == 0
	a.plain[overQUIC] = p.InitialWindow == 0 && p.AckDelay == 0 && p.QUIC == QUIC{}
	return a
}

// rearrange keeps what is known of arms that stay.
func (e *entry) rearrange(was, is []learnedArm) {
	old, chosen := e.arms, e.chosen
	e.arms, e.chosen, e.learned = make([]arm, len(is)), -1, false
	for i, a := range is {
		if j := slices.IndexFunc(was, func(b learnedArm) bool { return a == b }); j >= 0 {
			e.arms[i] = old[j]
			if j == chosen {
				e.chosen = i
			}
		}
	}
}

// Say sets the mode until the file is loaded again.
func (l *Learner) Say(m Mode) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.said = &m
}

// Mode is the one in force.
func (l *Learner) Mode() Mode {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mode()
}

func (l *Learner) mode() Mode {
	if l.said != nil {
		return *l.said
	}
	return l.cfg.Mode
}

// observe takes what the kernel half has counted, and chooses anew where that says so.
func (l *Learner) observe(now time.Time, results []maps.CCResult) {
	touched := map[netip.Prefix]bool{}
	for _, r := range results {
		protocol := slices.Index(protocols[:], r.Protocol)
		if protocol < 0 {
			continue
		}
		if i, host, ok := l.armOf(protocol, r.Profile); ok && l.take(now, r, resultOf{r.Prefix, protocol, i, host}) {
			touched[r.Prefix] = true
		}
	}
	for p, e := range l.prefixes {
		e.fresh = false
		if touched[p] {
			e.seen, l.dirty = now, true
			l.choose(now, e)
		}
	}
	l.forget(now)
}

// armOf is which arm a profile is. The host's own parameters may be the same as one's.
func (l *Learner) armOf(protocol int, profile string) (i int, host, ok bool) {
	if profile == "" {
		i = slices.IndexFunc(l.arms, func(a learnedArm) bool {
			return a.plain[protocol] && (a.controller == l.host[protocol] || a.controller == "")
		})
		return i, true, i >= 0
	}
	i = slices.IndexFunc(l.arms, func(a learnedArm) bool { return a.name == profile })
	return i, false, i >= 0
}

// take adds what is new in r, and tells whether there was anything.
func (l *Learner) take(now time.Time, r maps.CCResult, of resultOf) bool {
	last, known := l.last[of]
	if known && last.Parts == r.Parts {
		return false
	}
	e := l.prefixes[r.Prefix]
	if e == nil {
		if len(l.prefixes) >= l.cfg.Prefixes {
			l.makeRoom()
		}
		e = &entry{arms: make([]arm, len(l.arms)), chosen: -1, faded: now, seen: now, since: now}
		l.prefixes[r.Prefix] = e
	}
	l.last[of] = r
	if e.fresh && !known {
		return false
	}
	e.fade(now, l.cfg.Memory)
	for i := range r.Parts {
		e.arms[of.arm][of.protocol][i].add(r.Parts[i], last.Parts[i])
		e.conns += float64(r.Parts[i].Connections - last.Parts[i].Connections)
	}
	return true
}

// fade makes what was measured before now count less.
func (e *entry) fade(now time.Time, half time.Duration) {
	by := math.Exp2(-max(now.Sub(e.faded), 0).Seconds() / half.Seconds())
	e.faded = now
	for i := range e.arms {
		for protocol := range protocols {
			for j := range maps.CCParts {
				e.arms[i][protocol][j].fade(by)
			}
		}
	}
}

// makeRoom forgets the sixteenth that was not seen for longest.
func (l *Learner) makeRoom() {
	all := make([]netip.Prefix, 0, len(l.prefixes))
	for p := range l.prefixes {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(l.prefixes[a].seen.Compare(l.prefixes[b].seen), a.Compare(b))
	})
	for _, p := range all[:max(1, len(all)/16)] {
		l.drop(p)
		l.evicted++
	}
}

func (l *Learner) drop(p netip.Prefix) {
	delete(l.prefixes, p)
	delete(l.held, p)
	l.dirty = true
}

// oblivion is after how many half-lives a prefix is forgotten: a thousand connections would count for less than one.
const oblivion = 10

func (l *Learner) forget(now time.Time) {
	for p, e := range l.prefixes {
		if now.Sub(e.seen) > oblivion*l.cfg.Memory {
			l.drop(p)
		}
	}
	for of := range l.last {
		if l.prefixes[of.prefix] == nil {
			delete(l.last, of)
		}
	}
}

// choose decides about a prefix.
func (l *Learner) choose(now time.Time, e *entry) {
	settled := e.chosen >= 0 && e.conns < enough // let a choice show what it does
	if settled {
		return
	}
	if best, c, ok := l.best(e); ok {
		if !e.learned && best == e.chosen {
			e.learned, e.why = true, "the others did no better"
		}
		if best != e.chosen {
			l.change(now, e, best, true, fmt.Sprintf("it does %.0f %% better, by the median of %d of the prefix's parts", 100*c.gain, c.paired))
		}
		return
	}
	if e.learned { // what was known of the others has faded: the choice stays
		return
	}
	tolerant, known := cold(e.arms)
	if !known {
		return
	}
	i := slices.IndexFunc(l.arms, func(a learnedArm) bool { return strings.HasPrefix(a.controller, "bbr") == tolerant })
	if i < 0 {
		i = 0
	}
	why := "for a start: losses there are few enough for CUBIC (RFC 9438)"
	if tolerant {
		why = fmt.Sprintf("for a start: at its losses CUBIC would reach less than %.0f %% of what the path delivered (RFC 9438)", 100*coldShare)
	}
	if i != e.chosen {
		l.change(now, e, i, false, why)
	}
}

// best is the arm that does best, where enough is known of more than the chosen one.
func (l *Learner) best(e *entry) (best int, by comparison, ok bool) {
	if e.chosen < 0 || e.arms[e.chosen].connections() < enough {
		return 0, comparison{}, false
	}
	best = e.chosen
	for i := range e.arms {
		if i == e.chosen || e.arms[i].connections() < enough {
			continue
		}
		c := l.cfg.compare(&e.arms[e.chosen], &e.arms[i])
		if !c.most {
			continue
		}
		ok = true
		if c.gain > l.cfg.Hysteresis && c.agree > 2.0/3 && c.gain > by.gain {
			best, by = i, c
		}
	}
	return best, by, ok
}

func (l *Learner) change(now time.Time, e *entry, to int, learned bool, why string) {
	if e.chosen >= 0 {
		l.changes++
	}
	e.chosen, e.learned, e.why, e.since, e.conns = to, learned, why, now, 0
}

// rule is what a prefix's choice is to the kernel half.
func (l *Learner) rule(p netip.Prefix, e *entry) maps.CCRule {
	r := maps.CCRule{
		Prefix: p, Profile: l.arms[e.chosen].name, Owner: maps.OwnerLearner,
		HoldOut: uint8(math.Round(l.cfg.HoldOut * 256)), // a quarter at most
	}
	n := 0
	for i, a := range l.arms {
		if i != e.chosen {
			r.Others[n] = a.name
			n++
		}
	}
	if n == 1 {
		r.Others[1] = r.Others[0]
	}
	return r
}
