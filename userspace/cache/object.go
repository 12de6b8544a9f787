package cache

import (
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/bermedge/berm/userspace/pipeline"
)

// object is one stored response: a variant of a resource. Everything but its place in the queues (the store's) and
// the shared head is fixed when it is made; a validation makes a new object around the same body.
type object struct {
	res      *resource
	vary     []string // the fields that chose it
	varyKey  string   // and what they said
	status   int
	fields   []pipeline.Field // without Age and without our Cache-Status member
	upstream []string         // Cache-Status members of caches behind us
	etag     string
	modified time.Time // Last-Modified, or zero
	date     time.Time
	policy   policy
	alone    bool  // requests do not wait for each other's validation of it
	pass     bool  // no object but the mark that requests go to the origin side by side (hit-for-miss)
	body     *body // nil for a mark
	meta     int64 // bytes charged for all but the body

	head  atomic.Pointer[head] // of the current second
	retry atomic.Int64         // Unix nanoseconds before which a failing origin is left alone

	// The store's, under its shard's lock.
	prev, next *object
	weight     int64
	freq       uint8
	queue      uint8
	hash       uint64
}

// head is what a hit on an object sends before the body. It holds for one second of age, so that a popular object's
// is made once a second and hits share it.
type head struct {
	age    int64
	whole  bool   // made when the body was whole: then its length is known
	status string // our member of Cache-Status
	fields []pipeline.Field
	short  []pipeline.Field // of a 304
}

// shortNames are the fields of a 304 (RFC 9110, 15.4.5), with Age and Cache-Status.
var shortNames = []string{"Cache-Control", "Content-Location", "Date", "Etag", "Expires", "Vary", "Last-Modified", "Cdn-Cache-Control"}

// Sizes that metadata is charged with, measured by TestMemoryBoundHolds on small objects.
const (
	objectCost = 1000 // object, body, resource, places in maps and queues, ghost, shared head
	fieldCost  = 120  // its place in fields, heads and the value's slice
)

// newObject makes an object of a response's head; the caller has ruled that it may be kept.
func newObject(res *http.Response, key string, rl ruling, vary []string, varyKey string, got time.Time) *object {
	o := &object{status: res.StatusCode, vary: vary, varyKey: varyKey, policy: rl.policy, alone: !rl.share}
	o.setHead(res.Header, got)
	if res.ContentLength >= 0 && res.Header["Content-Length"] == nil && res.StatusCode != http.StatusNoContent {
		o.fields = append(o.fields, pipeline.Field{Name: "Content-Length", Values: []string{strconv.FormatInt(res.ContentLength, 10)}})
	}
	o.meta = o.cost(key)
	return o
}

// newMark makes the mark that requests for something uncacheable do not wait for each other until then.
func newMark(key string, vary []string, varyKey string, until time.Time) *object {
	o := &object{pass: true, vary: vary, varyKey: varyKey, policy: policy{born: until}}
	o.meta = o.cost(key)
	return o
}

func (o *object) cost(key string) int64 {
	n := objectCost + 3*len(key) + len(o.varyKey)
	for _, f := range o.fields {
		n += fieldCost + len(f.Name)
		for _, v := range f.Values {
			n += 2*len(v) + 16
		}
	}
	return int64(n)
}

// setHead takes over a response's header.
func (o *object) setHead(h http.Header, got time.Time) {
	o.fields = make([]pipeline.Field, 0, len(h)+2)
	for name, values := range h {
		if name != "Age" && name != "Cache-Status" {
			o.fields = append(o.fields, pipeline.Field{Name: name, Values: slices.Clip(values)})
		}
	}
	o.upstream = h["Cache-Status"]
	o.etag = h.Get("Etag")
	o.modified = parseTime(h.Get("Last-Modified"))
	if o.date = parseTime(h.Get("Date")); o.date.IsZero() {
		o.date = got.UTC().Truncate(time.Second)
		o.fields = append(o.fields, pipeline.Field{Name: "Date", Values: []string{o.date.Format(http.TimeFormat)}})
	}
}

