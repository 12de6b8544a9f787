package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/bermedge/berm/maps"
)

// Daemon is what only the daemon itself can do.
type Daemon interface {
	Status(ctx context.Context) (Status, error)
	Reload(ctx context.Context) (Changes, error)
	Upgrade(ctx context.Context) (Changes, error)
	Purge(ctx context.Context, p Purge) (Changes, error)
	Cache(ctx context.Context) (Cache, error)
	Top(ctx context.Context, seconds int) (Top, error)
	Relays(ctx context.Context) ([]Relay, error)
	LiveStreams(ctx context.Context) ([]LiveStream, error)
	Order(ctx context.Context, o Order) (Changes, error)
	Plan(ctx context.Context, p PlanRequest) (Plan, error)
	Spill(ctx context.Context, s Spill) (Changes, error)
	Learning(ctx context.Context) (Learning, error)
	SetLearning(ctx context.Context, o LearnOrder) (Changes, error)
	Learned(ctx context.Context, ip netip.Addr) (*Learned, error) // nil: nothing is known
	Diagnose(ctx context.Context, ip netip.Addr) (Diagnosis, error)
	Anycast(ctx context.Context) (Anycast, error)
	OrderAnycast(ctx context.Context, o AnycastOrder) (Anycast, error)
	// Tables calls f with the operations on the kernel half, whose maps stay open meanwhile, or
	// returns why it is not there.
	Tables(f func(Tables) error) error
}

// maxRequest bounds a request's body.
const maxRequest = 1 << 20

// Handler serves the admin API.
func Handler(d Daemon) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
			v, err := f(r)
			answer(w, v, err)
		})
	}
	handle("GET /v1/status", func(r *http.Request) (any, error) { return d.Status(r.Context()) })
	handle("POST /v1/reload", func(r *http.Request) (any, error) { return d.Reload(r.Context()) })
	handle("POST /v1/upgrade", func(r *http.Request) (any, error) { return d.Upgrade(r.Context()) })
	handle("POST /v1/purge", with(d.Purge))
	handle("POST /v1/steer/order", with(d.Order))
	handle("POST /v1/steer/plan", with(d.Plan))
	handle("POST /v1/steer/spill", with(d.Spill))
	handle("GET /v1/cache", func(r *http.Request) (any, error) { return d.Cache(r.Context()) })
	handle("GET /v1/fec/streams", func(r *http.Request) (any, error) { return d.LiveStreams(r.Context()) })
	handle("GET /v1/fec/relays", func(r *http.Request) (any, error) { return d.Relays(r.Context()) })
	handle("GET /v1/cc/learn", func(r *http.Request) (any, error) { return d.Learning(r.Context()) })
	handle("POST /v1/cc/learn", with(d.SetLearning))
	handle("GET /v1/cc/learned", func(r *http.Request) (any, error) {
		ip, err := addrParam(r, "ip")
		if err != nil {
			return nil, err
		}
		return d.Learned(r.Context(), ip)
	})
	handle("GET /v1/diagnose", func(r *http.Request) (any, error) {
		ip, err := addrParam(r, "ip")
		if err != nil {
			return nil, err
		}
		return d.Diagnose(r.Context(), ip)
	})
	handle("GET /v1/anycast", func(r *http.Request) (any, error) { return d.Anycast(r.Context()) })
	handle("POST /v1/anycast", with(d.OrderAnycast))
	handle("GET /v1/top", func(r *http.Request) (any, error) {
		seconds, err := intParam(r, "seconds", 5, 1, 60)
		if err != nil {
			return nil, err
		}
		return d.Top(r.Context(), seconds)
	})
	for pattern, f := range tableRoutes {
		handle(pattern, func(r *http.Request) (any, error) {
			var v any
			err := d.Tables(func(t Tables) (err error) {
				v, err = f(t, r)
				return err
			})
			return v, err
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer(w, nil, &Error{
			Status: http.StatusNotFound, Message: fmt.Sprintf("nothing at %s %s", r.Method, r.URL.Path),
			Hint: "this bermd may be older than its client",
		})
	})
	return mux
}

