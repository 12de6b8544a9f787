package congestion

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/maps"
)

// link is a path to a prefix, by what CUBIC and BBR reach there.
type link struct {
	kbps    float64 // of the bottleneck
	rtt     time.Duration
	loss    float64
	stretch float64 // mean round trip against the least, by other clients' airtime or aggregation
}

// goodput of an undisturbed connection. CUBIC reaches what RFC 9438 predicts, at most all. BBR fills the link in spite of losses, but
// has no more in flight than two of the least round trip's products of bandwidth and delay.
func (l link) goodput(controller string) float64 {
	mean := time.Duration(float64(l.rtt) * l.stretch)
	if controller == "bbr" {
		return l.kbps * min(1, 2/l.stretch) * (1 - l.loss)
	}
	return min(l.kbps*(1-l.loss), CubicRate(l.loss, mean, mss))
}

// mixed are eight links, half of which suit each controller.
var mixed = [8]link{ //nolint:gochecknoglobals // constant
	{50_000, 40 * time.Millisecond, 0.02, 1.1},
	{20_000, 80 * time.Millisecond, 0.01, 1.1},
	{30_000, 120 * time.Millisecond, 0.005, 1.2},
	{50_000, 50 * time.Millisecond, 0.001, 1.2},
	{50_000, 20 * time.Millisecond, 0, 3},
	{100_000, 10 * time.Millisecond, 0, 4},
	{20_000, 10 * time.Millisecond, 0.0003, 6}, // where the rule for a start is wrong
	{60_000, 10 * time.Millisecond, 0, 5},
}

// world is what the kernel half would count.
type world struct {
	random  *rand.Rand
	results map[string]*maps.CCResult
	host    string
	by      maps.Protocol            // that connections come by
	goodput map[netip.Prefix]float64 // of all connections, a mean
	conns   map[netip.Prefix]float64
}

func newWorld() *world {
	return &world{random: rand.New(rand.NewPCG(1, 2)), results: map[string]*maps.CCResult{}, goodput: map[netip.Prefix]float64{}, conns: map[netip.Prefix]float64{}, host: "cubic", by: maps.ProtocolTCP}
}

func (w *world) list() (list []maps.CCResult) {
	for _, r := range w.results {
		list = append(list, *r)
	}
	slices.SortFunc(list, func(a, b maps.CCResult) int {
		return strings.Compare(a.Prefix.String()+a.Profile+a.Protocol.String(), b.Prefix.String()+b.Profile+b.Protocol.String())
	})
	return list
}

// connect is a connection of a client: its profile by the rule, and what comes of it.
func (w *world) connect(p netip.Prefix, l link, part int, rule *maps.CCRule) {
	profile := ""
	if rule != nil {
		if profile = rule.Profile; w.random.IntN(256) < int(rule.HoldOut) {
			profile = rule.Others[w.random.IntN(2)]
		}
	}
	controller := strings.TrimPrefix(profile, "learn-")
	if profile == "" {
		controller = w.host
	}
	// Connections of one link differ by half, as they do when they share it.
	kbps := min(l.kbps, l.goodput(controller)*math.Exp(0.4*w.random.NormFloat64()))
	w.count(p, profile, part, l, kbps)
	w.goodput[p] += kbps
	w.conns[p]++
}

func (w *world) count(p netip.Prefix, profile string, part int, l link, kbps float64) {
	key := p.String() + profile + w.by.String()
	r := w.results[key]
	if r == nil {
		r = &maps.CCResult{Prefix: p, Protocol: w.by, Profile: profile}
		w.results[key] = r
	}
	const bytes = 2 << 20
	segments := uint32(bytes / mss)
	x := &r.Parts[part]
	x.Bytes += bytes
	x.Busy += time.Duration(bytes * 8 / kbps * float64(time.Millisecond))
	x.RTT += time.Duration(float64(l.rtt) * l.stretch * 10)
	x.Queue += time.Duration(float64(l.rtt) * (l.stretch - 1) * 10)
	x.Looks += 10
	x.Sent += segments
	x.Again += uint32(float64(segments)*l.loss + w.random.Float64())
	x.Connections++
	x.RateKbps = max(x.RateKbps, uint32(min(1.5*kbps, l.kbps)))
}

