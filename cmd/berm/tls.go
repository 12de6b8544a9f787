package main

import (
	"crypto/x509"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/cmd/berm/internal/tlsaudit"
)

type tlsCmd struct {
	Audit tlsAudit `cmd:"" help:"Ask a server, as clients do, what its TLS offers, and judge that."`
	ECH   tlsECH   `cmd:"" name:"ech" help:"Keys by which clients hide the name that they ask for."`
}

// Help is what berm tls --help adds.
func (tlsCmd) Help() string {
	return `Examples:

  berm tls audit
  berm tls audit www.example.com:443 --json
  berm tls ech new public.example.com /etc/berm/ech.pem`
}

type tlsAudit struct {
	Address string        `arg:"" optional:"" placeholder:"HOST:PORT" help:"Whom to ask (default: the first HTTPS listener of this edge)."`
	Name    string        `placeholder:"HOST" help:"Name to ask for and to expect in the certificate (default: the address's)."`
	CA      string        `placeholder:"FILE" complete:":files" help:"PEM file of authorities to trust besides the system's."`
	Timeout time.Duration `default:"5s" help:"How long each handshake may take."`
}

// Help is what berm tls audit --help adds.
func (tlsAudit) Help() string {
	return `It makes some thirty handshakes, asks for / over HTTP, and tells of protocols, cipher suites, groups (X25519MLKEM768 among them), the certificate's chain, names and end, OCSP, ALPN, resumption over TCP and QUIC, and early data (0-RTT).

Exit code 0: nothing is bad, though there may be warnings. 1: something is. 3: nobody answers TLS there.

Examples:

  berm tls audit
  berm tls audit 192.0.2.10:443 --name www.example.com
  berm tls audit www.example.com --json | jq -r '.findings[] | select(.verdict != "ok") | .what + ": " + .note'`
}

func (c *tlsAudit) Run(a *app) error {
	t := tlsaudit.Target{Address: c.Address, Name: c.Name, Now: time.Now(), Wait: c.Timeout}
	if t.Address == "" {
		own, err := a.ownHTTPS()
		if err != nil {
			return err
		}
		t.Address = own
	}
	host, _, err := net.SplitHostPort(t.Address)
	if err != nil {
		host = strings.Trim(t.Address, "[]")
		t.Address = net.JoinHostPort(host, "443")
	}
	if t.Name == "" {
		t.Name = host
	}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return badInput("--ca: %s", err)
		}
		if t.Roots, err = x509.SystemCertPool(); err != nil {
			t.Roots = x509.NewCertPool()
		}
		if !t.Roots.AppendCertsFromPEM(pem) {
			return badInput("--ca: %s holds no PEM certificate", c.CA)
		}
	}
	r, err := tlsaudit.Run(a.ctx, t)
	if err != nil {
		return fail(exitAbsent, "Is it the right port? berm status lists those of this edge.", "%w", err)
	}
	if !r.OK {
		a.code = exitFailed
	}
	return a.out.Value(r, func() { a.audited(r) })
}

// ownHTTPS is where this edge serves TLS.
func (a *app) ownHTTPS() (string, error) {
	d, err := a.needDaemon("tls audit without an address", "it knows the listeners")
	if err != nil {
		return "", err
	}
	s, err := d.Status(a.ctx)
	if err != nil {
		return "", err
	}
	for _, l := range s.Listeners {
		if l.Network != "tcp" || !slices.Contains(l.Protocols, "h2") {
			continue
		}
		host, port, err := net.SplitHostPort(l.Address)
		if err != nil {
			return "", err
		}
		if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
			host = "localhost"
		}
		return net.JoinHostPort(host, port), nil
	}
	return "", fail(exitAbsent, "Name a server: berm tls audit HOST:PORT.", "this edge has no HTTPS listener")
}

func (a *app) audited(r tlsaudit.Report) {
	styles := map[tlsaudit.Verdict]out.Style{tlsaudit.OK: out.Good, tlsaudit.Warn: out.Warn, tlsaudit.Bad: out.Bad}
	a.out.Field("server", "%s, asked for %s", r.Address, r.Name)
	for _, f := range r.Findings {
		text := or(strings.Join(f.Values, ", "), "none")
		if f.Note != "" {
			text += ": " + f.Note
		}
		a.out.Field(f.What, "%s %s", a.out.Paint(styles[f.Verdict], string(f.Verdict)), text)
	}
}
