package edge

import (
	"context"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/geo"
)

// compiled notes what the prefix table in force was made of.
func (k *kernelLink) compiled(cfg geo.Config, rep geo.Report) {
	info := control.GeoInfo{
		Databases: append(append([]string{}, cfg.Databases...), cfg.Networks...), Prefixes: rep.Overrides, Records: rep.Size.Records,
		Networks: rep.Networks, Numbered: rep.Size.Networks, Loaded: time.Now(), Took: rep.Took.Seconds(),
	}
	for _, f := range rep.Files {
		info.Prefixes += f.Networks4 + f.Networks6
	}
	k.geo.Store(&info)
}

// geoInfo tells what the prefix table in force was made of.
func (k *kernelLink) geoInfo() control.GeoInfo {
	if info := k.geo.Load(); info != nil {
		return *info
	}
	return control.GeoInfo{Databases: []string{}}
}

// compileGeo compiles databases with the file's overrides, and leaves policies alone.
func (k *kernelLink) compileGeo(set *maps.Set) control.GeoCompiler {
	return func(ctx context.Context, databases []string) ([]string, error) {
		cfg := k.e.cfg.Load().Geo
		if len(databases) > 0 {
			cfg.Databases = databases
		}
		rep, err := geo.New(set).Load(ctx, cfg)
		if err != nil {
			return nil, err
		}
		k.compiled(cfg, rep)
		return control.GeoSentences(rep.Overrides, k.geoInfo(), len(databases) > 0), nil
	}
}
