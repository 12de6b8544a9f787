package fec

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Status is what a relay does and has done.
type Status struct {
	Name     string         `json:"name"`
	Role     string         `json:"role"`
	Listen   netip.AddrPort `json:"listen"`
	To       netip.AddrPort `json:"to"`
	Path     *Path          `json:"path,omitempty"` // protect: as the receiver reports it
	Plan     *Plan          `json:"plan,omitempty"` // protect: in force
	Packets  uint64         `json:"packets"`        // sent on
	Parity   uint64         `json:"parity"`         // protect: sent with them
	Dropped  uint64         `json:"dropped"`        // not sent on: too long, empty, from elsewhere, or the socket refused them
	Senders  int            `json:"senders,omitempty"`
	Received *Counts        `json:"received,omitempty"` // repair: of all senders
}

// relay is one of either role.
type relay interface {
	run()
	update(RelayConfig)
	status() Status
	close() error
}

// Relays runs the relays that a configuration names.
type Relays struct {
	log    *slog.Logger
	listen opener

	mu   sync.Mutex
	open map[relayKey]running
}

// relayKey is what a relay cannot change without other sockets.
type relayKey struct {
	name, role     string
	listen, parity netip.AddrPort
}

type running struct {
	relay
	done chan struct{}
}

// NewRelays makes a set without relays.
func NewRelays(log *slog.Logger) *Relays {
	return &Relays{log: log, listen: listen, open: map[relayKey]running{}}
}

// Apply makes the configuration's relays those that run. What keeps its addresses goes on with its new
// settings, without losing a packet. On an error all stays as it was.
func (r *Relays) Apply(cfg Config) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	fresh, want := map[relayKey]relay{}, map[relayKey]RelayConfig{}
	for _, c := range cfg.Relays {
		key := relayKey{c.Name, c.Role, c.Listen, netip.AddrPort{}}
		if c.Role == RoleRepair {
			key.parity = c.parity()
		}
		want[key] = c
		if _, ok := r.open[key]; ok {
			continue
		}
		x, err := newRelay(c, r.listen)
		if err != nil {
			for _, x := range fresh {
				err = errors.Join(err, x.close())
			}
			return fmt.Errorf("relay %s: %w", c.Name, err)
		}
		fresh[key] = x
	}
	var errs []error
	for key, x := range r.open {
		if c, ok := want[key]; ok {
			x.update(c)
			continue
		}
		errs = append(errs, x.close())
		<-x.done
		delete(r.open, key)
	}
	for key, x := range fresh {
		run := running{x, make(chan struct{})}
		r.open[key] = run
		go func() {
			defer close(run.done)
			run.run()
		}()
		r.log.Info("relay", "name", key.name, "role", key.role, "listen", key.listen)
	}
	return errors.Join(errs...)
}

// Status lists the relays by name.
func (r *Relays) Status() []Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := []Status{}
	for _, x := range r.open {
		out = append(out, x.status())
	}
	slices.SortFunc(out, func(a, b Status) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Close ends all relays.
func (r *Relays) Close() error { return r.Apply(Config{}) }

func newRelay(c RelayConfig, open opener) (relay, error) {
	if c.Role == RoleProtect {
		return newProtector(c, open)
	}
	return newRepairer(c, open)
}

// socketBuffer takes the bursts in which parity comes, and those of senders.
const socketBuffer = 1 << 20

// socket is what relays and streams need of a UDP socket.
type socket interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
	SetReadDeadline(t time.Time) error
	Close() error
}

// opener opens a socket at an address: listen, but in tests that choose the time.
type opener func(netip.AddrPort) (socket, error)

func listen(a netip.AddrPort) (socket, error) {
	network := "udp4"
	if a.Addr().Is6() && !a.Addr().Is4In6() {
		network = "udp6"
	}
	var lc net.ListenConfig
	conn, err := lc.ListenPacket(context.Background(), network, a.String())
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen on %s: the port is in use: %w (ss -lnup shows by whom)", a, err)
	case err != nil:
		return nil, fmt.Errorf("listen on %s: %w", a, err)
	}
	udp := conn.(*net.UDPConn)
	_ = udp.SetReadBuffer(socketBuffer) // the kernel may give less
	_ = udp.SetWriteBuffer(socketBuffer)
	return udp, nil
}

// local is the wildcard address of another's family, for a socket that only sends there.
func local(to netip.AddrPort) netip.AddrPort {
	if to.Addr().Is6() && !to.Addr().Is4In6() {
		return netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
}

// unmapped is an address as configurations have it.
func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
