package certs_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/userspace/certs"
)

// mustPair writes a certificate for names and its key, and returns their paths.
func mustPair(t *testing.T, dir, base string, rsaKey bool, names ...string) certs.Pair {
	t.Helper()
	var key any
	var public any
	if rsaKey {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		must(t, err)
		key, public = k, &k.PublicKey
	} else {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		key, public = k, &k.PublicKey
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, public, key)
	must(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	p := certs.Pair{Cert: filepath.Join(dir, base+".crt"), Key: filepath.Join(dir, base+".key")}
	must(t, os.WriteFile(p.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(t, os.WriteFile(p.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
	return p
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustOpen(t *testing.T, cfg certs.Config, state string, names ...string) *certs.Store {
	t.Helper()
	s, err := certs.Open(cfg, state, names)
	must(t, err)
	return s
}

// shake runs one handshake over loopback and returns what the client saw.
func shake(t *testing.T, s *certs.Store, client *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	client.InsecureSkipVerify = true
	return shakeWith(t, s, client)
}

// shakeWith is shake for a client that checks certificates.
func shakeWith(t *testing.T, s *certs.Store, client *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.Copy(io.Discard, tls.Server(c, s.TLS()))
	}()
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: client}
	c, err := d.Dial("tcp", l.Addr().String())
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer c.Close()
	return c.(*tls.Conn).ConnectionState(), nil
}

func TestModernByDefault(t *testing.T) {
	s := mustOpen(t, certs.Default(), "", "localhost")
	st, err := shake(t, s, &tls.Config{})
	must(t, err)
	if st.Version != tls.VersionTLS13 || st.CurveID != tls.X25519MLKEM768 {
		t.Errorf("version %x, group %s", st.Version, st.CurveID)
	}
	st, err = shake(t, s, &tls.Config{MaxVersion: tls.VersionTLS12})
	must(t, err)
	if name := tls.CipherSuiteName(st.CipherSuite); !strings.Contains(name, "ECDHE") || !strings.Contains(name, "GCM") && !strings.Contains(name, "POLY1305") {
		t.Errorf("TLS 1.2 with %s", name)
	}
	for name, c := range map[string]*tls.Config{
		"TLS 1.1":  {MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
		"CBC":      {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}},
		"RSA kex":  {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}},
		"old only": {MaxVersion: tls.VersionTLS11},
	} {
		if _, err := shake(t, s, c); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	cfg := certs.Default()
	cfg.MinVersion = "1.3"
	if _, err := shake(t, mustOpen(t, cfg, ""), &tls.Config{MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLS 1.2 was accepted with min_version 1.3")
	}
}

func TestChoosesByName(t *testing.T) {
	dir := t.TempDir()
	cfg := certs.Default()
	cfg.Certificates = []certs.Pair{
		mustPair(t, dir, "first", false, "first.example"),
		mustPair(t, dir, "wild", false, "*.example.com"),
		mustPair(t, dir, "www-rsa", true, "www.example.com"),
		mustPair(t, dir, "www", false, "www.example.com"),
	}
	s := mustOpen(t, cfg, "")
	ecdsaOnly := []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}
	for _, c := range []struct {
		name   string
		suites []uint16
		want   string
		rsa    bool
	}{
		{"", nil, "first.example", false},
		{"nobody.test", nil, "first.example", false},
		{"first.example", nil, "first.example", false},
		{"a.example.com", nil, "*.example.com", false},
		{"a.b.example.com", nil, "first.example", false},
		{"WWW.example.com", nil, "www.example.com", true},
		{"www.example.com", ecdsaOnly, "www.example.com", false},
	} {
		tc := &tls.Config{ServerName: c.name}
		if c.suites != nil {
			tc.MaxVersion, tc.CipherSuites = tls.VersionTLS12, c.suites
		}
		st, err := shake(t, s, tc)
		must(t, err)
		leaf := st.PeerCertificates[0]
		if leaf.DNSNames[0] != c.want || (leaf.PublicKeyAlgorithm == x509.RSA) != c.rsa {
			t.Errorf("%q got %v (%s), want %s", c.name, leaf.DNSNames, leaf.PublicKeyAlgorithm, c.want)
		}
	}
	if n := len(s.List()); n != 4 {
		t.Errorf("%d certificates listed", n)
	}
}

func TestReloadKeepsTheOldOneOnError(t *testing.T) {
	dir := t.TempDir()
	cfg := certs.Default()
	cfg.Certificates = []certs.Pair{mustPair(t, dir, "a", false, "old.example")}
	s := mustOpen(t, cfg, "")
	other := mustPair(t, dir, "b", false, "new.example")
	key, err := os.ReadFile(other.Key)
	must(t, err)
	must(t, os.WriteFile(cfg.Certificates[0].Key, key, 0o600))
	if err := s.Reload(); err == nil || !strings.Contains(err.Error(), "certificates[0].key") || !strings.Contains(err.Error(), "is not the key of") {
		t.Errorf("mismatch reported as %v", err)
	}
	st, err := shake(t, s, &tls.Config{})
	must(t, err)
	if st.PeerCertificates[0].DNSNames[0] != "old.example" {
		t.Error("the old certificate did not stay")
	}
}

func TestWatchFollowsFiles(t *testing.T) {
	dir := t.TempDir()
	cfg := certs.Default()
	cfg.Certificates = []certs.Pair{mustPair(t, dir, "a", false, "old.example")}
	s := mustOpen(t, cfg, "")
	ctx, cancel := context.WithCancel(t.Context())
	reports := make(chan error, 8)
	done := make(chan struct{})
	go func() { defer close(done); s.Watch(ctx, time.Millisecond, func(err error) { reports <- err }) }()
	mustPair(t, dir, "a", false, "renewed.example.org")
	for deadline := time.After(10 * time.Second); s.List()[0].Names[0] != "renewed.example.org"; {
		select {
		case <-reports: // an error while cert and key were not yet both written is right
		case <-deadline:
			t.Fatal("the new certificate was never taken")
		}
	}
	must(t, os.Remove(cfg.Certificates[0].Cert))
	for {
		if err := <-reports; err != nil && strings.Contains(err.Error(), "does not exist") {
			break
		}
	}
	cancel()
	<-done
}

func TestSelfSignedSurvivesRestarts(t *testing.T) {
	dir := t.TempDir()
	first := mustOpen(t, certs.Default(), dir, "localhost", "192.0.2.1")
	fi, err := os.Stat(filepath.Join(dir, "self-signed.pem"))
	must(t, err)
	if fi.Mode().Perm() != 0o600 {
		t.Errorf("the key is readable by others: %v", fi.Mode())
	}
	a, err := shake(t, first, &tls.Config{})
	must(t, err)
	b, err := shake(t, mustOpen(t, certs.Default(), dir, "localhost", "192.0.2.1"), &tls.Config{})
	must(t, err)
	if !a.PeerCertificates[0].Equal(b.PeerCertificates[0]) {
		t.Error("another certificate after a restart")
	}
	c, err := shake(t, mustOpen(t, certs.Default(), dir, "localhost", "192.0.2.9"), &tls.Config{})
	must(t, err)
	if c.PeerCertificates[0].VerifyHostname("192.0.2.9") != nil {
		t.Error("not made anew for a new name")
	}
	must(t, os.WriteFile(filepath.Join(dir, "self-signed.pem"), []byte("garbage"), 0o600))
	mustOpen(t, certs.Default(), dir, "localhost")
	if s := mustOpen(t, certs.Default(), "/nonexistent", "localhost"); s.List()[0].Path != "" {
		t.Error("claims to be kept in a directory that does not exist")
	}
}

func TestValidateNamesTheMistake(t *testing.T) {
	dir := t.TempDir()
	good := mustPair(t, dir, "good", false, "a.example")
	other := mustPair(t, dir, "other", false, "b.example")
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		must(t, os.WriteFile(p, []byte(text), 0o600))
		return p
	}
	empty := write("empty", "")
	locked := write("locked", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
	cfg := certs.Config{MinVersion: "1.1", Certificates: []certs.Pair{
		good,
		{Cert: good.Cert, Key: other.Key},
		{Cert: good.Key, Key: good.Cert},
		{Cert: good.Cert, Key: good.Cert},
		{Cert: good.Key, Key: good.Key},
		{Cert: empty, Key: good.Key},
		{Cert: good.Cert, Key: empty},
		{Cert: good.Cert, Key: locked},
		{Cert: dir + "/nowhere", Key: good.Key},
		{Cert: good.Cert},
		{Cert: dir + "/nowhere", Key: dir + "/nowhere"},
	}}
	err := cfg.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	lines := strings.Split(err.Error(), "\n")
	for i, want := range []string{
		`min_version: "1.1" is not offered`,
		"certificates[1].key: ", "certificates[2]: ", "certificates[3].key: ", "certificates[4].cert: ", "certificates[5].cert: ",
		"certificates[6].key: ", "certificates[7].key: ", "certificates[8].cert: ", "certificates[9].key: ",
		"certificates[10].cert: ", "certificates[10].key: ",
	} {
		if i >= len(lines) || !strings.HasPrefix(lines[i], want) {
			t.Errorf("line %d: want %q in\n%v", i, want, err)
		}
	}
	for _, want := range []string{"is not the key of", "are exchanged", "holds a certificate, not a key", "not a certificate", "holds no PEM certificate", "holds no PEM key", "passphrase", "does not exist", "must name a PEM file"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("nothing says %q", want)
		}
	}
	if _, err := certs.Open(cfg, "", nil); err == nil {
		t.Error("Open accepted it")
	}
	if !slices.ContainsFunc(strings.Split(errors.Join(err).Error(), "\n"), func(l string) bool { return strings.Contains(l, "(") }) {
		t.Error("no hint anywhere")
	}
}
