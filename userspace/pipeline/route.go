package pipeline

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// ReasonNoRoute is given when no route names an origin for the request.
const ReasonNoRoute Reason = "no_route"

// RouteConfig says which origin has the originals of a host's paths.
type RouteConfig struct {
	Host   string `yaml:"host"`   // "www.example.com", "*.example.com", or "*" for any; no port
	Path   string `yaml:"path"`   // a prefix of whole segments: "/" or "/api"
	Origin string `yaml:"origin"` // a name under origins
	Tenant uint32 `yaml:"tenant"` // whose cache partition; 0 unless tenants share the edge
}

// Validate reports everything wrong with the route, by the file's names.
func (c RouteConfig) Validate() error {
	var errs []error
	host := strings.TrimPrefix(c.Host, "*.")
	switch {
	case c.Host == "":
		errs = append(errs, errors.New(`host: must be set ("*" for any)`))
	case c.Host != "*" && !validHost(host):
		errs = append(errs, fmt.Errorf("host: %q is not a host name (a port is not part of it)", c.Host))
	}
	if !strings.HasPrefix(c.Path, "/") {
		errs = append(errs, fmt.Errorf("path: %q must begin with /", c.Path))
	}
	if c.Origin == "" {
		errs = append(errs, errors.New("origin: must name an entry of origins"))
	}
	return errors.Join(errs...)
}

// Routes is the stage that finds a request's origin: exact host before "*.suffix" (longest first) before "*", then
// the longest path.
type Routes struct {
	hosts    map[string][]route // by exact host
	suffixes []suffixRoutes     // longest first
	any      []route
}

type route struct {
	name, path, origin string
	tenant             uint32
}

type suffixRoutes struct {
	suffix string // ".example.com"
	routes []route
}

// NewRoutes makes the stage, or reports every route that is wrong or given twice.
func NewRoutes(cfg []RouteConfig) (*Routes, error) {
	s := &Routes{hosts: map[string][]route{}}
	suffixes := map[string][]route{}
	seen := map[string]bool{}
	var errs []error
	for i, c := range cfg {
		if err := c.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("routes[%d]: %w", i, err))
			continue
		}
		host := strings.ToLower(c.Host)
		r := route{host + c.Path, cmp.Or(strings.TrimRight(c.Path, "/"), "/"), c.Origin, c.Tenant}
		if seen[host+r.path] {
			errs = append(errs, fmt.Errorf("routes[%d]: %s%s is given twice", i, c.Host, c.Path))
		}
		seen[host+r.path] = true
		switch {
		case host == "*":
			s.any = append(s.any, r)
		case strings.HasPrefix(host, "*."):
			suffixes[host[1:]] = append(suffixes[host[1:]], r)
		default:
			s.hosts[host] = append(s.hosts[host], r)
		}
	}
	for suffix, routes := range suffixes {
		s.suffixes = append(s.suffixes, suffixRoutes{suffix, longestFirst(routes)})
	}
	slices.SortFunc(s.suffixes, func(a, b suffixRoutes) int { return cmp.Compare(len(b.suffix), len(a.suffix)) })
	for _, routes := range s.hosts {
		longestFirst(routes)
	}
	longestFirst(s.any)
	return s, errors.Join(errs...)
}

func longestFirst(r []route) []route {
	slices.SortFunc(r, func(a, b route) int { return cmp.Compare(len(b.path), len(a.path)) })
	return r
}

// Name returns "route".
func (*Routes) Name() string { return "route" }

// Run fills in Route, Origin and Tenant.
func (s *Routes) Run(x *Exchange) Action {
	r := s.find(x.Host, x.R.URL.Path)
	if r == nil || x.R.Method == http.MethodConnect { // no origin speaks what it asks for
		return x.Refuse(http.StatusNotFound, ReasonNoRoute)
	}
	x.Route, x.Origin, x.Tenant = r.name, r.origin, r.tenant
	return Next
}

func (s *Routes) find(host, path string) *route {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	if r := match(s.hosts[host], path); r != nil {
		return r
	}
	for i := range s.suffixes {
		if strings.HasSuffix(host, s.suffixes[i].suffix) {
			if r := match(s.suffixes[i].routes, path); r != nil {
				return r
			}
		}
	}
	return match(s.any, path)
}

// match finds the longest prefix of whole segments: "/api" matches "/api" and "/api/x", not "/apix".
func match(routes []route, path string) *route {
	for i := range routes {
		p := routes[i].path
		if p == "/" || strings.HasPrefix(path, p) && (len(path) == len(p) || path[len(p)] == '/') {
			return &routes[i]
		}
	}
	return nil
}
