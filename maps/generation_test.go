package maps_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
	"github.com/bermedge/berm/userspace/quiclb"
)

// owner is a socket's.
type owner struct{ slot, worker int }

// generations are sockets at one address, one for each worker of each slot.
type generations struct {
	t     *testing.T
	k     *mapstest.Kernel
	prog  *ebpf.Program
	at    netip.AddrPort
	seed  [2]uint64
	conns map[owner]*net.UDPConn
	from  *net.UDPConn

	workers map[int]int // of each slot
}

func newGenerations(t *testing.T, k *mapstest.Kernel, at string) *generations {
	t.Helper()
	spec, err := bpf.LoadReuseport()
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]*ebpf.Map{}
	for name := range spec.Maps {
		if m := k.Maps[name]; m != nil && name != bpf.XDPMapBermRateCells && len(name) > 5 && name[:5] == "berm_" {
			have[name] = m
		}
	}
	delete(spec.Maps, bpf.XDPMapBermRateCells) // which the test has smaller, and this program does not use
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: have})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(coll.Close)
	g := &generations{t: t, k: k, prog: coll.Programs["berm_reuseport"], at: netip.MustParseAddrPort(at), conns: map[owner]*net.UDPConn{}, workers: map[int]int{}}
	g.seed = [2]uint64{0x0123456789abcdef, 42}
	return g
}

// start does what a process does before it is ready.
func (g *generations) start(pid, workers int) int {
	g.t.Helper()
	slot, seed, err := g.k.Generations.Claim(pid, -1, workers, g.seed)
	if err != nil {
		g.t.Fatal(err)
	}
	g.seed, g.workers[slot] = seed, workers
	for worker := range workers {
		g.open(owner{slot, worker})
	}
	return slot
}

func (g *generations) open(o owner) {
	g.t.Helper()
	var fd int
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(f uintptr) {
			if err := unix.SetsockoptInt(int(f), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
				g.t.Error(err)
			}
		})
	}}
	c, err := lc.ListenPacket(g.t.Context(), "udp", g.at.String())
	if err != nil {
		g.t.Fatal(err)
	}
	u := c.(*net.UDPConn)
	g.t.Cleanup(func() { u.Close() })
	g.at = u.LocalAddr().(*net.UDPAddr).AddrPort()
	raw, err := u.SyscallConn()
	if err != nil {
		g.t.Fatal(err)
	}
	err = raw.Control(func(f uintptr) {
		fd = int(f)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_EBPF, g.prog.FD()); err != nil {
			g.t.Error(err)
		}
		if err := g.k.Generations.Join(o.slot, o.worker, g.at, fd); err != nil {
			g.t.Error(err)
		}
	})
	if err != nil {
		g.t.Fatal(err)
	}
	g.conns[o] = u
}

// arrives sends a datagram and returns whose socket gets it.
func (g *generations) arrives(datagram []byte) owner {
	g.t.Helper()
	if g.from == nil {
		var err error
		if g.from, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(g.at)); err != nil {
			g.t.Fatal(err)
		}
		g.t.Cleanup(func() { g.from.Close() })
	}
	if _, err := g.from.Write(datagram); err != nil {
		g.t.Fatal(err)
	}
	buf := make([]byte, 2000)
	for range 5000 { // loopback delivers before Write returns, but for a moment on a busy machine
		for o, c := range g.conns {
			raw, err := c.SyscallConn()
			if err != nil {
				g.t.Fatal(err)
			}
			n := -1
			err = raw.Read(func(fd uintptr) bool {
				n, _, _ = unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
				return true
			})
			if err == nil && n == len(datagram) {
				return o
			}
		}
	}
	g.t.Fatalf("a datagram of %d bytes was lost", len(datagram))
	return owner{}
}

// ownerOf is whose an ID is, if it is of a slot.
func (g *generations) ownerOf(id []byte, slot int) owner {
	_, worker := maps.CIDOwner(g.seed, id, g.workers[slot])
	return owner{slot, worker}
}

// idOf makes connection IDs until one is of an owner, as the daemon does.
func (g *generations) idOf(o owner, next func() []byte) []byte {
	for {
		id := next()
		if slot, worker := maps.CIDOwner(g.seed, id, max(g.workers[o.slot], 1)); slot == o.slot && worker == o.worker {
			return id
		}
	}
}

func short(cid []byte) []byte {
	return append(append([]byte{0x40}, cid...), make([]byte, 30)...)
}

