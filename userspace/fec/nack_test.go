package fec

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// A decoder asks once for what a block lacks, when some symbols of later blocks have come.
func TestAppendNack(t *testing.T) {
	e := mustEncoder(t, Params{4, 1}, 100, 9)
	out := mustEncode(t, e, packets(rand.New(rand.NewPCG(1, 2)), 12, 100)) // three blocks of five symbols
	d, _ := mustDecoder(t, 4, 100)
	var nacks [][]byte
	for i, s := range out {
		if i == 1 || i == 2 || i == 3 || i == 6 { // three of the first, and one of the second
			continue
		}
		if err := give(d, s); err != nil {
			t.Fatal(err)
		}
		if b := d.AppendNack(nil); len(b) > 0 {
			nacks = append(nacks, append(b, byte(i)))
		}
	}
	// Behind it: after which packet. The second block needs nothing.
	if want := [][]byte{[]byte("Bfn1\x00\x00\x09\x02\x08")}; !slices.EqualFunc(nacks, want, bytes.Equal) {
		t.Errorf("%q, want %q", nacks, want)
	}
	// Parity that comes then repairs it.
	more := mustEncode(t, mustEncoder(t, Params{4, 3}, 100, 9), packets(rand.New(rand.NewPCG(1, 2)), 4, 100))
	for _, s := range more[5:] {
		if err := give(d, s); err != nil {
			t.Fatal(err)
		}
	}
	if c := d.Counts(); c.Delivered != 12 || c.Repaired != 4 {
		t.Errorf("%+v", c)
	}
}

// mustSend puts packets into a stream, from block 9 on, and returns what each block was made of.
func mustSend(t *testing.T, x *Stream, k, blocks int) (adus [][]byte) {
	t.Helper()
	e := mustEncoder(t, Params{k, 0}, 100, 9)
	adus = packets(rand.New(rand.NewPCG(5, 6)), k*blocks, 100)
	for i, adu := range adus {
		if i%k == 0 {
			eventually(t, "who subscribes keeps up", func() bool {
				x.mu.Lock()
				defer x.mu.Unlock()
				for sub := range x.subs {
					if len(sub.queue) > 0 {
						return false
					}
				}
				return true
			})
			x.beginBlock(9 + uint32(i/k))
		}
		if err := e.Add(adu, x.emit); err != nil {
			t.Fatal(err)
		}
	}
	return adus
}

func nack(lacks ...lack) []byte {
	b := []byte(nackMagic)
	for _, l := range lacks {
		b = l.append(b)
	}
	return b
}

// Who asks gets the parity that it lacks, and a packet of it more, once for each block, within the overhead, and only where
// it can come in time. Whatever a subscriber asks for, it gets no more.
func TestAnswer(t *testing.T) {
	for _, c := range []struct {
		name    string
		asked   []byte
		rtt     time.Duration
		rows    int  // of parity
		refused bool // a datagram
	}{
		{"two", nack(lack{10, 2}), 20 * time.Millisecond, 3, false},
		{"all that may be", nack(lack{10, 7}), 0, 7, false},
		{"more than may be", nack(lack{10, 8}), 0, 0, false},
		{"too far away", nack(lack{10, 2}), 21 * time.Millisecond, 0, false},
		{"two blocks", nack(lack{10, 1}, lack{16, 1}), 0, 4, false},
		{"forgotten", nack(lack{9, 1}), 0, 0, true},
		{"under way", nack(lack{17, 1}), 0, 0, true},
		{"to come", nack(lack{18, 1}), 0, 0, true},
		{"one of two forgotten", nack(lack{10, 1}, lack{9, 1}), 0, 2, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, x := mustStream(t, nil, nil)
			s := newSession(t)
			s.rtt = c.rtt
			sub, _ := subscribe(t, x, s, "192.0.2.1:1", false)
			adus := mustSend(t, x, 20, 8)
			x.beginBlock(17)
			count := func() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.got) }
			eventually(t, "all packets arrive", func() bool { return count() == len(adus) })
			for range 3 { // the second and the third get nothing
				s.back <- c.asked
			}
			refused := uint64(2)
			if c.refused {
				refused = 3
			}
			eventually(t, "all were looked at", func() bool { return sub.refused.Load() == refused })
			eventually(t, "the parity arrives", func() bool { return count() >= len(adus)+c.rows && len(sub.queue) == 0 })
			if n := count() - len(adus); n != c.rows {
				t.Errorf("%d packets of parity, want %d", n, c.rows)
			}
			want := mustEncode(t, mustEncoder(t, Params{20, 7}, 100, 10), adus[20:40])[20:]
			for i, b := range s.got[len(adus):] {
				if id := parseID(b[1:]); b[0] != KindRepair || id.sbn == 10 && !bytes.Equal(b[1:], want[id.esi-20].pkt) {
					t.Errorf("packet %d: %x", i, b)
				}
			}
		})
	}
}

