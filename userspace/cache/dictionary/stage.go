// Package dictionary sends answers encoded with a dictionary that the client already has: an earlier answer of the same
// origin (RFC 9842, Compression Dictionary Transport), a former version of the same file for instance.
//
// It is a stage before the cache. Objects are stored as they are; what goes out is encoded behind the cache, once for
// each dictionary and content, and kept. Only what the origin lets shared caches keep takes part: never requests with
// credentials, private answers, cookies.
package dictionary

import (
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/bermedge/berm/userspace/pipeline"
)

// minSize is the smallest body that is encoded: the frame alone takes 50 bytes.
const minSize = 512

// Stage is the stage. One without memory does nothing.
type Stage struct {
	cfg   Config
	rules []rule
	store *store
	slots chan struct{} // of encoders at work
	stats *counters
}

// rule is a Rule that is ready for use.
type rule struct {
	host string
	path pattern
	use  use
}

// New makes the stage.
func New(cfg Config) (*Stage, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Stage{cfg: cfg, stats: &counters{}, slots: make(chan struct{}, runtime.GOMAXPROCS(0))}
	s.store = newStore(int64(cfg.Memory), s.stats)
	for _, r := range cfg.Rules {
		// Validate has parsed both.
		path, _ := parsePattern(r.Path)
		match, _ := parsePattern(r.Match)
		s.rules = append(s.rules, rule{strings.ToLower(r.Host), path, use{match, r.Destinations}})
	}
	return s, nil
}

// Name returns "dictionary".
func (*Stage) Name() string { return "dictionary" }

// Run looks at who asks; the answer is dealt with once it is there.
func (s *Stage) Run(x *pipeline.Exchange) pipeline.Action {
	h := x.R.Header
	if s.cfg.Memory == 0 || x.R.Method != http.MethodGet || x.Scheme != "https" || h["Authorization"] != nil || h["Range"] != nil {
		return pipeline.Next
	}
	a := &answer{stage: s, origin: strconv.FormatUint(uint64(x.Tenant), 10) + " " + x.Scheme + "://" + x.Host}
	if a.dict = s.choose(x, a.origin); a.dict != nil {
		// What is stored is to come as it is: it is encoded here.
		delete(h, "Accept-Encoding")
	}
	x.OnAnswer(a.run)
	return pipeline.Next
}

// choose returns the dictionary that the client has and that is for this request, or nil.
func (s *Stage) choose(x *pipeline.Exchange, origin string) *dict {
	h := x.R.Header
	if h["Available-Dictionary"] == nil || !accepts(h) || !readable(h) {
		return nil
	}
	sum, ok := available(h)
	if !ok {
		s.stats.count(resultMalformed)
		return nil
	}
	d := s.store.find(origin, sum)
	if d == nil {
		s.stats.count(resultUnknown)
		return nil
	}
	if !d.covers(x.R) {
		s.stats.count(resultNotFor)
		return nil
	}
	return d
}

// answer is what is decided of one exchange.
type answer struct {
	stage  *Stage
	origin string
	dict   *dict // that the client has
}

// run looks at the answer before it is sent.
func (a *answer) run(x *pipeline.Exchange) {
	if x.Status != http.StatusOK && x.Status != http.StatusNotModified {
		return
	}
	head := readHead(x)
	s := a.stage
	u, teaches := s.teaches(x, head)
	if !head.shared {
		if teaches {
			s.stats.count(resultPrivate)
		}
		return
	}
	if a.dict != nil || s.store.any(a.origin, func(d *dict) bool { return d.match.matches(x.R.URL.EscapedPath()) }) {
		vary(x, head)
	}
	if x.Status == http.StatusNotModified && slices.Contains(x.R.Header["If-None-Match"], weak(head.etag)) {
		x.SetExtra("Etag", weak(head.etag)) // confirms the encoded answer, which had that
	}
	if x.Status != http.StatusOK || x.Body == nil {
		return
	}
	var content []byte
	if a.dict != nil {
		content = s.encode(x, a.dict, head)
	}
	if teaches {
		s.learn(x, a.origin, u, head, content)
	}
}

