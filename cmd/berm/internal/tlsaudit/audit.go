// Package tlsaudit asks a server, as clients do, what its TLS offers, and judges that.
package tlsaudit

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// Verdict is what is thought of a finding.
type Verdict string

// The verdicts. A Bad one makes an audit fail.
const (
	OK   Verdict = "ok"
	Warn Verdict = "warn"
	Bad  Verdict = "bad"
)

// Finding is one answer of the server.
type Finding struct {
	What    string   `json:"what"`    // protocols, suites, groups, …
	Values  []string `json:"values"`  // what it offers
	Verdict Verdict  `json:"verdict"` //
	Note    string   `json:"note,omitempty"`
}

// Report is an audit.
type Report struct {
	Address  string    `json:"address"`
	Name     string    `json:"name"` // asked for
	OK       bool      `json:"ok"`   // nothing is bad
	Findings []Finding `json:"findings"`
}

// Target is what to audit.
type Target struct {
	Address string         // host:port
	Name    string         // to ask for (SNI), and to expect in the certificate
	Roots   *x509.CertPool // whom to trust; nil: the system's
	Now     time.Time
	Wait    time.Duration // for each handshake
}

// auditor asks one server.
type auditor struct {
	Target
	ctx context.Context
	out Report
}

// Run audits a server. The error says that nobody answers TLS there.
func Run(ctx context.Context, t Target) (Report, error) {
	a := &auditor{Target: t, ctx: ctx, out: Report{Address: t.Address, Name: t.Name, OK: true}}
	// The first answer may be as old as it likes: what is wrong with it is found below.
	state, err := a.tcp(&tls.Config{MinVersion: tls.VersionTLS10, CipherSuites: everySuite(), NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		return a.out, fmt.Errorf("TLS with %s: %w", t.Address, err)
	}
	a.protocols()
	a.suites(state)
	a.groups(state)
	a.certificate(state)
	a.staple(state)
	a.alpn()
	a.resumption()
	a.quic()
	return a.out, nil
}

func (a *auditor) found(what string, values []string, v Verdict, note string) {
	if values == nil {
		values = []string{}
	}
	a.out.Findings = append(a.out.Findings, Finding{what, values, v, note})
	if v == Bad {
		a.out.OK = false
	}
}

// complete fills in whom to ask. What the certificate is worth is looked at by itself.
func (a *auditor) complete(c *tls.Config) *tls.Config {
	c.ServerName, c.InsecureSkipVerify = a.Name, true
	if c.MinVersion == 0 {
		c.MinVersion = tls.VersionTLS12
	}
	return c
}

// tcp makes one handshake.
func (a *auditor) tcp(c *tls.Config) (tls.ConnectionState, error) {
	ctx, cancel := context.WithTimeout(a.ctx, a.Wait)
	defer cancel()
	d := tls.Dialer{NetDialer: &net.Dialer{}, Config: a.complete(c)}
	conn, err := d.DialContext(ctx, "tcp", a.Address)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	t, ok := conn.(*tls.Conn)
	if !ok {
		return tls.ConnectionState{}, fmt.Errorf("a %T is no TLS connection", conn)
	}
	if c.ClientSessionCache != nil { // TLS 1.3's ticket comes before the answer
		_ = t.SetDeadline(time.Now().Add(a.Wait))
		if _, err := io.WriteString(t, "HEAD / HTTP/1.1\r\nHost: "+a.Name+"\r\nConnection: close\r\n\r\n"); err == nil {
			_, _ = t.Read(make([]byte, 1)) // whatever it says
		}
	}
	return t.ConnectionState(), nil
}

func (a *auditor) protocols() {
	var all []string
	verdict, note := OK, ""
	for _, v := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
		_, err := a.tcp(&tls.Config{MinVersion: v, MaxVersion: v, CipherSuites: everySuite()})
		switch {
		case err == nil:
			all = append(all, tls.VersionName(v))
			if v < tls.VersionTLS12 {
				verdict, note = Bad, "TLS 1.0 and 1.1 are broken (RFC 8996)"
			}
		case v == tls.VersionTLS13:
			verdict, note = Bad, strings.TrimPrefix(note+"; without TLS 1.3", "; ")
		}
	}
	a.found("protocols", all, verdict, note)
}

func everySuite() (ids []uint16) {
	for _, list := range [][]*tls.CipherSuite{tls.CipherSuites(), tls.InsecureCipherSuites()} {
		for _, s := range list {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// suites asks for those of TLS 1.2 one by one. Those of TLS 1.3 are all good; the one that was agreed on is told.
func (a *auditor) suites(state tls.ConnectionState) {
	all := []string{tls.CipherSuiteName(state.CipherSuite)}
	verdict, note := OK, ""
	for i, list := range [][]*tls.CipherSuite{tls.CipherSuites(), tls.InsecureCipherSuites()} {
		for _, s := range list {
			if s.SupportedVersions[0] == tls.VersionTLS13 {
				continue
			}
			if _, err := a.tcp(&tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{s.ID}}); err != nil {
				continue
			}
			if s.Name != all[0] {
				all = append(all, s.Name)
			}
			switch weak := strings.Contains(s.Name, "_CBC_"); {
			case i == 1 || strings.HasPrefix(s.Name, "TLS_RSA_"):
				verdict, note = Bad, s.Name+" is not secure"
			case weak && verdict == OK:
				verdict, note = Warn, s.Name+" is without AEAD"
			}
		}
	}
	a.found("suites", all, verdict, note)
}

func (a *auditor) groups(state tls.ConnectionState) {
	var all []string
	hybrid := false
	for _, g := range []tls.CurveID{tls.X25519MLKEM768, tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024, tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521} {
		if s, err := a.tcp(&tls.Config{MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{g}}); err == nil && s.CurveID == g {
			all = append(all, g.String())
			hybrid = hybrid || g == tls.X25519MLKEM768
		}
	}
	if hybrid {
		a.found("groups", all, OK, "agreed on "+state.CurveID.String())
	} else {
		a.found("groups", all, Warn, "without X25519MLKEM768: what is recorded today may be read by a quantum computer later")
	}
}

func (a *auditor) alpn() {
	var all []string
	for _, p := range []string{"h2", "http/1.1"} {
		if s, err := a.tcp(&tls.Config{NextProtos: []string{p}}); err == nil && s.NegotiatedProtocol == p {
			all = append(all, p)
		}
	}
	verdict, note := OK, ""
	if len(all) == 0 || all[0] != "h2" {
		verdict, note = Warn, "without HTTP/2"
	}
	a.found("alpn", all, verdict, note)
}

// resumption connects twice by each version.
func (a *auditor) resumption() {
	var all []string
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cache := tls.NewLRUClientSessionCache(1)
		for range 2 {
			s, err := a.tcp(&tls.Config{MinVersion: v, MaxVersion: v, ClientSessionCache: cache, NextProtos: []string{"http/1.1"}})
			if err == nil && s.DidResume {
				all = append(all, tls.VersionName(v))
			}
		}
	}
	verdict, note := OK, ""
	if len(all) == 0 {
		verdict, note = Warn, "every connection is a full handshake"
	}
	a.found("resumption", all, verdict, note)
}

// urlHost writes a name as a URL has it.
func urlHost(name string) string {
	if strings.Contains(name, ":") {
		return "[" + name + "]"
	}
	return name
}
