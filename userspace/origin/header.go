package origin

import (
	"net/http"
	"net/textproto"
	"slices"
	"strings"

	"github.com/bermedge/berm/userspace/pipeline"
)

// hopByHop are the fields that end at the next hop (RFC 9110, 7.6.1), besides those that Connection names.
var hopByHop = []string{
	"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization",
	"Proxy-Authentication-Info", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings",
}

// neverNamed are fields that a Connection field may not take away: a request that names them tries to change what the
// next hop sees of who asks for what.
var neverNamed = []string{
	"Host", "Content-Length", "Content-Type", "Cache-Control", "Cdn-Loop", "Via", "Forwarded",
	"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Authorization", "Cookie",
}

// dropHopByHop removes what ends here.
func dropHopByHop(h http.Header) {
	for _, v := range h["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			name = textproto.CanonicalMIMEHeaderKey(strings.Trim(name, " \t"))
			if name != "" && !slices.Contains(neverNamed, name) {
				delete(h, name)
			}
		}
	}
	for _, name := range hopByHop {
		delete(h, name)
	}
}

// prepare makes a client's header the edge's own.
func (c *Client) prepare(f *pipeline.Fetch) {
	h := f.Header
	trailers := slices.ContainsFunc(h["Te"], func(v string) bool { return strings.EqualFold(v, "trailers") })
	dropHopByHop(h)
	if trailers { // the one use of TE that is end to end in effect
		h["Te"] = []string{"trailers"}
	}
	if _, ok := h["User-Agent"]; !ok {
		h["User-Agent"] = []string{""} // net/http leaves out an empty one, and invents one otherwise
	}
	delete(h, "Expect") // answered at the edge
	proto := strings.TrimPrefix(f.Proto, "HTTP/")
	if proto == "2.0" || proto == "3.0" {
		proto = proto[:1]
	}
	join(h, "Via", proto+" "+c.name)
	join(h, "Cdn-Loop", c.name)
	// What the client claims about itself is not passed on: the edge is where the address is known.
	if f.Client.IsValid() {
		addr := f.Client.Unmap().String()
		h["X-Forwarded-For"] = []string{addr}
		if f.Client.Is6() && !f.Client.Is4In6() {
			addr = `"[` + addr + `]"`
		}
		h["Forwarded"] = []string{"for=" + addr + ";proto=" + f.Scheme + ";host=" + quoted(f.Host)}
	} else {
		delete(h, "X-Forwarded-For")
		h["Forwarded"] = []string{"for=unknown;proto=" + f.Scheme + ";host=" + quoted(f.Host)}
	}
	h["X-Forwarded-Proto"] = []string{f.Scheme}
	h["X-Forwarded-Host"] = []string{f.Host}
}

// join appends a member to a list field.
func join(h http.Header, name, member string) {
	if old := strings.Join(h[name], ", "); old != "" {
		member = old + ", " + member
	}
	h[name] = []string{member}
}

// quoted quotes a host with a port: the colon is not allowed in a token (RFC 7239, 4).
func quoted(host string) string {
	if strings.ContainsAny(host, ":[]") {
		return `"` + host + `"`
	}
	return host
}

// looped reports whether this edge is named in CDN-Loop (RFC 8586).
func (c *Client) looped(h http.Header) bool {
	for _, v := range h["Cdn-Loop"] {
		for member := range strings.SplitSeq(v, ",") {
			id, _, _ := strings.Cut(member, ";")
			if strings.EqualFold(strings.Trim(id, " \t"), c.name) {
				return true
			}
		}
	}
	return false
}
