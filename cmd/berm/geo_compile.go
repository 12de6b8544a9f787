package main

import (
	"context"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/geo"
)

// compiler does what the daemon does for berm geo load, with the databases and overrides of
// the configuration. Policies are left alone: berm geo policy and reloads own them.
func (a *app) compiler(set *maps.Set) control.GeoCompiler {
	return func(ctx context.Context, databases []string) ([]string, error) {
		c, err := a.configuration()
		if err != nil {
			return nil, err
		}
		g := c.Geo
		if len(databases) > 0 {
			g.Databases = databases
		}
		if len(g.Databases)+len(g.Networks)+len(g.Overrides) == 0 {
			return nil, badInput("geo load: the configuration names no database: name a file, or list files under geo.databases in %s", a.settings().config)
		}
		r, err := geo.New(set).Load(ctx, g)
		if err != nil {
			return nil, err
		}
		return loaded(r), nil
	}
}

// loaded says what a table was made of.
func loaded(r geo.Report) []string {
	var s []string
	for _, f := range r.Files {
		line := sprintf("read %s (%s): %d IPv4 and %d IPv6 networks", f.Path, f.Kind, f.Networks4, f.Networks6)
		if f.TooFine > 0 {
			line += sprintf("; %d below a /64 left out", f.TooFine)
		}
		s = append(s, line)
	}
	if r.Overrides > 0 {
		s = append(s, sprintf("applied %s of the configuration", plural(r.Overrides, "override")))
	}
	if r.Networks > 0 {
		s = append(s, control.NetworksSentence(r.Networks, r.Size.Networks))
	}
	return append(s, sprintf("the prefix table is in force: %s, after %s", plural(r.Size.Records, "record"), r.Took.Round(time.Millisecond)))
}
