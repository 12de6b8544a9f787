package certs_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/userspace/certs"
)

// mustPEM makes a certificate with that subject, valid from and to so long from now.
func mustPEM(t *testing.T, subject string, from, to time.Duration, names ...string) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	now := time.Now()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: subject}, DNSNames: names, NotBefore: now.Add(from), NotAfter: now.Add(to)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	must(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

func put(t *testing.T, dir, path string, text []byte) {
	t.Helper()
	path = filepath.Join(dir, path)
	must(t, os.MkdirAll(filepath.Dir(path), 0o700))
	must(t, os.WriteFile(path, text, 0o600))
}

func inDir(dir string) certs.Config {
	c := certs.Default()
	c.Dir = dir
	return c
}

// served is the subject that a client sees.
func served(t *testing.T, s *certs.Store, name string) string {
	t.Helper()
	st, err := shake(t, s, &tls.Config{ServerName: name})
	must(t, err)
	return st.PeerCertificates[0].Subject.CommonName
}

func TestDirTakesEveryConvention(t *testing.T) {
	dir := t.TempDir()
	for subject, files := range map[string][2]string{
		"lego":       {"lego.example.crt", "lego.example.key"},
		"pem":        {"pem.pem", "pem.key"},
		"certbot":    {"certbot.example/fullchain.pem", "certbot.example/privkey.pem"},
		"kubernetes": {"secret/tls.crt", "secret/tls.key"},
		"plain":      {"plain/cert.pem", "plain/key.pem"},
	} {
		cert, key := mustPEM(t, subject, -time.Hour, time.Hour, subject+".example")
		put(t, dir, files[0], cert)
		put(t, dir, files[1], key)
	}
	cert, key := mustPEM(t, "both", -time.Hour, time.Hour, "both.example")
	put(t, dir, "both.pem", append(cert, key...))
	put(t, dir, "lego.example.issuer.crt", cert)
	put(t, dir, "README", []byte("not of interest"))
	put(t, dir, ".tmp.key", []byte("being written"))
	put(t, dir, "empty/README", nil)
	s := mustOpen(t, inDir(dir), "")
	for _, name := range []string{"lego", "pem", "certbot", "kubernetes", "plain", "both"} {
		if got := served(t, s, name+".example"); got != name {
			t.Errorf("%s.example got %s", name, got)
		}
	}
	if p := s.Problems(); len(p) != 0 {
		t.Error(p)
	}
	if got := served(t, s, "nobody.example"); got != "both" { // the first by name
		t.Errorf("a name that none has got %s", got)
	}
}

func TestDirServesTheNewestThatIsValid(t *testing.T) {
	dir := t.TempDir()
	for subject, life := range map[string][2]time.Duration{
		"over":  {-48 * time.Hour, -time.Hour},
		"old":   {-24 * time.Hour, 240 * time.Hour},
		"new":   {-time.Hour, 24 * time.Hour},
		"ahead": {time.Hour, 480 * time.Hour},
	} {
		cert, key := mustPEM(t, subject, life[0], life[1], "www.example")
		put(t, dir, subject+".crt", cert)
		put(t, dir, subject+".key", key)
	}
	cert, key := mustPEM(t, "exact, over", -48*time.Hour, -time.Hour, "a.wild.example")
	put(t, dir, "exact.pem", append(cert, key...))
	cert, key = mustPEM(t, "wild", -time.Hour, time.Hour, "*.wild.example")
	put(t, dir, "wild.pem", append(cert, key...))
	cert, key = mustPEM(t, "alone, over", -48*time.Hour, -time.Hour, "alone.example")
	put(t, dir, "alone.pem", append(cert, key...))
	s := mustOpen(t, inDir(dir), "")
	for name, want := range map[string]string{"www.example": "new", "a.wild.example": "wild", "alone.example": "alone, over"} {
		if got := served(t, s, name); got != want {
			t.Errorf("%s got %q, want %q", name, got, want)
		}
	}
	replaced := map[string]bool{}
	for _, c := range s.List() {
		replaced[filepath.Base(c.Path)] = c.Replaced
	}
	for name, want := range map[string]bool{"over": true, "old": true, "new": true, "ahead": false, "alone": false, "exact": false} {
		if replaced[name] != want {
			t.Errorf("%s: replaced %v", name, replaced[name])
		}
	}
}

// Listed certificates come before those of the directory, in the file's order.
func TestListedComesBeforeDir(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	cert, key := mustPEM(t, "newer", -time.Minute, time.Hour, "www.example")
	put(t, dir, "a.pem", append(cert, key...))
	cert, key = mustPEM(t, "listed", -time.Hour, time.Hour, "www.example")
	put(t, other, "listed.pem", append(cert, key...))
	cfg := inDir(dir)
	cfg.Certificates = []certs.Pair{{Cert: other + "/listed.pem", Key: other + "/listed.pem"}}
	if got := served(t, mustOpen(t, cfg, ""), "www.example"); got != "listed" {
		t.Errorf("got %s", got)
	}
}

// One pair that is bad holds no other up; without any, a self-signed one serves until there is one.
func TestDirWithBadPairs(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, inDir(dir), "", "localhost")
	if got := served(t, s, "www.example"); got != "Berm edge, self-signed" {
		t.Errorf("an empty directory serves %q", got)
	}
	if p := s.Problems(); len(p) != 1 || !strings.Contains(p[0], "tls.dir: "+dir+" holds no certificate with its key") {
		t.Error(p)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	reports := make(chan error, 1000)
	go func() { defer close(done); s.Watch(ctx, time.Millisecond, func(err error) { reports <- err }) }()
	defer func() { cancel(); <-done }()
	cert, key := mustPEM(t, "good", -time.Hour, time.Hour, "www.example")
	put(t, dir, "good.crt", cert)
	put(t, dir, "good.key", key)
	put(t, dir, "bad.crt", cert)
	put(t, dir, "bad.key", []byte("garbage"))
	put(t, dir, "half.key", key)
	want := []string{
		fmt.Sprintf("tls.dir: cert: %s/half.crt does not exist", dir),
		fmt.Sprintf("tls.dir: key: %s/bad.key holds no PEM key", dir),
	}
	deadline := time.After(20 * time.Second)
	for !slices.Equal(s.Problems(), want) {
		select {
		case <-reports:
		case <-deadline:
			t.Fatal(s.Problems())
		}
	}
	if got := served(t, s, "www.example"); got != "good" {
		t.Errorf("beside bad pairs %q is served", got)
	}
	for _, name := range []string{"good.crt", "good.key", "bad.crt", "bad.key", "half.key"} {
		must(t, os.Remove(filepath.Join(dir, name)))
	}
	for p := s.Problems(); !slices.ContainsFunc(p, func(line string) bool { return strings.Contains(line, "that it held stay") }); p = s.Problems() {
		select {
		case <-reports:
		case <-deadline:
			t.Fatal(s.Problems())
		}
	}
	if got := served(t, s, "www.example"); got == "Berm edge, self-signed" {
		t.Error("a directory that was emptied took what was served along")
	}
}

func TestDirValidates(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	for dir, want := range map[string]string{
		"relative": `dir: "relative" is not an absolute path`, "/nonexistent/tls": "dir: /nonexistent/tls does not exist", file: "is not a directory that can be read",
	} {
		if err := inDir(dir).Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	many := t.TempDir()
	for i := range 10001 {
		must(t, os.WriteFile(fmt.Sprintf("%s/%d.key", many, i), nil, 0o600))
	}
	s := mustOpen(t, inDir(many), "", "localhost")
	if p := s.Problems(); len(p) != 1 || !strings.Contains(p[0], "more than 10000") {
		t.Error(p)
	}
	must(t, os.RemoveAll(many))
	if err := s.Reload(); err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "does not exist") {
		t.Error(err)
	}
}
