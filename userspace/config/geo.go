package config

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	bermmaps "github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/control"
)

// Geo is the section geo.
type Geo struct {
	Databases []string             `yaml:"databases"` // MaxMind's format, or CSV
	Policies  map[string]GeoPolicy `yaml:"policies"`
	Overrides []GeoOverride        `yaml:"overrides"`
}

// GeoPolicy says what a VIP does with each country.
type GeoPolicy struct {
	Fallback string   `yaml:"fallback"`
	Allow    []string `yaml:"allow"`
	Drop     []string `yaml:"drop"`
	Shadow   []string `yaml:"shadow"`
	Mark     []string `yaml:"mark"`
}

// GeoOverride says what the operator knows better than the databases.
type GeoOverride struct {
	Prefix  netip.Prefix     `yaml:"prefix"`
	Country bermmaps.Country `yaml:"country"`
	ACL     bermmaps.Action  `yaml:"acl"`
	Rate    string           `yaml:"rate"`
}

func defaultGeo() Geo { return Geo{} }

func presetGeo(d *decoder) { preset(d, GeoPolicy{Fallback: "allow"}) }

// Policy turns a policy into the maps' form.
func (p GeoPolicy) Policy(name string) (bermmaps.GeoPolicy, error) {
	out, err := control.GeoPolicy{Name: name, Fallback: p.Fallback, Allow: p.Allow, Drop: p.Drop, Shadow: p.Shadow, Mark: p.Mark}.Rules()
	out.Owner = bermmaps.OwnerFile
	return out, err
}

func (c *Config) checkGeo(d *decoder) {
	for i, path := range c.Geo.Databases {
		if fi, err := os.Stat(path); err != nil {
			d.report(fmt.Sprintf("geo.databases[%d]", i), fmt.Sprintf("%s cannot be read: %v", path, err), "")
		} else if !fi.Mode().IsRegular() || fi.Size() == 0 {
			d.report(fmt.Sprintf("geo.databases[%d]", i), path+" is no file with content", "")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Geo.Policies)) {
		key := "geo.policies." + name
		if err := bermmaps.CheckName(name); err != nil {
			d.report(key, err.Error(), "")
		}
		_, err := c.Geo.Policies[name].Policy(name)
		d.reportTree(key, err)
	}
	seen := map[netip.Prefix]int{}
	for i, o := range c.Geo.Overrides {
		at := fmt.Sprintf("geo.overrides[%d]", i)
		switch first, twice := seen[o.Prefix.Masked()]; {
		case !o.Prefix.IsValid():
			d.report(at+".prefix", "is missing", "")
		case o.Prefix != o.Prefix.Masked():
			d.report(at+".prefix", fmt.Sprintf("%s has bits beyond its length", o.Prefix), "did you mean "+o.Prefix.Masked().String()+"?")
		case twice:
			d.report(at+".prefix", fmt.Sprintf("%s is already geo.overrides[%d]'s", o.Prefix, first), "")
		}
		seen[o.Prefix.Masked()] = i
		named(d, at+".rate", "rate class", o.Rate, c.Rate.Classes)
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
