package bfd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/bermedge/berm/userspace/clock"
)

// Port is where control packets go (RFC 5881, section 4).
const Port = 3784

// Source ports (RFC 5881, section 4).
const (
	sourceFirst = 49152
	sourceLast  = 65535
)

// ttl of every packet: one that came by a router has less, and is not a neighbour's (RFC 5082).
const ttl = 255

// Neighbor is one session to keep.
type Neighbor struct {
	Address netip.Addr
	Local   netip.Addr // to send from; invalid: as the route says
	Timing  Timing
}

// Options of a Speaker.
type Options struct {
	Clock clock.Clock
	Log   *slog.Logger
	// Alive says whether this process does its work. While it does not, nothing is sent, and the
	// neighbours notice within their detection time.
	Alive func() bool
	// Changed is told of every change of a session's state, in the order in which they happen; it
	// must not block.
	Changed func(neighbor netip.Addr, from, to State, why Diag)

	port, peerPort int // for tests, where both ends are on one host; 0: Port
}

// Speaker keeps the sessions.
type Speaker struct {
	opts    Options
	tasks   sync.WaitGroup
	ignored atomic.Uint64

	mu       sync.RWMutex
	sessions map[netip.Addr]*keeper
	conns    map[bool]net.PacketConn // what receives, by whether it is for IPv4
}

// Status is how a session is.
type Status struct {
	Neighbor  netip.Addr
	State     State
	Diag      Diag
	Since     time.Time
	Interval  time.Duration // between our packets
	Detection time.Duration // without a packet from the neighbour for so long it is down; 0: not heard yet
	Sent      uint64
	Received  uint64
	Held      uint64 // packets that were due and not sent, because this process was not alive
}

// keeper is a session with its socket.
type keeper struct {
	sp    *Speaker
	n     Neighbor
	conn  *net.UDPConn
	wake  chan struct{} // what is due changed
	mu    sync.Mutex
	s     *session
	sent  uint64
	got   uint64
	held  uint64
	ended bool
	stop  context.CancelFunc
	done  chan struct{} // closed once nothing is sent any more
}

// ErrPortInUse is returned when another program of this host speaks BFD.
var ErrPortInUse = errors.New("UDP port " + strconv.Itoa(Port) + " is taken: another BFD daemon (BIRD, FRR) of this host has it")

// Start keeps a session with each neighbour until Close.
func Start(neighbors []Neighbor, opts Options) (*Speaker, error) {
	opts.port, opts.peerPort = cmp.Or(opts.port, Port), cmp.Or(opts.peerPort, Port)
	sp := &Speaker{opts: opts, sessions: map[netip.Addr]*keeper{}, conns: map[bool]net.PacketConn{}}
	if err := sp.Set(neighbors); err != nil {
		return nil, errors.Join(err, sp.Close())
	}
	return sp, nil
}

// Set makes these the neighbours. Sessions with those that do not change go on. On an error some
// may be missing.
func (sp *Speaker) Set(neighbors []Neighbor) error {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	var errs []error
	for a, k := range sp.sessions {
		if !slices.Contains(neighbors, k.n) {
			errs = append(errs, k.close())
			delete(sp.sessions, a)
		}
	}
	for _, n := range neighbors {
		if sp.sessions[n.Address] == nil {
			errs = append(errs, sp.add(n))
		}
	}
	return errors.Join(errs...)
}

func (sp *Speaker) add(n Neighbor) error {
	if sp.conns[n.Address.Is4()] == nil {
		if err := sp.listen(n.Address.Is4()); err != nil {
			return err
		}
	}
	conn, err := dial(n, sp.opts.peerPort)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	k := &keeper{
		sp: sp, n: n, conn: conn, wake: make(chan struct{}, 1), stop: stop, done: make(chan struct{}),
		s: newSession(n.Timing, 1+rand.Uint32N(1<<32-1), sp.opts.Clock.Now()),
	}
	sp.sessions[n.Address] = k
	go func() { // close waits for it
		defer close(k.done)
		k.run(ctx)
	}()
	return nil
}

