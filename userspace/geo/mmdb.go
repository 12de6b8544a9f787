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
func readMMDB(raw []byte) (layer, string, error) {
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

	byOffset := map[uintptr]maps.Country{} // few different records, many networks
	any := false
	for result := range db.Networks() {
		if err := result.Err(); err != nil {
			return l, kind, fmt.Errorf("is damaged: %w (download it again)", err)
		}
		country, known := byOffset[result.Offset()]
		if !known {
			if country, err = countryOf(result); err != nil {
				return l, kind, err
			}
			byOffset[result.Offset()] = country
			any = any || country != 0
		}
		e, err := prefixEntry(result.Prefix())
		if err != nil {
			return l, kind, err
		}
		e.record.Country = country
		l.add(e)
	}
	if !any {
		return l, kind, fmt.Errorf("is of type %q, and no record in it has a country: use a country or city database", db.Metadata.DatabaseType)
	}
	return l, kind, nil
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
