package pipeline

import (
	"net/http"
	"net/netip"
	"time"
)

// Field is one header field of an answer. Name is in canonical form (http.CanonicalHeaderKey). Values may be shared
// with other requests: they are never written to.
type Field struct {
	Name   string
	Values []string
}

// Body is the body of an answer.
type Body interface {
	// Send writes the body to x.W, flushing when it has to wait for more. It is not called for HEAD, nor for a
	// status without a body.
	Send(x *Exchange) (int64, error)
	// Close releases what the body holds; it is called exactly once, sent or not.
	Close()
}

// Exchange is one request and its answer on their way through the stages. It is pooled: do not keep it.
type Exchange struct {
	W     http.ResponseWriter
	R     *http.Request
	Start time.Time // when the request reached the pipeline

	// Written by identify.
	Client netip.AddrPort
	Scheme string // "http" or "https"
	Host   string // lower case, without the scheme's default port

	// Written by route.
	Tenant uint32 // whose traffic this is; caches never mix tenants
	Route  string // the route's name, for logs
	Origin string // who has the original, by its name in the file

	// OriginStatus is what the origin answered this exchange with, written by the origin stage; 0: it did not.
	OriginStatus int
	// OriginWait is how long the exchange waited for the head of an origin's answer, written by whoever waits.
	OriginWait time.Duration

	// The answer.
	Status int
	Head   []Field // may be shared with a stored object: read only
	Extra  []Field // of this exchange; wins over Head
	Body   Body
	Reason Reason

	// CacheStatus is the Cache-Status (RFC 9211) members that the stages have to say, for the access log.
	CacheStatus string

	// Scratch is room for a stage to build a key in; its content is lost when the stage returns.
	Scratch []byte

	onAnswer []func(*Exchange)
	peek     [1]byte // of a body whose length is unknown
	started  bool    // the head has been sent
}

// Answer hands the answer in x to the exit.
func (x *Exchange) Answer(why Reason) Action {
	x.Reason = why
	return Answer
}

// Refuse answers with status and a short text that names the reason. Fields a client needs beside it (Retry-After)
// go to x.Extra.
func (x *Exchange) Refuse(status int, why Reason) Action {
	x.closeBody()
	x.Status, x.Reason, x.Head = status, why, textHead
	x.Body = refusal{}
	return Refuse
}

// Wrote says that the stage has answered through x.W.
func (x *Exchange) Wrote(status int, why Reason) Action {
	x.Status, x.Reason, x.started = status, why, true
	return Wrote
}

// OnAnswer has f called once the answer's head is known and before it is sent. A stage that said Next uses it to see
// what a later one answers, or to add to x.Extra.
func (x *Exchange) OnAnswer(f func(*Exchange)) { x.onAnswer = append(x.onAnswer, f) }

// SetExtra adds a field to the answer.
func (x *Exchange) SetExtra(name string, values ...string) {
	x.Extra = append(x.Extra, Field{Name: name, Values: values})
}

// Header returns the first value of a field of the answer, or "".
func (x *Exchange) Header(name string) string {
	for _, fields := range [...][]Field{x.Extra, x.Head} {
		for _, f := range fields {
			if f.Name == name && len(f.Values) > 0 {
				return f.Values[0]
			}
		}
	}
	return ""
}

// unrefuse forgets a refusal that is not enforced.
func (x *Exchange) unrefuse() {
	x.closeBody()
	x.Status, x.Reason, x.Head, x.Extra = 0, "", nil, x.Extra[:0]
}

func (x *Exchange) closeBody() {
	if x.Body != nil {
		x.Body.Close()
		x.Body = nil
	}
}

// reset empties x for the pool, keeping the room it has grown.
func (x *Exchange) reset() {
	x.closeBody()
	clear(x.Extra)
	clear(x.onAnswer)
	*x = Exchange{Extra: x.Extra[:0], onAnswer: x.onAnswer[:0], Scratch: x.Scratch[:0]}
}
