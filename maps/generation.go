package maps

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/bpf"
)

// GenerationSlots is how many processes of bermd may have sockets of QUIC at the same time.
const GenerationSlots = 4

// Workers is how many sockets a process may have at an address.
const Workers = 8

const generationPorts = 64

// Generations are the processes of bermd that have sockets of QUIC: the one that serves, and those
// before it that end what they began. The kernel half gives each datagram to the process that gave out
// its connection ID, and what begins a connection to the newest; and there to the worker, one of the process's
// sockets at an address.
type Generations struct {
	set     *Set
	w       *window
	ports   *ebpf.Map
	sockets *ebpf.Map
}

// Generation is one of the processes.
type Generation struct {
	Slot   int
	Number uint32 // counts the processes
	PID    int
	Newest bool // new connections go to it
}

// CIDOwner is the slot whose process gave out a connection ID, and which of that process's workers did: each has
// its half of the ID's hash.
func CIDOwner(seed [2]uint64, cid []byte, workers int) (slot, worker int) {
	var b [24]byte
	copy(b[:], cid)
	word := func(i int) uint64 { return binary.BigEndian.Uint64(b[8*i:]) }
	hash := sipHash(seed, word(0), word(1), word(2)>>32|20<<56)
	return int(hash % GenerationSlots), int((hash >> 32) * uint64(workers) >> 32)
}

func (g *Generations) state() *bpf.XDPBermGenerations {
	return (*bpf.XDPBermGenerations)(unsafe.Pointer(unsafe.SliceData(g.w.words())))
}

// List lists them, the newest first.
func (g *Generations) List() (out []Generation) {
	s := g.state()
	live, newest := atomic.LoadUint32(&s.Live), atomic.LoadUint32(&s.Newest)
	for i := range GenerationSlots {
		slot := (int(newest) + i) % GenerationSlots
		if live&(1<<slot) == 0 {
			continue
		}
		out = append(out, Generation{slot, atomic.LoadUint32(&s.Numbers[slot]), int(atomic.LoadUint32(&s.Pids[slot])), i == 0})
	}
	return out
}

// Claim takes a slot for a process that has so many workers, before it opens sockets. seed is used where there is none yet; the one
// that counts is returned. prefer is the slot of IDs that the process has given out already, or -1.
// When every slot has a process with sockets the error is ErrFull.
func (g *Generations) Claim(pid, prefer, workers int, seed [2]uint64) (slot int, _ [2]uint64, err error) {
	err = g.set.lock.holdQuietly(func() error {
		if err := g.sweep(); err != nil {
			return err
		}
		s := g.state()
		if s.Seed == [2]uint64{} {
			s.Seed = seed
		}
		seed = s.Seed
		slot = -1
		for i := range GenerationSlots {
			at := (int(s.Newest) + 1 + i) % GenerationSlots
			if s.Live&(1<<at) == 0 && (slot < 0 || at == prefer) {
				slot = at
			}
		}
		if slot < 0 {
			return fmt.Errorf("%d processes of bermd have connections of QUIC: %w", GenerationSlots, ErrFull)
		}
		number := uint32(0)
		for _, n := range s.Numbers {
			number = max(number, n)
		}
		s.Pids[slot], s.Numbers[slot] = uint32(pid), number+1
		atomic.StoreUint32(&s.Workers[slot], uint32(workers))
		g.live(s.Live | 1<<slot)
		return nil
	})
	return slot, seed, err
}

// live says which slots have sockets, and so how many there are.
func (g *Generations) live(slots uint32) {
	s := g.state()
	sockets := uint32(0)
	for slot, n := range s.Workers {
		if slots&(1<<slot) != 0 {
			sockets += n
		}
	}
	atomic.StoreUint32(&s.Live, slots)
	atomic.StoreUint32(&s.Sockets, sockets)
}

// socketAt is where the socket of a worker is among those of a port.
func socketAt(port uint32, slot, worker int) uint32 {
	return (port*GenerationSlots+uint32(slot))*Workers + uint32(worker)
}

// Join gives the kernel half the socket of a slot's worker that is bound to an address. The socket needs
// SO_REUSEPORT; it is forgotten when it is closed.
func (g *Generations) Join(slot, worker int, at netip.AddrPort, fd int) error {
	return g.set.lock.holdQuietly(func() error {
		port, err := g.port(at)
		if err != nil {
			return err
		}
		if err := g.sockets.Update(socketAt(port, slot, worker), uint64(fd), ebpf.UpdateAny); err != nil {
			return fmt.Errorf("socket of %s: %w", at, err)
		}
		return nil
	})
}

