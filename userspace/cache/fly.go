package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

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
		res.Body.Close() // a 304 has no body
		res, t, err = c.send(f, false)
	}
	switch {
	case err != nil && f.staleServes(t.got):
		c.land(f, nil, result{obj: f.old, share: true, detail: detailStaleIfError})
	case err != nil:
		c.land(f, nil, result{err: err, share: true})
	case res.StatusCode == http.StatusNotModified && f.old != nil:
		res.Body.Close() // a 304 has no body
		c.confirmed(f, res, t)
	case res.StatusCode >= 500 && f.staleServes(t.got):
		res.Body.Close() // not wanted
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

// retryAfter is how long a stale object goes on standing in for an origin that failed before the origin is asked
// again: else every request for it would wait for the failure anew.
const retryAfter = time.Second

// sameTag reports whether a 304's tag, if it has one, is the stored one's.
func sameTag(tag, stored string) bool { return tag == "" || opaque(tag) == opaque(stored) }

// staleServes reports whether the old object may stand in for an error.
func (f *flight) staleServes(now time.Time) bool {
	if f.old == nil || f.old.staleFor(now) > f.old.policy.sie {
		return false
	}
	f.old.retry.Store(now.Add(retryAfter).UnixNano())
	return true
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
	o.body.rest = c.rest(f, res)
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

// rest returns what fetches the end of a response's body, for a client that would hold up others; nil where its tag does not
// say that what comes then is of the same body.
func (c *Cache) rest(f *flight, res *http.Response) func(context.Context, int64) (io.ReadCloser, error) {
	tag := res.Header.Get("Etag")
	if res.StatusCode != http.StatusOK || !isStrong(tag) {
		return nil
	}
	return func(ctx context.Context, from int64) (io.ReadCloser, error) {
		c.stats.fetches.Add(1)
		ask := f.fetch
		ask.Header = f.fetch.Header.Clone()
		ask.Header["Range"], ask.Header["If-Range"] = []string{fmt.Sprintf("bytes=%d-", from)}, []string{tag}
		res, err := c.origin.Fetch(ctx, &ask)
		if err != nil {
			return nil, err
		}
		err = errors.New("the origin has another body now, or gives no parts of it")
		switch same := res.Header.Get("Etag") == tag; {
		case same && res.StatusCode == http.StatusPartialContent && isRest(res.Header.Get("Content-Range"), from):
			return res.Body, nil
		case same && res.StatusCode == http.StatusOK:
			if _, err = io.CopyN(io.Discard, res.Body, from); err == nil {
				return res.Body, nil
			}
		}
		res.Body.Close() // nothing was written to it
		return nil, err
	}
}

// isRest reports whether a Content-Range goes from an offset to the end: an origin may send less than it was asked for
// (RFC 9110, section 15.3.7), and a body of unknown length would end there as if it were whole.
func isRest(contentRange string, from int64) bool {
	var first, last, length int64
	n, _ := fmt.Sscanf(contentRange, "bytes %d-%d/%d", &first, &last, &length)
	return n == 3 && first == from && last == length-1
}
