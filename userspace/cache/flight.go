package cache

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"time"

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

// errLeft ends a fetch that nobody waits for.
var errLeft = errors.New("every client left before the origin answered")

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
	f.res.Body.Close() //nolint:errcheck // nothing was written to it
}

// fly fetches, tells the waiters, and brings the body home.
func (c *Cache) fly(f *flight) {
	defer c.running.Done()
	defer c.stats.inFlight.Add(-1)
	if f.old != nil {
		defer f.old.body.Close()
	}
	res, t, err := c.send(f, true)
	if err == nil && res.StatusCode == http.StatusNotModified && f.old != nil && !sameTag(res.Header.Get("Etag"), f.old.etag) {
		// It confirmed something else than we have (RFC 9111, 4.3.4): ask for the object itself.
		res.Body.Close() //nolint:errcheck // a 304 has no body
		res, t, err = c.send(f, false)
	}
	switch {
	case err != nil && f.staleServes(t.got):
		c.land(f, nil, result{obj: f.old, share: true, detail: detailStaleIfError})
	case err != nil:
		c.land(f, nil, result{err: err, share: true})
	case res.StatusCode == http.StatusNotModified && f.old != nil:
		res.Body.Close() //nolint:errcheck // a 304 has no body
		c.confirmed(f, res, t)
	case res.StatusCode >= 500 && f.staleServes(t.got):
		res.Body.Close() //nolint:errcheck // not wanted
		c.land(f, nil, result{obj: f.old, share: true, status: res.StatusCode, detail: detailStaleIfError})
	default:
		c.arrived(f, res, t)
		return // the response has taken over f's context
	}
	f.cancel()
}

// send asks the origin: for the object, or whether the old one has changed.
func (c *Cache) send(f *flight, validate bool) (*http.Response, times, error) {
	c.stats.fetches.Add(1)
	ask := f.fetch
	ask.Header = f.fetch.Header.Clone() // the origin's client changes it
	if validate && f.old != nil {
		validating(ask.Header, f.old)
	}
	t := times{sent: c.clock.Now()}
	res, err := c.origin.Fetch(f.ctx, &ask)
	t.got = c.clock.Now()
	return res, t, err
}

// sameTag reports whether a 304's tag, if it has one, is the stored one's.
func sameTag(tag, stored string) bool { return tag == "" || opaque(tag) == opaque(stored) }

// staleServes reports whether the old object may stand in for an error.
func (f *flight) staleServes(now time.Time) bool {
	return f.old != nil && f.old.staleFor(now) <= f.old.policy.sie
}

// confirmed has the old object used anew.
func (c *Cache) confirmed(f *flight, res *http.Response, t times) {
	c.stats.revalidated.Add(1)
	h := f.old.merged(res.Header)
	rl := c.cfg.rule(f.fetch.Header, &http.Response{StatusCode: f.old.status, Header: h, ContentLength: -1, ProtoMajor: 2}, t)
	o := f.old.refreshed(h, f.key, rl, t.got)
	if !rl.store {
		c.stats.reject(rl.why)
		if f.old.res != nil {
			c.store.removeBody(f.old.res, f.old.body)
		}
		o = f.old.refreshed(h, f.key, rl, t.got)
	}
	c.land(f, ifStored(rl, o), result{obj: o, share: rl.share, status: http.StatusNotModified})
}

func ifStored(rl ruling, o *object) *object {
	if !rl.store {
		return nil
	}
	return o
}

