package fec

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"testing"
)

var shapes = []Params{{1, 1}, {3, 1}, {10, 2}, {20, 4}, {50, 10}, {80, 16}, {200, 40}, {254, 1}}

// packets returns n packets of different lengths, each of which tells its number.
func packets(r *rand.Rand, n, most int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = make([]byte, 1+r.IntN(most))
		for j := range out[i] {
			out[i][j] = byte(r.Uint32())
		}
	}
	return out
}

type sent struct {
	pkt    []byte
	repair bool
}

// mustEncode returns everything that an encoder sends for the packets, the last block closed.
func mustEncode(t testing.TB, e *Encoder, adus [][]byte) (out []sent) {
	t.Helper()
	emit := func(pkt []byte, repair bool) error {
		out = append(out, sent{bytes.Clone(pkt), repair})
		return nil
	}
	for _, adu := range adus {
		if err := e.Add(adu, emit); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(emit); err != nil {
		t.Fatal(err)
	}
	return out
}

func mustEncoder(t testing.TB, p Params, maxADU int, sbn uint32) *Encoder {
	t.Helper()
	e, err := NewEncoder(p, maxADU, sbn)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

type received struct {
	adu      string
	repaired bool
}

func mustDecoder(t testing.TB, window, maxADU int) (d *Decoder, got *[]received) {
	t.Helper()
	got = new([]received)
	d, err := NewDecoder(window, maxADU, func(adu []byte, repaired bool) {
		*got = append(*got, received{string(adu), repaired})
	})
	if err != nil {
		t.Fatal(err)
	}
	return d, got
}

func give(d *Decoder, s sent) error {
	if s.repair {
		return d.Repair(s.pkt)
	}
	return d.Source(s.pkt)
}

// Whatever m symbols of a block are lost, every packet arrives, once, and unchanged; in any order.
func TestAnyLosses(t *testing.T) {
	for _, p := range shapes {
		t.Run(p.String(), func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, uint64(p.K)))
			e := mustEncoder(t, p, 1200, sbnMask) // wraps after the first block
			for range 20 {
				d, got := mustDecoder(t, 4, 1200)
				adus := packets(r, p.K, 1200)
				out := mustEncode(t, e, adus)
				if len(out) != p.K+p.M {
					t.Fatalf("%d packets sent, want %d", len(out), p.K+p.M)
				}
				for _, i := range r.Perm(len(out))[p.M:] {
					if err := give(d, out[i]); err != nil {
						t.Fatal(err)
					}
				}
				checkSame(t, adus, *got)
				d.Flush()
				c := d.Counts()
				if c.Delivered != uint64(p.K) || c.Residual != 0 || c.Received != uint64(p.K) || c.Refused != 0 || c.Duplicates != 0 {
					t.Fatalf("%+v", c)
				}
			}
		})
	}
}

func checkSame(t *testing.T, want [][]byte, got []received) {
	t.Helper()
	var a, b []string
	for _, w := range want {
		a = append(a, string(w))
	}
	for _, g := range got {
		b = append(b, g.adu)
	}
	slices.Sort(a)
	slices.Sort(b)
	if !slices.Equal(a, b) {
		t.Fatalf("%d packets arrived, want the %d that were sent", len(b), len(a))
	}
}

// One loss more than there is parity costs just what was lost, and is counted as the wire lost it.
func TestTooManyLosses(t *testing.T) {
	e := mustEncoder(t, Params{10, 2}, 100, 7)
	d, got := mustDecoder(t, 4, 100)
	adus := packets(rand.New(rand.NewPCG(1, 2)), 10, 100)
	for i, s := range mustEncode(t, e, adus) {
		if i != 1 && i != 3 && i != 4 {
			if err := give(d, s); err != nil {
				t.Fatal(err)
			}
		}
	}
	checkSame(t, slices.Concat(adus[:1], adus[2:3], adus[5:]), *got)
	d.Flush()
	want := Counts{Received: 9, Delivered: 7, Residual: 3, Lost: 3, Expected: 12, Bursts: [Bursts]uint64{1, 1}}
	if c := d.Counts(); c != want {
		t.Errorf("%+v\nwant %+v", c, want)
	}
}

