package tickets

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bermedge/berm/userspace/pipeline"
)

// Early is the section tls.early_data.
type Early struct {
	// Enabled lets clients that resume over HTTP/3 send requests before the handshake is done (0-RTT): GET, HEAD and
	// OPTIONS without a query.
	Enabled bool `yaml:"enabled"`
	// Queries are paths, and all below them, whose requests may have a query too.
	Queries []string `yaml:"queries"`
}

// Validate reports everything wrong with the section.
func (c Early) Validate() error {
	var errs []error
	for i, p := range c.Queries {
		if !strings.HasPrefix(p, "/") || strings.ContainsAny(p, "?#") {
			errs = append(errs, fmt.Errorf("queries[%d]: %q is no path (write /search)", i, p))
		}
	}
	return errors.Join(errs...)
}

// allows reports whether a request may be answered although somebody might have recorded it and send it again.
func (c Early) allows(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
	default:
		return false
	}
	if r.ContentLength > 0 {
		return false
	}
	if r.URL.RawQuery == "" && !r.URL.ForceQuery {
		return true
	}
	for _, p := range c.Queries {
		if rest, ok := strings.CutPrefix(r.URL.Path, strings.TrimSuffix(p, "/")); ok && (rest == "" || rest[0] == '/') {
			return true
		}
	}
	return false
}

// ReasonTooEarly is given to what may not come before the handshake is done (RFC 8470, 5.2): the client sends it again.
const ReasonTooEarly pipeline.Reason = "too_early"

// EarlyStage marks requests that came before the handshake was done, and refuses those that may not.
type EarlyStage struct {
	now atomic.Pointer[Early]
	// Passed counts those that went on, marked. The pipeline counts those that were refused.
	Passed atomic.Uint64
}

// Apply follows another section.
func (s *EarlyStage) Apply(cfg Early) { s.now.Store(&cfg) }

// Name returns "early".
func (*EarlyStage) Name() string { return "early" }

// Run looks at the connection: once the client's side of the handshake has come, nothing on it can be a copy.
func (s *EarlyStage) Run(x *pipeline.Exchange) pipeline.Action {
	if x.R.TLS == nil || x.R.TLS.HandshakeComplete {
		return pipeline.Next
	}
	if !s.now.Load().allows(x.R) {
		return x.Refuse(http.StatusTooEarly, ReasonTooEarly)
	}
	s.Passed.Add(1)
	x.R.Header["Early-Data"] = early // the origin may answer 425 too
	return pipeline.Next
}

var early = []string{"1"} // shared by all requests: never written to

// window is how many of the last tickets are good for early data; a bit each: 512 KiB.
const window = 1 << 22

// earlyLife is how long a ticket is good for early data.
const earlyLife = time.Hour

// register is the strike register: each ticket that is good for early data has a serial number, and its bit says
// whether it was used. It forgets none that would still be accepted: when there were too many, the oldest tickets
// are refused early data, and resume without. It is of one process, and so are its tickets: what another edge, or
// this one before a restart, has given out is refused early data too, since only that one knows whether it was used.
// So nothing is accepted twice, also where edges share their ticket keys.
type register struct {
	enabled atomic.Bool
	results [len(earlyResults)]atomic.Uint64

	mu   sync.Mutex
	id   [16]byte // of the register; in each of its tickets
	next uint64   // serial number
	bits []uint64 // window of them, once early data was enabled
}

// earlyResult says what became of a ticket that was good for early data.
type earlyResult int

const (
	earlyAccepted  earlyResult = iota
	earlyReplayed              // used before
	earlyOld                   // of an hour ago, or too many since
	earlyElsewhere             // of another edge, or of a process or setting before
	earlyOff                   // not enabled any more
)

var earlyResults = [...]string{"accepted", "replayed", "old", "elsewhere", "off"}

// reset forgets everything: no ticket given out so far is good for early data any more.
func (r *register) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, _ = rand.Read(r.id[:]) // never fails, and ends the process if it ever does
	r.next = 0
	if r.bits == nil {
		r.bits = make([]uint64, window/64)
	}
	clear(r.bits)
}

// mark begins what a ticket says of early data; crypto/tls encrypts it with the rest.
var mark = []byte("berm early 1")

// issue returns what goes into a ticket: the register's name, a serial number and the time.
func (r *register) issue(now time.Time) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	serial := r.next
	r.next++
	if serial%64 == 0 { // these bits were those of tickets a window ago, which are refused from now on
		r.bits[serial/64%uint64(len(r.bits))] = 0
	}
	b := append(bytes.Clone(mark), r.id[:]...)
	b = binary.BigEndian.AppendUint64(b, serial)
	return binary.BigEndian.AppendUint64(b, uint64(now.Unix()))
}

// strike uses a ticket up, and says whether it may bring early data.
func (r *register) strike(extra [][]byte, now time.Time) earlyResult {
	if !r.enabled.Load() {
		return earlyOff
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range extra {
		b, ours := bytes.CutPrefix(b, mark)
		if !ours || len(b) != 32 || !bytes.Equal(b[:16], r.id[:]) {
			continue
		}
		serial := binary.BigEndian.Uint64(b[16:])
		age := now.Sub(time.Unix(int64(binary.BigEndian.Uint64(b[24:])), 0))
		if serial >= r.next || r.next-serial > window-64 || age > earlyLife || age < -time.Minute {
			return earlyOld
		}
		word, bit := &r.bits[serial/64%uint64(len(r.bits))], uint64(1)<<(serial%64)
		if *word&bit != 0 {
			return earlyReplayed
		}
		*word |= bit
		return earlyAccepted
	}
	return earlyElsewhere
}

// ApplyEarly turns early data on or off, at once for tickets that clients have.
func (k *Keys) ApplyEarly(cfg Early) {
	if cfg.Enabled && !k.early.enabled.Load() {
		k.early.reset()
	}
	k.early.enabled.Store(cfg.Enabled)
}

// ForgetEarly refuses early data to all tickets given out so far: what they promise of the connection has changed.
func (k *Keys) ForgetEarly() {
	if k.early.enabled.Load() {
		k.early.reset()
	}
}

// EarlyData reports whether new connections may offer it.
func (k *Keys) EarlyData() bool { return k.early.enabled.Load() }

// EarlyResults tells how many sessions were resumed with a ticket that was good for early data, by what became of that.
func (k *Keys) EarlyResults() map[string]uint64 {
	out := map[string]uint64{}
	for i, name := range earlyResults {
		out[name] = k.early.results[i].Load()
	}
	return out
}

// wrap makes a ticket.
func (k *Keys) wrap(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
	if ss.EarlyData && k.early.enabled.Load() {
		ss.Extra = append(ss.Extra, k.early.issue(k.clock.Now()))
	}
	return k.conf.EncryptTicket(cs, ss)
}

// unwrap reads one. A ticket that is refused early data resumes its session all the same, a round trip later.
func (k *Keys) unwrap(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
	ss, err := k.conf.DecryptTicket(ticket, cs)
	if err != nil || ss == nil || !ss.EarlyData {
		return ss, err
	}
	result := k.early.strike(ss.Extra, k.clock.Now())
	k.early.results[result].Add(1)
	ss.EarlyData = result == earlyAccepted
	return ss, nil
}
