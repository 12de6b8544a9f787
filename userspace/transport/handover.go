package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Serve serves listeners that were opened with Wait.
func (s *Server) Serve() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = false
	for _, u := range s.units {
		u.serve()
	}
}

// Hold has the keeper keep this process's sockets instead of those of the one before.
func (s *Server) Hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, u := range s.units {
		if len(u.workers) > 0 { // other sockets than those before, which may have been more; TCP's is the same
			for n := range MaxWorkers {
				s.forgetName(k.heldName(udpName(n)))
			}
		}
		s.hold(u)
	}
}

// Listeners returns copies of the TCP sockets, by the names under which the process that comes next takes them. Both accept
// clients from then on, until one closes its own. They belong to the caller.
func (s *Server) Listeners() (files []*os.File, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		if err != nil {
			for _, f := range files {
				_ = f.Close()
			}
		}
	}()
	for k, u := range s.units {
		l, ok := u.tcp.(*net.TCPListener)
		if !ok {
			return files, fmt.Errorf("%s is %T, not a TCP socket", k.address, u.tcp)
		}
		raw, err := l.SyscallConn()
		if err == nil {
			err = control(raw, func(fd int) error {
				// Not File, whose name is net's.
				fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
				if err == nil {
					files = append(files, os.NewFile(uintptr(fd), k.heldName("tcp")))
				}
				return err
			})
		}
		if err != nil {
			return files, fmt.Errorf("copy the socket of %s: %w", k.address, err)
		}
	}
	return files, nil
}

// EachQUIC calls f with every socket of QUIC, its worker, and the address that it is bound to.
func (s *Server) EachQUIC(f func(worker int, at netip.AddrPort, fd int) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, u := range s.units {
		for n, w := range u.workers {
			errs = append(errs, w.withSocket(func(at netip.AddrPort, fd int) error { return f(n, at, fd) }))
		}
	}
	return errors.Join(errs...)
}

// DrainBeside is Drain for a process beside which another one serves the same addresses.
func (s *Server) DrainBeside(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drain(ctx, true)
}
