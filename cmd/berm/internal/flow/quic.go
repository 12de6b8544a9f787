package flow

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Of the headers of QUIC, as all its versions have them (RFC 8999).
const (
	longHeader = 0x80
	longBefore = 6  // bytes of a long header before the connection ID; the last is its length
	longestID  = 20 // a short header does not tell
)

// ConnectionID is the connection ID that a QUIC packet is for, of a UDP payload in hex: with spaces and
// line breaks, as dumps have them. long says that it stood in a long header, and so is exact.
func ConnectionID(payload string) (cid string, long bool, err error) {
	b, err := hex.DecodeString(strings.Join(strings.Fields(payload), ""))
	if err != nil {
		return "", false, fmt.Errorf("payload: %w (want hex digits)", err)
	}
	if len(b) == 0 {
		return "", false, errors.New("payload is empty")
	}
	if b[0]&longHeader == 0 {
		b = b[1:]
		return hex.EncodeToString(b[:min(len(b), longestID)]), false, nil
	}
	if len(b) < longBefore || len(b) < longBefore+int(b[longBefore-1]) {
		return "", true, fmt.Errorf("payload: a long header, but its %d bytes end before the connection ID does", len(b))
	}
	return hex.EncodeToString(b[longBefore:][:b[longBefore-1]]), true, nil
}