// land resolves f: stores o unless it is nil, gives every waiter its hold on the result, and lets them go.
func (c *Cache) land(f *flight, o *object, r result) {
	if o != nil && !c.store.bank.charge(o.meta) {
		c.stats.reject(whyMemory)
		o = nil
	}
	sh := c.store.shard([]byte(f.key))
	var gone []*object
	sh.mu.Lock()
	if o != nil && f.doomed {
		gone, o = append(gone, &object{meta: o.meta}), nil
		c.stats.reject(whyPurgedInWait)
	}
	if o != nil {
		gone = c.store.put(sh, sh.resourceLocked(f.key), o)
		c.stats.stored.Add(1)
		r.stored = !o.pass
	}
	c.unregister(sh, f)
	f.result, f.landed = r, true
	if r.obj != nil {
		f.obj.body.hold(f.holders())
	}
	left := f.leaderGone && r.res != nil
	close(f.ready)
	sh.mu.Unlock()
	c.store.letGo(gone)
	if left {
		f.closeResponse()
	}
}

// holders is how many requests will use the object.
func (f *flight) holders() int {
	switch {
	case f.share:
		return f.waiters
	case f.leaderGone || f.background:
		return 0
	}
	return 1
}

// arrived handles a response with a body of its own.
func (c *Cache) arrived(f *flight, res *http.Response, t times) {
	rl := c.cfg.rule(f.fetch.Header, res, t)
	vary, ok := parseVary(res.Header["Vary"])
	varyKey := ""
	if ok && len(vary) > 0 {
		varyKey = string(appendVaryKey(nil, vary, f.fetch.Header))
	}
	if !rl.store {
		c.stats.reject(rl.why)
	}
	if !rl.store && !rl.share {
		if f.background {
			c.land(f, nil, result{})
			f.res = res
			f.closeResponse()
			return
		}
		mark := c.mark(f, vary, varyKey, t.got)
		if rl.why == whyAuthorized { // says nothing about requests without
			mark = nil
		}
		c.land(f, mark, result{res: res})
		return
	}
	o := newObject(res, f.key, rl, vary, varyKey, t.got)
	o.body = newBody(&c.store.bank, res.ContentLength)
	c.land(f, ifStored(rl, o), result{obj: o, share: rl.share, status: res.StatusCode})
	c.fill(f, o, res.Body)
	f.cancel()
}

// mark returns the mark that what f fetched cannot be kept, or nil when such marks are off.
func (c *Cache) mark(f *flight, vary []string, varyKey string, now time.Time) *object {
	if c.cfg.PassTTL == 0 {
		return nil
	}
	return newMark(f.key, vary, varyKey, now.Add(c.cfg.PassTTL))
}

// fill brings the body home. What breaks off, or turns out too large to keep, leaves the store.
func (c *Cache) fill(f *flight, o *object, src io.ReadCloser) {
	b := o.body
	defer b.Close()
	defer src.Close() //nolint:errcheck // nothing was written to it
	stored := f.stored
	forget := func(why pipeline.Reason) {
		if stored {
			c.store.removeBody(o.res, b)
			c.stats.reject(why)
			stored = false
		}
	}
	err := c.pump(f, b, src, forget)
	if b.finish(err) != nil {
		forget(whyIncomplete)
		c.stats.incomplete.Add(1)
		return
	}
	if stored {
		c.store.settle(o)
	}
}

// pump copies src to b until its end.
func (c *Cache) pump(f *flight, b *body, src io.Reader, forget func(pipeline.Reason)) error {
	window := false
	narrow := func(why pipeline.Reason) {
		forget(why)
		b.discard()
		window = true
	}
	if !f.stored {
		narrow("")
	}
	var probe [1]byte
	for {
		p, err := b.room()
		switch {
		case errors.Is(err, errNoRoom):
			narrow(whyMemory)
			continue
		case err != nil:
			return err
		case p == nil: // all has come: only the end, or too much, can follow
			p = probe[:]
		}
		n, err := src.Read(p)
		if n > 0 && &p[0] == &probe[0] {
			return errors.New("the origin sent more than it announced")
		}
		b.commit(n)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if !window && b.size > int64(c.cfg.MaxObject) {
			narrow(whyTooLarge)
		}
		if window {
			if err := b.throttle(f.ctx); err != nil {
				return err
			}
		}
	}
}