// A block that is closed early protects what it has, and no empty packet comes out.
func TestClose(t *testing.T) {
	e := mustEncoder(t, Params{10, 2}, 100, 0)
	adus := packets(rand.New(rand.NewPCG(3, 4)), 3, 100)
	out := mustEncode(t, e, adus)
	if len(out) != 12 {
		t.Fatalf("%d packets sent, want 12", len(out))
	}
	d, got := mustDecoder(t, 4, 100)
	for i, s := range out {
		if i != 0 && i != 2 {
			if err := give(d, s); err != nil {
				t.Fatal(err)
			}
		}
	}
	checkSame(t, adus, *got)
	if e.Filled() != 0 {
		t.Errorf("%d packets in the block after Close", e.Filled())
	}
	if err := e.Close(func([]byte, bool) error { return errors.New("nothing is open") }); err != nil {
		t.Error(err)
	}
}

// A new shape begins with a block, so that all packets of a block name the same k.
func TestSetParams(t *testing.T) {
	e := mustEncoder(t, Params{4, 1}, 100, 0)
	d, got := mustDecoder(t, 4, 100)
	adus := packets(rand.New(rand.NewPCG(5, 6)), 10, 100)
	var out []sent
	emit := func(pkt []byte, repair bool) error {
		out = append(out, sent{bytes.Clone(pkt), repair})
		return nil
	}
	for i, adu := range adus {
		if err := e.Add(adu, emit); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			if err := e.SetParams(Params{6, 3}); err != nil {
				t.Fatal(err)
			}
			if e.Params() != (Params{4, 1}) {
				t.Errorf("%s in the block under way", e.Params())
			}
		}
	}
	if len(out) != 4+1+6+3 || e.Params() != (Params{6, 3}) {
		t.Fatalf("%d packets sent, shape now %s", len(out), e.Params())
	}
	for i, s := range out {
		if i != 2 && i != 6 && i != 7 && i != 8 {
			if err := give(d, s); err != nil {
				t.Fatal(err)
			}
		}
	}
	checkSame(t, adus, *got)
}

// Forged and contradictory packets are refused, counted, and change nothing.
func TestRefused(t *testing.T) {
	e := mustEncoder(t, Params{4, 2}, 100, 5)
	adus := packets(rand.New(rand.NewPCG(7, 8)), 4, 100)
	out := mustEncode(t, e, adus)
	id := func(i payloadID) []byte { return i.append(nil) }
	body := make([]byte, 20)
	for _, c := range []struct {
		name string
		sent
		want error
	}{
		{"short source", sent{[]byte{1, 2, 3}, false}, ErrShort},
		{"short repair", sent{id(payloadID{5, 4, 4}), true}, ErrShort},
		{"k of 0", sent{id(payloadID{5, 0, 0}), false}, ErrForeign},
		{"k of 256", sent{id(payloadID{5, 0, 256}), false}, ErrForeign},
		{"symbol 255", sent{append(id(payloadID{5, 255, 4}), body...), true}, ErrForeign},
		{"source behind the block", sent{id(payloadID{5, 4, 4}), false}, ErrForeign},
		{"parity within the block", sent{append(id(payloadID{5, 3, 4}), body...), true}, ErrForeign},
		{"another k", sent{id(payloadID{5, 3, 9}), false}, ErrConflict},
		{"parity of another length", sent{append(id(payloadID{5, 7, 4}), body...), true}, ErrConflict},
		{"long source", sent{append(make([]byte, 101), id(payloadID{5, 3, 4})...), false}, ErrTooLong},
		{"long parity", sent{append(id(payloadID{9, 7, 4}), make([]byte, 104)...), true}, ErrTooLong},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, got := mustDecoder(t, 4, 100)
			for _, s := range []sent{out[0], out[4], out[5]} {
				if err := give(d, s); err != nil {
					t.Fatal(err)
				}
			}
			if err := give(d, c.sent); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if n := d.Counts().Refused; n != 1 {
				t.Errorf("%d refused, want 1", n)
			}
			if err := give(d, out[1]); err != nil {
				t.Fatal(err)
			}
			checkSame(t, adus, *got)
		})
	}
}

