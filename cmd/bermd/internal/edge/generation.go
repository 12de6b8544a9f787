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
	"github.com/quic-go/quic-go"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/quiclb"
)

// generation is this process's place among those that have sockets of QUIC at the same addresses. The
// kernel half gives each the datagrams of its own connections, which it knows by the IDs.
type generation struct {
	e  *Edge
	id atomic.Pointer[identity] // of the IDs that are given out

	set atomic.Pointer[maps.Set] // where it has the slot; changed with mu held

	mu     sync.Mutex
	inode  uint64       // of the program that the sockets have
	missed error        // why the kernel half does not know the sockets
	waits  bool         // another process serves yet
	former func() error // takes the sockets from a kernel half that is gone, whose program chooses among them yet
}

// identity makes IDs recognizable: their hash names the slot, and the worker of so many.
type identity struct {
	seed    [2]uint64
	slot    int
	workers int
}

// derive makes a key of its own for a purpose, of one that is kept.
func derive(key [32]byte, purpose string) (out [32]byte) {
	m := hmac.New(sha256.New, key[:])
	_, _ = m.Write([]byte(purpose)) // never fails
	return [32]byte(m.Sum(nil))
}

func newGeneration(e *Edge, key [32]byte, workers int) *generation {
	k := derive(key, "berm generations")
	g := &generation{e: e, missed: errNotYet}
	g.id.Store(&identity{seed: [2]uint64{binary.NativeEndian.Uint64(k[:]), binary.NativeEndian.Uint64(k[8:])}, workers: workers})
	return g
}

// fitting makes the IDs that a worker of this process may give out.
func (g *generation) fitting(ids *quiclb.Generator) func(worker int) quic.ConnectionIDGenerator {
	return func(worker int) quic.ConnectionIDGenerator {
		return ids.Fitting(func(cid []byte) bool {
			id := g.id.Load()
			slot, by := maps.CIDOwner(id.seed, cid, id.workers)
			return slot == id.slot && by == worker
		})
	}
}

// prepare claims a slot before there are sockets. Without a kernel half there is one worker: Linux would choose among
// several by the client's address, and a connection would meet another when that changes.
func (g *generation) prepare(set *maps.Set) error {
	prog, err := g.program()
	if err == nil {
		_ = prog.Close() // it is there
		err = g.claim(set)
	}
	if err != nil {
		g.single(err)
	}
	return err
}

func (g *generation) program() (*ebpf.Program, error) {
	return maps.Reuseport(maps.PinDir(g.e.kernel.pins))
}

// single has one worker.
func (g *generation) single(why error) {
	id := *g.id.Load()
	if id.workers > 1 {
		g.e.log.Info("h3 has one worker until the next start: only the kernel half can give each its connections", "listen.quic_workers", id.workers, "error", why)
	}
	id.workers = 1
	g.id.Store(&id)
}

// claim takes a slot among the processes of a kernel half, before sockets are opened or made known.
func (g *generation) claim(set *maps.Set) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.set.Load() == set {
		return nil
	}
	id := g.id.Load()
	slot, seed, err := set.Generations.Claim(os.Getpid(), id.slot, id.workers, id.seed)
	if err != nil {
		g.missed = err
		return err
	}
	g.id.Store(&identity{seed, slot, id.workers})
	g.set.Store(set)
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
	inode := inodeOf(maps.ReuseportPin(maps.PinDir(g.e.kernel.pins)))
	prog, err := g.program()
	if err != nil {
		return err
	}
	defer prog.Close()
	slot := g.id.Load().slot
	if g.former != nil {
		defer g.pause()()
		if err := g.former(); err != nil {
			return err
		}
		g.former = nil
	}
	err = g.e.server.EachQUIC(func(worker int, at netip.AddrPort, fd int) error {
		return introduce(set, prog, slot, worker, at, fd)
	})
	if err != nil {
		return err
	}
	g.inode = inode
	if g.waits {
		return nil
	}
	return set.Generations.Lead(slot)
}

// pause has the sockets lose what comes until the function that it returns is called: what is lost is sent again, and
// a worker would end the connection of another with a stateless reset.
func (g *generation) pause() (resume func()) {
	each := func(what string, f func(fd int) error) {
		err := g.e.server.EachQUIC(func(_ int, _ netip.AddrPort, fd int) error { return f(fd) })
		if err != nil {
			g.e.log.Warn(what+" sockets of QUIC", "error", err)
		}
	}
	each("pause", func(fd int) error {
		nothing := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing})
	})
	return func() {
		each("resume", func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0) })
	}
}

// introduce makes the socket of a worker known before it is served.
func (g *generation) introduce(worker int, at netip.AddrPort, fd int) error {
	return g.e.kernel.use(func(set *maps.Set) error {
		if g.set.Load() != set {
			return errNotYet
		}
		prog, err := g.program()
		if err != nil {
			return err
		}
		defer prog.Close()
		return introduce(set, prog, g.id.Load().slot, worker, at, fd)
	})
}

// introduce comes again where a socket is known already.
func introduce(set *maps.Set, prog *ebpf.Program, slot, worker int, at netip.AddrPort, fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_EBPF, prog.FD()); err != nil {
		return fmt.Errorf("attach the program that chooses among sockets of %s: %w", at, err)
	}
	err := set.Generations.Join(slot, worker, at, fd)
	if errors.Is(err, unix.EBUSY) { // known: here, or yet to a kernel half that is gone
		return set.Generations.Joined(slot, worker, at, fd)
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
	return g.set.Load().Generations.Lead(g.id.Load().slot)
}

// trouble says why connections of QUIC would not outlive this process, or nil.
func (g *generation) trouble() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.missed
}

// part is for a kernel half that was taken down or replaced: its program goes on choosing among the sockets until
// those are known to another.
func (g *generation) part() {
	g.mu.Lock()
	defer g.mu.Unlock()
	set := g.set.Load()
	if set == nil {
		return
	}
	former, err := set.Generations.Part(g.id.Load().slot)
	if err != nil {
		g.e.log.Warn("part from the daemon's generations", "error", err)
	}
	g.former, g.missed = former, errNotYet
	g.set.Store(nil)
}

// leave gives the slot back.
func (g *generation) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if set := g.set.Load(); set != nil {
		if err := set.Generations.Leave(g.id.Load().slot); err != nil {
			g.e.log.Warn("leave the daemon's generations", "error", err)
		}
	}
	g.set.Store(nil)
	g.missed = errNotYet
}

// generations tells which processes have connections.
func generations(set *maps.Set) []control.Generation {
	out := []control.Generation{}
	for _, g := range set.Generations.List() {
		out = append(out, control.Generation{Number: g.Number, PID: g.PID, Serves: g.Newest})
	}
	return out
}
