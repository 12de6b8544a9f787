package cache

import (
	"net/http"
	"strings"
	"time"

	"github.com/bermedge/berm/userspace/pipeline"
)

// ruling is what a response's head says about keeping it (RFC 9111, 3 and 4.2).
type ruling struct {
	store  bool            // may be kept
	share  bool            // may also answer the requests that waited for it
	why    pipeline.Reason // why it is not kept
	policy policy
}

// policy is how long an object may be used, and how after that.
type policy struct {
	born       time.Time     // when it would have had age 0
	lifetime   time.Duration // fresh while its age is below
	swr, sie   time.Duration // how long after that, while revalidating and on errors
	validate   bool          // never used without asking the origin: no-cache
	mustReval  bool          // max-stale of a client does not help
	authorized bool          // may answer requests with Authorization
}

// Reasons for not keeping a response, as metrics count them.
const (
	whyMethod       pipeline.Reason = "method"
	whyStatus       pipeline.Reason = "status"        // one that needs an explicit freshness, or no whole response
	whyNoStore      pipeline.Reason = "no_store"      // said by either side
	whyPrivate      pipeline.Reason = "private"       //
	whyAuthorized   pipeline.Reason = "authorization" // of the request, not allowed for by the response
	whySetCookie    pipeline.Reason = "set_cookie"    // without an explicit "public" or shared freshness
	whyVary         pipeline.Reason = "vary"          // "*" or unreadable
	whyNoFreshness  pipeline.Reason = "no_freshness"  // neither fresh for any time nor able to be validated
	whyTooLarge     pipeline.Reason = "too_large"     // above max_object
	whyUndelimited  pipeline.Reason = "undelimited"   // ends with the connection: whole or cut, nobody knows
	whyMemory       pipeline.Reason = "memory"        // no room that could be freed
	whyIncomplete   pipeline.Reason = "incomplete"    // the body was cut short
	whyPurgedInWait pipeline.Reason = "purged"        // while it was under way
)

// heuristicStatus says which statuses may get a guessed freshness (RFC 9110, 15.1).
func heuristicStatus(status int) bool {
	switch status {
	case 200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501:
		return true
	}
	return false
}

// understood says which statuses this cache knows the caching rules of (for must-understand).
func understood(status int) bool {
	return heuristicStatus(status) || status == 302 || status == 303 || status == 307
}

// times are when a fetch was sent and its head came.
type times struct{ sent, got time.Time }

// rule decides about a response to a GET. req is the header as it went to the origin.
func (c Config) rule(req http.Header, res *http.Response, t times) ruling {
	h := res.Header
	cc := parseDirectives(h["Cache-Control"])
	targeted, isTargeted := parseTargeted(h["Cdn-Cache-Control"])
	if isTargeted { // RFC 9213, 2.2: then Cache-Control and Expires say nothing to us
		cc = targeted
	}
	r := ruling{policy: c.policyOf(cc, h, res.StatusCode, isTargeted, t)}
	r.why = c.forbids(cc, req, res, isTargeted)
	p := &r.policy
	fresh := p.lifetime > p.age(t.got) && !p.validate
	switch {
	case r.why != "":
	case !explicit(cc, h, isTargeted) && !heuristicStatus(res.StatusCode):
		r.why = whyStatus
	case !fresh && !hasValidator(h) && (p.validate || cc.swr <= 0 && cc.sie <= 0):
		r.why = whyNoFreshness
	}
	r.store = r.why == ""
	// An origin in trouble is not asked once by every waiter: they share its error, and nobody keeps it.
	inTrouble := r.why == whyStatus && res.StatusCode >= 500
	r.share = r.store && fresh || inTrouble
	return r
}

// forbids returns why the response may not be kept at all, or "".
func (c Config) forbids(cc directives, req http.Header, res *http.Response, targeted bool) pipeline.Reason {
	reqCC := parseDirectives(req["Cache-Control"])
	noStore := cc.noStore && (!cc.mustUnderstand || !understood(res.StatusCode)) || !c.IgnoreClient && reqCC.noStore
	_, vary := parseVary(res.Header["Vary"])
	switch {
	case res.StatusCode < 200 || res.StatusCode == 206 || res.StatusCode == 304:
		return whyStatus
	case noStore:
		return whyNoStore
	case cc.mustUnderstand && !understood(res.StatusCode):
		return whyStatus
	case cc.private:
		return whyPrivate
	case req["Authorization"] != nil && !authorizes(cc):
		return whyAuthorized
	case res.Header["Set-Cookie"] != nil && !cc.public && cc.sMaxAge == unset && !targeted:
		return whySetCookie
	case !vary:
		return whyVary
	case undelimited(res):
		return whyUndelimited
	case res.ContentLength > int64(c.MaxObject):
		return whyTooLarge
	}
	return ""
}

