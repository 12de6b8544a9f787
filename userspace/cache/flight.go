package cache

import (
	"context"
	"net/http"
	"slices"

	"github.com/bermedge/berm/userspace/pipeline"
)

// flight is one fetch that any number of requests wait for. They wait for its head only: then an object exists whose
// body they follow as it comes, and new requests find that object in the store. The flight runs on a goroutine of its
// own, so that no request's end is the fetch's end.
type flight struct {
	key        string
	fetch      pipeline.Fetch // with the header of the request that began it, without the client's conditions
	vary       []string       // what the resource was known to vary by, and
	varyKey    string         // what that request said about it
	old        *object        // being validated, held; or nil
	background bool           // goes on with nobody waiting
	ctx        context.Context
	cancel     context.CancelFunc
	ready      chan struct{}

	// Guarded by the shard's lock until ready is closed, fixed afterwards.
	waiters    int
	leaderGone bool
	doomed     bool // purged meanwhile: answer, but do not store
	landed     bool // ready is closed

	result
}

// result is what a flight brought.
type result struct {
	obj    *object // what it answers with, held once for each that may use it; or
	res    *http.Response
	err    error
	share  bool // for all that waited; else obj and res are the leader's alone
	stored bool
	status int             // the origin's
	detail pipeline.Reason // what else Cache-Status should say
}

// join returns an object that came up since old was looked at, held; or a place in a flight, and whether the caller
// leads it.
func (c *Cache) join(x *pipeline.Exchange, rq *request, old *object) (newer *object, f *flight, lead bool) {
	sh := c.store.shard(rq.key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	r := sh.resources[string(rq.key)]
	if o, _ := r.match(x.R.Header, rq.room()); o != nil && o != old {
		if o.body != nil {
			o.body.hold(1)
		}
		return o, nil, false
	}
	alone := rq.noWait || rq.auth || old != nil && old.alone
	if r != nil && !alone {
		for _, f := range r.flights {
			if f.fits(x.R.Header, rq.room()) {
				f.waiters++
				return nil, f, false
			}
		}
	}
	f = c.newFlight(x, rq, old)
	f.waiters = 1
	if !alone {
		c.register(sh, f)
	}
	c.launch(f)
	return nil, f, true
}

// renew validates o without anybody waiting, unless that is under way.
func (c *Cache) renew(x *pipeline.Exchange, rq *request, o *object) {
	sh := c.store.shard(rq.key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	r := sh.resources[string(rq.key)]
	if r == nil {
		return
	}
	for _, f := range r.flights {
		if f.fits(x.R.Header, rq.room()) {
			return
		}
	}
	f := c.newFlight(x, rq, o)
	f.background = true
	c.register(sh, f)
	c.launch(f)
}

func (c *Cache) register(sh *shard, f *flight) {
	r := sh.resourceLocked(f.key)
	if len(r.variants) > 0 {
		f.vary = r.variants[0].vary
		f.varyKey = string(appendVaryKey(nil, f.vary, f.fetch.Header))
	}
	r.flights = append(r.flights, f)
}

// newFlight makes a flight for a request: the whole object, without the client's own conditions.
func (c *Cache) newFlight(x *pipeline.Exchange, rq *request, old *object) *flight {
	f := &flight{key: string(rq.key), fetch: *pipeline.NewFetch(x), ready: make(chan struct{})}
	f.fetch.Method, f.fetch.Body, f.fetch.Length = http.MethodGet, nil, 0
	f.fetch.Target = string(appendTarget(nil, x.R.URL))
	h := f.fetch.Header
	for _, name := range conditionals {
		delete(h, name)
	}
	h["Accept-Encoding"] = []string{string(appendEncodings(nil, h["Accept-Encoding"]))}
	if old != nil && !old.pass {
		old.body.hold(1)
		f.old = old
	}
	f.ctx, f.cancel = context.WithCancel(c.ctx)
	return f
}

func (c *Cache) launch(f *flight) {
	c.stats.inFlight.Add(1)
	c.running.Add(1)
	go c.fly(f)
}

// fits reports whether a request with header h may wait for f.
func (f *flight) fits(h http.Header, scratch []byte) bool {
	return len(f.vary) == 0 || string(appendVaryKey(scratch, f.vary, h)) == f.varyKey
}

// leave gives up a place in f, or what it has brought meanwhile.
func (c *Cache) leave(f *flight, lead bool) {
	sh := c.store.shard([]byte(f.key))
	sh.mu.Lock()
	if f.landed {
		sh.mu.Unlock()
		if f.obj != nil && (lead || f.share) {
			f.obj.body.Close()
		}
		if f.res != nil && lead {
			f.closeResponse()
		}
		return
	}
	f.waiters--
	f.leaderGone = f.leaderGone || lead
	if f.waiters == 0 && !f.background {
		c.unregister(sh, f) // nobody may join what is about to be cancelled
		f.cancel()
	}
	sh.mu.Unlock()
}

func (c *Cache) unregister(sh *shard, f *flight) {
	if r := sh.resources[f.key]; r != nil {
		r.flights = slices.DeleteFunc(r.flights, func(o *flight) bool { return o == f })
		sh.drop(r)
	}
}

func (f *flight) closeResponse() {
	f.cancel()
	f.res.Body.Close() // nothing was written to it
}
