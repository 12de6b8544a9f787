package geo

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bermedge/berm/maps"
)

// columns are the places of what we need in a line; -1 = not there.
type columns struct{ prefix, first, last, country, geoname, registered, asn int }

// headings are the names of columns in use out there.
var headings = map[string]func(*columns) *int{
	"network": prefixColumn, "prefix": prefixColumn, "cidr": prefixColumn, "ip_prefix": prefixColumn,
	"start": firstColumn, "start_ip": firstColumn, "ip_start": firstColumn, "first": firstColumn,
	"end": lastColumn, "end_ip": lastColumn, "ip_end": lastColumn, "last": lastColumn,
	"country": countryColumn, "country_code": countryColumn, "country_iso_code": countryColumn, "iso_code": countryColumn,
	"asn": asnColumn, "as_number": asnColumn, "autonomous_system_number": asnColumn,
	"geoname_id":                    func(c *columns) *int { return &c.geoname },
	"registered_country_geoname_id": func(c *columns) *int { return &c.registered },
}

func prefixColumn(c *columns) *int  { return &c.prefix }
func firstColumn(c *columns) *int   { return &c.first }
func lastColumn(c *columns) *int    { return &c.last }
func countryColumn(c *columns) *int { return &c.country }
func asnColumn(c *columns) *int     { return &c.asn }

// readCSV reads entries from CSV. path is for messages, and to find MaxMind's locations.
func readCSV(path string, raw []byte, s subject) (layer, string, error) {
	r := newCSV(bytes.TrimPrefix(raw, []byte("\ufeff")))
	var l layer
	var at *columns
	lines := bytes.Count(raw, []byte("\n"))
	var locations map[string]maps.Country
	kind := "CSV"
	for {
		fields, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return l, kind, err // names the line
		}
		line, _ := r.FieldPos(0)
		if at == nil {
			var isHeading bool
			if at, isHeading, err = layout(fields, s); err != nil {
				return l, kind, fmt.Errorf("line %d: %w", line, err)
			}
			if s == countries && at.country < 0 {
				kind = "CSV, GeoLite2 blocks"
				if locations, err = readLocations(path); err != nil {
					return l, kind, err
				}
			}
			if isHeading {
				continue
			}
		}
		e, err := at.entry(fields, s, locations)
		if err != nil {
			return l, kind, fmt.Errorf("line %d: %w", line, err)
		}
		e.line = uint32(line)
		if l.four == nil && !e.six {
			l.four = make([]entry, 0, lines)
		}
		if l.six == nil && e.six {
			l.six = make([]entry, 0, lines-len(l.four))
		}
		l.add(e)
	}
	if len(l.four)+len(l.six) == 0 {
		return l, kind, errors.New("has no entries")
	}
	return l, kind, nil
}

func newCSV(raw []byte) *csv.Reader {
	r := csv.NewReader(bytes.NewReader(raw))
	r.ReuseRecord, r.FieldsPerRecord, r.Comment, r.TrimLeadingSpace = true, -1, '#', true
	return r
}

// layout finds out what a file's columns are, from its first line.
func layout(fields []string, s subject) (at *columns, isHeading bool, err error) {
	at = &columns{-1, -1, -1, -1, -1, -1, -1}
	for i, f := range fields {
		if column, ok := headings[strings.ToLower(strings.TrimSpace(f))]; ok {
			*column(at) = i
			isHeading = true
		}
	}
	hasRange := at.prefix >= 0 || at.first >= 0 && at.last >= 0
	switch {
	case isHeading && hasRange && (s == networks && at.asn >= 0 || s == countries && (at.country >= 0 || at.geoname >= 0)):
		return at, true, nil
	case isHeading:
		return nil, false, fmt.Errorf("the heading %q lacks columns: want network (or start and end) and %s", strings.Join(fields, ","), s.column())
	}
	isAddress := func(i int) bool {
		if i >= len(fields) {
			return false
		}
		_, err := netip.ParseAddr(fields[i])
		return err == nil
	}
	value := 0 // the column of what the file tells
	switch _, err := netip.ParsePrefix(fields[0]); {
	case isAddress(0) && isAddress(1) && len(fields) >= 3:
		at.first, at.last, value = 0, 1, 2
	case len(fields) >= 2 && !isAddress(1) && (err == nil || isAddress(0)):
		at.prefix, value = 0, 1
	default:
		return nil, false, fmt.Errorf("%.60q is neither prefix,%[2]s nor start,end,%[2]s nor a heading that we know", strings.Join(fields, ","), s)
	}
	if s == networks {
		at.asn = value
	} else {
		at.country = value
	}
	return at, false, nil
}

