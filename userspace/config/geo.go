package config

import (
	"fmt"
	"net/netip"
	"os"
	"time"
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
		if p, err := netip.ParsePrefix(o.Prefix); err == nil && p != p.Masked() {
			d.report(fmt.Sprintf("geo.overrides[%d].prefix", i), fmt.Sprintf("%s has bits beyond its length", p), "did you mean "+p.Masked().String()+"?")
		}
	}
}

// Steer is the section steer.
type Steer struct {
	SecretFile string     `yaml:"secret_file"` // the site's, the same on all its edges
	Probe      SteerProbe `yaml:"probe"`
}

// SteerProbe is how edges learn of each other's end.
type SteerProbe struct {
	Interval  time.Duration `yaml:"interval"`
	Timeout   time.Duration `yaml:"timeout"`
	Failures  int           `yaml:"failures"`
	Successes int           `yaml:"successes"`
	Port      uint16        `yaml:"port"`
}

func defaultSteer() Steer {
	return Steer{Probe: SteerProbe{Interval: 200 * time.Millisecond, Timeout: 150 * time.Millisecond, Failures: 3, Successes: 2, Port: 9191}}
}

func (c *Config) checkSteer(*decoder) {}