// dial opens the socket that a session sends from: a source port of its own for as long as the
// session lives.
func dial(n Neighbor, port int) (*net.UDPConn, error) {
	network := "udp4"
	if !n.Address.Is4() {
		network = "udp6"
	}
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(n.Address, uint16(port)))
	const span = sourceLast - sourceFirst + 1
	first := rand.IntN(span)
	for i := range span {
		from := &net.UDPAddr{Port: sourceFirst + (first+i)%span}
		if n.Local.IsValid() {
			from.IP = n.Local.AsSlice()
		}
		conn, err := net.DialUDP(network, from, to)
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("BFD to %s: %w", n.Address, err)
		}
		if n.Address.Is4() {
			err = ipv4.NewConn(conn).SetTTL(ttl)
		} else {
			err = ipv6.NewConn(conn).SetHopLimit(ttl)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("BFD to %s: set TTL: %w", n.Address, err), conn.Close())
		}
		return conn, nil
	}
	return nil, fmt.Errorf("BFD to %s: every source port from %d to %d is taken", n.Address, sourceFirst, sourceLast)
}

// listen receives for all sessions of a family.
func (sp *Speaker) listen(is4 bool) error {
	network := "udp4"
	if !is4 {
		network = "udp6"
	}
	conn, err := net.ListenPacket(network, ":"+strconv.Itoa(sp.opts.port))
	if errors.Is(err, syscall.EADDRINUSE) {
		return ErrPortInUse
	}
	if err != nil {
		return fmt.Errorf("receive BFD: %w", err)
	}
	if is4 {
		p := ipv4.NewPacketConn(conn)
		if err := p.SetControlMessage(ipv4.FlagTTL, true); err != nil {
			return errors.Join(fmt.Errorf("receive BFD: ask for TTLs: %w", err), conn.Close())
		}
		sp.conns[is4] = conn
		sp.tasks.Go(func() {
			sp.read(func(b []byte) (int, int, net.Addr, error) {
				n, cm, from, err := p.ReadFrom(b)
				if cm == nil {
					return n, 0, from, err
				}
				return n, cm.TTL, from, err
			})
		})
		return nil
	}
	p := ipv6.NewPacketConn(conn)
	if err := p.SetControlMessage(ipv6.FlagHopLimit, true); err != nil {
		return errors.Join(fmt.Errorf("receive BFD: ask for hop limits: %w", err), conn.Close())
	}
	sp.conns[is4] = conn
	sp.tasks.Go(func() {
		sp.read(func(b []byte) (int, int, net.Addr, error) {
			n, cm, from, err := p.ReadFrom(b)
			if cm == nil {
				return n, 0, from, err
			}
			return n, cm.HopLimit, from, err
		})
	})
	return nil
}

func (sp *Speaker) read(from func([]byte) (n, ttl int, from net.Addr, err error)) {
	buf := make([]byte, 2048) // a control packet has at most 255 bytes
	for {
		n, hops, addr, err := from(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			sp.opts.Log.Debug("receive BFD", "error", err)
			continue
		}
		at, ok := addr.(*net.UDPAddr)
		if !ok || !sp.take(buf[:n], hops, at.AddrPort().Addr().Unmap()) {
			sp.ignored.Add(1)
		}
	}
}

// take gives a packet to its session; false: it is nobody's. Neighbours are told apart by their
// addresses, since there is one session with each.
func (sp *Speaker) take(b []byte, hops int, from netip.Addr) bool {
	sp.mu.RLock()
	k := sp.sessions[from]
	sp.mu.RUnlock()
	if hops != ttl || k == nil {
		return false
	}
	p, err := Parse(b)
	if err != nil {
		return false
	}
	return k.receive(p)
}

// Ignored counts packets that no session could take: malformed, from a stranger, or from afar.
func (sp *Speaker) Ignored() uint64 { return sp.ignored.Load() }

