package config

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// checkGeo reports what the section itself cannot see: files, and the names of other sections.
func (c *Config) checkGeo(d *decoder) {
	d.reportTree("geo", c.Geo.Validate())
	checkFiles(d, "geo.databases", c.Geo.Databases)
	checkFiles(d, "geo.networks", c.Geo.Networks)
	for i, o := range c.Geo.Overrides {
		named(d, fmt.Sprintf("geo.overrides[%d].rate", i), "rate class", o.Rate, c.Rate.Classes)
	}
}

// readGeo reads the databases, if they are files with content.
func (c *Config) readGeo(d *decoder) {
	if !slices.ContainsFunc(d.problems, func(p Problem) bool {
		return strings.HasPrefix(p.Key, "geo.databases") || strings.HasPrefix(p.Key, "geo.networks")
	}) {
		d.reportTree("geo", c.Geo.Read())
	}
}

func checkFiles(d *decoder, list string, paths []string) {
	for i, path := range paths {
		key := fmt.Sprintf("%s[%d]", list, i)
		switch fi, err := os.Stat(path); {
		case path == "":
		case err != nil:
			d.report(key, fmt.Sprintf("cannot be read: %v", err), "")
		case !fi.Mode().IsRegular() || fi.Size() == 0:
			d.report(key, path+" is no file with content", "")
		}
	}
}
