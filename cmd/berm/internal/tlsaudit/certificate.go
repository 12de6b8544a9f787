package tlsaudit

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// certificate judges the chain: its names, who vouches for it, its keys, and when it ends.
func (a *auditor) certificate(state tls.ConnectionState) {
	leaf := state.PeerCertificates[0]
	var chain []string
	pool := x509.NewCertPool()
	for i, c := range state.PeerCertificates {
		chain = append(chain, fmt.Sprintf("%s (%s, %s)", subject(c), keyOf(c), c.SignatureAlgorithm))
		if i > 0 {
			pool.AddCert(c)
		}
	}
	verdict, note := OK, "issued by "+orSelf(leaf)
	// Its time is looked at below: one that is over is judged once.
	at := a.Now
	if at.After(leaf.NotAfter) || at.Before(leaf.NotBefore) {
		at = leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: a.Roots, Intermediates: pool, CurrentTime: at}); err != nil {
		var unknown x509.UnknownAuthorityError
		verdict, note = Bad, err.Error()
		switch {
		case errors.As(err, &unknown) && orSelf(leaf) == "itself":
			note = "it is self-signed: clients trust it only if they are told to (--ca FILE)"
		case errors.As(err, &unknown):
			note = "clients do not trust " + orSelf(leaf) + " (is an intermediate missing from the chain? of a private authority: --ca FILE)"
		}
	} else if weak := weakKey(state.PeerCertificates); weak != "" {
		verdict, note = Bad, weak
	}
	a.found("chain", chain, verdict, note)

	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	if err := leaf.VerifyHostname(a.Name); err != nil {
		a.found("names", names, Bad, fmt.Sprintf("the certificate is not for %s", a.Name))
	} else {
		a.found("names", names, OK, "")
	}
	a.expiry(leaf)
}

// expiry warns when a third of a certificate's life is left, by when it should have been renewed.
func (a *auditor) expiry(leaf *x509.Certificate) {
	values := []string{leaf.NotBefore.UTC().Format(time.DateTime), leaf.NotAfter.UTC().Format(time.DateTime)}
	left, life := leaf.NotAfter.Sub(a.Now), leaf.NotAfter.Sub(leaf.NotBefore)
	days := fmt.Sprintf("%.1f days left", left.Hours()/24)
	switch {
	case a.Now.Before(leaf.NotBefore):
		a.found("validity", values, Bad, "it is not valid yet")
	case left <= 0:
		a.found("validity", values, Bad, "it is over")
	case left < min(life/3, 30*24*time.Hour):
		a.found("validity", values, Warn, days)
	default:
		a.found("validity", values, OK, days)
	}
}

// mustStaple is the extension by which a certificate asks for a stapled OCSP answer (RFC 7633).
var mustStaple = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}

// staple tells of OCSP. Authorities give it up; only a certificate that asks for a staple needs one.
func (a *auditor) staple(state tls.ConnectionState) {
	leaf := state.PeerCertificates[0]
	asks := slices.ContainsFunc(leaf.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(mustStaple) })
	switch n := len(state.OCSPResponse); {
	case n > 0:
		a.found("ocsp", []string{"stapled"}, OK, fmt.Sprintf("%d bytes", n))
	case asks:
		a.found("ocsp", nil, Bad, "the certificate asks for a stapled answer, and none comes")
	case len(leaf.OCSPServer) > 0:
		a.found("ocsp", leaf.OCSPServer, OK, "not stapled: clients that want to know ask there")
	default:
		a.found("ocsp", nil, OK, "the certificate names no responder")
	}
}

func subject(c *x509.Certificate) string {
	if c.Subject.CommonName != "" {
		return c.Subject.CommonName
	}
	if len(c.DNSNames) > 0 {
		return c.DNSNames[0]
	}
	return strings.TrimSpace(c.Subject.String())
}

func orSelf(c *x509.Certificate) string {
	if c.Issuer.String() == c.Subject.String() {
		return "itself"
	}
	return c.Issuer.String()
}

func keyOf(c *x509.Certificate) string {
	switch k := c.PublicKey.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA " + k.Curve.Params().Name
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return c.PublicKeyAlgorithm.String()
}

// weakKey names a key or signature that forgers can make.
func weakKey(chain []*x509.Certificate) string {
	for _, c := range chain {
		if k, ok := c.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() < 2048 {
			return fmt.Sprintf("%s has a key of %d bits", subject(c), k.N.BitLen())
		}
	}
	return ""
}
