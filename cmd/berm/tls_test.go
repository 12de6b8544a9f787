package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/bermedge/berm/cmd/berm/internal/tlsaudit"
	"github.com/bermedge/berm/userspace/certs"
	"github.com/bermedge/berm/userspace/clock"
	"github.com/bermedge/berm/userspace/tickets"
)

// auditServer serves TLS over TCP, and over QUIC if it is told to.
func auditServer(t *testing.T, c *tls.Config, h3 bool) string {
	t.Helper()
	answer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: answer, TLSConfig: c.Clone(), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	if len(c.NextProtos) > 0 { // net/http would add h2, and want the suites that it needs
		srv.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
	}
	go func() { _ = srv.ServeTLS(l, "", "") }()
	t.Cleanup(func() { srv.Close() })
	if h3 {
		pc, err := net.ListenPacket("udp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		q := &http3.Server{Handler: answer, TLSConfig: c, QUICConfig: &quic.Config{Allow0RTT: true}}
		go func() { _ = q.Serve(pc) }()
		t.Cleanup(func() { q.Close(); pc.Close() })
	}
	return l.Addr().String()
}

func auditCert(t *testing.T, key crypto.Signer, change func(*x509.Certificate)) (tls.Certificate, string) {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "audited"}, DNSNames: []string{"www.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	change(tmpl)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, path
}

func ecKey(t *testing.T) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// audit runs the command and returns its findings by what they are of.
func audit(t *testing.T, code int, args ...string) map[string]tlsaudit.Finding {
	t.Helper()
	var stdout, stderr strings.Builder
	if got := run(context.Background(), append([]string{"tls", "audit", "--json"}, args...), nil, &stdout, &stderr); got != code {
		t.Fatalf("exit code %d, want %d\n%s%s", got, code, stdout.String(), stderr.String())
	}
	var r tlsaudit.Report
	if err := json.Unmarshal([]byte(stdout.String()), &r); err != nil {
		t.Fatal(err)
	}
	out := map[string]tlsaudit.Finding{}
	for _, f := range r.Findings {
		out[f.What] = f
	}
	return out
}

// An edge's own TLS leaves nothing to be wished for.
func TestAuditOfAnEdge(t *testing.T) {
	cert, ca := auditCert(t, ecKey(t), func(*x509.Certificate) {})
	dir := t.TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	both := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	if err := os.WriteFile(filepath.Join(dir, "www.pem"), both, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := certs.Default()
	cfg.Dir = dir
	store, err := certs.Open(cfg, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := tickets.Open(tickets.Default(), "", clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	keys.ApplyEarly(tickets.Early{Enabled: true})
	c := keys.TLS(store.TLS())
	address := auditServer(t, c, true)
	found := audit(t, 0, address, "--name", "www.example", "--ca", ca)
	for what, value := range map[string]string{
		"protocols": "TLS 1.3", "suites": "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "groups": "X25519MLKEM768", "chain": "audited (ECDSA P-256, ECDSA-SHA256)",
		"names": "www.example", "validity": "", "ocsp": "", "alpn": "h2", "resumption": "TLS 1.3", "h3": "resumption", "early_data": "accepted",
	} {
		f, ok := found[what]
		if !ok || f.Verdict != tlsaudit.OK || value != "" && !slices.Contains(f.Values, value) {
			t.Errorf("%s: %+v", what, f)
		}
	}
	if len(found) != 11 || slices.Contains(found["protocols"].Values, "TLS 1.1") {
		t.Errorf("%+v", found)
	}
	// People see the same.
	var stdout strings.Builder
	if code := run(context.Background(), []string{"tls", "audit", address, "--name", "other.example"}, nil, &stdout, io.Discard); code != 1 ||
		!strings.Contains(stdout.String(), "names      bad www.example: the certificate is not for other.example") ||
		!strings.Contains(stdout.String(), "chain      bad audited (ECDSA P-256, ECDSA-SHA256): it is self-signed") {
		t.Errorf("exit code %d\n%s", code, stdout.String())
	}
}

func TestAuditFindsFaults(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	strong, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	h1 := []string{"http/1.1"}
	for name, c := range map[string]struct {
		key    crypto.Signer
		cert   func(*x509.Certificate)
		change func(*tls.Config)
		code   int
		what   string
		want   tlsaudit.Verdict
		note   string
	}{
		"old protocols": {ecKey(t), nil, func(c *tls.Config) { c.MinVersion = tls.VersionTLS10 }, 1, "protocols", tlsaudit.Bad, "RFC 8996"},
		"no 1.3":        {ecKey(t), nil, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, 1, "protocols", tlsaudit.Bad, "without TLS 1.3"},
		"no AEAD": {ecKey(t), nil, func(c *tls.Config) {
			c.CipherSuites, c.NextProtos = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}, h1
		}, 0, "suites", tlsaudit.Warn, "without AEAD"},
		"RSA key exchange": {strong, nil, func(c *tls.Config) { c.CipherSuites, c.NextProtos = []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}, h1 }, 1, "suites", tlsaudit.Bad, "TLS_RSA_WITH_AES_128_GCM_SHA256 is not secure"},
		"no hybrid":        {ecKey(t), nil, func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} }, 0, "groups", tlsaudit.Warn, "without X25519MLKEM768"},
		"over":             {ecKey(t), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, nil, 1, "validity", tlsaudit.Bad, "it is over"},
		"not yet":          {ecKey(t), func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }, nil, 1, "validity", tlsaudit.Bad, "not valid yet"},
		"soon":             {ecKey(t), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(20 * time.Minute) }, nil, 0, "validity", tlsaudit.Warn, "days left"},
		"weak key":         {weak, nil, nil, 1, "chain", tlsaudit.Bad, "key of 1024 bits"},
		"must staple": {ecKey(t), func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 3, 6, 1, 5, 5, 7, 1, 24}, Value: []byte{0x30, 3, 2, 1, 5}}}
		}, nil, 1, "ocsp", tlsaudit.Bad, "none comes"},
		"responder":     {ecKey(t), func(c *x509.Certificate) { c.OCSPServer = []string{"http://ocsp.example"} }, nil, 0, "ocsp", tlsaudit.OK, "not stapled"},
		"no h2":         {ecKey(t), nil, func(c *tls.Config) { c.NextProtos = h1 }, 0, "alpn", tlsaudit.Warn, "without HTTP/2"},
		"no resumption": {ecKey(t), nil, func(c *tls.Config) { c.SessionTicketsDisabled = true }, 0, "resumption", tlsaudit.Warn, "full handshake"},
		"no h3":         {ecKey(t), nil, nil, 0, "h3", tlsaudit.Warn, "nobody answers QUIC"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // an audit waits a while for QUIC, which is not there
			if c.cert == nil {
				c.cert = func(*x509.Certificate) {}
			}
			cert, ca := auditCert(t, c.key, c.cert)
			conf := &tls.Config{Certificates: []tls.Certificate{cert}}
			if c.change != nil {
				c.change(conf)
			}
			f := audit(t, c.code, auditServer(t, conf, false), "--name", "www.example", "--ca", ca, "--timeout", "2s")[c.what]
			if f.Verdict != c.want || !strings.Contains(f.Note, c.note) {
				t.Errorf("%+v", f)
			}
		})
	}
}

func TestAuditUsage(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		code int
		want string
		args []string
	}{
		{3, "connection refused", []string{"127.0.0.1:1"}},
		{3, "needs bermd", []string{"--socket", "/nonexistent/berm.sock"}},
		{2, "no such file", []string{"127.0.0.1:1", "--ca", "/nonexistent"}},
		{2, "holds no PEM certificate", []string{"127.0.0.1:1", "--ca", empty}},
	} {
		var stderr strings.Builder
		code := run(context.Background(), append([]string{"tls", "audit"}, c.args...), nil, io.Discard, &stderr)
		if code != c.code || !strings.Contains(stderr.String(), c.want) {
			t.Errorf("%v: exit code %d\n%s", c.args, code, stderr.String())
		}
	}
}
