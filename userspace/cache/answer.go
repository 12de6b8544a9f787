package cache

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/bermedge/berm/userspace/pipeline"
)

// hit answers with a stored object.
func (c *Cache) hit(x *pipeline.Exchange, rq *request, o *object) pipeline.Action {
	if coming(o) {
		rq.fwd = "miss" // of which kind, the request that began the fetch knows
		c.stats.collapsed.Add(1)
		return c.finish(x, o, c.forwarded(rq, o, result{}, false), ReasonCollapsed)
	}
	why := ReasonHit
	if !o.fresh(rq.now) {
		why = ReasonStale
		c.stats.staleHits.Add(1)
	}
	c.stats.hits.Add(1)
	c.stats.hitBytes.Add(uint64(max(o.length(), 0)))
	return c.finish(x, o, o.headAt(rq.now, c.cfg.Name), why)
}

// landed answers with what a flight brought.
func (c *Cache) landed(x *pipeline.Exchange, rq *request, f *flight, lead bool) pipeline.Action {
	why := ReasonMiss
	switch {
	case f.detail == detailStaleIfError:
		why = ReasonStaleIfError
		c.stats.staleErrors.Add(1)
	case !lead:
		why = ReasonCollapsed
		c.stats.collapsed.Add(1)
	case f.status == http.StatusNotModified:
		why = ReasonRevalidated
		c.stats.misses.Add(1)
	default:
		c.stats.misses.Add(1)
	}
	return c.finish(x, f.obj, c.forwarded(rq, f.obj, f.result, lead), why)
}

// forwarded returns the head for a request that led or joined a fetch: made for it alone.
func (c *Cache) forwarded(rq *request, o *object, r result, lead bool) *head {
	status := c.cfg.Name + "; fwd=" + rq.fwd
	if r.status != 0 {
		status += "; fwd-status=" + strconv.Itoa(r.status)
	}
	if r.stored {
		status += "; stored"
	}
	if !lead {
		status += "; collapsed"
	}
	if r.detail != "" {
		status += "; detail=" + string(r.detail)
	}
	return o.newHead(c.clock.Now(), status)
}

// finish turns an object and a head into the answer: a 304, a part, or the whole. The hold on o goes to the body.
func (c *Cache) finish(x *pipeline.Exchange, o *object, h *head, why pipeline.Reason) pipeline.Action {
	if o.body.broken() { // before this request has had any of it
		o.body.Close()
		c.stats.failed.Add(1)
		x.CacheStatus = h.status
		x.SetExtra("Cache-Status", h.status)
		return x.Refuse(http.StatusBadGateway, ReasonOriginError)
	}
	x.Status, x.Head, x.Body, x.CacheStatus = o.status, h.fields, o.body, h.status
	if o.status != http.StatusOK {
		return x.Answer(why)
	}
	req := x.R.Header
	if req["If-None-Match"] != nil || req["If-Modified-Since"] != nil {
		if notModified(req, o.etag, o.modified, o.date) {
			x.Status, x.Head = http.StatusNotModified, h.short
			return x.Answer(why)
		}
	}
	if r := req["Range"]; r != nil && x.R.Method == http.MethodGet && rangeApplies(req, o.etag, o.modified, o.date) {
		return c.part(x, o, h, r[0], why)
	}
	return x.Answer(why)
}

// part answers a Range. While the body comes, one range of a known length is cut from it; anything else gets the
// whole, which is always allowed.
func (c *Cache) part(x *pipeline.Exchange, o *object, h *head, field string, why pipeline.Reason) pipeline.Action {
	size := o.length()
	whole := o.body.whole.Load()
	if size < 0 {
		return x.Answer(why)
	}
	var store [maxSpans]span
	spans, form := parseRange(field, size, store[:])
	switch {
	case form == rangeIgnore || len(spans) > 1 && !whole:
		return x.Answer(why)
	case form == rangeUnsatisfiable:
		x.SetExtra("Content-Range", "bytes */"+strconv.FormatInt(size, 10))
		x.SetExtra("Cache-Status", h.fields[len(h.fields)-1].Values...)
		return x.Refuse(http.StatusRequestedRangeNotSatisfiable, ReasonBadRange)
	}
	x.Status = http.StatusPartialContent
	p := &part{body: o.body, spans: append([]span(nil), spans...), size: size}
	if len(spans) > 1 {
		p.boundary = rand.Text()
		p.kind = x.Header("Content-Type")
		x.SetExtra("Content-Type", "multipart/byteranges; boundary="+p.boundary)
	} else {
		x.SetExtra("Content-Range", contentRange(spans[0], size))
	}
	x.SetExtra("Content-Length", strconv.FormatInt(p.length(), 10))
	x.Body = p
	return x.Answer(why)
}

// part is one or more spans of a body, as a Body.
type part struct {
	body     *body
	spans    []span
	size     int64
	boundary string // of several
	kind     string // the object's Content-Type
}

func contentRange(s span, size int64) string {
	return fmt.Sprintf("bytes %d-%d/%d", s.start, s.end-1, size)
}

