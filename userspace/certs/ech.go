package certs

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// Of an ECHConfig (RFC 9849, 4): what we make, and what we can read.
const (
	echVersion  = 0xfe0d
	kemX25519   = 0x0020 // DHKEM(X25519, HKDF-SHA256)
	echMaxName  = 64     // longer names are padded less well
	echBlock    = "ECHCONFIG"
	privateKeys = "PRIVATE KEY"
)

// ECH is a key by which clients hide the name that they ask for.
type ECH struct {
	PublicName string // what everybody may see them ask for
	ID         uint8
	Config     []byte // the ECHConfig

	public, private []byte
}

// NewECH makes a key, and returns it as a PEM file (RFC 9934) with the list of configurations that belongs into DNS.
func NewECH(publicName string) ([]byte, error) {
	if !isPublic(publicName) {
		return nil, fmt.Errorf("%q is no public name (a whole one, such as public.example.com)", publicName)
	}
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	id := make([]byte, 1)
	_, _ = rand.Read(id) // never fails, and ends the process if it ever does
	public := key.PublicKey().Bytes()
	b := append([]byte{}, id[0])
	b = binary.BigEndian.AppendUint16(b, kemX25519)
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(public))), public...)
	b = append(b, 0, 8, 0, 1, 0, 1, 0, 1, 0, 3) // HKDF-SHA256 with AES-128-GCM and with ChaCha20-Poly1305
	b = append(b, echMaxName, byte(len(publicName)))
	b = append(b, publicName...)
	b = append(b, 0, 0) // no extensions
	config := binary.BigEndian.AppendUint16(nil, echVersion)
	config = append(binary.BigEndian.AppendUint16(config, uint16(len(b))), b...)
	list := append(binary.BigEndian.AppendUint16(nil, uint16(len(config))), config...)
	text := pem.EncodeToMemory(&pem.Block{Type: privateKeys, Bytes: pkcs8})
	return append(text, pem.EncodeToMemory(&pem.Block{Type: echBlock, Bytes: list})...), nil
}

// isPublic reports whether clients take a name as the public one: labels of letters, digits and hyphens, two at least,
// and nothing that could be an address (RFC 9849, 6.1.7).
func isPublic(name string) bool {
	labels := strings.Split(name, ".")
	if len(name) > 253 || len(labels) < 2 {
		return false
	}
	for _, l := range labels {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' || strings.Trim(strings.ToLower(l), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	last := labels[len(labels)-1]
	return strings.Trim(last, "0123456789") != "" && !strings.HasPrefix(strings.ToLower(last), "0x")
}

// ReadECH reads such a file: its keys, of which there are as many as the list has configurations for that key, and the
// list for DNS. Errors never quote the key.
func ReadECH(text []byte) (keys []ECH, list []byte, err error) {
	var key *ecdh.PrivateKey
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case privateKeys:
			any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			k, ok := any.(*ecdh.PrivateKey)
			if err != nil || !ok || k.Curve() != ecdh.X25519() {
				return nil, nil, errors.New("its PRIVATE KEY is not one of X25519")
			}
			key = k
		case echBlock:
			list = block.Bytes
		}
	}
	switch {
	case key == nil:
		return nil, nil, errors.New("it holds no PRIVATE KEY")
	case list == nil:
		return nil, nil, errors.New("it holds no " + echBlock)
	}
	if keys, err = parseECH(list); err != nil {
		return nil, nil, fmt.Errorf("its %s: %w", echBlock, err)
	}
	for i := range keys {
		if !bytes.Equal(keys[i].public, key.PublicKey().Bytes()) {
			return nil, nil, errors.New("its PRIVATE KEY is not that of its " + echBlock)
		}
		keys[i].private = key.Bytes()
	}
	return keys, list, nil
}

var errECH = errors.New("is cut short")

// take reads a field that begins with its length in so many bytes.
func take(b []byte, size int) (field, rest []byte, err error) {
	if len(b) < size {
		return nil, nil, errECH
	}
	n := int(b[0])
	if size == 2 {
		n = int(binary.BigEndian.Uint16(b))
	}
	if len(b) < size+n {
		return nil, nil, errECH
	}
	return b[size : size+n], b[size+n:], nil
}

// parseECH reads an ECHConfigList. Configurations of other versions are left out, as clients do.
func parseECH(list []byte) (out []ECH, err error) {
	all, rest, err := take(list, 2)
	if err != nil || len(rest) > 0 {
		return nil, errECH
	}
	for len(all) > 0 {
		if len(all) < 4 {
			return nil, errECH
		}
		body, rest, err := take(all[2:], 2)
		if err != nil {
			return nil, err
		}
		config := all[:4+len(body)]
		all = rest
		if binary.BigEndian.Uint16(config) != echVersion {
			continue
		}
		one, err := parseECHConfig(body)
		if err != nil {
			return nil, err
		}
		one.Config = config
		out = append(out, one)
	}
	if len(out) == 0 {
		return nil, errors.New("has no configuration of a known version")
	}
	return out, nil
}

func parseECHConfig(b []byte) (ECH, error) {
	if len(b) < 3 {
		return ECH{}, errECH
	}
	out := ECH{ID: b[0]}
	if kem := binary.BigEndian.Uint16(b[1:]); kem != kemX25519 {
		return ECH{}, fmt.Errorf("is for KEM %#04x, not X25519", kem)
	}
	public, b, err := take(b[3:], 2)
	if err != nil {
		return ECH{}, err
	}
	out.public = public
	suites, b, err := take(b, 2)
	if err != nil || len(suites) == 0 || len(suites)%4 != 0 || len(b) == 0 {
		return ECH{}, errECH
	}
	name, b, err := take(b[1:], 1) // behind the longest name
	if err != nil {
		return ECH{}, err
	}
	if _, b, err = take(b, 2); err != nil || len(b) > 0 || len(name) == 0 {
		return ECH{}, errECH
	}
	out.PublicName = string(name)
	return out, nil
}

// loadECH reads the files of tls.ech. The first one's configurations are sent to clients that come with another's.
func loadECH(paths []string) (keys []tls.EncryptedClientHelloKey, names []string, err error) {
	keys = []tls.EncryptedClientHelloKey{} // crypto/tls wants one that is not nil
	var errs []error
	for i, path := range paths {
		text, err := read("ech", path)
		var found []ECH
		if err == nil {
			if found, _, err = ReadECH(text); err != nil {
				err = fmt.Errorf("%s: %w", path, err)
			}
		}
		if err != nil {
			var at *fieldError
			if errors.As(err, &at) {
				err = at.err
			}
			errs = append(errs, fmt.Errorf("ech[%d]: %w", i, err))
			continue
		}
		for _, e := range found {
			keys = append(keys, tls.EncryptedClientHelloKey{Config: e.Config, PrivateKey: e.private, SendAsRetry: i == 0})
			names = append(names, e.PublicName)
		}
	}
	return keys, names, errors.Join(errs...)
}
