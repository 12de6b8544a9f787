//go:build quiccc

package transport

import "golang.org/x/net/http2"

// NeverIndexes says whether what is secret stays out of the tables of h2.
const NeverIndexes = true

func neverIndex(h2 *http2.Server) { h2.NeverIndexed = secret } //nolint:staticcheck // as in h2.go
