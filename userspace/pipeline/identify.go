package pipeline

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// Reasons of identify.
const (
	ReasonBadHost   Reason = "bad_host"   // no Host, or one that cannot be a host
	ReasonBadTarget Reason = "bad_target" // not a path: CONNECT, "*", or a path with dot segments
	ReasonTrace     Reason = "trace"      // TRACE would show scripts what only the edge and the origin should see
)

// Identify is the first stage: who asks, and for which host.
type Identify struct{}

// Name returns "identify".
func (Identify) Name() string { return "identify" }

// Run fills in Client, Scheme and Host.
func (Identify) Run(x *Exchange) Action {
	// A listener without addresses (a Unix socket) leaves Client at its zero value: unknown.
	x.Client, _ = netip.ParseAddrPort(x.R.RemoteAddr)
	x.Scheme = "http"
	if x.R.TLS != nil {
		x.Scheme = "https"
	}
	if x.R.Host == "" && !x.R.ProtoAtLeast(1, 1) {
		// HTTP/1.0 may name no host: then it is the address that the client called (RFC 9112, 3.3).
		if a, ok := x.R.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
			x.R.Host = a.String()
		}
	}
	host, ok := NormalHost(x.Scheme, x.R.Host)
	if !ok {
		return x.Refuse(http.StatusBadRequest, ReasonBadHost)
	}
	x.Host = host
	path := x.R.URL.Path
	if x.R.Method == http.MethodTrace {
		return x.Refuse(http.StatusMethodNotAllowed, ReasonTrace)
	}
	if x.R.Method == http.MethodOptions && path == "*" {
		return Next
	}
	if x.R.Method == http.MethodConnect && !extended(x.R) || !strings.HasPrefix(path, "/") || hasDotSegment(path) {
		return x.Refuse(http.StatusBadRequest, ReasonBadTarget)
	}
	if x.R.ContentLength < 0 && (x.R.Method == http.MethodGet || x.R.Method == http.MethodHead) {
		x.peekBody()
	}
	return Next
}

// extended reports whether a CONNECT asks for a protocol at a path (RFC 9220): http3 puts its name where that of HTTP is.
func extended(r *http.Request) bool { return r.ProtoMajor == 3 && !strings.HasPrefix(r.Proto, "HTTP/") }

// peekBody finds out whether a GET of unknown length has a body at all. Over h3 every one is of unknown length, since
// only the end of the stream says that nothing follows; it comes with the head.
func (x *Exchange) peekBody() {
	n, err := x.R.Body.Read(x.peek[:])
	switch {
	case n > 0:
		rest := x.R.Body
		x.R.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader([]byte{x.peek[0]}), rest), rest}
	case err != nil: // the end; any other error shows again when the answer is sent
		x.R.Body, x.R.ContentLength = http.NoBody, 0
	}
}

// hasDotSegment reports whether a decoded path has a segment "." or "..". Clients resolve these before they ask
// (RFC 3986, 6.2.2.3); what is left, or hidden as %2e, only serves to reach a path that a rule does not see.
func hasDotSegment(path string) bool {
	for {
		i := strings.Index(path, "/.")
		if i < 0 {
			return false
		}
		path = path[i+1:]
		segment, _, _ := strings.Cut(path, "/")
		if segment == "." || segment == ".." {
			return true
		}
	}
}

// NormalHost returns host in lower case without the scheme's default port and without a final dot, and whether it
// can be a host at all. It allocates only when something has to change.
func NormalHost(scheme, host string) (string, bool) {
	name, port := host, ""
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		name, port = host[:i], host[i+1:]
	}
	name = strings.TrimSuffix(name, ".")
	if !validHost(name) || !validPort(port) {
		return "", false
	}
	lower := strings.ToLower(name) // returns name itself when there is nothing to do
	if port == "" || scheme == "http" && port == "80" || scheme == "https" && port == "443" {
		return lower, true
	}
	if len(name)+1+len(port) == len(host) && lower == name {
		return host, true
	}
	return lower + ":" + port, true
}

// validHost accepts registered names (letters, digits, "-", "_", ".") and bracketed IPv6 addresses.
func validHost(name string) bool {
	if name == "" || len(name) > 255 {
		return false
	}
	if name[0] == '[' {
		a, err := netip.ParseAddr(strings.TrimSuffix(name[1:], "]"))
		return err == nil && a.Is6() && a.Zone() == "" && name[len(name)-1] == ']'
	}
	for i := range len(name) {
		c := name[i]
		if (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	return true
}

func validPort(port string) bool {
	if len(port) > 5 {
		return false
	}
	n := 0
	for i := range len(port) {
		if port[i] < '0' || port[i] > '9' {
			return false
		}
		n = n*10 + int(port[i]-'0')
	}
	return n < 1<<16
}