// Parity that does not belong to the packets is found out where it can be: a rebuilt length that does not fit.
func TestForgedParity(t *testing.T) {
	e := mustEncoder(t, Params{2, 1}, 100, 5)
	out := mustEncode(t, e, [][]byte{make([]byte, 50), make([]byte, 50)})
	d, got := mustDecoder(t, 4, 100)
	out[2].pkt[idLen+1] ^= 0x80 // the length's high byte
	if err := give(d, out[0]); err != nil {
		t.Fatal(err)
	}
	if err := give(d, out[2]); !errors.Is(err, ErrForeign) {
		t.Errorf("%v, want %v", err, ErrForeign)
	}
	if len(*got) != 1 || d.Counts().Refused != 1 {
		t.Errorf("%d packets, %+v", len(*got), d.Counts())
	}
}

// Blocks that never complete cost a bounded number of buffers, however many begin.
func TestMemoryIsBounded(t *testing.T) {
	d, _ := mustDecoder(t, 8, 1200)
	for sbn := range uint32(10_000) {
		for esi := range 3 {
			if err := d.Source(payloadID{sbn, esi, 200}.append(make([]byte, 1200))); err != nil {
				t.Fatal(err)
			}
		}
	}
	held := len(d.spare)
	for _, b := range d.blocks {
		for _, s := range b.symbols {
			if s != nil {
				held++
			}
		}
	}
	if len(d.blocks) != 8 || held > 9*3 || len(d.idle) > 9 {
		t.Errorf("%d blocks, %d buffers, %d idle blocks", len(d.blocks), held, len(d.idle))
	}
	if c := d.Counts(); c.Residual != (10_000-8)*197 {
		t.Errorf("%d packets counted as lost, want %d", c.Residual, (10_000-8)*197)
	}
}

func TestDuplicates(t *testing.T) {
	e := mustEncoder(t, Params{3, 1}, 100, 5)
	adus := packets(rand.New(rand.NewPCG(9, 9)), 3, 100)
	d, got := mustDecoder(t, 4, 100)
	out := mustEncode(t, e, adus)
	for _, i := range []int{0, 0, 3, 3, 1, 1, 2, 2} { // the last packet comes after it was rebuilt
		if err := give(d, out[i]); err != nil {
			t.Fatal(err)
		}
	}
	checkSame(t, adus, *got)
	if c := d.Counts(); c.Duplicates != 4 || c.Repaired != 1 {
		t.Errorf("%+v", c)
	}
}

// What comes late of a block that is forgotten is not handed on again, and pushes no other block out.
func TestLate(t *testing.T) {
	e := mustEncoder(t, Params{3, 1}, 100, sbnMask) // the next number is 0
	adus := packets(rand.New(rand.NewPCG(9, 9)), 15, 100)
	out := mustEncode(t, e, adus)
	d, got := mustDecoder(t, 2, 100)
	order := []int{0, 2, 3} // the first block, but for a packet that is rebuilt
	for i := 4; i < 12; i++ {
		order = append(order, i) // two others, whole
	}
	order = append(order, 12, 1, 0, 13, 3, 14) // the fourth, between what comes late of the first
	for _, i := range order {
		if err := give(d, out[i]); err != nil {
			t.Fatal(err)
		}
	}
	checkSame(t, adus[:12], *got)
	if c := d.Counts(); c.Duplicates != 3 || c.Repaired != 1 || c.Residual != 0 {
		t.Errorf("%+v", c)
	}
}

func TestBadArguments(t *testing.T) {
	for _, p := range []Params{{0, 1}, {1, -1}, {200, 56}} {
		if _, err := NewEncoder(p, 100, 0); err == nil {
			t.Errorf("%s is taken", p)
		}
	}
	for _, n := range []int{0, 1 << 16} {
		if _, err := NewEncoder(Params{1, 1}, n, 0); err == nil {
			t.Errorf("packets of %d bytes are taken", n)
		}
		if _, err := NewDecoder(1, n, nil); err == nil {
			t.Errorf("packets of %d bytes are taken", n)
		}
	}
	if _, err := NewDecoder(0, 1, nil); err == nil {
		t.Error("a window of 0 is taken")
	}
	e := mustEncoder(t, Params{1, 1}, 10, 0)
	for _, c := range []struct {
		n    int
		want error
	}{{0, ErrEmpty}, {11, ErrTooLong}} {
		if err := e.Add(make([]byte, c.n), nil); !errors.Is(err, c.want) {
			t.Errorf("packet of %d bytes: %v, want %v", c.n, err, c.want)
		}
	}
}

