package config

import (
	"fmt"
	"os"
)

// checkGeo reports what the section itself cannot see: files, and the names of other sections.
func (c *Config) checkGeo(d *decoder) {
	d.reportTree("geo", c.Geo.Validate())
	for i, path := range c.Geo.Databases {
		key := fmt.Sprintf("geo.databases[%d]", i)
		switch fi, err := os.Stat(path); {
		case path == "":
		case err != nil:
			d.report(key, fmt.Sprintf("cannot be read: %v", err), "")
		case !fi.Mode().IsRegular() || fi.Size() == 0:
			d.report(key, path+" is no file with content", "")
		}
	}
	for i, o := range c.Geo.Overrides {
		named(d, fmt.Sprintf("geo.overrides[%d].rate", i), "rate class", o.Rate, c.Rate.Classes)
	}
}