func long(first byte, version uint32, cid []byte) []byte {
	b := []byte{first, byte(version >> 24), byte(version >> 16), byte(version >> 8), byte(version), byte(len(cid))}
	return append(append(b, cid...), make([]byte, 100)...)
}

// First bytes of long headers of version 1.
const (
	initial, zeroRTT, handshake = 0xc0, 0xd0, 0xe0
	v1, v2                      = 1, 0x6b3343cf
)

func TestGenerations(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(at, func(t *testing.T) { testGenerations(t, at) })
	}
}

func testGenerations(t *testing.T, at string) {
	k := mapstest.New(t)
	const self, serverID = 7, 0x1234
	if err := k.Config.SetSelf(maps.Self{Backend: self}); err != nil {
		t.Fatal(err)
	}
	formats := []maps.CIDFormat{
		{ID: 0, ServerIDLen: 2, NonceLen: 6},
		{ID: 1, ServerIDLen: 2, NonceLen: 14, Key: []byte("0123456789abcdef")},
		{ID: 2, ServerIDLen: 3, NonceLen: 7, Key: []byte("fedcba9876543210")},
		{ID: 3, ServerIDLen: 8, NonceLen: 11},
	}
	if err := k.CIDs.Replace(formats, []maps.Server{{ID: serverID, Backend: self, Sets: []uint32{1}}}); err != nil {
		t.Fatal(err)
	}
	g := newGenerations(t, k, at)
	first := g.start(os.Getpid(), 1)
	if err := k.Generations.Lead(first); err != nil {
		t.Fatal(err)
	}
	random := func(first byte, n int) func() []byte {
		return func() []byte {
			b := make([]byte, n)
			_, _ = rand.Read(b) // never fails
			b[0] = first
			return b
		}
	}
	for slot := range maps.GenerationSlots { // one alone gets everything, whatever it says
		if got := g.arrives(short(g.idOf(owner{slot, 0}, random(0xe7, 8)))); got != (owner{first, 0}) {
			t.Errorf("one alone: %v got what is of slot %d", got, slot)
		}
	}
	for _, workers := range []int{4, maps.Workers, 3} {
		g.start(os.Getpid(), workers)
	}
	newest := (first + 2) % maps.GenerationSlots
	if err := k.Generations.Lead(newest); err != nil {
		t.Fatal(err)
	}
	makers := map[string]func() []byte{"of no format": random(0xe7, 8)}
	for _, f := range formats {
		codec, err := quiclb.New(quiclb.Format{ID: f.ID, ServerIDLen: f.ServerIDLen, NonceLen: f.NonceLen, Key: f.Key})
		if err != nil {
			t.Fatal(err)
		}
		makers[fmt.Sprintf("format %d", f.ID)] = func() []byte {
			return codec.Encode(quiclb.ServerID(serverID, f.ServerIDLen), random(byte(time.Now().UnixNano()), f.NonceLen)())
		}
	}
	for name, next := range makers {
		for o := range g.conns {
			id := g.idOf(o, next)
			ours := o
			if name == "of no format" { // only an ID that names this edge is known not to be a client's own
				ours = g.ownerOf(id, newest)
			}
			for what, c := range map[string]struct {
				datagram []byte
				want     owner
			}{
				"short header":       {short(id), o},
				"handshake":          {long(handshake, v1, id), o},
				"handshake, v2":      {long(0xf0, v2, id), o},
				"second initial":     {long(initial, v1, id), ours},
				"second initial, v2": {long(0xd0, v2, id), ours},
				"0-RTT":              {long(zeroRTT, v1, id), ours},
			} {
				if got := g.arrives(c.datagram); got != c.want {
					t.Errorf("%s of %v, %s: %v got it, want %v", name, o, what, got, c.want)
				}
			}
		}
	}
	for o := range g.conns { // of the newest, whatever their hash is
		client := g.idOf(o, random(0x91, 18))
		want := g.ownerOf(client, newest) // all that carries the ID meets one worker
		for what, datagram := range map[string][]byte{
			"first initial": long(initial, v1, client), "first initial, v2": long(0xd0, v2, client), "0-RTT": long(zeroRTT, v1, client),
		} {
			if got := g.arrives(datagram); got != want {
				t.Errorf("%s of %v: %v got it, want %v", what, o, got, want)
			}
		}
		for what, datagram := range map[string][]byte{
			"nothing": {}, "text": []byte("berm"), "a header cut short": long(initial, v1, client)[:20],
			"an ID that is too long": long(handshake, v1, append(client, 1, 2, 3)), "no ID": long(handshake, v1, nil),
			"a length that no ID has": short(g.idOf(o, random(0x1f, 20))),
		} {
			if got := g.arrives(datagram); got.slot != newest {
				t.Errorf("%s of %v: %v got it, want one of the newest, %d", what, o, got, newest)
			}
		}
	}
	// Who is gone has the newest as heir.
	gone := owner{(newest + 1) % maps.GenerationSlots, 0}
	if err := g.conns[gone].Close(); err != nil {
		t.Fatal(err)
	}
	delete(g.conns, gone)
	id := g.idOf(gone, random(0xe7, 8))
	if got, want := g.arrives(short(id)), g.ownerOf(id, newest); got != want {
		t.Errorf("what is of nobody: %v got it, want %v", got, want)
	}
	// One process alone, with several workers.
	for slot := range maps.GenerationSlots {
		if slot == newest {
			continue
		}
		for o, c := range g.conns {
			if o.slot == slot {
				_ = c.Close()
				delete(g.conns, o)
			}
		}
		if err := k.Generations.Leave(slot); err != nil {
			t.Fatal(err)
		}
	}
	for o := range g.conns {
		if got := g.arrives(short(g.idOf(o, random(0xe7, 8)))); got != o {
			t.Errorf("alone: %v got what is of %v", got, o)
		}
	}
}

