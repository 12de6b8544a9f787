package dictionary

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/dunglas/httpsfv"
)

// use is what Use-As-Dictionary says: what an answer is a dictionary for.
type use struct {
	match        pattern
	destinations []string // Sec-Fetch-Dest; empty: any
}

// errNotRaw is about dictionaries in a format of their own, of which RFC 9842 defines none.
var errNotRaw = errors.New("type is not raw")

// parseUse reads Use-As-Dictionary (RFC 9842, 2.1). An id is the client's to repeat and needs nothing here.
func parseUse(values []string) (u use, err error) {
	fields, err := httpsfv.UnmarshalDictionary(values)
	if err != nil {
		return u, fmt.Errorf("use-as-dictionary: %w", err)
	}
	match, ok := text(fields, "match")
	if !ok {
		return u, errors.New("use-as-dictionary: match is missing or no string")
	}
	if u.match, err = parsePattern(match); err != nil {
		return u, fmt.Errorf("use-as-dictionary: match: %w", err)
	}
	if m, ok := fields.Get("type"); ok {
		if item, ok := m.(httpsfv.Item); !ok || item.Value != httpsfv.Token("raw") {
			return u, fmt.Errorf("use-as-dictionary: %w", errNotRaw)
		}
	}
	if m, ok := fields.Get("match-dest"); ok {
		list, ok := m.(httpsfv.InnerList)
		if !ok {
			return u, errors.New("use-as-dictionary: match-dest is no list")
		}
		for _, item := range list.Items {
			d, ok := item.Value.(string)
			if !ok || d != "" && !isDestination(d) {
				return u, fmt.Errorf("use-as-dictionary: match-dest: %v is no destination", item.Value)
			}
			u.destinations = append(u.destinations, d)
		}
	}
	return u, nil
}

func text(fields *httpsfv.Dictionary, name string) (string, bool) {
	m, ok := fields.Get(name)
	if !ok {
		return "", false
	}
	item, ok := m.(httpsfv.Item)
	if !ok {
		return "", false
	}
	s, ok := item.Value.(string)
	return s, ok
}

// isDestination reports whether s can be a request destination: a word of letters.
func isDestination(s string) bool {
	return s != "" && len(s) <= 32 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz") == ""
}

// field returns what Use-As-Dictionary has to say for a rule.
func (u use) field() string {
	s := `match="` + strings.ReplaceAll(u.match.text, `"`, `\"`) + `"`
	if len(u.destinations) > 0 {
		s += `, match-dest=("` + strings.Join(u.destinations, `" "`) + `")`
	}
	return s
}

// covers reports whether a request is one that the dictionary is for.
func (u use) covers(r *http.Request) bool {
	if !u.match.matches(r.URL.EscapedPath()) {
		return false
	}
	to := r.Header["Sec-Fetch-Dest"]
	return len(u.destinations) == 0 || len(to) != 1 || slices.Contains(u.destinations, to[0])
}

// available returns the hash of the dictionary that a client has (Available-Dictionary; RFC 9842, 2.2).
func available(h http.Header) (sum [32]byte, ok bool) {
	values := h["Available-Dictionary"]
	if len(values) != 1 {
		return sum, false
	}
	item, err := httpsfv.UnmarshalItem(values)
	if err != nil {
		return sum, false
	}
	b, ok := item.Value.([]byte)
	if !ok || len(b) != len(sum) {
		return sum, false
	}
	return [32]byte(b), true
}

// accepts reports whether a client takes dcz, which "*" does not stand for: only who names it knows what it is.
func accepts(h http.Header) bool {
	for _, v := range h["Accept-Encoding"] {
		for item := range strings.SplitSeq(v, ",") {
			name, params, _ := strings.Cut(item, ";")
			if strings.EqualFold(strings.Trim(name, " \t"), coding) {
				return !refused(params)
			}
		}
	}
	return false
}

// refused reports whether parameters hold a quality of 0.
func refused(params string) bool {
	for p := range strings.SplitSeq(params, ";") {
		name, value, _ := strings.Cut(p, "=")
		if strings.EqualFold(strings.Trim(name, " \t"), "q") {
			value = strings.Trim(value, " \t")
			return value == "" || strings.Trim(value, "0.") == ""
		}
	}
	return false
}

// readable reports whether whoever asks may read the answer anyway, as far as the client says what kind of request it
// is. Sizes of encoded answers tell about what is in them and in the dictionary, so pages of other sites get none
// (RFC 9842, 9.3).
func readable(h http.Header) bool {
	switch site := h["Sec-Fetch-Site"]; len(site) {
	case 0:
		return true
	case 1:
		return site[0] == "same-origin" || site[0] == "none"
	default:
		return false
	}
}
