package congestion

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/bermedge/berm/maps"
)

// stateFile is what the learner keeps in the state directory.
const stateFile = "cc-learned.json"

type stateEntry struct {
	Prefix  netip.Prefix         `json:"prefix"`
	Chosen  string               `json:"chosen,omitempty"`
	Learned bool                 `json:"learned,omitempty"`
	Why     string               `json:"why,omitempty"`
	Since   time.Time            `json:"since"`
	Seen    time.Time            `json:"seen"`
	Conns   float64              `json:"conns"`
	Arms    map[string][]partsAt `json:"arms"` // by profile
}

// partsAt is a part that has something to say.
type partsAt struct {
	Part int  `json:"part"`
	QUIC bool `json:"quic,omitempty"`
	part
}

// Save writes what was learned into dir, unless nothing is new.
func (l *Learner) Save(dir string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.dirty || dir == "" {
		return nil
	}
	if err := Keep(filepath.Join(dir, stateFile), l.state()); err != nil {
		return fmt.Errorf("save what was learned of controllers: %w", err)
	}
	l.dirty = false
	return nil
}

func (l *Learner) state() []stateEntry {
	list := make([]stateEntry, 0, len(l.prefixes))
	for p, e := range l.prefixes {
		s := stateEntry{Prefix: p, Learned: e.learned, Why: e.why, Since: e.since, Seen: e.seen, Conns: e.conns, Arms: map[string][]partsAt{}}
		if e.chosen >= 0 {
			s.Chosen = l.arms[e.chosen].name
		}
		for i, a := range l.arms {
			for protocol := range protocols {
				for j, p := range e.arms[i][protocol] {
					if p.counts() {
						s.Arms[a.name] = append(s.Arms[a.name], partsAt{j, protocol == overQUIC, p})
					}
				}
			}
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b stateEntry) int { return a.Prefix.Compare(b.Prefix) })
	return list
}

// Load reads what was learned before. A file that is not as it was written is set aside, and told: the learner begins
// anew then.
func (l *Learner) Load(dir string, now time.Time) error {
	if dir == "" {
		return nil
	}
	list, err := Kept(filepath.Join(dir, stateFile), checkEntries)
	if err != nil {
		return fmt.Errorf("what was learned of controllers is forgotten: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range list {
		if len(l.prefixes) < l.cfg.Prefixes && now.Sub(s.Seen) < oblivion*l.cfg.Memory {
			l.restore(s, now)
		}
	}
	return nil
}

func (l *Learner) restore(s stateEntry, now time.Time) {
	// A clock that was set back would keep a prefix for ever.
	seen, since := earlier(s.Seen, now), earlier(s.Since, now)
	e := &entry{arms: make([]arm, len(l.arms)), chosen: -1, seen: seen, since: since, faded: seen, conns: s.Conns, fresh: true}
	for i, a := range l.arms {
		if a.name == s.Chosen {
			e.chosen, e.learned, e.why = i, s.Learned, s.Why
		}
		for _, p := range s.Arms[a.name] {
			protocol := overTCP
			if p.QUIC {
				protocol = overQUIC
			}
			e.arms[i][protocol][p.Part] = p.part
		}
	}
	l.prefixes[s.Prefix] = e
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func checkEntries(list []stateEntry) error {
	if len(list) > maxPrefixes {
		return fmt.Errorf("%d prefixes, at most %d are remembered", len(list), maxPrefixes)
	}
	for _, s := range list {
		if err := s.check(); err != nil {
			return fmt.Errorf("%s %w", s.Prefix, err)
		}
	}
	return nil
}

func (s stateEntry) check() error {
	if !s.Prefix.IsValid() || maps.PathPrefix(s.Prefix.Addr()) != s.Prefix {
		return errors.New("is no prefix that results are kept under")
	}
	for _, parts := range s.Arms {
		for _, p := range parts {
			if p.Part < 0 || p.Part >= maps.CCParts || !p.sane() {
				return errors.New("has numbers that no measurement yields")
			}
		}
	}
	if !(s.Conns >= 0 && s.Conns < 1e18) {
		return errors.New("has a number of connections that is none")
	}
	return nil
}