func prefixOf(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, byte(i), 0}), 24)
}

// look has the learner look, and returns the rule of each prefix.
func (w *world) look(l *Learner, now time.Time) map[netip.Prefix]*maps.CCRule {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.observe(now, w.list())
	rules := map[netip.Prefix]*maps.CCRule{}
	for p, e := range l.prefixes {
		if e.chosen >= 0 {
			r := l.rule(p, e)
			rules[p] = &r
		}
	}
	return rules
}

func newTestLearner() *Learner {
	l := NewLearner("cubic", "cubic")
	c := Default()
	c.Learn.Mode = On
	l.Apply(c)
	return l
}

var epoch = time.Unix(1_800_000_000, 0) //nolint:gochecknoglobals // constant

const rounds = 1000 // connections to each of the mixed links

// everywhere has one controller on all links.
func everywhere(controller string) *world {
	w := newWorld()
	for range rounds {
		for i, link := range mixed {
			w.connect(prefixOf(i), link, w.random.IntN(maps.CCParts), &maps.CCRule{Profile: "learn-" + controller})
		}
	}
	return w
}

// On eight mixed links the learner's goodput is above that of either controller everywhere, and no link has much less
// than with the better one.
func TestLearnsMixedLinks(t *testing.T) {
	l, w := newTestLearner(), newWorld()
	cubic, bbr := everywhere("cubic"), everywhere("bbr")
	var rules map[netip.Prefix]*maps.CCRule
	settled := map[int]int{} // connections until the better one was chosen for good
	for n := range rounds {
		for i, link := range mixed {
			p := prefixOf(i)
			w.connect(p, link, w.random.IntN(maps.CCParts), rules[p])
			better := ownCubic
			if bbr.goodput[p] > cubic.goodput[p] {
				better = ownBBR
			}
			if rules[p] == nil || rules[p].Profile != better {
				settled[i] = n + 1
			}
		}
		rules = w.look(l, epoch.Add(time.Duration(n)*time.Second))
	}
	var totals [3]float64
	for i := range mixed {
		p := prefixOf(i)
		c, b, got := cubic.goodput[p]/rounds, bbr.goodput[p]/rounds, w.goodput[p]/rounds
		totals[0], totals[1], totals[2] = totals[0]+c, totals[1]+b, totals[2]+got
		t.Logf("link %d: CUBIC %6.0f, BBR %6.0f, learned %6.0f kbit/s, settled after %d connections", i, c, b, got, settled[i])
		if settled[i] > 400 {
			t.Errorf("link %d: %d connections until the better controller was chosen", i, settled[i])
		}
		if got < 0.85*max(b, c) {
			t.Errorf("link %d: %.0f kbit/s, the better controller reaches %.0f", i, got, max(b, c))
		}
	}
	best := max(totals[0], totals[1])
	t.Logf("all: CUBIC everywhere %.0f, BBR everywhere %.0f, learned %.0f kbit/s: %.2f times the better", totals[0], totals[1], totals[2], totals[2]/best)
	if totals[2] < 1.16*best {
		t.Errorf("learned %.0f kbit/s, want 1.16 times %.0f", totals[2], best)
	}
}

