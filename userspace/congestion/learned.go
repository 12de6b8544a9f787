package congestion

import (
	"net/netip"
	"time"

	"github.com/bermedge/berm/maps"
)

// Status is what the learner is about.
type Status struct {
	Mode     Mode
	Said     bool // by an operator: until the file is loaded again
	Trouble  string
	Arms     []string
	HoldOut  float64
	Prefixes int            // that something is known of
	Chosen   map[string]int // prefixes by profile
	Held     int            // of those, where an operator or the file has decided
	Changes  uint64         // of a choice, since the start
	Evicted  uint64         // prefixes forgotten for room
}

// Learned is what was learned of a prefix.
type Learned struct {
	Prefix  netip.Prefix
	Mode    Mode
	Profile string // what is chosen, in shadow would be; "": nothing yet
	Learned bool   // by results of more than one profile, not by the rule for a start
	Why     string
	Since   time.Time
	Held    bool // an operator or the file has decided about it
	HoldOut float64
	Scores  []Score
}

// Score is what a profile reached towards a prefix. Rates are medians over the parts of the prefix's clients.
type Score struct {
	Profile       string
	Connections   float64 // that count; older ones count less
	QUIC          float64 // of those
	Parts         int     // of the prefix's clients that they are of
	GoodputKbps   float64
	Queueing      float64 // share of the round trip
	Retransmitted float64 // share of the segments
	RewardKbps    float64 // goodput less what queues and retransmissions cost
	Gain          float64 // against what is chosen, part by part; 0.1: a tenth better
	Paired        int     // parts that have seen both
}

// Status tells what the learner is about.
func (l *Learner) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Status{
		Mode: l.mode(), Said: l.said != nil, Trouble: l.trouble, HoldOut: l.cfg.HoldOut, Prefixes: len(l.prefixes), Chosen: map[string]int{},
		Held: len(l.held), Changes: l.changes, Evicted: l.evicted, Arms: []string{},
	}
	for _, a := range l.arms {
		s.Arms = append(s.Arms, a.name)
		s.Chosen[a.name] = 0
	}
	for _, e := range l.prefixes {
		if e.chosen >= 0 {
			s.Chosen[l.arms[e.chosen].name]++
		}
	}
	return s
}

// Explain tells what was learned of an address's prefix; false: nothing.
func (l *Learner) Explain(ip netip.Addr) (Learned, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := maps.PathPrefix(ip)
	e := l.prefixes[p]
	if e == nil || l.mode() == Off {
		return Learned{}, false
	}
	x := Learned{
		Prefix: p, Mode: l.mode(), Learned: e.learned, Why: "too little is known of its losses yet", Since: e.since, Held: l.held[p],
		HoldOut: l.cfg.HoldOut, Scores: []Score{},
	}
	if e.chosen >= 0 {
		x.Profile, x.Why = l.arms[e.chosen].name, e.why
	}
	for i := range e.arms {
		x.Scores = append(x.Scores, l.score(e, i))
	}
	return x, true
}

func (l *Learner) score(e *entry, i int) Score {
	a := &e.arms[i]
	s := Score{Profile: l.arms[i].name, Connections: a.connections(), QUIC: a.over(overQUIC)}
	for j := range maps.CCParts {
		if p := a.whole(j); p.counts() {
			s.Parts++
		}
	}
	s.GoodputKbps, _ = a.median((*part).goodput)
	s.Queueing, _ = a.median((*part).queueing)
	s.Retransmitted, _ = a.median((*part).retransmitted)
	s.RewardKbps, _ = a.median(l.cfg.reward)
	if e.chosen >= 0 && i != e.chosen {
		c := l.cfg.compare(&e.arms[e.chosen], a)
		s.Gain, s.Paired = c.gain, c.paired
	}
	return s
}
