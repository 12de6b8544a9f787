package geo

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"github.com/bermedge/berm/maps"
)

// FileReport is what a database held.
type FileReport struct {
	Path      string `json:"path"`
	Kind      string `json:"kind"`      // its format, and its type where it names one
	Networks4 int    `json:"networks4"` // entries
	Networks6 int    `json:"networks6"`
	TooFine   int    `json:"too_fine"` // IPv6 entries below a /64, which were left out
}

// maxFile bounds what is read into memory; the largest databases of countries and networks have a tenth of it.
const maxFile = 1 << 30

var mmdbMarker = []byte("\xab\xcd\xefMaxMind.com")

// readFile reads a database of any format that we know. Files are read, not mapped, so that one
// that is overwritten meanwhile gives an error and not a fault.
func readFile(path string, s subject) (layer, FileReport, error) {
	report := FileReport{Path: path}
	raw, err := slurp(path)
	if err != nil {
		return layer{}, report, err
	}
	var l layer
	switch {
	case bytes.Contains(raw, mmdbMarker):
		l, report.Kind, err = readMMDB(raw, s)
	case bytes.HasPrefix(raw, []byte{0x1f, 0x8b}):
		err = errors.New("is compressed with gzip: unpack it first")
	case bytes.HasPrefix(raw, []byte("PK\x03\x04")):
		err = errors.New("is a zip archive: unpack it first")
	case len(bytes.TrimSpace(raw)) == 0:
		err = errors.New("is empty")
	case bytes.IndexByte(raw[:min(len(raw), 4096)], 0) >= 0:
		err = errors.New("is neither a MaxMind-format database nor CSV (truncated, or of another kind): download it again")
	default:
		l, report.Kind, err = readCSV(path, raw, s)
	}
	if err != nil {
		return layer{}, report, fmt.Errorf("geo database %s: %w", path, err)
	}
	report.Networks4, report.Networks6 = len(l.four), len(l.six)
	if err := l.settle(&report, s); err != nil {
		return layer{}, report, fmt.Errorf("geo database %s: %w", path, err)
	}
	return l, report, nil
}

func slurp(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, fmt.Errorf("geo database: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("geo database %s: is not a file", path)
	case info.Size() > maxFile:
		return nil, fmt.Errorf("geo database %s: %d bytes, at most %d are read: is this one that tells countries or networks?", path, info.Size(), maxFile)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("geo database: %w", err)
	}
	return raw, nil
}

// settle makes a layer ascend without overlaps, and drops what says nothing.
func (l *layer) settle(report *FileReport, s subject) error {
	for _, family := range []*[]entry{&l.four, &l.six} {
		kept := (*family)[:0]
		for _, e := range *family {
			if e.tooFine {
				report.TooFine++
			} else {
				kept = append(kept, e)
			}
		}
		flat, err := flatten(kept, replace)
		if err != nil {
			return err
		}
		known := flat[:0]
		for _, e := range flat {
			if e.record != (maps.PrefixRecord{}) {
				known = append(known, e)
			}
		}
		*family = known
	}
	if len(l.four)+len(l.six) == 0 {
		what, _ := s.lacks()
		return fmt.Errorf("says nothing about any address: no entry has %s", what)
	}
	return nil
}