// Our parity is what zfec makes, and zfec rebuilds our packets.
func TestZfec(t *testing.T) {
	const script = `
import json, random, sys, zfec
for case in json.load(sys.stdin):
    k, n, s = case["k"], case["n"], [bytes.fromhex(x) for x in case["symbols"]]
    assert zfec.Encoder(k, n).encode(s[:k], list(range(k, n))) == s[k:], (k, n, "parity differs")
    random.seed(1)
    lost = random.sample(range(k), min(n - k, k))
    there = [i for i in range(n) if i not in lost][:k]
    assert zfec.Decoder(k, n).decode([s[i] for i in there], there) == s[:k], (k, n, "cannot be decoded")
print("same")
`
	type zcase struct {
		K       int      `json:"k"`
		N       int      `json:"n"`
		Symbols []string `json:"symbols"`
	}
	var cases []zcase
	r := rand.New(rand.NewPCG(11, 12))
	for _, p := range shapes {
		adus := packets(r, p.K, 64)
		adus[0] = bytes.Repeat([]byte{1}, 64)
		c := zcase{K: p.K, N: p.K + p.M}
		for _, adu := range adus {
			symbol := append(putSymbol(nil, adu), make([]byte, 64-len(adu))...)
			c.Symbols = append(c.Symbols, hex.EncodeToString(symbol))
		}
		for _, s := range mustEncode(t, mustEncoder(t, p, 64, 0), adus)[p.K:] {
			c.Symbols = append(c.Symbols, hex.EncodeToString(s.pkt[idLen:]))
		}
		cases = append(cases, c)
	}
	in, err := json.Marshal(cases)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/bin/python3", "-c", script)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.CombinedOutput()
	if err != nil && os.Getenv("BERM_NO_SKIP") == "" && bytes.Contains(out, []byte("No module named")) {
		t.Skip("needs the package python3-zfec")
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// The formula says what random losses do to real blocks.
func TestResidualIsWhatHappens(t *testing.T) {
	for _, c := range []struct {
		path  Path
		shape Params
	}{{Path{0.05, 1}, Params{10, 2}}, {Path{0.03, 3}, Params{20, 4}}, {Path{0.1, 2}, Params{32, 8}}} {
		r := rand.New(rand.NewPCG(13, 14))
		e := mustEncoder(t, c.shape, 8, 0)
		d, _ := mustDecoder(t, 2, 8)
		burst := max(c.path.Burst, 1/(1-c.path.Loss))
		bad := r.Float64() < c.path.Loss
		emit := func(pkt []byte, repair bool) error {
			lost := bad
			if bad {
				bad = r.Float64() >= 1/burst
			} else {
				bad = r.Float64() < c.path.Loss/(1-c.path.Loss)/burst
			}
			if lost {
				return nil
			}
			return give(d, sent{pkt, repair})
		}
		const blocks = 5_000
		for i := range blocks * c.shape.K {
			if err := e.Add([]byte{byte(i), byte(i >> 8)}, emit); err != nil {
				t.Fatal(err)
			}
		}
		d.Flush()
		got, want := 1-float64(d.Counts().Delivered)/float64(blocks*c.shape.K), c.path.Residual(c.shape)
		t.Logf("%+v %s: residual %.3g, computed %.3g", c.path, c.shape, got, want)
		if math.Abs(got-want) > want/5 { // five standard deviations and more of each
			t.Errorf("%+v %s: residual %.3g, computed %.3g", c.path, c.shape, got, want)
		}
	}
}

// Figures of the exact computation, made independently.
func TestResidual(t *testing.T) {
	for _, c := range []struct {
		path  Path
		shape Params
		want  string
	}{
		{Path{0.01, 1}, Params{10, 2}, "5.2e-05"},
		{Path{0.05, 1}, Params{32, 8}, "3.0e-05"},
		{Path{0.03, 1}, Params{50, 10}, "2.9e-07"},
		{Path{0.03, 3}, Params{20, 4}, "1.5e-02"},
		{Path{0.02, 5}, Params{50, 10}, "7.1e-03"},
		{Path{0, 1}, Params{10, 2}, "0.0e+00"},
		{Path{1, 1}, Params{10, 2}, "1.0e+00"},
	} {
		if got := fmt.Sprintf("%.1e", c.path.Residual(c.shape)); got != c.want {
			t.Errorf("%+v %s: %s, want %s", c.path, c.shape, got, c.want)
		}
	}
}

func TestChoose(t *testing.T) {
	goal := Goal{Residual: 1e-4, Overhead: 0.35, Packets: 32}
	for _, c := range []struct {
		path Path
		goal Goal
		want Params
	}{
		{Path{0, 1}, goal, Params{32, 0}},
		{Path{5e-5, 1}, goal, Params{32, 0}},
		{Path{0.01, 1}, goal, Params{32, 4}},
		{Path{0.05, 1}, goal, Params{32, 8}},
		{Path{0.2, 1}, goal, Params{32, 11}},
		{Path{0.05, 1}, Goal{1e-4, 0.35, 2}, Params{2, 0}},
		{Path{0.05, 1}, Goal{1e-4, 0.35, 1000}, Params{189, 24}},
	} {
		got := Choose(c.path, c.goal)
		if got.K != c.want.K || got.M > c.want.M || got.Overhead() > c.goal.Overhead || got.Why == "" {
			t.Errorf("%+v %+v: %s (%s), want at most %s", c.path, c.goal, got.Params, got.Why, c.want)
		}
		less := Params{got.K, got.M - 1}
		if got.M > 0 && got.Residual <= c.goal.Residual && c.path.Residual(less) <= c.goal.Residual {
			t.Errorf("%+v: %s would do", c.path, less)
		}
	}
}

// However this processor multiplies, it does as the tables of logarithms say, for all factors and any number of symbols.
func TestMulAdd(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, n := range []int{0, lane, 3 * lane} {
		for c := range 256 {
			factors := make([]byte, 1+c%ways)
			var symbols [ways][]byte
			for i := range symbols {
				symbols[i] = make([]byte, n)
				for j := range symbols[i] {
					symbols[i][j] = byte(r.Uint32())
				}
			}
			row := make([]byte, n+1)
			for j := range row {
				row[j] = byte(r.Uint32())
			}
			want := slices.Clone(row)
			for i := range factors {
				factors[i] = byte(c + i*i)
				for j, b := range symbols[i] {
					want[j] ^= gf().mul(factors[i], b)
				}
			}
			portable := slices.Clone(row)
			mulAddPortable(factors, &symbols, portable, n)
			mulAdd(factors, &symbols, row, n)
			if !bytes.Equal(row, want) || !bytes.Equal(portable, want) {
				t.Fatalf("%d bytes by %d: %x, without the processor's help %x, want %x", n, factors, row, portable, want)
			}
		}
	}
}

// A block is whole, and the next one begins, though its last packet could not be sent.
func TestEmitFails(t *testing.T) {
	e, broken := mustEncoder(t, Params{2, 1}, 100, 0), errors.New("no buffer space")
	sources, repairs := 0, 0
	for i := range 4 {
		err := e.Add([]byte{byte(i)}, func(_ []byte, repair bool) error {
			if repair {
				repairs++
				return nil
			}
			sources++
			return broken
		})
		if !errors.Is(err, broken) {
			t.Errorf("packet %d: %v, want what sending said", i, err)
		}
	}
	if sources != 4 || repairs != 2 || e.Filled() != 0 {
		t.Errorf("%d packets, %d of parity, %d of the next block: want 4, 2 and 0", sources, repairs, e.Filled())
	}
}

// A sender allocates nothing, whatever the packets' lengths, once it has had a block of the shape.
func TestEncoderAllocations(t *testing.T) {
	e := mustEncoder(t, Params{20, 4}, 1200, 0)
	adu, parity := make([]byte, 1200), 0
	emit := func(_ []byte, repair bool) error {
		if repair {
			parity++
		}
		return nil
	}
	blocks := func() { // two whole ones, and one that is closed early
		for i := range 50 {
			if err := e.Add(adu[:1+i*389%1200], emit); err != nil {
				t.Fatal(err)
			}
		}
		if err := e.Close(emit); err != nil {
			t.Fatal(err)
		}
	}
	if got := testing.AllocsPerRun(100, blocks); got > 0 || parity != 101*3*4 {
		t.Errorf("%.0f allocations for 50 packets, and %d packets of parity", got, parity)
	}
}

// A long flow in one shape allocates only where it rebuilds.
func TestAllocations(t *testing.T) {
	e := mustEncoder(t, Params{20, 4}, 1200, 0)
	d, err := NewDecoder(4, 1200, func([]byte, bool) {})
	if err != nil {
		t.Fatal(err)
	}
	adu, n := make([]byte, 1200), 0
	emit := func(pkt []byte, repair bool) error {
		if n++; n%12 == 0 { // 2 of 24
			return nil
		}
		return give(d, sent{pkt, repair})
	}
	block := func() {
		for range 20 {
			if err := e.Add(adu, emit); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 10 {
		block()
	}
	if got := testing.AllocsPerRun(100, block); got > 100 {
		t.Errorf("%.0f allocations a block of 20+4 with 2 lost, want at most 100: what the library needs to invert a matrix of 20", got)
	}
}

func FuzzDecoder(f *testing.F) {
	e := mustEncoder(f, Params{3, 2}, 16, 0)
	for _, s := range mustEncode(f, e, [][]byte{{1}, {2, 3}, {4, 5, 6}}) {
		f.Add(s.pkt, s.repair, s.pkt, !s.repair)
	}
	f.Fuzz(func(t *testing.T, a []byte, repairA bool, b []byte, repairB bool) {
		d, got := mustDecoder(t, 2, 64)
		for _, s := range []sent{{a, repairA}, {b, repairB}, {a, repairB}, {b, repairA}} {
			_ = give(d, s) // refused or not, it must not panic
		}
		d.Flush()
		c := d.Counts()
		if c.Delivered != uint64(len(*got)) || c.Received+c.Duplicates+c.Refused < 4 || len(d.blocks) != 0 {
			t.Fatalf("%+v after 4 packets, %d delivered", c, len(*got))
		}
	})
}

// The sender's path on one core, in bytes of packets: payload IDs, symbols' heads, padding, and parity with its IDs. Packets
// differ in length, by up to a tenth.
// The longest shape is the one of a flow with 9,450 packets a second or more (90 Mbit/s) at the usual delay and overhead.
func BenchmarkEncode(b *testing.B) {
	for _, p := range []Params{{10, 2}, {20, 4}, {32, 8}, {50, 10}, {100, 25}, {189, 66}} {
		b.Run(p.String(), func(b *testing.B) {
			e := mustEncoder(b, p, 1200, 0)
			r := rand.New(rand.NewPCG(1, 1))
			adus, bytes := packets(r, 509, 1), 0
			for i := range adus {
				adus[i] = slices.Repeat(adus[i], 1080+r.IntN(121))
				bytes += len(adus[i])
			}
			emit := func([]byte, bool) error { return nil }
			b.SetBytes(int64(bytes / len(adus)))
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := e.Add(adus[i%len(adus)], emit); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, p := range []Params{{10, 2}, {20, 4}, {50, 10}} {
		b.Run(p.String(), func(b *testing.B) {
			out := mustEncode(b, mustEncoder(b, p, 1200, 0), packets(rand.New(rand.NewPCG(1, 1)), p.K, 1200))
			d, err := NewDecoder(2, 1200, func([]byte, bool) {})
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(1200 * int64(p.K))
			b.ReportAllocs()
			sbn := uint32(0)
			for b.Loop() {
				sbn++
				for i, s := range out {
					if i < p.M { // as many lost as can be
						continue
					}
					id := parseID(s.pkt[:idLen])
					at := 0
					if !s.repair {
						at = len(s.pkt) - idLen
						id = parseID(s.pkt[at:])
					}
					id.sbn = sbn & sbnMask
					id.append(s.pkt[:at])
					if err := give(d, s); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