// A lossy link has BBR within 200 connections; what differs little stays.
func TestLearnsSoon(t *testing.T) {
	l, w := newTestLearner(), newWorld()
	lossy, clean := prefixOf(1), prefixOf(2)
	var rules map[netip.Prefix]*maps.CCRule
	n := 0
	for ; n < 200 && (rules[lossy] == nil || rules[lossy].Profile != ownBBR); n++ {
		w.connect(lossy, link{50_000, 40 * time.Millisecond, 0.02, 1.1}, 0, rules[lossy])
		w.connect(clean, link{50_000, 10 * time.Millisecond, 0, 1.3}, 0, rules[clean])
		rules = w.look(l, epoch.Add(time.Duration(n)*time.Second))
	}
	if rules[lossy] == nil || rules[lossy].Profile != ownBBR {
		t.Fatalf("after %d connections: %+v", n, rules[lossy])
	}
	t.Logf("BBR after %d connections", n)
	for ; n < 2000; n++ {
		w.connect(clean, link{50_000, 10 * time.Millisecond, 0, 1.3}, 0, rules[clean])
		rules = w.look(l, epoch.Add(time.Duration(n)*time.Second))
	}
	if s := l.Status(); s.Changes > 1 || s.Chosen[ownBBR] < 1 {
		t.Errorf("%+v: choices go to and fro", s)
	}
	x, ok := l.Explain(netip.MustParseAddr("203.0.1.77"))
	if !ok || x.Profile != ownBBR || x.Prefix != lossy || len(x.Scores) != 2 || x.Scores[0].GoodputKbps <= 0 {
		t.Errorf("%+v, %v", x, ok)
	}
}

// Connections of QUIC count as those of TCP do, and either alone is enough to choose by; what QUIC reaches is compared with
// QUIC alone, so that it does not matter which of a profile's connections came by what.
func TestLearnsOverBoth(t *testing.T) {
	lossy := link{50_000, 40 * time.Millisecond, 0.02, 1.1}
	for what, by := range map[string][]maps.Protocol{"QUIC": {maps.ProtocolUDP}, "TCP": {maps.ProtocolTCP}, "both": {maps.ProtocolUDP, maps.ProtocolTCP}} {
		l, w, p := newTestLearner(), newWorld(), prefixOf(1)
		var rules map[netip.Prefix]*maps.CCRule
		n, x := 0, Learned{}
		for ; n < 200 && !x.Learned; n++ {
			w.by = by[n%len(by)]
			w.connect(p, lossy, w.random.IntN(maps.CCParts), rules[p])
			rules = w.look(l, epoch.Add(time.Duration(n)*time.Second))
			x, _ = l.Explain(p.Addr())
		}
		t.Logf("%s: %s after %d connections: %s", what, x.Profile, n, x.Why)
		quic := 0.0
		for _, s := range x.Scores {
			quic += s.QUIC
		}
		if !x.Learned || x.Profile != ownBBR || (quic > 0) != slices.Contains(by, maps.ProtocolUDP) {
			t.Errorf("%s: %+v after %d connections", what, x, n)
		}
	}

	l, w, p := newTestLearner(), newWorld(), prefixOf(1)
	even := link{50_000, 10 * time.Millisecond, 0, 1.1}
	for n := range 400 {
		part, profile, few := n/2%maps.CCParts, ownCubic, n/16%4 == 0
		if n%2 == 0 {
			profile = ownBBR
		}
		kbps := 40_000.0
		if w.by = maps.ProtocolTCP; few == (profile == ownCubic) { // a quarter of CUBIC's, most of BBR's: QUIC is slower here
			w.by, kbps = maps.ProtocolUDP, 10_000
		}
		w.count(p, profile, part, even, kbps)
		w.look(l, epoch.Add(time.Duration(n)*time.Second))
	}
	for _, s := range explained(t, l, p) {
		if s.Profile != ownCubic && s.Paired != maps.CCParts || math.Abs(s.Gain) > 0.01 {
			t.Errorf("either protocol reaches the same with both: %+v", s)
		}
	}
}

func explained(t *testing.T, l *Learner, p netip.Prefix) []Score {
	t.Helper()
	x, ok := l.Explain(p.Addr())
	if !ok {
		t.Fatalf("nothing is known of %s", p)
	}
	return x.Scores
}

