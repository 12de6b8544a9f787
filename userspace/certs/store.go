package certs

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
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
	dir  *directory // nil: none is named
}

// set is one generation of certificates, never changed once it is in use.
type set struct {
	all      []*tls.Certificate // the first is for names that match none
	byName   map[string][]*tls.Certificate
	infos    []Info
	problems []string
	ech      []tls.EncryptedClientHelloKey
}

// Info describes a certificate for operators and metrics.
type Info struct {
	Names      []string
	NotBefore  time.Time
	NotAfter   time.Time
	Path       string // empty: not from the file system
	SelfSigned bool
	Replaced   bool // another one, valid for longer, has all its names
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
	seen := stamps(cfg) // before the files are read: a change after this is seen
	if err := cfg.Validate(); err != nil {
		return err
	}
	dir := s.dir
	if cfg.Dir == "" {
		dir = nil
	} else if dir == nil || dir.path != cfg.Dir {
		dir = &directory{path: cfg.Dir}
	}
	if dir != nil {
		dir.load(time.Now())
	}
	next, err := s.build(cfg, dir)
	if err != nil {
		return err
	}
	s.cfg, s.dir = cfg, dir
	s.seen = seen
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
		if changed, err := s.dirChanged(); changed {
			report(err)
		}
	}
}

// changed reports whether a file is not what was read last. It remembers what it saw, so that one
// bad file is reported once and not at every tick.
func (s *Store) changed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if all := s.set.Load(); len(all.infos) == 1 && all.infos[0].SelfSigned {
		if all.all[0].Leaf.NotAfter.Before(time.Now().Add(renewBefore)) {
			return true
		}
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

// dirChanged takes what is new in the directory into use, pair by pair: one that is bad keeps no other back. The
// error is of pairs that were not bad before.
func (s *Store) dirChanged() (changed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == nil || !s.dir.load(time.Now()) {
		return false, nil
	}
	next, err := s.build(s.cfg, s.dir)
	if err != nil {
		return true, err
	}
	var errs []error
	for _, p := range next.problems {
		if !slices.Contains(s.set.Load().problems, p) {
			errs = append(errs, errors.New(p))
		}
	}
	s.set.Store(next)
	return true, errors.Join(errs...)
}

// Problems says what in the directory cannot be used, in sentences for operators.
func (s *Store) Problems() []string { return s.set.Load().problems }

func stamps(cfg Config) map[string]stamp {
	out := map[string]stamp{}
	for _, p := range cfg.Certificates {
		for _, path := range []string{p.Cert, p.Key} {
			out[path] = stampOf(path)
		}
	}
	for _, path := range cfg.ECH {
		out[path] = stampOf(path)
	}
	return out
}

func (s *Store) build(cfg Config, dir *directory) (*set, error) {
	next := &set{byName: map[string][]*tls.Certificate{}}
	var errs []error
	for i, p := range cfg.Certificates {
		c, err := p.load()
		if err != nil { // changed between Validate and here
			errs = append(errs, fmt.Errorf("certificates[%d]: %w", i, err))
			continue
		}
		next.add(c, p.Cert, false)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	listed := len(next.all)
	if dir != nil {
		next.problems = dir.problems()
		for _, e := range dir.sorted() {
			next.add(e.cert, filepath.Join(dir.path, e.name), false)
		}
	}
	if len(next.all) == 0 {
		c, path, err := s.self.get(time.Now())
		if err != nil {
			return nil, fmt.Errorf("make a self-signed certificate: %w", err)
		}
		next.add(c, path, true)
	}
	next.order(listed)
	return next, next.hide(cfg.ECH)
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
	n.infos = append(n.infos, Info{Names: names, NotBefore: c.Leaf.NotBefore, NotAfter: c.Leaf.NotAfter, Path: path, SelfSigned: self})
}

// order puts a name's certificates in the order in which they are offered: those that the file lists as it lists
// them, then the directory's, the newest first.
func (n *set) order(listed int) {
	rank := make(map[*tls.Certificate]int, listed)
	for i, c := range n.all[:listed] {
		rank[c] = listed - i
	}
	for _, of := range n.byName {
		slices.SortStableFunc(of, func(a, b *tls.Certificate) int {
			return cmp.Or(rank[b]-rank[a], b.Leaf.NotBefore.Compare(a.Leaf.NotBefore))
		})
	}
	for i := range n.infos {
		info := &n.infos[i]
		info.Replaced = len(info.Names) > 0 && !slices.ContainsFunc(info.Names, func(name string) bool {
			return !slices.ContainsFunc(n.byName[strings.ToLower(name)], func(c *tls.Certificate) bool {
				return c.Leaf.NotAfter.After(info.NotAfter)
			})
		})
	}
}

// hide reads the keys of ECH. Clients whose key is out of date ask for the public name instead, and are told the new
// key only under a certificate for that.
func (n *set) hide(paths []string) (err error) {
	var names []string
	if n.ech, names, err = loadECH(paths); err != nil {
		return err
	}
	for _, name := range names {
		name = strings.ToLower(name)
		if len(n.byName[name])+len(n.byName[wildcard(name)]) == 0 {
			n.problems = append(n.problems, fmt.Sprintf("tls.ech: no certificate is for %s, the public name: clients with an old key cannot connect", name))
		}
	}
	return nil
}

// List describes the certificates in use.
func (s *Store) List() []Info { return s.set.Load().infos }

// choose returns the certificate for a handshake: the name's, then its wildcard's, then the
// first. Among several of a name it takes the first that is valid now and that the client can verify, so that
// a certificate may lie ready before its time, and its predecessor serves until then.
func (s *Store) choose(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	now, at := s.set.Load(), time.Now()
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	if name == "" && hello.Conn != nil { // an address was asked for: TLS does not send those (RFC 6066, 3)
		if at, err := netip.ParseAddrPort(hello.Conn.LocalAddr().String()); err == nil {
			name = at.Addr().Unmap().String()
		}
	}
	exact, wild := now.byName[name], now.byName[wildcard(name)]
	named := [][]*tls.Certificate{exact, wild}
	if len(exact)+len(wild) == 0 {
		named = [][]*tls.Certificate{now.all}
	}
	for _, valid := range []bool{true, false} { // one that is not valid is better than none: the client says what is wrong
		for _, candidates := range named {
			for _, c := range candidates {
				if (!valid || validAt(c, at)) && hello.SupportsCertificate(c) == nil {
					return c, nil
				}
			}
		}
	}
	for _, candidates := range named {
		if len(candidates) > 0 { // right name, wrong algorithm: let the handshake say so
			return candidates[0], nil
		}
	}
	return now.all[0], nil
}

func validAt(c *tls.Certificate, at time.Time) bool {
	return !at.Before(c.Leaf.NotBefore) && at.Before(c.Leaf.NotAfter)
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
	c.GetEncryptedClientHelloKeys = func(*tls.ClientHelloInfo) ([]tls.EncryptedClientHelloKey, error) { return s.set.Load().ech, nil }
	if s.cfg.MinVersion == "1.3" {
		c.MinVersion = tls.VersionTLS13
	}
	return c
}
