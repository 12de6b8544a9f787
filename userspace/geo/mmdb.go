package geo

import (
	"errors"
	"fmt"

	"github.com/oschwald/maxminddb-golang/v2"

	"github.com/bermedge/berm/maps"
)

// Databases of various makers keep the country in different places: a code of its own, "country"
// as a text, "country" as a map as MaxMind has it, or, where the address itself is in none (a
// satellite, an anycast block), that of the registration.
var (
	codePath       = []any{"country_code"}
	textPath       = []any{"country"}
	mapPath        = []any{"country", "iso_code"}
	registeredPath = []any{"registered_country", "iso_code"}
)

// readMMDB reads entries from a database in MaxMind's format.
func readMMDB(raw []byte, s subject) (layer, string, error) {
	var l layer
	db, err := maxminddb.OpenBytes(raw)
	if err != nil {
		return l, "", fmt.Errorf("is damaged: %w (download it again)", err)
	}
	defer func() { _ = db.Close() }() // holds nothing but raw
	kind := "MaxMind format, " + db.Metadata.DatabaseType
	if err := checkTree(raw, db.Metadata.NodeCount, db.Metadata.RecordSize); err != nil {
		return l, kind, fmt.Errorf("is damaged: %w (download it again)", err)
	}

	byOffset := map[uintptr]maps.PrefixRecord{} // few different records, many networks
	any := false
	for result := range db.Networks() {
		if err := result.Err(); err != nil {
			return l, kind, fmt.Errorf("is damaged: %w (download it again)", err)
		}
		record, known := byOffset[result.Offset()]
		if !known {
			if record, err = s.recordOf(result); err != nil {
				return l, kind, err
			}
			byOffset[result.Offset()] = record
			any = any || record != (maps.PrefixRecord{})
		}
		e, err := prefixEntry(result.Prefix())
		if err != nil {
			return l, kind, err
		}
		e.record = record
		if s == networks {
			e.sets = setsNetwork
		}
		l.add(e)
	}
	if !any {
		what, use := s.lacks()
		return l, kind, fmt.Errorf("is of type %q, and no record in it has %s: use %s", db.Metadata.DatabaseType, what, use)
	}
	return l, kind, nil
}

// recordOf is what a result tells of the subject.
func (s subject) recordOf(result maxminddb.Result) (r maps.PrefixRecord, err error) {
	if s == networks {
		r.ASN, err = asnOf(result)
		return r, err
	}
	r.Country, err = countryOf(result)
	return r, err
}

// asnOf reads a number as MaxMind has it, or a text such as AS64496.
func asnOf(result maxminddb.Result) (asn uint32, err error) {
	if err := result.DecodePath(&asn, "autonomous_system_number"); err != nil {
		return 0, fmt.Errorf("%s: is damaged: autonomous_system_number: %w (download it again)", result.Prefix(), err)
	}
	if asn != 0 {
		return asn, nil
	}
	var text string
	if err := result.DecodePath(&text, "asn"); err != nil {
		return 0, fmt.Errorf("%s: is damaged: asn: %w (download it again)", result.Prefix(), err)
	}
	if asn, err = parseASN(text); err != nil {
		return 0, fmt.Errorf("%s: %w", result.Prefix(), err)
	}
	return asn, nil
}

func countryOf(result maxminddb.Result) (maps.Country, error) {
	for _, path := range [][]any{codePath, textPath, registeredPath} {
		var code string
		err := result.DecodePath(&code, path...)
		var isMap maxminddb.UnmarshalTypeError
		if errors.As(err, &isMap) {
			err = result.DecodePath(&code, mapPath...)
		}
		if err != nil {
			return 0, fmt.Errorf("%s: is damaged: %w (download it again)", result.Prefix(), err)
		}
		if code == "" {
			continue
		}
		c, err := maps.ParseCountry(code)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", result.Prefix(), err)
		}
		return c, nil
	}
	return 0, nil
}
