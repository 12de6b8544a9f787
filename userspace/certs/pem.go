package certs

import (
	"encoding/pem"
	"strings"
)

// firstBlock returns the type of the first PEM block, "" when there is none. Parameters that
// openssl writes before an EC key are no block of interest.
func firstBlock(b []byte) string {
	for {
		block, rest := pem.Decode(b)
		switch {
		case block == nil:
			return ""
		case block.Type != "EC PARAMETERS":
			return block.Type
		}
		b = rest
	}
}

// mismatch recognises crypto/tls's complaint about a key that is another certificate's: it has no
// sentinel.
func mismatch(err error) bool {
	return strings.Contains(err.Error(), "does not match public key")
}
