package edge

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"sync/atomic"

	"github.com/bermedge/berm/userspace/cache"
	"github.com/bermedge/berm/userspace/cache/dictionary"
	"github.com/bermedge/berm/userspace/clock"
	"github.com/bermedge/berm/userspace/config"
	"github.com/bermedge/berm/userspace/origin"
	"github.com/bermedge/berm/userspace/pipeline"
)

// content is where answers come from: routes, cache and origins, each replaceable under requests.
type content struct {
	clock      clock.Clock
	routes     swap[*pipeline.Routes]
	dictionary swap[*dictionary.Stage]
	cache      swap[*cache.Cache]
	origin     swap[origin.Stage]
	client     fetcher
}

// swap is a stage that can be exchanged for another of its kind.
type swap[S pipeline.Stage] struct{ now atomic.Pointer[S] }

// Name returns the stage's name.
func (s *swap[S]) Name() string { return (*s.now.Load()).Name() }

// Run runs the stage of the moment.
func (s *swap[S]) Run(x *pipeline.Exchange) pipeline.Action { return (*s.now.Load()).Run(x) }

func (s *swap[S]) set(stage S) { s.now.Store(&stage) }

func (s *swap[S]) get() S { return *s.now.Load() }

// fetcher is the origins' client of the moment. A request that was routed by the configuration
// before may still name an origin that the new one lacks: the client before knows it.
type fetcher struct{ now, before atomic.Pointer[origin.Client] }

// Fetch gets an original.
func (f *fetcher) Fetch(ctx context.Context, q *pipeline.Fetch) (*http.Response, error) {
	res, err := f.now.Load().Fetch(ctx, q)
	var fail *pipeline.Failure
	if before := f.before.Load(); before != nil && errors.As(err, &fail) && fail.Reason == origin.ReasonUnknown {
		return before.Fetch(ctx, q)
	}
	return res, err
}

func newContent(cfg *config.Config, clk clock.Clock) (*content, error) {
	c := &content{clock: clk}
	next, err := c.build(nil, cfg)
	if err != nil {
		return nil, err
	}
	c.origin.set(origin.Stage{Client: &c.client})
	next.use()
	return c, nil
}

// edition is content that is built and not yet used. What did not change is nil.
type edition struct {
	c          *content
	routes     *pipeline.Routes
	client     *origin.Client
	dictionary *dictionary.Stage
	cache      *cache.Cache
}

// build makes what differs between two configurations.
func (c *content) build(old, cfg *config.Config) (g *edition, err error) {
	g = &edition{c: c}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.drop())
		}
	}()
	if g.routes, err = pipeline.NewRoutes(cfg.Routes); err != nil {
		return nil, err
	}
	if old == nil || !reflect.DeepEqual(old.Origins, cfg.Origins) || old.Node.Name != cfg.Node.Name {
		if g.client, err = origin.New(cfg.Node.Name, cfg.Origins); err != nil {
			return nil, err
		}
	}
	if old == nil || !reflect.DeepEqual(old.Compression, cfg.Compression) {
		if g.dictionary, err = dictionary.New(cfg.Compression.Dictionaries); err != nil {
			return nil, err
		}
	}
	if old == nil || old.Cache != cfg.Cache {
		g.cache, err = cache.New(cfg.Cache, &c.client, c.clock)
	}
	return g, err
}

// drop forgets an edition that is not used after all.
func (g *edition) drop() error {
	var errs []error
	if g.client != nil {
		errs = append(errs, g.client.Close())
	}
	if g.cache != nil {
		errs = append(errs, g.cache.Close())
	}
	return errors.Join(errs...)
}

// use switches to an edition: origins before the routes that name them.
func (g *edition) use() {
	c := g.c
	if g.client != nil {
		old := c.client.now.Swap(g.client)
		if oldest := c.client.before.Swap(old); oldest != nil {
			_ = oldest.Close() // ends probes; it has no error to tell
		}
	}
	if g.cache != nil {
		c.cache.set(g.cache) // the one before is collected once its requests are done
	}
	if g.dictionary != nil {
		c.dictionary.set(g.dictionary)
	}
	c.routes.set(g.routes)
}

func (c *content) close() error {
	var errs []error
	if p := c.cache.now.Load(); p != nil {
		errs = append(errs, (*p).Close())
	}
	for _, client := range []*origin.Client{c.client.before.Load(), c.client.now.Load()} {
		if client != nil {
			errs = append(errs, client.Close())
		}
	}
	return errors.Join(errs...)
}
