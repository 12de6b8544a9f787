package main_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/bermedge/berm/test/rig/rigtest"
)

// mustCert makes a self-signed certificate for localhost that clients can be told to trust, as PEM.
func mustCert(t *testing.T, serial int64) (cert, key []byte) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: fmt.Sprint("cert ", serial)}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour + time.Duration(serial)*time.Second), NotAfter: time.Now().Add(30 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &priv.PublicKey, priv)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

func mustWrite(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// subject is whose certificate openssl sees.
func subject(t *testing.T, address string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "openssl", "s_client", "-connect", address, "-servername", "localhost").CombinedOutput()
	if err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "subject="); ok {
			return strings.TrimPrefix(name, "CN = ")
		}
	}
	t.Fatalf("openssl names no subject:\n%s", out)
	return ""
}

// handshakes makes full handshakes over TCP and QUIC until stopped.
type handshakes struct {
	done, failed atomic.Int64
	why          atomic.Value
	wg           sync.WaitGroup
}

func (h *handshakes) run(ctx context.Context, once func(context.Context) error) {
	h.wg.Go(func() {
		for ctx.Err() == nil {
			err := once(context.WithoutCancel(ctx))
			if h.done.Add(1); err != nil {
				h.failed.Add(1)
				h.why.Store(err.Error())
			}
		}
	})
}

// Certificates of tls.dir change, break and mend while clients come: none of them is refused.
func TestCertificatesRotateUnderLoad(t *testing.T) {
	rigtest.Require(t, need("openssl"))
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	cert, key := mustCert(t, 1)
	mustWrite(t, path("www.crt"), cert)
	mustWrite(t, path("www.key"), key)
	p := mustStart(t, onLoopback, fmt.Sprintf("tls: {dir: %s}", dir))
	address := strings.TrimPrefix(p.url(t, "h2"), "https://")
	if got := subject(t, address); got != "cert 1" {
		t.Fatalf("openssl got %q", got)
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var load handshakes
	client := &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", NextProtos: []string{"h2"}}
	h3 := client.Clone()
	h3.NextProtos = []string{"h3"}
	for range 2 {
		load.run(ctx, func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			c, err := (&tls.Dialer{Config: client}).DialContext(ctx, "tcp", address)
			if err != nil {
				return err
			}
			return c.Close()
		})
	}
	load.run(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		c, err := quic.DialAddr(ctx, address, h3, nil)
		if err != nil {
			return err
		}
		return c.CloseWithError(0, "")
	})
	serves := func(want string) {
		t.Helper()
		within(t, 30*time.Second, "another certificate", func() (bool, error) { return subject(t, address) == want, nil })
	}
	problem := func(want string) {
		t.Helper()
		within(t, 30*time.Second, "a problem", func() (bool, error) {
			s, err := p.client.Status(t.Context())
			all := strings.Join(s.Problems, "\n")
			return strings.Contains(all, want) || want == "" && !strings.Contains(all, "tls.dir"), err
		})
	}
	next := int64(2)
	for ; next <= 4; next++ { // in place, a half after the other
		cert, key = mustCert(t, next)
		mustWrite(t, path("www.crt"), cert)
		mustWrite(t, path("www.key"), key)
		serves(fmt.Sprint("cert ", next))
	}
	last := fmt.Sprint("cert ", next-1)
	_, other := mustCert(t, 100) // a key of another certificate
	mustWrite(t, path("www.key"), other)
	problem(path("www.key") + " is not the key of the certificate in " + path("www.crt") + "; the certificate before it stays")
	if got := subject(t, address); got != last {
		t.Errorf("%q with a key that does not fit", got)
	}
	if err := os.Remove(path("www.key")); err != nil {
		t.Fatal(err)
	}
	problem(path("www.key") + " does not exist; the certificate before it stays")
	mustWrite(t, path("www.key"), key)
	problem("")

	cert, key = mustCert(t, next) // another pair of the same name, by one rename
	mustWrite(t, path(".new.pem"), append(cert, key...))
	if err := os.Rename(path(".new.pem"), path("new.pem")); err != nil {
		t.Fatal(err)
	}
	serves(fmt.Sprint("cert ", next))
	if err := os.Remove(path("new.pem")); err != nil { // it vanishes: the one before serves again
		t.Fatal(err)
	}
	serves(last)
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	problem(dir + " does not exist; the certificates that it held stay")
	if got := subject(t, address); got != last {
		t.Errorf("%q without the directory", got)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	problem("")
	stop()
	load.wg.Wait()
	t.Logf("%d handshakes, %d failed", load.done.Load(), load.failed.Load())
	if n := load.failed.Load(); n != 0 || load.done.Load() < 100 {
		t.Errorf("of %d handshakes %d failed, the last: %v", load.done.Load(), n, load.why.Load())
	}
}
