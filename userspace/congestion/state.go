package congestion

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/bermedge/berm/maps"
)

// What was learned outlives the daemon in a file of its state directory: a line with a checksum, and one with
// what it is of.
const (
	stateFile   = "cc-learned.json"
	stateFormat = 1
	// maxState is what maxPrefixes prefixes of maxArms arms take, and room.
	maxState = 64 << 20
)

type stateHead struct {
	Format int    `json:"format"`
	Bytes  int    `json:"bytes"`
	CRC    uint32 `json:"crc32c"`
}

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

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// Save writes what was learned into dir, unless nothing is new.
func (l *Learner) Save(dir string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.dirty || dir == "" {
		return nil
	}
	body, err := json.Marshal(l.state())
	if err != nil {
		return fmt.Errorf("save what was learned of controllers: %w", err)
	}
	head, err := json.Marshal(stateHead{stateFormat, len(body), checksum(body)})
	if err != nil {
		return fmt.Errorf("save what was learned of controllers: %w", err)
	}
	path := filepath.Join(dir, stateFile)
	if err := writeWhole(path, slices.Concat(head, []byte("\n"), body, []byte("\n"))); err != nil {
		return fmt.Errorf("save what was learned of controllers: %w", err)
	}
	l.dirty = false
	return nil
}

// writeWhole leaves the old file or the new one, never half of one.
func writeWhole(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, werr := f.Write(content)
	if err := errors.Join(werr, f.Chmod(0o640), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
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
	path := filepath.Join(dir, stateFile)
	list, err := readState(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, errState):
		aside := path + ".refused"
		return errors.Join(fmt.Errorf("what was learned of controllers is forgotten: %s %w: it is set aside as %s", path, err, aside), os.Rename(path, aside))
	case err != nil:
		return fmt.Errorf("what was learned of controllers: %w", err)
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

// errState is what all damage to the file is.
var errState = errors.New("is not as it was written")

func readState(path string) ([]stateEntry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	all, err := io.ReadAll(io.LimitReader(f, maxState+1))
	switch {
	case err != nil:
		return nil, err
	case len(all) > maxState:
		return nil, fmt.Errorf("%w: it is longer than %d bytes", errState, maxState)
	}
	return parseState(all)
}

func parseState(all []byte) (list []stateEntry, err error) {
	end := slices.Index(all, '\n')
	var head stateHead
	if end < 0 || json.Unmarshal(all[:end], &head) != nil {
		return nil, fmt.Errorf("%w: its first line is no header", errState)
	}
	body := all[end+1:]
	switch {
	case head.Format != stateFormat:
		return nil, fmt.Errorf("%w: format %d, this program reads %d", errState, head.Format, stateFormat)
	case len(body) != head.Bytes+1 || checksum(body[:head.Bytes]) != head.CRC:
		return nil, fmt.Errorf("%w: its checksum is another", errState)
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("%w: %w", errState, err)
	}
	if len(list) > maxPrefixes {
		return nil, fmt.Errorf("%w: %d prefixes, at most %d are remembered", errState, len(list), maxPrefixes)
	}
	for _, s := range list {
		if err := s.check(); err != nil {
			return nil, fmt.Errorf("%w: %s %w", errState, s.Prefix, err)
		}
	}
	return list, nil
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