// tableRoutes are the operations on the kernel half's maps.
var tableRoutes = map[string]func(t Tables, r *http.Request) (any, error){
	"GET /v1/vips":  func(t Tables, r *http.Request) (any, error) { return t.VIPs(r.Context()) },
	"POST /v1/vips": func(t Tables, r *http.Request) (any, error) { return with(t.AddVIP)(r) },
	"DELETE /v1/vips": func(t Tables, r *http.Request) (any, error) {
		return t.RemoveVIP(r.Context(), r.FormValue("name"))
	},
	"GET /v1/rates":       func(t Tables, r *http.Request) (any, error) { return t.Rates(r.Context()) },
	"PUT /v1/rates":       func(t Tables, r *http.Request) (any, error) { return with(t.SetRate)(r) },
	"GET /v1/cc":          func(t Tables, r *http.Request) (any, error) { return t.CC(r.Context()) },
	"PUT /v1/cc/profiles": func(t Tables, r *http.Request) (any, error) { return with(t.SetCCProfile)(r) },
	"PUT /v1/cc/prefixes": func(t Tables, r *http.Request) (any, error) { return with(t.SetCC)(r) },
	"DELETE /v1/cc/prefixes": func(t Tables, r *http.Request) (any, error) {
		p, err := netip.ParsePrefix(r.FormValue("prefix"))
		if err != nil {
			return nil, &Error{Status: http.StatusBadRequest, Message: err.Error(), Hint: "prefix is such as 192.0.2.0/24"}
		}
		return t.RemoveCC(r.Context(), p)
	},
	"GET /v1/cc/explain": func(t Tables, r *http.Request) (any, error) {
		ip, err := addrParam(r, "ip")
		if err != nil {
			return nil, err
		}
		return t.ExplainCC(r.Context(), ip)
	},
	"GET /v1/geo/policies": func(t Tables, r *http.Request) (any, error) { return t.GeoPolicies(r.Context()) },
	"PUT /v1/geo/policies": func(t Tables, r *http.Request) (any, error) { return with(t.SetGeoPolicy)(r) },
	"POST /v1/geo/load":    func(t Tables, r *http.Request) (any, error) { return with(t.LoadGeo)(r) },
	"GET /v1/geo/test": func(t Tables, r *http.Request) (any, error) {
		ip, err := addrParam(r, "ip")
		if err != nil {
			return nil, err
		}
		return t.TestGeo(r.Context(), ip)
	},
	"GET /v1/verdicts":  func(t Tables, r *http.Request) (any, error) { return t.Verdicts(r.Context()) },
	"POST /v1/verdicts": func(t Tables, r *http.Request) (any, error) { return with(t.AddVerdict)(r) },
	"POST /v1/verdicts/batch": func(t Tables, r *http.Request) (any, error) {
		return with(t.ChangeVerdicts)(r)
	},
	"DELETE /v1/verdicts": func(t Tables, r *http.Request) (any, error) {
		source, err := addrParam(r, "source")
		if err != nil {
			return nil, err
		}
		return t.RemoveVerdict(r.Context(), source, r.FormValue("vip"))
	},
	"GET /v1/shadow":        func(t Tables, r *http.Request) (any, error) { return t.ShadowRules(r.Context()) },
	"PUT /v1/shadow":        func(t Tables, r *http.Request) (any, error) { return with(t.SetShadow)(r) },
	"GET /v1/steer/explain": explainSteer,
	"POST /v1/steer/ufrag": func(t Tables, r *http.Request) (any, error) {
		return t.MintUfrag(r.Context(), r.FormValue("backend"))
	},
	"GET /v1/drops": func(t Tables, r *http.Request) (any, error) { return t.Drops(r.Context()) },
}

func explainSteer(t Tables, r *http.Request) (any, error) {
	f := Flow{Protocol: r.FormValue("protocol"), CID: r.FormValue("cid"), Long: r.FormValue("long") == "true", Ufrag: r.FormValue("ufrag")}
	if (f.CID != "" || f.Ufrag != "") && r.FormValue("source") == "" && r.FormValue("destination") == "" {
		return t.ExplainSteer(r.Context(), f)
	}
	var err1, err2 error
	f.Source, err1 = netip.ParseAddrPort(r.FormValue("source"))
	f.Destination, err2 = netip.ParseAddrPort(r.FormValue("destination"))
	if err := errors.Join(err1, err2); err != nil {
		return nil, &Error{Status: http.StatusBadRequest, Message: err.Error(), Hint: "source and destination are addresses with ports"}
	}
	return t.ExplainSteer(r.Context(), f)
}

// with decodes a request's body for f. Unknown fields are refused: a misspelt one would be ignored.
func with[In, Out any](f func(context.Context, In) (Out, error)) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		var in In
		dec := json.NewDecoder(r.Body)
		dec.DisallowUnknownFields()
		if err := dec.Decode(&in); err != nil {
			return nil, &Error{Status: http.StatusBadRequest, Message: "read the request: " + err.Error()}
		}
		return f(r.Context(), in)
	}
}

func intParam(r *http.Request, name string, otherwise, low, high int) (int, error) {
	s := r.FormValue(name)
	if s == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < low || n > high {
		return 0, &Error{Status: http.StatusBadRequest, Message: fmt.Sprintf("%s=%q is not between %d and %d", name, s, low, high)}
	}
	return n, nil
}

func addrParam(r *http.Request, name string) (netip.Addr, error) {
	a, err := netip.ParseAddr(r.FormValue(name))
	if err != nil {
		return a, &Error{Status: http.StatusBadRequest, Message: fmt.Sprintf("%s=%q is no IP address", name, r.FormValue(name)), Hint: "write 192.0.2.1 or 2001:db8::1"}
	}
	return a, nil
}

func answer(w http.ResponseWriter, v any, err error) {
	status := http.StatusOK
	if err != nil {
		e := asError(err)
		status, v = e.Status, e
	}
	b, merr := json.Marshal(v)
	if merr != nil {
		status, b = http.StatusInternalServerError, []byte(`{"error":"the answer cannot be written as JSON"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // a client that hung up needs no answer
}

// hint is a trailing parenthesis, which our errors use for advice.
var hint = regexp.MustCompile(`^((?s).+) \(([^()]+)\)$`)

// asError gives an error its HTTP status, and takes its hint apart.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		out := *e
		if out.Status == 0 {
			out.Status = http.StatusUnprocessableEntity
		}
		return &out
	}
	out := &Error{Status: http.StatusUnprocessableEntity, Message: err.Error()}
	// Of several errors, a line each, the last one's hint would stand alone: each keeps its own.
	if m := hint.FindStringSubmatch(out.Message); m != nil && !strings.Contains(out.Message, "\n") {
		out.Message, out.Hint = m[1], m[2]
	}
	switch {
	case errors.Is(err, maps.ErrNotFound):
		out.Status = http.StatusNotFound
	case errors.Is(err, maps.ErrOverlap), errors.Is(err, maps.ErrInUse):
		out.Status = http.StatusConflict
	case errors.Is(err, maps.ErrFull):
		out.Status = http.StatusInsufficientStorage
	case errors.Is(err, maps.ErrNotUp), errors.Is(err, maps.ErrContract):
		out.Status = http.StatusServiceUnavailable
	case errors.Is(err, fs.ErrPermission):
		out.Status = http.StatusForbidden
	}
	return out
}
