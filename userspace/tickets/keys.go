package tickets

import (
	"context"
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/bermedge/berm/userspace/clock"
)

// accepted is how many periods back tickets are understood: the one whose key makes them, and two before it.
const accepted = 3

// Keys are the keys of session tickets. They follow their files, and make the next one in time.
type Keys struct {
	state string
	clock clock.Clock
	// conf is used for nothing but its keys: every configuration that was made by TLS asks it, so that a rotation reaches
	// those that net/http and quic-go have copied.
	conf  *tls.Config
	stats Stats
	early register

	mu       sync.Mutex
	cfg      Config
	dir      string // of the files; "" when there is none
	keys     []key  // those of conf, the one that makes tickets first
	made     []key  // in memory, where a file could not be written
	problems []string
}

// Open reads the keys, or makes them. state is the daemon's directory, or "" for none.
func Open(cfg Config, state string, c clock.Clock) (*Keys, error) {
	k := &Keys{state: state, clock: c, conf: &tls.Config{}}
	return k, k.Apply(cfg)
}

// Apply follows another section. Tickets of keys that are in both places stay good.
func (k *Keys) Apply(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cfg, k.dir = cfg, cfg.Dir
	if cfg.Dir == "" && k.state != "" {
		k.dir = filepath.Join(k.state, "tickets")
		_ = os.Mkdir(k.dir, 0o700) // what is wrong with it, reading says
	}
	k.load()
	return nil
}

// Watch follows the files and the time until ctx ends, and tells report what newly went wrong.
func (k *Keys) Watch(ctx context.Context, every time.Duration, report func(error)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var told []string
	for {
		now := k.Problems()
		for _, p := range now {
			if !slices.Contains(told, p) {
				report(errors.New(p))
			}
		}
		told = now
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			k.mu.Lock()
			k.load()
			k.mu.Unlock()
		}
	}
}

// Problems says what is wrong with the files, in sentences for operators.
func (k *Keys) Problems() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.problems)
}

// load reads the files, makes the keys that are due, and takes those of this time into use.
func (k *Keys) load() {
	now := k.clock.Now()
	k.problems = nil
	var keys []key
	if k.dir != "" {
		var err error
		if keys, k.problems, err = readKeys(k.dir); err != nil { // gone: what was read before stays good
			k.inMemory(err)
			keys = slices.Clone(k.keys)
		}
	}
	for _, m := range k.made {
		if !slices.ContainsFunc(keys, func(o key) bool { return o.begin.Equal(m.begin) }) {
			keys = append(keys, m)
		}
	}
	// The next key is made when half of the time has passed, so that it has come to every edge when it is used.
	begin := now.Truncate(k.cfg.Rotate)
	keys = k.due(keys, begin)
	if next := begin.Add(k.cfg.Rotate); now.Sub(begin) >= k.cfg.Rotate/2 {
		keys = k.due(keys, next)
	}
	k.use(keys, now)
}

// inMemory notes that the directory cannot be used. Of the daemon's own state that is told elsewhere.
func (k *Keys) inMemory(err error) {
	text := "tls.tickets: " + err.Error() + "; keys are kept in memory, and a restart forgets them"
	if k.cfg.Dir != "" && !slices.Contains(k.problems, text) {
		k.problems = append(k.problems, text)
	}
}

// due adds the key that begins then, unless there is one.
func (k *Keys) due(keys []key, begin time.Time) []key {
	if slices.ContainsFunc(keys, func(o key) bool { return o.begin.Equal(begin) }) {
		return keys
	}
	if !k.cfg.Create {
		if len(keys) > 0 { // the newest that has come serves on
			return keys
		}
		k.problems = append(k.problems, "tls.tickets: no key has come to "+k.dir+" yet, and create is false: one is made up, and no other edge resumes its sessions")
	} else if k.dir != "" {
		made, err := createKey(k.dir, begin)
		if err == nil {
			return append(keys, made)
		}
		k.inMemory(err)
	}
	made := newKey(begin)
	k.made = append(k.made, made)
	return append(keys, made)
}

// use sorts the keys by what they are for at this time, and forgets those that are retired, and their files.
func (k *Keys) use(keys []key, now time.Time) {
	var past, future []key
	for _, one := range keys {
		if one.begin.After(now) {
			future = append(future, one)
		} else {
			past = append(past, one)
		}
	}
	slices.SortFunc(past, func(a, b key) int { return b.begin.Compare(a.begin) }) // the newest first
	slices.SortFunc(future, func(a, b key) int { return a.begin.Compare(b.begin) })
	oldest := now.Truncate(k.cfg.Rotate).Add(-(accepted - 1) * k.cfg.Rotate)
	for n := len(past) - 1; n > 0 && past[n].begin.Before(oldest); n-- { // the newest stays, however old it is
		if k.cfg.Create && k.dir != "" {
			_ = os.Remove(fileOf(k.dir, past[n].begin)) // another edge may have done so; what cannot go is not used
		}
		past = past[:n]
	}
	k.made = slices.DeleteFunc(k.made, func(m key) bool { return m.begin.Before(oldest) })
	// Another edge's clock may be ahead: its tickets are understood too, but not made.
	sorted := append(past, future[:min(len(future), 2)]...)
	if slices.Equal(k.keys, sorted) {
		return
	}
	k.keys = sorted
	secrets := make([][keyLen]byte, len(k.keys))
	for i, one := range k.keys {
		secrets[i] = one.secret
	}
	k.conf.SetSessionTicketKeys(secrets)
}

// TLS adds to c what resumption needs, and returns it. Configurations that are copied from it follow the keys too.
func (k *Keys) TLS(c *tls.Config) *tls.Config {
	c.WrapSession = k.wrap
	c.UnwrapSession = k.unwrap
	c.VerifyConnection = k.stats.count
	return c
}

// Stats returns the live counters.
func (k *Keys) Stats() *Stats { return &k.stats }
