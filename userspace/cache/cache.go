// Package cache decides what may be stored, stores it, finds it and forgets it: RFC 9111 with RFC 5861 (stale answers),
// RFC 9211 (Cache-Status) and RFC 9213 (CDN-Cache-Control), in memory.
//
// It is a stage. A GET or HEAD that an object answers ends here. A GET that none answers joins the fetch under way for
// it, or starts one; both follow the body as it comes. Everything else goes on to the origin stage, and unsafe methods
// take the objects they change with them.
//
// A hit costs a bounded number of allocations: see TestHitAllocations.
package cache

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/bermedge/berm/userspace/clock"
	"github.com/bermedge/berm/userspace/pipeline"
)

// Reasons with which the cache ends an exchange.
const (
	ReasonHit          pipeline.Reason = "hit"
	ReasonStale        pipeline.Reason = "stale"            // a hit on a stale object
	ReasonMiss         pipeline.Reason = "miss"             // fetched for this request
	ReasonCollapsed    pipeline.Reason = "collapsed"        // fetched for another one at the same time
	ReasonRevalidated  pipeline.Reason = "revalidated"      // the origin confirmed the object
	ReasonStaleIfError pipeline.Reason = "stale_if_error"   // the origin failed, a stale object stood in
	ReasonUncacheable  pipeline.Reason = "uncacheable"      // fetched for this request, and not kept
	ReasonOnlyIfCached pipeline.Reason = "only_if_cached"   // the client wanted no fetch: 504
	ReasonBadRange     pipeline.Reason = "range"            // no part of the range lies in the object: 416
	ReasonClientGone   pipeline.Reason = "client_gone"      // before there was an answer
	ReasonOriginError  pipeline.Reason = "origin_error"     // a failure that names no reason of its own
	detailStaleIfError pipeline.Reason = ReasonStaleIfError // in Cache-Status
)

// Cache is the stage.
type Cache struct {
	cfg     Config
	origin  pipeline.Fetcher
	clock   clock.Clock
	store   *store
	stats   *counters
	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup
}

// New makes a cache that fetches from origin.
func New(cfg Config, origin pipeline.Fetcher, clk clock.Clock) (*Cache, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c := &Cache{cfg: cfg, origin: origin, clock: clk, stats: &counters{}}
	c.store = newStore(int64(cfg.Memory), c.stats)
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c, nil
}

// Close ends all fetches and waits for them. Requests must have ended before.
func (c *Cache) Close() error {
	c.stop()
	c.running.Wait()
	return nil
}

// Name returns "cache".
func (*Cache) Name() string { return "cache" }

// request is what the cache knows of an exchange; it lives on the stack of Run.
type request struct {
	now    time.Time
	key    []byte
	cc     directives
	auth   bool
	noWait bool   // has waited in vain: fetch by itself
	fwd    string // why it cannot be answered from memory, in RFC 9211's words
}

// room returns memory for a Vary key.
func (rq *request) room() []byte { return rq.key[len(rq.key):] }

// maxTries is how often a request looks again after waiting in vain. Each wait teaches it something (a Vary, a mark),
// so that the third try rarely happens.
const maxTries = 4

// Run answers from memory, waits for a fetch, or passes on.
func (c *Cache) Run(x *pipeline.Exchange) pipeline.Action {
	h := x.R.Header
	get := x.R.Method == http.MethodGet
	if !get && x.R.Method != http.MethodHead {
		return c.unsafe(x)
	}
	if h["If-Match"] != nil || h["If-Unmodified-Since"] != nil || x.R.ContentLength != 0 {
		return c.pass(x, "bypass")
	}
	rq := request{now: x.Start, cc: noDirectives, auth: h["Authorization"] != nil}
	if cc := h["Cache-Control"]; cc != nil {
		rq.cc = parseDirectives(cc)
		if c.cfg.IgnoreClient {
			only := rq.cc.onlyIfCached
			rq.cc = noDirectives
			rq.cc.onlyIfCached = only
		}
	}
	if x.Start.IsZero() {
		rq.now = c.clock.Now()
	}
	x.Scratch = appendKey(x.Scratch[:0], x.Tenant, x.Scheme, x.Host, x.R.URL)
	rq.key = x.Scratch

	var newer *object
	for range maxTries {
		o, why := newer, found
		if o == nil {
			o, why = c.store.lookup(rq.key, h, rq.room())
		}
		newer = nil
		if act, done := c.answer(x, &rq, o, why); done {
			return act
		}
		if !get || o != nil && o.pass && rq.now.Before(o.policy.born) {
			return c.letPass(x, &rq, o)
		}
		var f *flight
		var lead bool
		newer, f, lead = c.join(x, &rq, o)
		if o != nil && o.body != nil {
			o.body.Close()
		}
		if f == nil {
			continue
		}
		begun := c.clock.Now()
		act, done := c.await(x, &rq, f, lead)
		x.OriginWait += c.clock.Now().Sub(begun)
		if done {
			return act
		}
		rq.now = c.clock.Now()
	}
	if newer != nil && newer.body != nil {
		newer.body.Close()
	}
	return c.pass(x, rq.fwd)
}

// letPass sends a request on that memory cannot answer and that is not to wait for others.
func (c *Cache) letPass(x *pipeline.Exchange, rq *request, o *object) pipeline.Action {
	if o != nil && o.body != nil {
		o.body.Close()
	}
	return c.pass(x, rq.fwd)
}