// opening is what comes before a span of several.
func (p *part) opening(s span) string {
	kind := ""
	if p.kind != "" {
		kind = "Content-Type: " + p.kind + "\r\n"
	}
	return "\r\n--" + p.boundary + "\r\n" + kind + "Content-Range: " + contentRange(s, p.size) + "\r\n\r\n"
}

func (p *part) closing() string { return "\r\n--" + p.boundary + "--\r\n" }

func (p *part) length() (n int64) {
	for _, s := range p.spans {
		n += s.end - s.start
		if p.boundary != "" {
			n += int64(len(p.opening(s)))
		}
	}
	if p.boundary != "" {
		n += int64(len(p.closing()))
	}
	return n
}

// Send sends the spans.
func (p *part) Send(x *pipeline.Exchange) (sent int64, err error) {
	text := func(s string) error {
		n, err := x.W.Write([]byte(s))
		sent += int64(n)
		return err
	}
	for _, s := range p.spans {
		if p.boundary != "" {
			if err := text(p.opening(s)); err != nil {
				return sent, fmt.Errorf("send to the client: %w", err)
			}
		}
		n, err := p.body.sendSpan(x, x.W, s)
		sent += n
		if err != nil {
			return sent, err
		}
	}
	if p.boundary != "" {
		if err := text(p.closing()); err != nil {
			return sent, fmt.Errorf("send to the client: %w", err)
		}
	}
	return sent, nil
}

// Close lets go of the object's body.
func (p *part) Close() { p.body.Close() }

// private answers with a response that is this request's alone. A range of it is asked for anew, as such: the
// origin's whole object is not ours to cut.
func (c *Cache) private(x *pipeline.Exchange, rq *request, f *flight) pipeline.Action {
	req, res := x.R.Header, f.res
	if req["Range"] != nil {
		f.closeResponse()
		return c.pass(x, rq.fwd)
	}
	c.stats.misses.Add(1)
	upstream := res.Header["Cache-Status"]
	x.CacheStatus = c.cfg.Name + "; fwd=" + rq.fwd + "; fwd-status=" + strconv.Itoa(res.StatusCode)
	x.Status, x.Head = res.StatusCode, pipeline.Fields(nil, res.Header)
	x.SetExtra("Cache-Status", append(upstream[:len(upstream):len(upstream)], x.CacheStatus)...)
	if res.StatusCode == http.StatusOK && notModified(req, res.Header.Get("Etag"), parseTime(res.Header.Get("Last-Modified")), parseTime(res.Header.Get("Date"))) {
		f.closeResponse()
		x.Status = http.StatusNotModified
		x.Head = shortened(x.Head)
		return x.Answer(ReasonUncacheable)
	}
	x.Body = pipeline.NewStream(x.R.Context(), res, f.cancel)
	return x.Answer(ReasonUncacheable)
}

// pass sends a request on to the origin stage, to come back as it is.
func (c *Cache) pass(x *pipeline.Exchange, fwd string) pipeline.Action {
	c.stats.passed.Add(1)
	x.CacheStatus = c.cfg.Name + "; fwd=" + fwd
	x.OnAnswer(c.noteStatus)
	return pipeline.Next
}

// noteStatus adds our member to the Cache-Status of what came back, with what became of the request.
func (c *Cache) noteStatus(x *pipeline.Exchange) {
	if x.OriginStatus != 0 {
		x.CacheStatus += "; fwd-status=" + strconv.Itoa(x.OriginStatus)
	} else {
		x.CacheStatus += "; detail=" + string(x.Reason)
	}
	var upstream []string
	for _, f := range x.Head {
		if f.Name == "Cache-Status" {
			upstream = f.Values
		}
	}
	x.SetExtra("Cache-Status", append(upstream[:len(upstream):len(upstream)], x.CacheStatus)...)
}

// unsafe passes a request with another method on. One that may have changed something takes what is stored of it
// along, and of what its answer names on the same host (RFC 9111, 4.4).
func (c *Cache) unsafe(x *pipeline.Exchange) pipeline.Action {
	if m := x.R.Method; m != http.MethodOptions && m != http.MethodTrace {
		x.OnAnswer(c.invalidate)
	}
	return c.pass(x, "method")
}

func (c *Cache) invalidate(x *pipeline.Exchange) {
	if x.Status < 200 || x.Status > 399 {
		return
	}
	base := &url.URL{Scheme: x.Scheme, Host: x.Host, Path: x.R.URL.Path, RawPath: x.R.URL.RawPath}
	targets := []*url.URL{x.R.URL}
	for _, name := range [...]string{"Location", "Content-Location"} {
		v := x.Header(name)
		if v == "" {
			continue
		}
		if u, err := base.Parse(v); err == nil && u.Scheme == x.Scheme {
			if host, ok := pipeline.NormalHost(u.Scheme, u.Host); ok && host == x.Host {
				targets = append(targets, u)
			}
		}
	}
	for _, u := range targets {
		n := c.store.purge(string(appendKey(nil, x.Tenant, x.Scheme, x.Host, u)))
		c.stats.purged.Add(uint64(n))
	}
}
