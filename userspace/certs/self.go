package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	selfLife    = 365 * 24 * time.Hour
	renewBefore = 30 * 24 * time.Hour
	selfFile    = "self-signed.pem"
)

// selfSigned makes certificates where the operator has given none.
type selfSigned struct {
	dir   string
	names []string // DNS names and addresses
}

// get returns the certificate kept in dir, or a new one when there is none, when it expires soon
// or is for other names. path is empty when it could not be kept.
func (s selfSigned) get(now time.Time) (c *tls.Certificate, path string, err error) {
	path = filepath.Join(s.dir, selfFile)
	if s.dir != "" {
		if c, err := (Pair{Cert: path, Key: path}).load(); err == nil && s.good(c.Leaf, now) {
			return c, path, nil
		}
	}
	text, err := s.make(now)
	if err != nil {
		return nil, "", err
	}
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, "", err
	}
	if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
		return nil, "", err
	}
	if s.dir == "" || keep(path, text) != nil { // a read-only state directory costs only a new fingerprint at restart
		path = ""
	}
	return &pair, path, nil
}

func (s selfSigned) good(leaf *x509.Certificate, now time.Time) bool {
	for _, name := range s.names {
		if leaf.VerifyHostname(name) != nil {
			return false
		}
	}
	return leaf.NotAfter.After(now.Add(renewBefore)) && leaf.NotBefore.Before(now)
}

// make returns certificate and key in one PEM text, so that one rename keeps them together.
func (s selfSigned) make(now time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	t := x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Berm edge, self-signed"},
		NotBefore:             now.Add(-time.Hour), // clocks differ
		NotAfter:              now.Add(selfLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, name := range s.names {
		if ip := net.ParseIP(name); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else if !slices.Contains(t.DNSNames, name) {
			t.DNSNames = append(t.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, &t, &t, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})...), nil
}

// keep writes a file that only its owner reads, whole or not at all.
func keep(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+selfFile+"-*") // made 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	if _, err := f.Write(text); err != nil {
		f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("keep the self-signed certificate: %w", err)
	}
	return nil
}
