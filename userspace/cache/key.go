package cache

import (
	"encoding/binary"
	"fmt"
	"net/url"
	"strings"

	"github.com/bermedge/berm/userspace/pipeline"
)

// A key is the tenant's number in four bytes, then the URL in normal form:
//
//	scheme "://" host path ["?" query]
//
// Host is in lower case without the scheme's default port (pipeline.NormalHost). In path and query the hex digits of
// escapes are in upper case, and escaped unreserved characters are written plainly (RFC 3986, 6.2.2.2): nothing else
// is equivalent everywhere. The origin is asked for the path in this same form, so that no two spellings that it
// would tell apart can meet in one key.

// keyPrefix is the length of a key's tenant.
const keyPrefix = 4

func appendKey(dst []byte, tenant uint32, scheme, host string, u *url.URL) []byte {
	dst = appendTenant(dst, tenant)
	dst = append(dst, scheme...)
	dst = append(dst, "://"...)
	dst = append(dst, host...)
	return appendTarget(dst, u)
}

func appendTenant(dst []byte, tenant uint32) []byte {
	return binary.BigEndian.AppendUint32(dst, tenant)
}

// appendTarget appends the path and query of u in normal form.
func appendTarget(dst []byte, u *url.URL) []byte {
	path := u.RawPath // set by net/url when it differs from the usual encoding of Path
	if path == "" {
		path = u.EscapedPath()
	}
	if path == "" {
		path = "/"
	}
	dst = appendNormal(dst, path, pathPlain)
	if u.RawQuery != "" || u.ForceQuery {
		dst = append(dst, '?')
		dst = appendNormal(dst, u.RawQuery, queryPlain)
	}
	return dst
}

// charset is a set of ASCII characters, a bit for each.
type charset struct{ low, high uint64 }

func (s charset) has(c byte) bool {
	return c < 64 && s.low>>c&1 != 0 || c >= 64 && c < 128 && s.high>>(c-64)&1 != 0
}

// The characters that need no escape.
const (
	digitBits  = (1<<10 - 1) << '0'
	letterBits = (1<<26-1)<<('A'-64) | (1<<26-1)<<('a'-64)

	unreservedLow  = digitBits | 1<<'-' | 1<<'.'
	unreservedHigh = letterBits | 1<<('_'-64) | 1<<('~'-64)
	pathLow        = unreservedLow | 1<<'/' | 1<<'!' | 1<<'$' | 1<<'&' | 1<<'\'' | 1<<'(' | 1<<')' | 1<<'*' | 1<<'+' | 1<<',' | 1<<';' | 1<<'=' | 1<<':'
	pathHigh       = unreservedHigh | 1<<('@'-64) | 1<<('['-64) | 1<<(']'-64)
	queryLow       = pathLow | 1<<'?' | 1<<'%' // net/url lets a "%" of a query stand that escapes nothing
	queryHigh      = pathHigh | 1<<('\\'-64) | 1<<('^'-64) | 1<<('`'-64) | 1<<('{'-64) | 1<<('|'-64) | 1<<('}'-64)
)

var (
	unreserved = charset{unreservedLow, unreservedHigh}
	pathPlain  = charset{pathLow, pathHigh}
	queryPlain = charset{queryLow, queryHigh}
)

// appendNormal appends s with its escapes in normal form. What is not in plain is escaped: on the wire it would be
// anyway.
func appendNormal(dst []byte, s string, plain charset) []byte {
	const digits = "0123456789ABCDEF"
	for i := 0; i < len(s); i++ {
		c := s[i]
		escape := !plain.has(c)
		if c == '%' && i+2 < len(s) {
			if hi, lo := unhex(s[i+1]), unhex(s[i+2]); hi >= 0 && lo >= 0 {
				c = byte(hi<<4 | lo)
				escape = !unreserved.has(c)
				i += 2
			}
		}
		if escape {
			dst = append(dst, '%', digits[c>>4], digits[c&15])
		} else {
			dst = append(dst, c)
		}
	}
	return dst
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	}
	return -1
}

// keysOf returns the keys that raw, a URL as an operator writes it, stands for. Without a scheme ("//host/path" or
// "host/path") it stands for http and https.
func keysOf(tenant uint32, raw string) ([]string, error) {
	schemes := []string{"http", "https"}
	rest := strings.TrimPrefix(raw, "//")
	if scheme, after, ok := strings.Cut(raw, "://"); ok {
		scheme = strings.ToLower(scheme)
		if scheme != "http" && scheme != "https" {
			return nil, fmt.Errorf("url %q: the scheme must be http or https", raw)
		}
		schemes, rest = []string{scheme}, after
	}
	var keys []string
	for _, scheme := range schemes {
		u, err := url.Parse(scheme + "://" + rest)
		if err != nil {
			return nil, fmt.Errorf("url %q: %w", raw, err)
		}
		host, ok := pipeline.NormalHost(scheme, u.Host)
		if !ok {
			return nil, fmt.Errorf("url %q: %q is not a host", raw, u.Host)
		}
		keys = append(keys, string(appendKey(nil, tenant, scheme, host, u)))
	}
	return keys, nil
}