// Status tells how every session is, in the order of the neighbours' addresses.
func (sp *Speaker) Status() []Status {
	sp.mu.RLock()
	defer sp.mu.RUnlock()
	out := make([]Status, 0, len(sp.sessions))
	for _, k := range sp.sessions {
		out = append(out, k.status())
	}
	slices.SortFunc(out, func(a, b Status) int { return a.Neighbor.Compare(b.Neighbor) })
	return out
}

// Close tells the neighbours that the sessions end on purpose, which is no failure, and ends them.
func (sp *Speaker) Close() error {
	errs := []error{sp.Set(nil)}
	sp.mu.Lock()
	for is4, c := range sp.conns {
		errs = append(errs, c.Close())
		delete(sp.conns, is4)
	}
	sp.mu.Unlock()
	sp.tasks.Wait()
	return errors.Join(errs...)
}

// close says good-bye and ends the session.
func (k *keeper) close() error {
	k.end()
	k.stop()
	<-k.done
	return k.conn.Close()
}

// run sends what is due and watches the detection time.
func (k *keeper) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	next := k.sp.opts.Clock.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-k.wake:
			next = k.sp.opts.Clock.Now() // the state changed: the neighbour learns at once
		}
		now := k.sp.opts.Clock.Now()
		k.change(func() { k.s.expire(now) })
		if !now.Before(next) {
			k.send(false)
			next = now.Add(k.pause())
		}
		timer.Reset(k.until(next, now))
	}
}

// pause is the time to the packet after this one.
func (k *keeper) pause() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := k.s.jittered(rand.Float64()); d > 0 {
		return d
	}
	return slow // the neighbour wants none; look again then
}

// until is the time to what is due first: a packet, or the end of the detection time.
func (k *keeper) until(next, now time.Time) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := k.s.deadline(); !d.IsZero() && d.Before(next) {
		next = d
	}
	return max(0, next.Sub(now))
}

// change runs f on the session and tells of a change of its state.
func (k *keeper) change(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	from := k.s.state
	f()
	if to := k.s.state; to != from && k.sp.opts.Changed != nil {
		k.sp.opts.Changed(k.n.Address, from, to, k.s.diag)
	}
}

func (k *keeper) receive(p Packet) bool {
	mine, answer, moved := false, false, false
	k.change(func() {
		mine = p.Yours == 0 || p.Yours == k.s.mine
		if !mine {
			return
		}
		k.got++
		before := k.s.state
		answer = k.s.receive(p, k.sp.opts.Clock.Now())
		moved = k.s.state != before
	})
	if answer {
		k.send(true)
	}
	if moved {
		select {
		case k.wake <- struct{}{}:
		default: // already due
		}
	}
	return mine
}

// send sends a packet, if this process is alive and the neighbour wants it.
func (k *keeper) send(final bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ended || !final && k.s.interval() == 0 {
		return
	}
	if !k.sp.opts.Alive() {
		k.held++
		return
	}
	k.write(final)
}

func (k *keeper) write(final bool) {
	if _, err := k.conn.Write(k.s.packet(final).Append(make([]byte, 0, length))); err != nil {
		// A neighbour that is not there yet refuses by ICMP; its silence is what counts.
		k.sp.opts.Log.Debug("send BFD", "peer", k.n.Address, "error", err)
		return
	}
	k.sent++
}

// end says good-bye.
func (k *keeper) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended = true
	k.s.enter(AdminDown, DiagAdminDown, k.sp.opts.Clock.Now())
	k.write(false)
}

func (k *keeper) status() Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	st := Status{
		Neighbor: k.n.Address, State: k.s.state, Diag: k.s.diag, Since: k.s.since, Interval: k.s.interval(),
		Sent: k.sent, Received: k.got, Held: k.held,
	}
	if d := k.s.deadline(); !d.IsZero() {
		st.Detection = d.Sub(k.s.heard)
	}
	return st
}
