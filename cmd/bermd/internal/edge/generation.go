package edge

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/control"
)

// generation is this process's place among those that have sockets of QUIC at the same addresses. The
// kernel half gives each the datagrams of its own connections, which it knows by the IDs.
type generation struct {
	e  *Edge
	id atomic.Pointer[identity] // of the IDs that are given out

	mu     sync.Mutex
	set    *maps.Set // joined
	inode  uint64    // of the program that the sockets have
	missed error     // why the kernel half does not know the sockets
	waits  bool      // another process serves yet
}

// identity makes IDs recognizable: the low bits of their hash are the slot.
type identity struct {
	seed [2]uint64
	slot int
}

// derive makes a key of its own for a purpose, of one that is kept.
func derive(key [32]byte, purpose string) (out [32]byte) {
	m := hmac.New(sha256.New, key[:])
	_, _ = m.Write([]byte(purpose)) // never fails
	return [32]byte(m.Sum(nil))
}

func newGeneration(e *Edge, key [32]byte) *generation {
	k := derive(key, "berm generations")
	g := &generation{e: e, missed: errNotYet}
	g.id.Store(&identity{seed: [2]uint64{binary.NativeEndian.Uint64(k[:]), binary.NativeEndian.Uint64(k[8:])}})
	return g
}

// fits says whether a connection ID is one that this process may give out.
func (g *generation) fits(cid []byte) bool {
	id := g.id.Load()
	return maps.CIDSlot(id.seed, cid) == id.slot
}

// claim takes a slot among the processes of a kernel half, before sockets are opened or made known.
func (g *generation) claim(set *maps.Set) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.set == set {
		return nil
	}
	id := g.id.Load()
	slot, seed, err := set.Generations.Claim(os.Getpid(), id.slot, id.seed)
	if err != nil {
		g.missed = err
		return err
	}
	g.id.Store(&identity{seed, slot})
	g.set = set
	return nil
}

// join makes all sockets of QUIC known to the kernel half, and has the program there choose among those
// of an address.
func (g *generation) join(set *maps.Set) error {
	if err := g.claim(set); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.missed = g.joinAll(set)
	return g.missed
}

func (g *generation) joinAll(set *maps.Set) error {
	dir := maps.PinDir(g.e.kernel.pins)
	inode := inodeOf(maps.ReuseportPin(dir))
	prog, err := maps.Reuseport(dir)
	if err != nil {
		return err
	}
	defer prog.Close()
	slot := g.id.Load().slot
	err = g.e.server.EachQUIC(func(at netip.AddrPort, fd int) error { return introduce(set, prog, slot, at, fd) })
	if err != nil {
		return err
	}
	g.inode = inode
	if g.waits {
		return nil
	}
	return set.Generations.Lead(slot)
}

// introduce comes again where a socket is known already.
func introduce(set *maps.Set, prog *ebpf.Program, slot int, at netip.AddrPort, fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_EBPF, prog.FD()); err != nil {
		return fmt.Errorf("attach the program that chooses among sockets of %s: %w", at, err)
	}
	err := set.Generations.Join(slot, at, fd)
	if errors.Is(err, unix.EBUSY) { // known: here, or yet to a kernel half that is gone
		return set.Generations.Joined(slot, at, fd)
	}
	return err
}

// follow keeps up with a program that was replaced, and with processes that ended.
func (g *generation) follow(set *maps.Set) {
	g.mu.Lock()
	missed, stale := g.missed, g.inode != inodeOf(maps.ReuseportPin(maps.PinDir(g.e.kernel.pins)))
	g.mu.Unlock()
	if missed != nil || stale {
		if err := g.join(set); err == nil && missed != nil && !errors.Is(missed, errNotYet) {
			g.e.log.Info("the kernel half knows the sockets of QUIC now")
		}
	}
	if err := set.Generations.Sweep(); err != nil {
		g.e.log.Warn("forget processes that ended", "error", err)
	}
}

// lead has new connections come to this process.
func (g *generation) lead() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waits = false
	return g.set.Generations.Lead(g.id.Load().slot)
}

// trouble says why connections of QUIC would not outlive this process, or nil.
func (g *generation) trouble() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.missed
}

// leave gives the slot back.
func (g *generation) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.set != nil {
		if err := g.set.Generations.Leave(g.id.Load().slot); err != nil {
			g.e.log.Warn("leave the daemon's generations", "error", err)
		}
	}
	g.set, g.missed = nil, errNotYet
}

// generations tells which processes have connections.
func generations(set *maps.Set) []control.Generation {
	out := []control.Generation{}
	for _, g := range set.Generations.List() {
		out = append(out, control.Generation{Number: g.Number, PID: g.PID, Serves: g.Newest})
	}
	return out
}
