package transport

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
)

// A Keeper keeps sockets open over the end of this process, as systemd does (FDSTORE), so that clients who come
// while nobody serves wait in them rather than be refused.
type Keeper interface {
	// Keep keeps a copy of a socket under a name, and gives it to the process that comes next.
	Keep(name string, socket *os.File) error
	// Forget closes the copy.
	Forget(name string) error
}

// heldName is that of an address's socket: without a colon, which systemd does not take.
func (k unitKey) heldName(network string) string {
	return strings.ReplaceAll(strings.Join([]string{k.scheme, network, k.address}, "-"), ":", "_")
}

// take returns the socket that the process before left open, or nil.
func (s *Server) take(name string) *os.File {
	f := s.held[name]
	delete(s.held, name)
	return f
}

// heldTCP listens on a socket that was left open, or opens one.
func (s *Server) heldTCP(k unitKey) (net.Listener, error) {
	f := s.take(k.heldName("tcp"))
	if f == nil {
		return listenTCP(k.address)
	}
	defer f.Close() // net has a copy
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("socket of %s left by the process before: %w", k.address, err)
	}
	return l, nil
}

// heldUDP is heldTCP for datagrams of a worker. Those that came meanwhile are in its buffer.
func (s *Server) heldUDP(k unitKey, worker int, address string) (*net.UDPConn, error) {
	f := s.take(k.heldName(udpName(worker)))
	if f == nil {
		return listenUDP(address, reusePort)
	}
	defer f.Close() // net has a copy
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("socket of %s left by the process before: %w", k.address, err)
	}
	u, ok := c.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("socket of %s left by the process before: it is not of UDP", k.address), c.Close())
	}
	if raw, err := u.SyscallConn(); err != nil || control(raw, reusePort) != nil { // of a version that did without
		s.opts.Log.Info("no other process can serve h3 beside this one", "address", k.address)
	}
	return u, nil
}

// hold has the keeper keep the sockets of a unit. One that it refuses is served all the same.
func (s *Server) hold(u *unit) {
	if s.opts.Keeper == nil {
		return
	}
	sockets := map[string]any{"tcp": u.tcp}
	for n, w := range u.workers {
		sockets[udpName(n)] = w.udp
	}
	for network, socket := range sockets {
		filer, ok := socket.(interface{ File() (*os.File, error) })
		if !ok {
			continue
		}
		f, err := filer.File()
		if err == nil {
			err = errors.Join(s.opts.Keeper.Keep(u.key.heldName(network), f), f.Close())
		}
		if err != nil {
			s.opts.Log.Warn("a restart will refuse clients for a moment", "address", u.key.address, "network", network, "error", err)
		}
	}
}

// forget gives up the sockets of an address that is no longer served.
func (s *Server) forget(u *unit) {
	s.forgetName(u.key.heldName("tcp"))
	for n := range u.workers {
		s.forgetName(u.key.heldName(udpName(n)))
	}
}

func (s *Server) forgetName(name string) {
	if s.opts.Keeper == nil {
		return
	}
	if err := s.opts.Keeper.Forget(name); err != nil {
		s.opts.Log.Warn("a socket that nobody serves stays open", "socket", name, "error", err)
	}
}

// dropHeld closes what the process before served and this one does not, of addresses and of workers: clients would
// wait there for nobody.
func (s *Server) dropHeld() {
	for name, f := range s.held {
		s.opts.Log.Info("closed a socket that only the process before served", "socket", name)
		_ = f.Close() // ours; the keeper's copy goes with it
		s.forgetName(name)
	}
	s.held = nil
}

func byName(files []*os.File) map[string]*os.File {
	held := map[string]*os.File{}
	for _, f := range slices.Backward(files) {
		held[f.Name()] = f
	}
	return held
}