func (at *columns) entry(fields []string, s subject, locations map[string]maps.Country) (e entry, err error) {
	if need := max(at.prefix, at.last, at.country, at.geoname, at.asn); need >= len(fields) {
		return e, fmt.Errorf("%d columns, at least %d are needed", len(fields), need+1)
	}
	if at.prefix >= 0 {
		e, err = parsePrefix(fields[at.prefix])
	} else {
		e, err = parseRange(fields[at.first], fields[at.last])
	}
	if err != nil {
		return e, err
	}
	if s == networks {
		e.sets = setsNetwork
		e.record.ASN, err = parseASN(fields[at.asn])
		return e, err
	}
	if at.country >= 0 {
		e.record.Country, err = maps.ParseCountry(strings.TrimSpace(fields[at.country]))
		return e, err
	}
	for _, column := range []int{at.geoname, at.registered} {
		if column < 0 || column >= len(fields) || fields[column] == "" {
			continue
		}
		c, ok := locations[fields[column]]
		if !ok {
			return e, fmt.Errorf("geoname_id %s is not among the locations: use blocks and locations of one release", fields[column])
		}
		e.record.Country = c
		if c != 0 {
			break
		}
	}
	return e, nil
}

// parsePrefix reads a prefix, or an address that stands for itself.
func parsePrefix(s string) (entry, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return prefixEntry(p)
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return prefixEntry(netip.PrefixFrom(a, a.BitLen()))
	}
	return entry{}, fmt.Errorf("%.60q is not a prefix: want an address and a length, such as 198.51.100.0/24", s)
}

func parseRange(first, last string) (entry, error) {
	f, err := netip.ParseAddr(first)
	if err != nil || f.Zone() != "" {
		return entry{}, fmt.Errorf("%.60q is not an address", first)
	}
	l, err := netip.ParseAddr(last)
	if err != nil || l.Zone() != "" {
		return entry{}, fmt.Errorf("%.60q is not an address", last)
	}
	return rangeEntry(f, l)
}

// readLocations reads the file that MaxMind puts beside its blocks: GeoLite2-Country-Locations-en.csv
// beside GeoLite2-Country-Blocks-IPv4.csv. Countries have the same codes in all languages.
func readLocations(blocks string) (map[string]maps.Country, error) {
	dir, base := filepath.Split(blocks)
	product, _, ok := strings.Cut(base, "-Blocks-")
	if !ok {
		return nil, errors.New("names countries by geoname_id, but not itself …-Blocks-….csv, so that the file …-Locations-en.csv cannot be found: keep MaxMind's file names")
	}
	path := filepath.Join(dir, product+"-Locations-en.csv")
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("its locations: %w (MaxMind packs both into one archive)", err)
	}
	r := newCSV(raw)
	heading, err := r.Read()
	if err != nil {
		return nil, fmt.Errorf("locations %s: %w", path, err)
	}
	id, code := slices.Index(heading, "geoname_id"), slices.Index(heading, "country_iso_code")
	if id < 0 || code < 0 {
		return nil, fmt.Errorf("locations %s: the heading lacks geoname_id or country_iso_code", path)
	}
	out := map[string]maps.Country{}
	for {
		fields, err := r.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("locations %s: %w", path, err)
		}
		line, _ := r.FieldPos(0)
		if max(id, code) >= len(fields) {
			return nil, fmt.Errorf("locations %s: line %d: %d columns, at least %d are needed", path, line, len(fields), max(id, code)+1)
		}
		c, err := maps.ParseCountry(fields[code])
		if err != nil {
			return nil, fmt.Errorf("locations %s: line %d: %w", path, line, err)
		}
		out[strings.Clone(fields[id])] = c
	}
}