// teaches reports what the answer is a dictionary for, if it is one: by the origin's word, or by a rule.
func (s *Stage) teaches(x *pipeline.Exchange, head head) (use, bool) {
	if head.use != nil {
		u, err := parseUse(head.use)
		if err != nil {
			s.stats.count(resultRefused)
		}
		return u, err == nil
	}
	host := x.Host
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	for _, r := range s.rules {
		if (r.host == "*" || r.host == host) && r.path.matches(x.R.URL.EscapedPath()) && head.shared {
			x.SetExtra("Use-As-Dictionary", r.use.field())
			return r.use, true
		}
	}
	return use{}, false
}

// vary says that the answer may be another one for clients with other dictionaries.
func vary(x *pipeline.Exchange, head head) {
	names := head.vary[:len(head.vary):len(head.vary)]
	for _, name := range [...]string{"Accept-Encoding", "Available-Dictionary"} {
		if !listed(head.vary, name) {
			names = append(names, name)
		}
	}
	x.SetExtra("Vary", strings.Join(names, ", "))
}

// head is what matters of an answer's head.
type head struct {
	shared   bool // shared caches may keep it, and say so
	modified bool // may be encoded by others than the origin
	coded    bool // has a content coding already
	text     bool // of a type that gets smaller
	length   int64
	etag     string
	source   string // tells this answer from others of its URL; "" where its head does not
	use      []string
	vary     []string
}

func readHead(x *pipeline.Exchange) head {
	h := head{length: -1, modified: true}
	var control []string
	var cookie bool
	var modified string
	for _, fields := range [...][]pipeline.Field{x.Head, x.Extra} {
		for _, f := range fields {
			switch f.Name {
			case "Cache-Control":
				control = f.Values
			case "Set-Cookie":
				cookie = true
			case "Vary":
				h.vary = f.Values
			case "Use-As-Dictionary":
				h.use = f.Values
			case "Content-Encoding":
				h.coded = !listed(f.Values, "identity")
			case "Content-Type":
				h.text = len(f.Values) == 1 && compressible(f.Values[0])
			case "Content-Length":
				if n, err := strconv.ParseInt(first(f.Values), 10, 64); err == nil {
					h.length = n
				}
			case "Etag":
				h.etag = first(f.Values)
			case "Last-Modified":
				modified = first(f.Values)
			}
		}
	}
	h.shared = !cookie && sharable(control) && !listed(h.vary, "*") && !listed(h.vary, "Cookie") && !listed(h.vary, "Authorization")
	h.modified = !directive(control, "no-transform")
	if h.etag != "" || modified != "" {
		h.source = strconv.FormatUint(uint64(x.Tenant), 10) + " " + x.Host + x.R.URL.RequestURI() + "\n" + h.etag + "\n" + modified
	}
	return h
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// sharable reports whether an answer says that shared caches may keep it. That it does not say otherwise is not enough:
// whoever asks with a cookie gets answers that are meant for nobody else.
func sharable(control []string) bool {
	if directive(control, "private") || directive(control, "no-store") {
		return false
	}
	return directive(control, "public") || directive(control, "max-age") || directive(control, "s-maxage")
}

// directive reports whether a Cache-Control has a directive, with or without an argument.
func directive(control []string, name string) bool {
	for _, v := range control {
		for d := range strings.SplitSeq(v, ",") {
			d, _, _ = strings.Cut(d, "=")
			if strings.EqualFold(strings.Trim(d, " \t"), name) {
				return true
			}
		}
	}
	return false
}

// listed reports whether a list field has a member.
func listed(values []string, member string) bool {
	for _, v := range values {
		for m := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.Trim(m, " \t"), member) {
				return true
			}
		}
	}
	return false
}

// compressible reports whether bodies of a media type are worth encoding: others are compressed in themselves.
func compressible(kind string) bool {
	kind, _, _ = strings.Cut(kind, ";")
	kind = strings.ToLower(strings.Trim(kind, " \t"))
	if strings.HasPrefix(kind, "text/") || strings.HasSuffix(kind, "+json") || strings.HasSuffix(kind, "+xml") {
		return true
	}
	switch kind {
	case "application/javascript", "application/x-javascript", "application/json", "application/xml", "application/wasm",
		"application/manifest+json", "application/x-ndjson", "application/vnd.ms-fontobject", "font/ttf", "font/otf", "image/bmp":
		return true
	}
	return false
}
