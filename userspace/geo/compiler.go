package geo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/bermedge/berm/maps"
)

// Report is what a table was made of.
type Report struct {
	Files     []FileReport    `json:"files"`
	Overrides int             `json:"overrides"`
	Networks  int             `json:"networks"` // autonomous systems in the files, of which Size says how many have room
	Size      maps.PrefixSize `json:"size"`
	Took      time.Duration   `json:"took"` // from files to the table in memory, or to its effect
}

// Build compiles databases of countries and of networks, and overrides, into a table. Classes are the numbers of the rate
// classes that overrides may name. Nothing changes in the kernel half.
func Build(ctx context.Context, c Config, classes map[string]uint32) (*maps.PrefixTable, Report, error) {
	start := time.Now()
	report := Report{Overrides: len(c.Overrides)}
	if err := c.Validate(); err != nil {
		return nil, report, err
	}
	all, err := readAll(ctx, c.Databases, countries, &report)
	if err != nil {
		return nil, report, err
	}
	nets, err := readAll(ctx, c.Networks, networks, &report)
	if err != nil {
		return nil, report, err
	}
	all.four, all.six = overlay(all.four, nets.four, inherit), overlay(all.six, nets.six, inherit)
	rules, err := c.rules(classes)
	if err != nil {
		return nil, report, err
	}
	all.four, all.six = overlay(all.four, rules.four, inherit), overlay(all.six, rules.six, inherit)
	report.Networks = all.number(maps.PrefixNetworks, maps.PrefixRecords)

	table := maps.NewPrefixTable()
	for _, e := range all.four {
		if err := table.Add4(uint32(e.first), uint32(e.last), e.record); err != nil {
			return nil, report, err
		}
	}
	for _, e := range all.six {
		if err := table.Add6(e.first, e.last, e.record); err != nil {
			return nil, report, err
		}
	}
	if err := table.Finish(); err != nil {
		return nil, report, err
	}
	report.Size, report.Took = table.Size(), time.Since(start)
	return table, report, nil
}

// Read reads the databases alone, and reports by the file's keys which cannot be used.
func (c Config) Read() error {
	var errs []error
	for _, list := range []struct {
		key   string
		paths []string
		of    subject
	}{{"databases", c.Databases, countries}, {"networks", c.Networks, networks}} {
		for i, path := range list.paths {
			if _, _, err := readFile(path, list.of); err != nil {
				errs = append(errs, fmt.Errorf("geo.%s[%d]: %w", list.key, i, err))
			}
		}
	}
	return errors.Join(errs...)
}

// readAll reads databases about one subject; later ones win.
func readAll(ctx context.Context, paths []string, s subject, report *Report) (all layer, err error) {
	for _, path := range paths {
		if err := ctx.Err(); err != nil {
			return all, err
		}
		l, file, err := readFile(path, s)
		if err != nil {
			return all, err
		}
		report.Files = append(report.Files, file)
		all.four, all.six = overlay(all.four, l.four, replace), overlay(all.six, l.six, replace)
	}
	return all, nil
}

// rules are the overrides as a layer.
func (c Config) rules(classes map[string]uint32) (l layer, err error) {
	var errs []error
	for i, o := range c.Overrides {
		e, wrong := o.parse()
		if len(wrong) > 0 {
			errs = append(errs, inOverride(i, wrong)...)
			continue
		}
		if o.Rate != "" {
			id, ok := classes[o.Rate]
			if !ok {
				errs = append(errs, fmt.Errorf("geo.overrides[%d]: rate class %q: %w (define it under rate.classes)", i, o.Rate, maps.ErrNotFound))
			}
			e.record.RateClass = uint8(id)
		}
		e.line, e.record.Rule = uint32(i+1), uint16(i+1)
		l.add(e)
	}
	if err := errors.Join(errs...); err != nil {
		return l, err
	}
	if l.four, err = flatten(l.four, inherit); err != nil {
		return l, fmt.Errorf("geo.overrides: %w", err)
	}
	if l.six, err = flatten(l.six, inherit); err != nil {
		return l, fmt.Errorf("geo.overrides: %w", err)
	}
	return l, nil
}

// Compiler keeps the kernel half's prefix table and geo policies as the configuration says.
type Compiler struct{ maps *maps.Set }

// New makes a compiler that writes to these maps.
func New(set *maps.Set) *Compiler { return &Compiler{maps: set} }

// Load compiles the databases and overrides and makes the table live; policies stay as they
// are. Rate classes that overrides name must exist. On an error the table before it stays.
func (c *Compiler) Load(ctx context.Context, cfg Config) (Report, error) {
	return c.install(ctx, cfg, func() error { return nil })
}

// Apply does what Load does and makes the file's policies live, too: all or nothing. Policies
// that are gone from the file remain until Prune, since VIPs may still name them.
func (c *Compiler) Apply(ctx context.Context, cfg Config) (Report, error) {
	policies, err := cfg.policies()
	if err != nil {
		return Report{}, err
	}
	return c.install(ctx, cfg, func() error { return c.putPolicies(policies) })
}

// install builds a table, has the caller do what comes before it, and swaps it in.
func (c *Compiler) install(ctx context.Context, cfg Config, before func() error) (Report, error) {
	start := time.Now()
	classes, err := c.maps.Rates.IDs()
	if err != nil {
		return Report{}, err
	}
	table, report, err := Build(ctx, cfg, classes)
	if err != nil {
		return report, err
	}
	if err := before(); err != nil {
		return report, err
	}
	if err := c.maps.Prefixes.Install(table); err != nil {
		return report, err
	}
	report.Took = time.Since(start)
	return report, nil
}

// putPolicies writes policies; when one cannot be, those before it go back to what they were.
func (c *Compiler) putPolicies(policies []maps.GeoPolicy) (err error) {
	old, err := c.maps.Geo.ListPolicies()
	if err != nil {
		return err
	}
	var undo []func() error
	defer func() {
		if err != nil {
			for _, fn := range undo {
				err = errors.Join(err, fn())
			}
		}
	}()
	for _, p := range policies {
		i := slices.IndexFunc(old, func(o maps.GeoPolicy) bool { return o.Name == p.Name })
		if i >= 0 && old[i].Owner != maps.OwnerFile {
			return fmt.Errorf("geo.policies.%s: name %w by a policy of the %s: remove that one or choose another name", p.Name, maps.ErrOverlap, old[i].Owner)
		}
		if _, err := c.maps.Geo.PutPolicy(p); err != nil {
			return fmt.Errorf("geo.policies.%s: %w", p.Name, err)
		}
		undo = append(undo, func() error {
			if i < 0 {
				return c.maps.Geo.RemovePolicy(p.Name)
			}
			_, err := c.maps.Geo.PutPolicy(old[i])
			return err
		})
	}
	return nil
}

// Prune removes the file's policies that are not in it any more. Call it once the VIPs are
// as the file says: one that a VIP still names stays.
func (c *Compiler) Prune(cfg Config) error {
	policies, err := c.maps.Geo.ListPolicies()
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range policies {
		if _, stays := cfg.Policies[p.Name]; stays || p.Owner != maps.OwnerFile {
			continue
		}
		if err := c.maps.Geo.RemovePolicy(p.Name); err != nil && !errors.Is(err, maps.ErrInUse) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
