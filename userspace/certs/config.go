// Package certs holds the edge's certificates: read from files or made on the spot, chosen by
// name, and replaced while connections go on.
package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Config is the section tls.
type Config struct {
	Certificates []Pair `yaml:"certificates"` // none, and none in dir: a self-signed one
	// Dir is watched for pairs: NAME.crt or NAME.pem with NAME.key, or NAME/fullchain.pem with NAME/privkey.pem.
	Dir string `yaml:"dir"`
	// ECH are key files by which clients hide the name that they ask for (berm tls ech new). The first is the one in DNS;
	// clients that still have another's configuration are understood.
	ECH        []string `yaml:"ech"`
	MinVersion string   `yaml:"min_version"` // "1.2" or "1.3"
}

// Pair names a PEM certificate chain, the server's first, and its key.
type Pair struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

// Default is what an empty section means.
func Default() Config { return Config{MinVersion: "1.2"} }

// Validate reads every pair, and reports all that cannot be used.
func (c Config) Validate() error {
	var errs []error
	if c.MinVersion != "1.2" && c.MinVersion != "1.3" {
		errs = append(errs, fmt.Errorf("min_version: %q is not offered (write \"1.2\" or \"1.3\", with the quotes)", c.MinVersion))
	}
	for i, p := range c.Certificates {
		for _, err := range p.problems() {
			var at *fieldError
			if errors.As(err, &at) {
				err = fmt.Errorf("certificates[%d].%s: %w", i, at.field, at.err)
			} else {
				err = fmt.Errorf("certificates[%d]: %w", i, err)
			}
			errs = append(errs, err)
		}
	}
	if _, _, err := loadECH(c.ECH); err != nil {
		errs = append(errs, err)
	}
	if c.Dir != "" {
		if err := checkDir(c.Dir); err != nil {
			errs = append(errs, fmt.Errorf("dir: %w", err))
		}
	}
	return errors.Join(errs...)
}

// checkDir wants a directory that can be read. What is in it changes while the edge runs, so that a bad pair there is
// a problem that berm status shows, and no mistake of the file.
func checkDir(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%q is not an absolute path", path)
	}
	_, err := os.ReadDir(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s does not exist", path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s may not be read by uid %d (let the group berm read it: chgrp berm, chmod 750)", path, os.Geteuid())
	case err != nil:
		return fmt.Errorf("%s is not a directory that can be read", path)
	}
	return nil
}

// fieldError says which half of a pair is at fault.
type fieldError struct {
	field string
	err   error
}

func (e *fieldError) Error() string { return e.field + ": " + e.err.Error() }
func (e *fieldError) Unwrap() error { return e.err }

// problems are what is wrong with a pair: of both halves where neither can be read.
func (p Pair) problems() []error {
	_, err := p.load()
	if err == nil {
		return nil
	}
	errs := []error{err}
	if _, certErr := read("cert", p.Cert); certErr != nil {
		if _, keyErr := read("key", p.Key); keyErr != nil {
			errs = append(errs, keyErr)
		}
	}
	return errs
}

// load reads a pair and checks that its halves belong together.
func (p Pair) load() (*tls.Certificate, error) {
	chain, err := read("cert", p.Cert)
	if err != nil {
		return nil, err
	}
	key, err := read("key", p.Key)
	if err != nil {
		return nil, err
	}
	c, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, p.explain(chain, key, err)
	}
	if c.Leaf == nil {
		if c.Leaf, err = x509.ParseCertificate(c.Certificate[0]); err != nil {
			return nil, &fieldError{"cert", fmt.Errorf("%s: %w", p.Cert, err)}
		}
	}
	return &c, nil
}

func read(field, path string) ([]byte, error) {
	if path == "" {
		return nil, &fieldError{field, errors.New("must name a PEM file")}
	}
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = fmt.Errorf("%s does not exist", path)
	case errors.Is(err, fs.ErrPermission):
		err = fmt.Errorf("%s may not be read by uid %d (let the group berm read it: chgrp berm, chmod 640)", path, os.Geteuid())
	}
	if err != nil {
		return nil, &fieldError{field, err}
	}
	return b, nil
}

// explain finds out which half is bad: X509KeyPair's words leave that open.
func (p Pair) explain(chain, key []byte, err error) error {
	switch block := firstBlock(chain); {
	case block == "":
		return &fieldError{"cert", fmt.Errorf("%s holds no PEM certificate (DER? openssl x509 -inform der -in FILE -out FILE.pem)", p.Cert)}
	case block != "CERTIFICATE" && firstBlock(key) == "CERTIFICATE":
		return fmt.Errorf("%s and %s are exchanged: cert holds the key, key holds the certificate", p.Cert, p.Key)
	case block != "CERTIFICATE":
		return &fieldError{"cert", fmt.Errorf("%s holds a %s, not a certificate", p.Cert, block)}
	}
	switch block := firstBlock(key); block {
	case "":
		return &fieldError{"key", fmt.Errorf("%s holds no PEM key", p.Key)}
	case "ENCRYPTED PRIVATE KEY":
		return &fieldError{"key", fmt.Errorf("%s is locked with a passphrase (openssl pkey -in FILE -out FILE.open)", p.Key)}
	case "CERTIFICATE":
		return &fieldError{"key", fmt.Errorf("%s holds a certificate, not a key", p.Key)}
	}
	if mismatch(err) {
		return &fieldError{"key", fmt.Errorf("%s is not the key of the certificate in %s", p.Key, p.Cert)}
	}
	return fmt.Errorf("%s, %s: %w", p.Cert, p.Key, err)
}