// One client, whatever it does, and be it with a thousand connections for each of others, moves neither a choice by results
// nor one for a start, where three others are.
func TestOneHostileClient(t *testing.T) {
	honest := link{50_000, 10 * time.Millisecond, 0, 2.5} // BBR reaches a fifth less
	p := prefixOf(1)
	for what, attack := range map[string]func(w *world, profile string){
		"slow with CUBIC, quick with BBR": func(w *world, profile string) {
			kbps := 10.0
			if profile == ownBBR {
				kbps = 1e6
			}
			w.count(p, profile, 0, honest, kbps)
		},
		"losses that are none": func(w *world, profile string) {
			w.count(p, profile, 0, link{1e6, 100 * time.Millisecond, 0.3, 1}, 900_000)
		},
	} {
		l, w := newTestLearner(), newWorld()
		var rules map[netip.Prefix]*maps.CCRule
		for n := range 300 {
			for part := 1; part < 4; part++ {
				w.connect(p, honest, part, rules[p])
			}
			for range 20 { // and in secret it tries both
				attack(w, ownBBR)
				attack(w, ownCubic)
			}
			rules = w.look(l, epoch.Add(time.Duration(n)*time.Second))
			if rules[p] != nil && rules[p].Profile != ownCubic {
				t.Fatalf("%s: after %d rounds one client has changed the choice: %+v", what, n, rules[p])
			}
		}
		if rules[p] == nil {
			t.Errorf("%s: nothing was chosen", what)
		}
		// And alone it does, so that the attack is one.
		l, w = newTestLearner(), newWorld()
		for n := range 100 {
			attack(w, ownBBR)
			attack(w, ownCubic)
			rules = w.look(l, epoch.Add(time.Duration(n)*time.Second))
		}
		if rules[p] == nil || rules[p].Profile != ownBBR {
			t.Errorf("%s: without others: %+v", what, rules[p])
		}
	}
}

// What was learned outlives the process, and what the kernel half counted before is not counted again.
func TestState(t *testing.T) {
	dir := t.TempDir()
	l, w := newTestLearner(), newWorld()
	var rules map[netip.Prefix]*maps.CCRule
	for n := range 300 {
		w.by = protocols[n%len(protocols)]
		for i, link := range mixed {
			w.connect(prefixOf(i), link, w.random.IntN(maps.CCParts), rules[prefixOf(i)])
		}
		rules = w.look(l, epoch.Add(time.Duration(n)*time.Second))
	}
	if err := l.Save(dir); err != nil {
		t.Fatal(err)
	}
	now := epoch.Add(301 * time.Second)
	next := newTestLearner()
	if err := next.Load(dir, now); err != nil {
		t.Fatal(err)
	}
	w.look(next, now)
	for i := range mixed {
		a := prefixOf(i).Addr()
		was, _ := l.Explain(a)
		is, ok := next.Explain(a)
		if !ok || is.Profile != was.Profile || is.Learned != was.Learned || is.Why != was.Why || !is.Since.Equal(was.Since) {
			t.Errorf("%s: %+v, was %+v", a, is, was)
		}
		for j := range was.Scores {
			if d := math.Abs(is.Scores[j].Connections - was.Scores[j].Connections); d > 1 || math.Abs(is.Scores[j].QUIC-was.Scores[j].QUIC) > 1 {
				t.Errorf("%s: %s has %.1f connections, had %.1f", a, was.Scores[j].Profile, is.Scores[j].Connections, was.Scores[j].Connections)
			}
		}
	}
	late := newTestLearner()
	if err := late.Load(dir, now.Add(oblivion*l.cfg.Memory)); err != nil || late.Status().Prefixes != 0 {
		t.Errorf("what is too old: %+v, %v", late.Status(), err)
	}
	if err := newTestLearner().Load(t.TempDir(), now); err != nil {
		t.Errorf("without a file: %v", err)
	}
}

