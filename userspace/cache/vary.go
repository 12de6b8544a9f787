package cache

import (
	"net/http"
	"net/textproto"
	"slices"
	"strings"
)

// maxVary is the most fields that a response may vary by: each makes every lookup dearer.
const maxVary = 8

// parseVary returns the canonical names of the fields in a Vary header, sorted, each once. It reports false for
// "*", a malformed value, or too many: such a response matches no later request.
func parseVary(values []string) ([]string, bool) {
	var names []string
	for _, v := range values {
		for name := range strings.SplitSeq(v, ",") {
			name = strings.Trim(name, " \t")
			if name == "" {
				continue
			}
			if !isFieldName(name) || name == "*" {
				return nil, false
			}
			names = append(names, textproto.CanonicalMIMEHeaderKey(name))
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return names, len(names) <= maxVary
}

// isFieldName reports whether s is a token (RFC 9110, 5.6.2).
func isFieldName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return s != ""
}

// appendVaryKey appends what the fields names say in a request, in normal form: requests with equal keys get the
// same variant. Absent and empty differ. Fields are separated by a byte that no field can hold.
func appendVaryKey(dst []byte, names []string, h http.Header) []byte {
	for _, name := range names {
		values, ok := h[name]
		switch {
		case name == "Accept-Encoding": // absent is "identity": that is what the origin is asked for then
			dst = appendEncodings(dst, values)
		case !ok:
			dst = append(dst, 1)
		default:
			dst = appendList(dst, values, strings.HasPrefix(name, "Accept"))
		}
		dst = append(dst, 0)
	}
	return dst
}

// appendList joins values with commas, without the spaces around them; content negotiation is not case-sensitive.
func appendList(dst []byte, values []string, lower bool) []byte {
	start := len(dst)
	for i, v := range values {
		if i > 0 {
			dst = append(dst, ',')
		}
		for v != "" {
			item, rest, more := strings.Cut(v, ",")
			dst = append(dst, strings.Trim(item, " \t")...)
			if more {
				dst = append(dst, ',')
			}
			v = rest
		}
	}
	if lower {
		for i := start; i < len(dst); i++ {
			if c := dst[i]; c >= 'A' && c <= 'Z' {
				dst[i] = c | 0x20
			}
		}
	}
	return dst
}

// codings are the content codings that origins negotiate, in the order of the normal form. All others are left out:
// no origin that matters answers with them, and each would double the variants.
var codings = [...]string{"br", "gzip", "zstd"}

// acceptedCodings returns which of codings a request accepts, as bits.
func acceptedCodings(values []string) uint8 {
	var accepted, refused uint8
	star := false
	for _, v := range values {
		for v != "" {
			item, rest, _ := strings.Cut(v, ",")
			v = rest
			name, params, _ := strings.Cut(item, ";")
			name = strings.Trim(name, " \t")
			zero := zeroQuality(params)
			if name == "*" {
				star = !zero
				continue
			}
			if strings.EqualFold(name, "x-gzip") {
				name = "gzip"
			}
			for i, c := range codings {
				if strings.EqualFold(name, c) {
					if zero {
						refused |= 1 << i
					} else {
						accepted |= 1 << i
					}
				}
			}
		}
	}
	if star {
		accepted |= 1<<len(codings) - 1
	}
	return accepted &^ refused
}

// zeroQuality reports whether parameters hold a quality of 0: "q=0", "q=0.0", up to three digits.
func zeroQuality(params string) bool {
	for params != "" {
		p, rest, _ := strings.Cut(params, ";")
		params = rest
		name, val, _ := strings.Cut(p, "=")
		if strings.EqualFold(strings.Trim(name, " \t"), "q") {
			val = strings.Trim(val, " \t")
			return val != "" && strings.Trim(val, "0.") == "" && val[0] == '0'
		}
	}
	return false
}

// appendEncodings appends the normal form of an Accept-Encoding: the known codings that it accepts, or "identity".
func appendEncodings(dst []byte, values []string) []byte {
	accepted := acceptedCodings(values)
	if accepted == 0 {
		return append(dst, "identity"...)
	}
	sep := ""
	for i, c := range codings {
		if accepted&(1<<i) != 0 {
			dst = append(dst, sep...)
			dst = append(dst, c...)
			sep = ", "
		}
	}
	return dst
}
