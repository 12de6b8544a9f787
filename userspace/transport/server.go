package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
)

// Options are what a server is given besides its Config.
type Options struct {
	TLS     *tls.Config // of https listeners; without protocols
	Handler http.Handler
	Log     *slog.Logger
	// ResetKey lets a restarted daemon tell QUIC clients of the one before that it is gone. It is
	// kept over restarts; zero sends no such packets.
	ResetKey [32]byte
	// Workers is how many sockets of QUIC an address has, each with a goroutine that reads it; below 2: one. More need
	// ConnectionIDs that tell them apart, and Introduce.
	Workers int
	// ConnectionIDs makes those of a worker's QUIC connections; nil leaves it to quic-go.
	ConnectionIDs func(worker int) quic.ConnectionIDGenerator
	// Introduce makes a worker's socket known to who gives each the datagrams of its connections, before it is served.
	// Where it fails the address has one socket.
	Introduce func(worker int, at netip.AddrPort, fd int) error
	// VerifyClients reports whether QUIC clients have to show first that they receive at their
	// address. It is asked for each new one; nil: never, beyond what the listener itself counts.
	VerifyClients func() bool
	// EarlyData reports whether QUIC clients that resume a session may send before the handshake is done (0-RTT). It is
	// asked for each new connection; nil: never. TLS decides which tickets are good for that.
	EarlyData func() bool
	// Datagrams reports whether HTTP/3 offers datagrams and WebTransport. It is asked when a listener opens; nil: never.
	Datagrams func() bool
	// Tune changes the parameters of a QUIC connection to what its client should have, before it begins; nil: nothing does.
	Tune func(client net.Addr, c *quic.Config)
	// Failed is told when a listener breaks after it was opened.
	Failed func(error)
	// Keeper keeps the sockets open while no process serves them; nil when nobody does. Held are those that it kept
	// of the process before, by their names; they belong to Listen.
	Keeper Keeper
	Held   []*os.File
	// TokenKey lets a client that was asked to show its address show it to the process that comes next. It is
	// kept over restarts; zero: each process has its own.
	TokenKey [32]byte
	// Wait opens the listeners and serves nobody before Serve.
	Wait bool
}

// Server is all listeners of an edge.
type Server struct {
	opts       Options
	stats      Stats
	retryAbove int64         // of QUIC handshakes a second; a test may want it lower
	lastCall   time.Duration // a test may want it longer
	workers    int           // of an address

	mu      sync.Mutex // held while listeners are opened or closed
	cfg     Config
	units   map[unitKey]*unit
	mss     [2]uint16           // largest segments of IPv4 and IPv6 clients; 0 = no bound
	held    map[string]*os.File // until Listen returns
	waiting bool                // for Serve
	retired sync.WaitGroup      // listeners that still drain
}

// unitKey names a listener: the scheme and the address as written in the file.
type unitKey struct{ scheme, address string }

// Stats count connections and requests by protocol (h1, h2, h3).
type Stats struct {
	H1, H2, H3 ProtocolStats
	// TLSFailures counts handshakes over TCP that came to nothing.
	TLSFailures atomic.Uint64
	// Retries counts QUIC handshakes that were asked to show their address.
	Retries atomic.Uint64
	// Datagrams counts those that a worker read, at all addresses.
	Datagrams [MaxWorkers]atomic.Uint64
}

// ProtocolStats are the counters of one protocol.
type ProtocolStats struct {
	Requests atomic.Uint64
	InFlight atomic.Int64
	Accepted atomic.Uint64 // connections; of TCP they count as h1 until h2 is agreed on
	Open     atomic.Int64
	// Heads of responses over h2 and h3: as lines of HTTP/1.1 would have them, and as frames on the connection.
	HeadRaw, HeadWire atomic.Uint64
}

// Listen opens every listener of cfg, or none: then the error names each that cannot be opened.
func Listen(cfg Config, opts Options) (*Server, error) {
	s := &Server{
		opts: opts, units: map[unitKey]*unit{}, retryAbove: retryAbove, lastCall: lastCall, workers: max(opts.Workers, 1),
		held: byName(opts.Held), waiting: opts.Wait,
	}
	if !NeverIndexes {
		opts.Log.Warn("secrets enter the tables of h2", "error", ErrPlain)
	}
	err := s.Apply(cfg)
	if err == nil {
		s.dropHeld()
	}
	return s, err
}