func TestStateDamaged(t *testing.T) {
	l, w := newTestLearner(), newWorld()
	for range 10 {
		w.connect(prefixOf(1), mixed[0], 1, nil)
	}
	w.look(l, epoch)
	dir := t.TempDir()
	if err := l.Save(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, stateFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sealed := func(body string) []byte {
		return fmt.Appendf(nil, "{\"format\":1,\"bytes\":%d,\"crc32c\":%d}\n%s\n", len(body), checksum([]byte(body)), body)
	}
	for says, damaged := range map[string][]byte{
		"first line is no header": nil,
		"no header":               []byte("null"),
		"checksum":                slices.Concat(good[:len(good)-9], []byte("\x00"), good[len(good)-8:]),
		"checksum is another":     good[:len(good)-20],
		"format 2":                []byte("{\"format\":2}\n"),
		"is no prefix":            sealed(`[{"prefix":"203.0.113.0/20"}]`),
		"no measurement":          sealed(`[{"prefix":"203.0.113.0/24","arms":{"learn-bbr":[{"part":8}]}}]`),
		"measurement yields":      sealed(`[{"prefix":"203.0.113.0/24","arms":{"learn-bbr":[{"part":1,"busy":-1}]}}]`),
		"number of connections":   sealed(`[{"prefix":"203.0.113.0/24","conns":-1}]`),
		"cannot unmarshal":        sealed(`{}`),
	} {
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		next := newTestLearner()
		err := next.Load(dir, epoch)
		if !errors.Is(err, ErrState) || !strings.Contains(err.Error(), says) || next.Status().Prefixes != 0 {
			t.Errorf("%q: %v, %+v", says, err, next.Status())
		}
		if _, err := os.Stat(path + ".refused"); err != nil {
			t.Errorf("%q: it was not set aside: %v", says, err)
		}
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if next := newTestLearner(); next.Load(dir, epoch) != nil || next.Status().Prefixes != 1 {
		t.Error("the good file was refused")
	}
}

// Prefixes beyond the bound push out those that were not seen for longest.
func TestBound(t *testing.T) {
	l := NewLearner("cubic", "cubic")
	c := Default()
	c.Learn.Mode, c.Learn.Prefixes = Shadow, 32
	l.Apply(c)
	w := newWorld()
	for i := range 100 {
		w.connect(prefixOf(i), mixed[0], 1, nil)
		w.look(l, epoch.Add(time.Duration(i)*time.Second))
	}
	s := l.Status()
	if s.Prefixes > 32 || s.Prefixes < 28 || s.Evicted < 68 || s.Mode != Shadow {
		t.Errorf("%+v", s)
	}
	if _, ok := l.Explain(prefixOf(99).Addr()); !ok {
		t.Error("the last one is not known")
	}
	if _, ok := l.Explain(prefixOf(0).Addr()); ok {
		t.Error("the first one is known")
	}
	l.Say(Off)
	if _, ok := l.Explain(prefixOf(99).Addr()); ok || !l.Status().Said {
		t.Error("it explains while it is off")
	}
	l.Apply(c)
	if l.Mode() != Shadow || l.Status().Said {
		t.Error("a reload does not end what was said")
	}
}

func TestLearnConfigErrors(t *testing.T) {
	profiles := map[string]Profile{"a": {}, "b": {}, "c": {}, "d": {}}
	for says, change := range map[string]func(*Learn){
		"arms: 1, want 2":              func(l *Learn) { l.Arms = []string{"a"} },
		"arms: 4, want 2 or 3":         func(l *Learn) { l.Arms = []string{"a", "b", "c", "d"} },
		`arms[1]: there is no profile`: func(l *Learn) { l.Arms = []string{"a", "x"} },
		"arms[1]: a is listed twice":   func(l *Learn) { l.Arms = []string{"a", "a"} },
		"hold_out: 0.5":                func(l *Learn) { l.HoldOut = 0.5 },
		"hold_out: 0 is":               func(l *Learn) { l.HoldOut = 0 },
		"queueing: -1":                 func(l *Learn) { l.Queueing = -1 },
		"retransmission: NaN":          func(l *Learn) { l.Retransmission = math.NaN() },
		"hysteresis: 2":                func(l *Learn) { l.Hysteresis = 2 },
		"memory: 1s":                   func(l *Learn) { l.Memory = time.Second },
		"prefixes: 0":                  func(l *Learn) { l.Prefixes = 0 },
	} {
		c := Default()
		c.Profiles = profiles
		change(&c.Learn)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "cc.learn."+says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	if err := new(Mode).UnmarshalText([]byte("loud")); err == nil || !strings.Contains(err.Error(), "want one of off, shadow, on") {
		t.Errorf("an unknown mode: %v", err)
	}
}
