package main_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/bermedge/berm/loader"
)

// visitor is a client, and what it asks for. One behind a relay may change its port.
type visitor struct {
	client *http.Client
	url    string
	relay  *relay
}

// crowd are clients of h3 with a connection each, behind relays. They say now and then that they are there.
func (s *served) crowd(n int) (all []*visitor) {
	s.t.Helper()
	for range n {
		h3 := &http3.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // the certificate is self-signed
			QUICConfig:      &quic.Config{MaxIdleTimeout: 20 * time.Second, KeepAlivePeriod: 100 * time.Millisecond},
		}
		s.t.Cleanup(func() { h3.Close() })
		r := newRelay(s.t, netip.MustParseAddrPort(s.address))
		all = append(all, &visitor{&http.Client{Transport: h3, Timeout: 40 * time.Second}, "https://" + r.front.LocalAddr().String() + "/slow", r})
	}
	return all
}

// relay is a NAT between a client and the server.
type relay struct {
	server netip.AddrPort
	front  *net.UDPConn

	mu     sync.Mutex
	client netip.AddrPort
	back   *net.UDPConn
}

func newRelay(t *testing.T, server netip.AddrPort) *relay {
	t.Helper()
	front, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{server: server, front: front}
	r.rebind(t)
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := front.ReadFromUDPAddrPort(buf)
			if err != nil {
				return // closed
			}
			r.mu.Lock()
			r.client = from
			back := r.back
			r.mu.Unlock()
			_, _ = back.Write(buf[:n]) // what is lost is sent again
		}
	}()
	t.Cleanup(func() {
		_ = front.Close()
		_ = r.back.Close()
	})
	return r
}

// rebind has the client come from another port from now on.
func (r *relay) rebind(t *testing.T) {
	t.Helper()
	back, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(r.server))
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	former := r.back
	r.back = back
	r.mu.Unlock()
	if former != nil {
		_ = former.Close()
	}
	go func() {
		buf := make([]byte, 2048)
		for {
			n, err := back.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			r.mu.Lock()
			client := r.client
			r.mu.Unlock()
			_, _ = r.front.WriteToUDPAddrPort(buf[:max(n, 0)], client)
		}
	}()
}

func rebind(t *testing.T, crowd []*visitor) {
	t.Helper()
	for _, v := range crowd {
		v.relay.rebind(t)
	}
}

// setWorkers changes the file.
func (s *served) setWorkers(n int) {
	s.t.Helper()
	text := regexp.MustCompile(`quic_workers: [0-9]+`).ReplaceAll(mustRead(s.t, s.config), []byte("quic_workers: "+strconv.Itoa(n)))
	if err := os.WriteFile(s.config, text, 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// workers waits until one process is left that has so many, whose sockets are kept.
func (s *served) workers(n int) (datagrams []uint64) {
	s.t.Helper()
	s.settle()
	status, err := s.client.Status(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	if got := len(status.QUIC.Datagrams); got != n {
		s.t.Errorf("%d workers, want %d", got, n)
	}
	within(s.t, 10*time.Second, "the sockets of all workers to be kept", func() (bool, error) { return len(s.unit.Kept()) == 2+n, nil })
	return status.QUIC.Datagrams
}

// Each connection stays with the worker that it began with, wherever its client goes and whatever comes after.
func TestWorkers(t *testing.T) {
	s := newServed(t)
	const many = 48 // that one of four workers gets none happens once in 250,000 times
	crowd := s.crowd(many)
	end := s.begin(crowd...)
	for worker, n := range s.workers(4) {
		if n == 0 {
			t.Errorf("worker %d has read nothing", worker)
		}
	}
	// The kernel half goes, and another one comes. (More than two ports in a row break a connection of quic-go, also with
	// one worker.)
	if _, err := loader.Down(t.Context(), s.kernel); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, "the daemon to see that the kernel half is gone", func() (bool, error) {
		status, err := s.client.Status(t.Context())
		return err == nil && len(status.Generations) == 0, nil
	})
	rebind(t, crowd)
	if _, err := loader.Up(t.Context(), s.kernel); err != nil {
		t.Fatal(err)
	}
	s.workers(4)
	rebind(t, crowd)
	end()

	crowd = s.crowd(many)
	end = s.begin(crowd...)
	s.setWorkers(1)
	if _, err := s.client.Upgrade(t.Context()); err != nil {
		t.Fatal(err)
	}
	rebind(t, crowd)
	s.mustAnswer() // by the new process
	end()
	s.workers(1)
	s.mustAnswer()

	// Sockets that are kept may be fewer than the next process has, or more.
	for _, next := range []struct {
		workers int
		end     syscall.Signal
	}{{3, syscall.SIGTERM}, {2, syscall.SIGKILL}} {
		s.setWorkers(next.workers)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := s.unit.Stop(ctx, next.end); err != nil && next.end != syscall.SIGKILL {
			t.Error(err)
		}
		if err := s.unit.Start(ctx); err != nil {
			t.Fatal(err)
		}
		s.mustAnswer()
		s.workers(next.workers)
	}
}
