package pipeline

import (
	"io"
	"net/http"
	"strconv"
)

// deliver sends the answer and returns the number of body bytes sent. The error is why the body was cut short.
func (x *Exchange) deliver(act Action, diet *Diet) (int64, error) {
	if act == Wrote {
		return 0, nil
	}
	h := x.W.Header()
	for _, f := range x.Head {
		h[f.Name] = f.Values
	}
	for _, f := range x.Extra {
		h[f.Name] = f.Values
	}
	if diet != nil {
		diet.trim(h)
	}
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // else net/http guesses one from the first bytes, which is the origin's to say
	}
	x.started = true
	x.W.WriteHeader(x.Status)
	if x.Body == nil || x.R.Method == http.MethodHead || !hasBody(x.Status) {
		return 0, nil
	}
	return x.Body.Send(x)
}

// hasBody reports whether an answer of this status carries a body at all (RFC 9110, 6.4.1).
func hasBody(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// textHead is the head of every refusal. A refusal is about this moment, so nobody may store it.
var textHead = []Field{
	{"Content-Type", []string{"text/plain; charset=utf-8"}},
	{"Cache-Control", []string{"no-store"}},
	{"X-Content-Type-Options", []string{"nosniff"}},
}

// refusal is a text made of the exchange's status and reason.
type refusal struct{}

// Send writes for instance "403 Forbidden: country_blocked".
func (refusal) Send(x *Exchange) (int64, error) {
	text := strconv.Itoa(x.Status) + " " + http.StatusText(x.Status) + ": " + string(x.Reason) + "\n"
	n, err := io.WriteString(x.W, text)
	return int64(n), err
}

// Close has nothing to release.
func (refusal) Close() {}
