//go:build !quiccc

package transport

import "golang.org/x/net/http2"

// NeverIndexes says whether what is secret stays out of the tables of h2.
const NeverIndexes = false

func neverIndex(*http2.Server) {}