// Who wants no parity gets none for asking.
func TestAnswerPlain(t *testing.T) {
	_, x := mustStream(t, nil, nil)
	s := newSession(t)
	sub, _ := subscribe(t, x, s, "192.0.2.1:1", true)
	mustSend(t, x, 20, 2)
	s.back <- nack(lack{9, 1})
	eventually(t, "it is refused", func() bool { return sub.refused.Load() == 1 })
	if n := sub.nacks.Load(); n != 0 {
		t.Errorf("%d blocks asked for", n)
	}
}

// As many blocks are kept as decoders remember, and parity is made once for all who ask.
func TestKept(t *testing.T) {
	_, x := mustStream(t, nil, nil)
	a, _ := subscribe(t, x, newSession(t), "192.0.2.1:1", false)
	b, _ := subscribe(t, x, newSession(t), "192.0.2.2:1", false)
	mustSend(t, x, 20, 50)
	newest := lack{9 + 49, 1}
	if !x.answer(a, nack(newest), 0) || !x.answer(b, nack(newest), 0) {
		t.Fatal("refused")
	}
	made := 0
	for _, block := range x.kept {
		if block.sbn <= newest.sbn-window || len(block.packets) != 20 {
			t.Errorf("block %d of %d packets", block.sbn, len(block.packets))
		}
		made += len(block.parity)
	}
	if made != 7 {
		t.Errorf("%d packets of parity, want those of one block", made)
	}
}

func TestParseNack(t *testing.T) {
	for _, b := range [][]byte{
		nil, []byte("Bfn1"), []byte("Bfr1\x00\x00\x09\x01"), append(nack(lack{9, 1}), 0), nack(lack{9, 0}), nack(lack{9, 1}, lack{9, 2}),
		nack(lack{1, 1}, lack{2, 1}, lack{3, 1}, lack{4, 1}, lack{5, 1}, lack{6, 1}, lack{7, 1}, lack{8, 1}, lack{9, 1}),
	} {
		if lacks, err := parseNack(b); !errors.Is(err, ErrForeign) {
			t.Errorf("%q: %v, %v, want %v", b, lacks, err, ErrForeign)
		}
	}
}

func FuzzNack(f *testing.F) {
	f.Add(nack(lack{9, 1}))
	f.Add(nack(lack{sbnMask, 255}, lack{0, 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		lacks, err := parseNack(b)
		if err != nil {
			return
		}
		if !bytes.Equal(nack(lacks...), b) || len(lacks) > window {
			t.Fatalf("%x: %v", b, lacks)
		}
	})
}

// A subscriber from a prefix that is known to lose has parity from its first block on, before it has reported anything.
func TestFirstBlock(t *testing.T) {
	lossy := netip.MustParseAddr("192.0.2.1")
	_, x := mustStream(t, func(a netip.Addr) (Path, bool) { return Path{0.05, 1.1}, a == lossy }, nil)
	goal := Goal{Residual: 1e-4, Overhead: 0.35, Packets: 20}
	x.plan(time.Now(), new(planner), goal)
	s, other := newSession(t), newSession(t)
	sub, _ := subscribe(t, x, s, "192.0.2.1:1", false)
	_, _ = subscribe(t, x, other, "192.0.2.2:1", false)
	want := Choose(Path{0.05, 1.1}, goal)
	if p := sub.plan.Load(); p.Params != want.Params || p.M < 5 {
		t.Errorf("planned %s, want %s", p.Params, want.Params)
	}
	e := mustEncoder(t, x.beginBlock(9), 100, 9)
	for i := range want.K {
		if err := e.Add([]byte{byte(i + 1)}, x.emit); err != nil {
			t.Fatal(err)
		}
	}
	for session, n := range map[*fakeSession]int{s: want.K + want.M, other: want.K} {
		got := func() int { session.mu.Lock(); defer session.mu.Unlock(); return len(session.got) }
		eventually(t, "the block arrives", func() bool { return got() >= n })
		if got() > n {
			t.Errorf("%d packets, want %d", got(), n)
		}
	}
}