// answer answers from memory if it can. o is held, and released unless it becomes the answer or answer says that it
// is not done.
func (c *Cache) answer(x *pipeline.Exchange, rq *request, o *object, why miss) (pipeline.Action, bool) {
	switch {
	case why == missVary:
		rq.fwd = "vary-miss"
	case o == nil || o.pass:
		rq.fwd = "uri-miss"
	case rq.auth && !o.policy.authorized:
		rq.fwd = "bypass" // stored for those who did not say who they are
		if !rq.cc.onlyIfCached {
			return c.letPass(x, rq, o), true
		}
	case c.satisfies(rq, o):
		return c.hit(x, rq, o), true
	case o.standsIn(rq.now) && !rq.cc.noCache:
		return c.hit(x, rq, o), true
	case c.usableStale(rq, o):
		c.renew(x, rq, o)
		return c.hit(x, rq, o), true
	}
	if rq.cc.onlyIfCached {
		if o != nil && o.body != nil {
			o.body.Close()
		}
		x.CacheStatus = c.cfg.Name + "; detail=" + string(ReasonOnlyIfCached)
		x.SetExtra("Cache-Status", x.CacheStatus)
		return x.Refuse(http.StatusGatewayTimeout, ReasonOnlyIfCached), true
	}
	return pipeline.Next, false
}

// satisfies reports whether o may answer without asking the origin, by its own policy and the client's wishes
// (RFC 9111, 4 and 5.2.1). Otherwise it notes why not.
func (c *Cache) satisfies(rq *request, o *object) bool {
	rq.fwd = "stale"
	if o.policy.validate {
		return false
	}
	stale := o.staleFor(rq.now)
	if stale >= 0 {
		return rq.cc.maxStale != unset && stale <= rq.cc.maxStale && !o.policy.mustReval && !rq.cc.noCache
	}
	if rq.cc.noCache || rq.cc.maxAge != unset && o.policy.age(rq.now) > rq.cc.maxAge && rq.cc.maxStale == unset ||
		rq.cc.minFresh != unset && -stale < rq.cc.minFresh {
		rq.fwd = "request"
		return false
	}
	return true
}

// usableStale reports whether o may answer while it is fetched anew.
func (c *Cache) usableStale(rq *request, o *object) bool {
	stale := o.staleFor(rq.now)
	return stale >= 0 && stale <= o.policy.swr && o.policy.swr > 0 && !o.policy.validate &&
		!rq.cc.noCache && rq.cc.maxAge == unset && rq.cc.minFresh == unset
}

// standsIn reports whether o stands in for an origin that has just failed.
func (o *object) standsIn(now time.Time) bool {
	return now.UnixNano() < o.retry.Load() && o.staleFor(now) <= o.policy.sie
}

// await waits for a flight and answers with what it brings. It reports false when that is not for this request.
func (c *Cache) await(x *pipeline.Exchange, rq *request, f *flight, lead bool) (pipeline.Action, bool) {
	select {
	case <-f.ready:
	case <-x.R.Context().Done():
		c.leave(f, lead)
		return x.Refuse(statusClientGone, ReasonClientGone), true
	}
	switch {
	case f.err != nil:
		return c.refuse(x, rq, f), true
	case f.obj != nil && (lead || f.share):
		if !lead && !f.obj.fits(x.R.Header, rq.room()) {
			f.obj.body.Close()
			return pipeline.Next, false
		}
		return c.landed(x, rq, f, lead), true
	case f.res != nil && lead:
		return c.private(x, rq, f), true
	}
	rq.noWait = true
	return pipeline.Next, false
}

// statusClientGone is what logs say of a client that left; it is never seen by one.
const statusClientGone = 499

// fits reports whether a request with header h selects this variant.
func (o *object) fits(h http.Header, scratch []byte) bool {
	return len(o.vary) == 0 || string(appendVaryKey(scratch, o.vary, h)) == o.varyKey
}

// refuse answers for a flight that failed.
func (c *Cache) refuse(x *pipeline.Exchange, rq *request, f *flight) pipeline.Action {
	c.stats.failed.Add(1)
	status, why := http.StatusBadGateway, ReasonOriginError
	var fail *pipeline.Failure
	if errors.As(f.err, &fail) {
		status, why = fail.Status, fail.Reason
	}
	x.CacheStatus = c.cfg.Name + "; fwd=" + rq.fwd + "; detail=" + string(why)
	x.SetExtra("Cache-Status", x.CacheStatus)
	return x.Refuse(status, why)
}

// Purge forgets everything stored for a URL: all variants, at once. Without a scheme it stands for http and https.
// Fetches under way still answer their waiters but are not stored. It returns how many objects it forgot.
func (c *Cache) Purge(tenant uint32, url string) (int, error) {
	keys, err := keysOf(tenant, url)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, key := range keys {
		n += c.store.purge(key)
	}
	c.stats.purged.Add(uint64(n))
	return n, nil
}

// PurgeTenant forgets everything stored for a tenant, and returns how many objects that were.
func (c *Cache) PurgeTenant(tenant uint32) int {
	want := string(appendTenant(nil, tenant))
	n := c.store.purgeIf(func(key string) bool { return key[:keyPrefix] == want })
	c.stats.purged.Add(uint64(n))
	return n
}
