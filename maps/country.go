package maps

import "fmt"

// Country is an ISO 3166-1 alpha-2 code as the kernel half numbers it; 0 is unknown.
type Country uint16

const countries = 1024 // BERM_COUNTRIES

// ParseCountry reads a two-letter code in either case; "" and "--" are unknown.
func ParseCountry(s string) (Country, error) {
	if s == "" || s == "--" {
		return 0, nil
	}
	if len(s) == 2 {
		a, b := s[0]&^0x20, s[1]&^0x20
		if a >= 'A' && a <= 'Z' && b >= 'A' && b <= 'Z' && isLetter(s[0]) && isLetter(s[1]) {
			return Country(1 + uint16(a-'A')*26 + uint16(b-'A')), nil
		}
	}
	return 0, fmt.Errorf("country %q: want two letters (ISO 3166-1), such as DE", s)
}

func isLetter(c byte) bool { return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' }

// String is the two-letter code, or "--" for unknown.
func (c Country) String() string {
	if c == 0 || c > 26*26 {
		return "--"
	}
	n := c - 1
	return string([]byte{byte('A' + n/26), byte('A' + n%26)})
}

// MarshalText gives the two-letter code.
func (c Country) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads a two-letter code.
func (c *Country) UnmarshalText(b []byte) (err error) {
	*c, err = ParseCountry(string(b))
	return err
}