// Stats returns the live counters.
func (s *Server) Stats() *Stats { return &s.stats }

// ErrRestart says that a setting of open listeners changed, which they take only when opened.
var ErrRestart = errors.New("takes effect at the next restart")

// Apply opens the listeners that cfg adds, and drains those it no longer names. When one cannot be
// opened nothing changes. Listeners in both stay untouched: no connection is lost.
func (s *Server) Apply(cfg Config) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	want := wanted(cfg)
	var opened []*unit
	var errs []error
	for _, k := range want {
		if s.units[k] != nil {
			continue
		}
		u, err := s.open(k, cfg)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		opened = append(opened, u)
	}
	if err := errors.Join(errs...); err != nil {
		for _, u := range opened {
			u.abandon()
		}
		return err
	}
	changed := s.cfg.limits() != cfg.limits() && len(s.units) > 0 && len(opened) < len(want)
	for _, u := range opened {
		s.units[u.key] = u
		u.boundSegments(s.mss)
		if !s.waiting {
			s.hold(u)
			u.serve()
		}
	}
	for k, u := range s.units {
		if !slices.Contains(want, k) {
			delete(s.units, k)
			s.forget(u)
			s.retire(u, cfg.Drain)
		}
	}
	s.cfg = cfg
	if changed {
		return fmt.Errorf("listen: a changed timeout, limit or number of workers of open listeners %w", ErrRestart)
	}
	return nil
}

// BoundSegments sets the largest TCP segments that new connections announce, by family: what goes
// through a tunnel on its way here has to fit that. What other links bring needs no bound.
func (s *Server) BoundSegments(four, six uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mss == [2]uint16{four, six} {
		return
	}
	s.mss = [2]uint16{four, six}
	for _, u := range s.units {
		u.boundSegments(s.mss)
	}
}

func wanted(cfg Config) []unitKey {
	var out []unitKey
	for _, a := range cfg.HTTP {
		out = append(out, unitKey{"http", a})
	}
	for _, a := range cfg.HTTPS {
		out = append(out, unitKey{"https", a})
	}
	return out
}

// retire drains a listener beside the others.
func (s *Server) retire(u *unit, drain time.Duration) {
	s.retired.Add(1)
	go func() {
		defer s.retired.Done()
		ctx, cancel := context.WithTimeout(context.Background(), drain)
		defer cancel()
		if err := u.drain(ctx, false); err != nil {
			s.opts.Log.Warn("listener closed before its requests were done", "address", u.key.address, "error", err)
		}
	}()
}

// Drain refuses new connections and requests (GOAWAY in h2 and h3, "Connection: close" in h1),
// lets those in flight finish within listen.drain, and then closes everything. It returns once all
// is closed; the error says that requests were cut.
func (s *Server) Drain(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drain(ctx, false)
}

// drain is Drain with mu held. After the sockets went to another process, clients whose handshake is under way still
// have it with this one.
func (s *Server) drain(ctx context.Context, handed bool) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Drain)
	defer cancel()
	var wg sync.WaitGroup
	errs := make(chan error, len(s.units))
	for _, u := range s.units {
		wg.Go(func() { errs <- u.drain(ctx, handed) })
	}
	wg.Wait()
	s.retired.Wait()
	close(errs)
	clear(s.units)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// Address is one open port.
type Address struct {
	Protocols []string // h1, h2, h3
	Network   string   // tcp or udp
	Address   string
}

// Addresses lists the open ports, ordered by address.
func (s *Server) Addresses() []Address {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Address
	for _, u := range s.units {
		if u.key.scheme == "http" {
			out = append(out, Address{[]string{"h1"}, "tcp", u.tcp.Addr().String()})
			continue
		}
		out = append(out, Address{[]string{"h1", "h2"}, "tcp", u.tcp.Addr().String()},
			Address{[]string{"h3"}, "udp", u.workers[0].udp.LocalAddr().String()})
	}
	slices.SortFunc(out, func(a, b Address) int {
		if a.Address != b.Address {
			return strings.Compare(a.Address, b.Address)
		}
		return strings.Compare(a.Network, b.Network)
	})
	return out
}