// What a kernel half that is gone knew, another may have once the first lets go.
func TestGenerationsPart(t *testing.T) {
	old := newGenerations(t, mapstest.New(t), "127.0.0.1:0")
	slot := old.start(os.Getpid(), 2)
	leave, err := old.k.Generations.Part(slot)
	if err != nil {
		t.Fatal(err)
	}
	next := newGenerations(t, mapstest.New(t), "127.0.0.1:0")
	if _, _, err := next.k.Generations.Claim(os.Getpid(), slot, 2, old.seed); err != nil {
		t.Fatal(err)
	}
	join := func(want error) {
		t.Helper()
		for o, c := range old.conns {
			raw, err := c.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			err = raw.Control(func(fd uintptr) {
				if err := next.k.Generations.Join(slot, o.worker, old.at, int(fd)); !errors.Is(err, want) {
					t.Errorf("%v: %v, want %v", o, err, want)
				}
				if err := next.k.Generations.Joined(slot, o.worker, old.at, int(fd)); (err == nil) != (want == nil) {
					t.Errorf("%v is known: %v", o, err)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	join(unix.EBUSY)
	if err := leave(); err != nil {
		t.Fatal(err)
	}
	join(nil)
}

func TestGenerationSlots(t *testing.T) {
	k := mapstest.New(t)
	gen := k.Generations
	if got := gen.List(); len(got) != 0 {
		t.Fatalf("at the start: %+v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	other := exec.CommandContext(ctx, "sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	mine := [2]uint64{1, 2}
	slot, seed, err := gen.Claim(os.Getpid(), 3, 1, mine)
	if err != nil || slot != 3 || seed != mine {
		t.Fatalf("slot %d, seed %v, %v", slot, seed, err)
	}
	if err := gen.Lead(slot); err != nil {
		t.Fatal(err)
	}
	next, seed, err := gen.Claim(other.Process.Pid, 3, 1, [2]uint64{3, 4})
	if err != nil || next == slot || seed != mine {
		t.Fatalf("slot %d, seed %v, %v", next, seed, err)
	}
	if err := gen.Lead(next); err != nil {
		t.Fatal(err)
	}
	want := []maps.Generation{{Slot: next, Number: 2, PID: other.Process.Pid, Newest: true}, {Slot: slot, Number: 1, PID: os.Getpid()}}
	if got := gen.List(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	for range 2 {
		if _, _, err := gen.Claim(os.Getpid(), -1, 1, mine); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := gen.Claim(os.Getpid(), -1, 1, mine); !errors.Is(err, maps.ErrFull) {
		t.Errorf("a fifth: %v", err)
	}
	cancel()
	_ = other.Wait() // it was killed
	if err := gen.Sweep(); err != nil {
		t.Fatal(err)
	}
	if got, _, err := gen.Claim(os.Getpid(), -1, 1, mine); err != nil || got != next {
		t.Errorf("the slot of who died: %d, %v, want %d", got, err, next)
	}
	if err := gen.Leave(slot); err != nil {
		t.Fatal(err)
	}
	if got := gen.List(); len(got) != 3 || got[0].Slot != next {
		t.Errorf("after one left: %+v", got)
	}
}
