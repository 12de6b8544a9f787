package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Store chooses the certificate of each handshake, and replaces them all at once.
type Store struct {
	set  atomic.Pointer[set]
	mu   sync.Mutex // held while a set is built
	cfg  Config
	self selfSigned
	seen map[string]stamp
}

// set is one generation of certificates, never changed once it is in use.
type set struct {
	all    []*tls.Certificate // the first is for names that match none
	byName map[string][]*tls.Certificate
	infos  []Info
}

// Info describes a certificate for operators and metrics.
type Info struct {
	Names      []string
	NotAfter   time.Time
	Path       string // empty: not from the file system
	SelfSigned bool
}

// stamp tells one state of a file from another.
type stamp struct {
	modified time.Time
	size     int64
}

// Open reads the certificates of cfg; without any, it makes a self-signed one for names, kept in
// state (a directory; "" or one that cannot be written: in memory only).
func Open(cfg Config, state string, names []string) (*Store, error) {
	s := &Store{self: selfSigned{dir: state, names: names}}
	return s, s.Apply(cfg)
}

// Apply builds the certificates of cfg and switches to them; on error the old ones stay.
func (s *Store) Apply(cfg Config) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := cfg.Validate(); err != nil {
		return err
	}
	next, err := s.build(cfg)
	if err != nil {
		return err
	}
	s.cfg = cfg
	s.seen = stamps(cfg)
	s.set.Store(next)
	return nil
}

// Reload reads the same files again; on error the old certificates stay.
func (s *Store) Reload() error {
	s.mu.Lock()
	cfg := s.cfg
	s.mu.Unlock()
	return s.Apply(cfg)
}

// Watch reloads when a file has changed, and renews a self-signed certificate in time, until ctx
// ends. It tells report about each attempt; nil means success.
func (s *Store) Watch(ctx context.Context, every time.Duration, report func(error)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.changed() {
			report(s.Reload())
		}
	}
}

// changed reports whether a file is not what was read last. It remembers what it saw, so that one
// bad file is reported once and not at every tick.
func (s *Store) changed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.cfg.Certificates) == 0 {
		return s.set.Load().all[0].Leaf.NotAfter.Before(time.Now().Add(renewBefore))
	}
	now := stamps(s.cfg)
	for path, was := range s.seen {
		if now[path] != was {
			s.seen = now
			return true
		}
	}
	return false
}

func stamps(cfg Config) map[string]stamp {
	out := map[string]stamp{}
	for _, p := range cfg.Certificates {
		for _, path := range []string{p.Cert, p.Key} {
			out[path] = stamp{} // a missing file differs from any that was there
			if fi, err := os.Stat(path); err == nil {
				out[path] = stamp{fi.ModTime(), fi.Size()}
			}
		}
	}
	return out
}

func (s *Store) build(cfg Config) (*set, error) {
	next := &set{byName: map[string][]*tls.Certificate{}}
	if len(cfg.Certificates) == 0 {
		c, path, err := s.self.get(time.Now())
		if err != nil {
			return nil, fmt.Errorf("make a self-signed certificate: %w", err)
		}
		next.add(c, path, true)
		return next, nil
	}
	var errs []error
	for i, p := range cfg.Certificates {
		c, err := p.load()
		if err != nil { // changed between Validate and here
			errs = append(errs, fmt.Errorf("certificates[%d]: %w", i, err))
			continue
		}
		next.add(c, p.Cert, false)
	}
	return next, errors.Join(errs...)
}

func (n *set) add(c *tls.Certificate, path string, self bool) {
	names := append([]string{}, c.Leaf.DNSNames...)
	for _, ip := range c.Leaf.IPAddresses {
		names = append(names, ip.String())
	}
	for _, name := range names {
		name = strings.ToLower(name)
		n.byName[name] = append(n.byName[name], c)
	}
	n.all = append(n.all, c)
	n.infos = append(n.infos, Info{Names: names, NotAfter: c.Leaf.NotAfter, Path: path, SelfSigned: self})
}

// List describes the certificates in use.
func (s *Store) List() []Info { return s.set.Load().infos }

// choose returns the certificate for a handshake: the name's, then its wildcard's, then the
// first. Among several of a name it takes the first that the client can verify.
func (s *Store) choose(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	now := s.set.Load()
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	if name == "" && hello.Conn != nil { // an address was asked for: TLS does not send those (RFC 6066, 3)
		if at, err := netip.ParseAddrPort(hello.Conn.LocalAddr().String()); err == nil {
			name = at.Addr().Unmap().String()
		}
	}
	for _, candidates := range [][]*tls.Certificate{now.byName[name], now.byName[wildcard(name)], now.all} {
		for _, c := range candidates {
			if hello.SupportsCertificate(c) == nil {
				return c, nil
			}
		}
		if len(candidates) > 0 { // right name, wrong algorithm: let the handshake say so
			return candidates[0], nil
		}
	}
	return now.all[0], nil
}

// wildcard turns www.example.com into *.example.com.
func wildcard(name string) string {
	_, rest, ok := strings.Cut(name, ".")
	if !ok {
		return ""
	}
	return "*." + rest
}

// suites are what TLS 1.2 may use: ECDHE with an AEAD. TLS 1.3 has no others.
var suites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// TLS returns a configuration for listeners. The protocols are the listener's to set. Groups are
// left to crypto/tls, whose first choice is X25519MLKEM768.
func (s *Store) TLS() *tls.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &tls.Config{MinVersion: tls.VersionTLS12, CipherSuites: suites, GetCertificate: s.choose}
	if s.cfg.MinVersion == "1.3" {
		c.MinVersion = tls.VersionTLS13
	}
	return c
}