// Joined says whether a socket, which can be known once only, is what the kernel half knows of a slot's worker at an address. An
// error means that it is not; then it is known to maps that are gone, until the kernel has removed them.
func (g *Generations) Joined(slot, worker int, at netip.AddrPort, fd int) error {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return fmt.Errorf("socket of %s: %w", at, err)
	}
	key := bpf.XDPBermGenerationPort{Port: uint32(at.Port())}
	key.Addr.Octets = at.Addr().As16()
	var port uint32
	if err := g.ports.Lookup(&key, &port); err != nil {
		return fmt.Errorf("address %s: %w", at, err)
	}
	var known uint64
	if err := g.sockets.Lookup(socketAt(port, slot, worker), &known); err != nil || known != cookie {
		return fmt.Errorf("socket of %s: %w", at, errors.Join(err, ErrInUse))
	}
	return nil
}

// port finds the number of an address, or gives it one.
func (g *Generations) port(at netip.AddrPort) (uint32, error) {
	key := bpf.XDPBermGenerationPort{Port: uint32(at.Port())}
	key.Addr.Octets = at.Addr().As16()
	var port uint32
	err := g.ports.Lookup(&key, &port)
	if !errors.Is(err, ebpf.ErrKeyNotExist) {
		return port, err
	}
	var used [generationPorts]bool
	var other bpf.XDPBermGenerationPort
	for it := g.ports.Iterate(); it.Next(&other, &port); {
		if port < generationPorts {
			used[port] = true
		}
	}
	for i, u := range used {
		if !u {
			return uint32(i), g.ports.Put(&key, uint32(i))
		}
	}
	return 0, fmt.Errorf("%d addresses of QUIC: %w", generationPorts, ErrFull)
}

// Lead has new connections go to a slot.
func (g *Generations) Lead(slot int) error {
	return g.set.lock.holdQuietly(func() error {
		atomic.StoreUint32(&g.state().Newest, uint32(slot))
		return nil
	})
}

// Leave gives a slot back.
func (g *Generations) Leave(slot int) error {
	return g.set.lock.holdQuietly(func() error { return g.leave(slot) })
}

func (g *Generations) leave(slot int) error {
	if err := forget(g.sockets, slot); err != nil {
		return err
	}
	g.live(g.state().Live &^ (1 << slot))
	return nil
}

// forget removes a slot's sockets.
func forget(sockets *ebpf.Map, slot int) error {
	for port := range uint32(generationPorts) {
		for worker := range Workers {
			if err := sockets.Delete(socketAt(port, slot, worker)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("forget the sockets of slot %d: %w", slot, err)
			}
		}
	}
	return nil
}

// Part is for a kernel half that goes while its program still chooses among the sockets of a slot. It returns what
// removes them there, once another kernel half is to have them, also after the set is closed.
func (g *Generations) Part(slot int) (leave func() error, err error) {
	sockets, err := g.sockets.Clone()
	if err != nil {
		return nil, fmt.Errorf("keep the sockets of slot %d: %w", slot, err)
	}
	return func() error { return errors.Join(forget(sockets, slot), sockets.Close()) }, nil
}

// Sweep gives back the slots whose process is gone.
func (g *Generations) Sweep() error {
	s := g.state()
	if live := atomic.LoadUint32(&s.Live); live&(live-1) == 0 {
		return nil // the one that serves
	}
	return g.set.lock.holdQuietly(g.sweep)
}

func (g *Generations) sweep() error {
	s := g.state()
	for slot := range GenerationSlots {
		if s.Live&(1<<slot) != 0 && !running(int(s.Pids[slot])) {
			if err := g.leave(slot); err != nil {
				return err
			}
		}
	}
	return nil
}

// running says whether there is such a process. A process may be another user's.
func running(pid int) bool {
	err := unix.Kill(pid, 0)
	return err == nil || errors.Is(err, unix.EPERM)
}

// Reuseport opens the program that chooses among the sockets of an address, below a contract directory.
func Reuseport(dir string) (*ebpf.Program, error) {
	p, err := ebpf.LoadPinnedProgram(ReuseportPin(dir), nil)
	if err != nil {
		return nil, fmt.Errorf("the program that chooses among the daemon's generations: %w", err)
	}
	return p, nil
}

// ReuseportPin is where that is pinned.
func ReuseportPin(dir string) string { return filepath.Join(dir, "programs", "berm_reuseport") }
