package certs_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/userspace/certs"
)

// mustECH writes a key file, and returns it and what clients get from DNS.
func mustECH(t *testing.T, name string) (path string, list []byte) {
	t.Helper()
	text, err := certs.NewECH(name)
	must(t, err)
	path = filepath.Join(t.TempDir(), "ech.pem")
	must(t, os.WriteFile(path, text, 0o600))
	keys, list, err := certs.ReadECH(text)
	must(t, err)
	if len(keys) != 1 || keys[0].PublicName != name {
		t.Fatalf("%+v", keys)
	}
	return path, list
}

// shakeECH connects as a client that got list from DNS, and checks certificates.
func shakeECH(t *testing.T, s *certs.Store, roots *x509.CertPool, list []byte) (tls.ConnectionState, error) {
	t.Helper()
	return shakeWith(t, s, &tls.Config{ServerName: "secret.example", RootCAs: roots, MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: list})
}

func TestECHHidesTheName(t *testing.T) {
	dir := t.TempDir()
	roots := x509.NewCertPool()
	for _, name := range []string{"public.example", "secret.example"} {
		cert, key := mustPEM(t, name, -time.Hour, time.Hour, name)
		put(t, dir, name+".pem", append(cert, key...))
		roots.AppendCertsFromPEM(cert)
	}
	oldPath, old := mustECH(t, "public.example")
	newPath, list := mustECH(t, "public.example")
	cfg := inDir(dir)
	cfg.ECH = []string{newPath, oldPath}
	s := mustOpen(t, cfg, "")
	for what, list := range map[string][]byte{"the key in DNS": list, "the key before": old} {
		st, err := shakeECH(t, s, roots, list)
		must(t, err)
		if !st.ECHAccepted || st.PeerCertificates[0].Subject.CommonName != "secret.example" {
			t.Errorf("%s: accepted %v, %s", what, st.ECHAccepted, st.PeerCertificates[0].Subject)
		}
	}
	// Who comes with a key that is gone is told the new one, under the public name's certificate.
	cfg.ECH = []string{newPath}
	must(t, s.Apply(cfg))
	_, err := shakeECH(t, s, roots, old)
	var rejected *tls.ECHRejectionError
	if !errors.As(err, &rejected) || !bytes.Equal(rejected.RetryConfigList, list) {
		t.Errorf("a key that is gone: %v", err)
	}
	// Clients that know nothing of it, and TLS 1.2, are served as ever.
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		st, err := shakeWith(t, s, &tls.Config{ServerName: "secret.example", RootCAs: roots, MaxVersion: v})
		if err != nil || st.ECHAccepted {
			t.Errorf("%s without ECH: %v", tls.VersionName(v), err)
		}
	}
	cfg.ECH = nil
	must(t, s.Apply(cfg))
	if _, err := shakeECH(t, s, roots, list); !errors.As(err, &rejected) || len(rejected.RetryConfigList) != 0 {
		t.Errorf("without keys: %v", err)
	}
}

func TestECHWithoutACertificateForThePublicName(t *testing.T) {
	path, _ := mustECH(t, "Public.example")
	cfg := certs.Default()
	cfg.ECH = []string{path}
	s := mustOpen(t, cfg, "", "localhost")
	if p := s.Problems(); len(p) != 1 || !strings.Contains(p[0], "no certificate is for public.example") {
		t.Error(p)
	}
}

func TestECHValidates(t *testing.T) {
	good, err := certs.NewECH("public.example")
	must(t, err)
	other, err := certs.NewECH("public.example")
	must(t, err)
	keyEnd := bytes.Index(good, []byte("-----BEGIN ECHCONFIG"))
	otherEnd := bytes.Index(other, []byte("-----BEGIN ECHCONFIG"))
	p256, err := ecdh.P256().GenerateKey(rand.Reader)
	must(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(p256)
	must(t, err)
	block := func(kind string, b ...byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	dir := t.TempDir()
	for want, text := range map[string][]byte{
		"holds no PRIVATE KEY":                    good[keyEnd:],
		"holds no ECHCONFIG":                      good[:keyEnd],
		"PRIVATE KEY is not that of":              append(bytes.Clone(good[:keyEnd]), other[otherEnd:]...),
		"is not one of X25519":                    block("PRIVATE KEY", pkcs8...),
		"is cut short":                            append(bytes.Clone(good[:keyEnd]), block("ECHCONFIG", 0, 5, 0xfe, 0x0d, 0, 9, 1)...),
		"has no configuration of a known version": append(bytes.Clone(good[:keyEnd]), block("ECHCONFIG", 0, 5, 0xfe, 0x0c, 0, 1, 1)...),
		"is for KEM 0x0010, not X25519":           append(bytes.Clone(good[:keyEnd]), block("ECHCONFIG", 0, 7, 0xfe, 0x0d, 0, 3, 1, 0, 0x10)...),
	} {
		path := filepath.Join(dir, "ech.pem")
		must(t, os.WriteFile(path, text, 0o600))
		cfg := certs.Default()
		cfg.ECH = []string{path}
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "ech[0]: "+path+": ") || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
	cfg := certs.Default()
	cfg.ECH = []string{dir + "/nowhere"}
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "ech[0]: "+dir+"/nowhere does not exist") {
		t.Error(err)
	}
	for _, name := range []string{"", "localhost", "a..example", "-a.example", "a-.example", "a b.example", "192.0.2.1", "a.0x1", strings.Repeat("a", 64) + ".example", strings.Repeat("abc.", 64) + "example"} {
		if _, err := certs.NewECH(name); err == nil || !strings.Contains(err.Error(), "is no public name") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func FuzzReadECH(f *testing.F) {
	good, err := certs.NewECH("public.example")
	if err != nil {
		f.Fatal(err)
	}
	end := bytes.Index(good, []byte("-----BEGIN ECHCONFIG"))
	block, _ := pem.Decode(good[end:])
	f.Add(block.Bytes)
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, list []byte) {
		text := append(bytes.Clone(good[:end]), pem.EncodeToMemory(&pem.Block{Type: "ECHCONFIG", Bytes: list})...)
		keys, got, err := certs.ReadECH(text)
		if err == nil && (len(keys) == 0 || !bytes.Equal(got, list)) {
			t.Errorf("%d keys of %x", len(keys), list)
		}
	})
}