// authorizes reports whether the response allows reuse for requests with Authorization (RFC 9111, 3.5).
func authorizes(cc directives) bool { return cc.public || cc.mustRevalidate || cc.sMaxAge != unset }

// explicit reports whether the response itself says how long it is fresh, or that it may be kept.
func explicit(cc directives, h http.Header, targeted bool) bool {
	return cc.sMaxAge != unset || cc.maxAge != unset || cc.public || !targeted && h["Expires"] != nil
}

// undelimited reports whether only the end of the connection ends the body.
func undelimited(res *http.Response) bool {
	return res.ProtoMajor == 1 && res.ContentLength < 0 && len(res.TransferEncoding) == 0
}

func hasValidator(h http.Header) bool {
	return h.Get("Etag") != "" || !parseTime(h.Get("Last-Modified")).IsZero()
}

// policyOf reads freshness and staleness from a head.
func (c Config) policyOf(cc directives, h http.Header, status int, targeted bool, t times) policy {
	date := parseTime(h.Get("Date"))
	if date.IsZero() {
		date = t.got
	}
	p := policy{
		born:       t.got.Add(-initialAge(h, date, t)),
		validate:   cc.noCache,
		mustReval:  cc.mustRevalidate || cc.proxyRevalidate || cc.sMaxAge != unset,
		authorized: authorizes(cc),
		swr:        cc.swr,
		sie:        cc.sie,
	}
	p.lifetime = c.lifetime(cc, h, status, targeted, date)
	// What the response does not say, the file does, unless RFC 9111, 4.2.4 forbids stale answers. An explicit
	// staleness beside s-maxage is taken at its word, as origins mean it.
	forbidden := cc.mustRevalidate || cc.proxyRevalidate || cc.noCache
	if forbidden {
		p.swr, p.sie = 0, 0
	}
	if p.swr == unset {
		p.swr = defaultUnless(p.mustReval, c.StaleWhileRevalidate)
	}
	if p.sie == unset {
		p.sie = defaultUnless(p.mustReval, c.StaleIfError)
	}
	return p
}

func defaultUnless(forbidden bool, d time.Duration) time.Duration {
	if forbidden {
		return 0
	}
	return d
}

// lifetime returns how long the response is fresh (RFC 9111, 4.2.1 and 4.2.2).
func (c Config) lifetime(cc directives, h http.Header, status int, targeted bool, date time.Time) time.Duration {
	switch {
	case cc.sMaxAge != unset:
		return cc.sMaxAge
	case cc.maxAge != unset:
		return cc.maxAge
	case !targeted && h["Expires"] != nil:
		// An unreadable date, "0" for instance, lies in the past (RFC 9111, 5.3).
		if e := parseTime(h.Get("Expires")); !e.IsZero() {
			return max(e.Sub(date), 0)
		}
		return 0
	case !heuristicStatus(status) && !cc.public:
		return 0
	}
	if m := parseTime(h.Get("Last-Modified")); !m.IsZero() && date.After(m) && c.HeuristicLimit > 0 {
		return min(date.Sub(m)/10, c.HeuristicLimit)
	}
	return c.DefaultTTL
}

// initialAge returns the age of a response at the moment it came (RFC 9111, 4.2.3). Date has whole seconds: what
// came in the same second as it was made is not yet a second old.
func initialAge(h http.Header, date time.Time, t times) time.Duration {
	apparent := max(t.got.Truncate(time.Second).Sub(date), 0)
	var said time.Duration
	if v := h["Age"]; len(v) > 0 {
		first, _, _ := strings.Cut(v[0], ",")
		said, _ = deltaSeconds(strings.Trim(first, " \t"))
		said += t.got.Sub(t.sent)
	}
	return max(apparent, said)
}

// age returns how old the object is.
func (p *policy) age(now time.Time) time.Duration { return max(now.Sub(p.born), 0) }

// parseTime reads a date of HTTP; the zero time says that it is absent or malformed.
func parseTime(s string) time.Time {
	if s == "" {
		return time.Time{}
	}
	t, err := http.ParseTime(s)
	if err != nil {
		return time.Time{}
	}
	return t
}
