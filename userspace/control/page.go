package control

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bermedge/berm/maps"
)

//go:embed page.html
var pageHTML string

//go:embed page.css
var pageCSS string

//go:embed page.js
var pageJS string

// PagePrefix is where the status page is on the public listeners.
const PagePrefix = "/.berm/"

// Series are the last minute's rates, a value a second, oldest first.
type Series struct {
	Requests, Packets, Dropped []float64
}

// PageSource is what the status page asks.
type PageSource interface {
	Status(ctx context.Context) (Status, error)
	Top(ctx context.Context, seconds int) (Top, error)
	Series() Series
	Drops(ctx context.Context) (Drops, error) // none while the kernel half is not there
}

// Page serves the status page and status.json. It changes nothing and holds no secret; still, who
// may see it is the caller's to decide.
func Page(src PageSource) http.Handler {
	page := template.Must(template.New("page").Funcs(pageFuncs).Parse(pageHTML))
	// Nothing but our own style and script runs, wherever a name with markup may come from.
	policy := "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; " +
		"style-src 'self' 'unsafe-inline'; script-src '" + digest(pageJS) + "'"
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+PagePrefix+"status.json", func(w http.ResponseWriter, r *http.Request) {
		s, err := src.Status(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		secure(w, policy, "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		_ = enc.Encode(s) // a client that hung up needs no answer
	})
	mux.HandleFunc("GET "+PagePrefix+"{$}", func(w http.ResponseWriter, r *http.Request) {
		v, err := view(r.Context(), src)
		var out bytes.Buffer
		if err == nil {
			err = page.Execute(&out, v)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		secure(w, policy, "text/html; charset=utf-8")
		_, _ = w.Write(out.Bytes())
	})
	return mux
}

func digest(script string) string {
	sum := sha256.Sum256([]byte(script))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

func secure(w http.ResponseWriter, policy, kind string) {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
}

// pageView is what the template shows.
type pageView struct {
	Status                     Status
	Top                        Top
	VIPs                       []pageVIP
	Drops                      []pageDrop
	PacketsIn, DroppedIn       float64
	CacheFull, HitRatio        float64
	Requests, Packets, Dropped []float64
	Style                      template.CSS
	Script                     template.JS
}

type pageVIP struct {
	VIP
	Service     string
	In, Dropped float64
}

type pageDrop struct {
	Drop
	Meaning string
	Now     float64
}

const pageSeconds = 5

func view(ctx context.Context, src PageSource) (*pageView, error) {
	s, err := src.Status(ctx)
	if err != nil {
		return nil, err
	}
	top, err := src.Top(ctx, pageSeconds)
	if err != nil {
		return nil, err
	}
	series := src.Series()
	v := &pageView{
		Status: s, Top: top, Style: template.CSS(pageCSS), Script: template.JS(pageJS),
		Requests: series.Requests, Packets: series.Packets, Dropped: series.Dropped,
	}
	v.Top.Sources = top.Sources[:min(len(top.Sources), 10)]
	if s.Cache.MaxBytes > 0 {
		v.CacheFull = float64(s.Cache.Bytes) / float64(s.Cache.MaxBytes)
	}
	v.HitRatio = top.Cache.HitRatio
	if top.Requests == 0 { // nothing to tell about the last seconds
		v.HitRatio = s.Cache.HitRatio
	}
	now := map[string]TopVIP{}
	for _, t := range top.VIPs {
		now[t.Name] = t
		v.PacketsIn += t.In.Packets
	}
	for _, x := range s.VIPs {
		t := now[x.Name]
		v.VIPs = append(v.VIPs, pageVIP{x, netip.AddrPortFrom(x.Address, x.Port).String() + "/" + x.Protocol, t.In.Packets, t.Dropped.Packets})
	}
	for _, t := range top.Drops {
		v.DroppedIn += t.Dropped.Packets
	}
	drops, err := src.Drops(ctx)
	if err != nil {
		return nil, err
	}
	v.dropsOf(drops)
	return v, nil
}

// dropsOf joins totals with what happens now, the busiest first. Reasons that never happened stay
// out.
func (v *pageView) dropsOf(d Drops) {
	now := map[string]float64{}
	for _, t := range v.Top.Drops {
		now[t.Reason] = t.Dropped.Packets + t.Shadowed.Packets
	}
	for _, x := range d.Drops {
		if x.Dropped.Packets+x.Shadowed.Packets > 0 {
			v.Drops = append(v.Drops, pageDrop{x, maps.Drop(x.Number).Meaning(), now[x.Reason]})
		}
	}
	slices.SortStableFunc(v.Drops, func(a, b pageDrop) int {
		return cmp.Compare(b.Dropped.Packets, a.Dropped.Packets)
	})
}

var pageFuncs = template.FuncMap{
	"since":   func(t time.Time) string { return age(time.Since(t)) },
	"rate":    rateText,
	"count":   countText,
	"count64": func(n int) string { return countText(uint64(max(n, 0))) },
	"percent": func(r float64) string { return strconv.FormatFloat(100*r, 'f', 1, 64) },
	"bar": func(r float64) template.CSS {
		return template.CSS(strconv.FormatFloat(100*min(max(r, 0), 1), 'f', 1, 64) + "%")
	},
	"bytes": bytesText,
	"add":   func(a, b uint64) uint64 { return a + b },
	"chart": chart,
}

func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

func rateText(r float64) string {
	switch {
	case r == 0:
		return "0"
	case r < 10:
		return strconv.FormatFloat(r, 'f', 1, 64)
	}
	return countText(uint64(r + 0.5))
}

// countText groups digits by thousands, and shortens what is larger than a billion.
func countText(n uint64) string {
	switch {
	case n >= 1e12:
		return fmt.Sprintf("%.2f T", float64(n)/1e12)
	case n >= 1e9:
		return fmt.Sprintf("%.2f G", float64(n)/1e9)
	}
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}

func bytesText(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v /= 1024
		i++
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

// chart draws a line over its area, scaled to its largest value. The numbers in it are ours, so it
// is safe as markup.
func chart(values []float64, class string) template.HTML {
	const width, height = 120.0, 36.0
	if len(values) < 2 {
		return template.HTML(`<svg class="chart"></svg>`)
	}
	top := slices.Max(values)
	if top <= 0 {
		top = 1
	}
	var line strings.Builder
	for i, v := range values {
		op := byte('L')
		if i == 0 {
			op = 'M'
		}
		fmt.Fprintf(&line, "%c%.1f %.1f", op, width*float64(i)/float64(len(values)-1), height-2-(height-6)*v/top)
	}
	return template.HTML(fmt.Sprintf(`<svg class="chart %s" viewBox="0 0 %g %g" preserveAspectRatio="none" aria-hidden="true"><path class="a" d="%sL%g %gL0 %gZ"/><path class="l" d="%s"/></svg>`,
		template.HTMLEscapeString(class), width, height, line.String(), width, height, height, line.String()))
}