// merged returns the head of the object after a 304 that confirmed it: the fields that the 304 brings replace the
// stored ones (RFC 9111, 3.2), except those that describe the stored body.
func (o *object) merged(fresh http.Header) http.Header {
	h := http.Header{}
	for _, f := range o.fields {
		if f.Name != "Date" {
			h[f.Name] = f.Values
		}
	}
	for name, values := range fresh {
		switch name {
		case "Content-Length", "Content-Encoding", "Content-Range", "Content-Type", "Vary":
		default:
			h[name] = values
		}
	}
	return h
}

// refreshed returns the object with another head around the same body.
func (o *object) refreshed(h http.Header, key string, rl ruling, got time.Time) *object {
	n := &object{status: o.status, vary: o.vary, varyKey: o.varyKey, policy: rl.policy, alone: !rl.share, body: o.body}
	n.setHead(h, got)
	n.meta = n.cost(key)
	return n
}

// fresh reports whether the object may be used at now without asking the origin.
func (o *object) fresh(now time.Time) bool {
	return !o.policy.validate && o.policy.lifetime > o.policy.age(now)
}

// staleFor returns how long the object has been stale; below 0 it is fresh.
func (o *object) staleFor(now time.Time) time.Duration { return o.policy.age(now) - o.policy.lifetime }

// headAt returns the head of a hit at now, making it when the second has changed.
func (o *object) headAt(now time.Time, name string) *head {
	age := int64(o.policy.age(now) / time.Second)
	whole := o.body.whole.Load()
	if h := o.head.Load(); h != nil && h.age == age && h.whole == whole {
		return h
	}
	ttl := int64(o.policy.lifetime/time.Second) - age
	h := o.newHead(now, name+"; hit; ttl="+strconv.FormatInt(ttl, 10))
	o.head.Store(h)
	return h
}

// newHead returns a head for an answer at now whose Cache-Status member is status. Cache-Status ends its lists.
func (o *object) newHead(now time.Time, status string) *head {
	h := &head{age: int64(o.policy.age(now) / time.Second), whole: o.body.whole.Load(), status: status}
	h.fields = append(make([]pipeline.Field, 0, len(o.fields)+3), o.fields...)
	if h.whole {
		h.fields = o.appendLength(h.fields)
	}
	own := []pipeline.Field{
		{Name: "Age", Values: []string{strconv.FormatInt(h.age, 10)}},
		{Name: "Cache-Status", Values: o.cacheStatus(status)},
	}
	h.fields = append(h.fields, own...)
	h.short = append(shortened(o.fields), own...)
	return h
}

// shortened returns the fields that a 304 has.
func shortened(fields []pipeline.Field) []pipeline.Field {
	var short []pipeline.Field
	for _, f := range fields {
		if slices.Contains(shortNames, f.Name) {
			short = append(short, f)
		}
	}
	return short
}

// appendLength adds the Content-Length of a whole body whose origin did not say it.
func (o *object) appendLength(fields []pipeline.Field) []pipeline.Field {
	if o.status == http.StatusNoContent || o.body.err != nil {
		return fields
	}
	for _, f := range o.fields {
		if f.Name == "Content-Length" {
			return fields
		}
	}
	return append(fields, pipeline.Field{Name: "Content-Length", Values: []string{strconv.FormatInt(o.body.size, 10)}})
}

// cacheStatus returns the Cache-Status field's values: the caches behind us first (RFC 9211, 2).
func (o *object) cacheStatus(own string) []string {
	return append(slices.Clip(o.upstream), own)
}

// length returns the body's length, -1 while it is unknown.
func (o *object) length() int64 {
	if o.body.whole.Load() {
		return o.body.size
	}
	return o.body.announced()
}

// announced returns the length that the origin announced, or -1.
func (b *body) announced() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.total
}
