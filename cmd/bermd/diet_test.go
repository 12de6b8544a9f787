package main_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"
)

// plenty is what many origins send with every page.
var plenty = map[string]string{
	"Content-Type": "text/html; charset=utf-8", "Cache-Control": "public, max-age=86400",
	"Content-Security-Policy":   "default-src 'self'; img-src 'self' https://images.example.com data:; script-src 'self' https://scripts.example.com; frame-ancestors 'none'",
	"Strict-Transport-Security": "max-age=31536000; includeSubDomains; preload", "Referrer-Policy": "strict-origin-when-cross-origin",
	"X-Content-Type-Options": "nosniff", "Etag": `"5f3c-61a9b2c3d4e5f"`, "Last-Modified": "Tue, 24 Nov 2026 10:11:12 GMT",
	"X-Powered-By": "Example Framework 7.1.4 (production)", "Server": "example/2.3.4 (linux) module/5.6.7", "X-Permitted-Cross-Domain-Policies": "none",
	"X-Request-Handler": "pages.controllers.article.ArticleController#show", "X-Backend-Pool": "articles-eu-central-1a-blue",
	"X-Xss-Protection": "1; mode=block", "X-Debug-Timing": "db=12.4;render=31.9;total=48.2", "X-Debug-Node": "app-0017.eu-central.example.internal",
}

const diet = "headers: {drop: [X-Powered-By, Server, X-Permitted-Cross-Domain-Policies, X-Request-Handler, X-Backend-Pool, X-Xss-Protection, X-Debug-*, Last-Modified]}"

// A thousand answers with the same head of some 900 bytes, over each protocol, with the operator's diet.
func TestHeadsOnTheWire(t *testing.T) {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for name, value := range plenty {
			w.Header().Set(name, value)
		}
		_, _ = io.WriteString(w, "page") // a client that left shows in the test
	}))
	t.Cleanup(origin.Close)
	lines := fmt.Sprintf("origins: {www: {urls: [%q]}}\nroutes: [{host: \"*\", path: /, origin: www}]", origin.URL)
	p := mustStart(t, onLoopback, lines)
	metricsOf(t, p, onLoopback, lines)
	trust := &tls.Config{InsecureSkipVerify: true}
	h2 := &http.Transport{TLSClientConfig: trust, Protocols: new(http.Protocols)}
	h2.Protocols.SetHTTP2(true)
	t.Cleanup(h2.CloseIdleConnections)
	h3 := &http3.Transport{TLSClientConfig: trust}
	t.Cleanup(func() { _ = h3.Close() })
	const answers = 1000
	type bytes struct{ raw, wire float64 }
	ask := func(protocol string, rt http.RoundTripper) (got bytes, last http.Header) {
		t.Helper()
		before, url := mustMetrics(t, p), p.url(t, protocol)+"/page"
		client := &http.Client{Transport: rt, Timeout: 20 * time.Second}
		for range answers {
			resp, err := client.Get(url)
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "page" {
				t.Fatalf("%q, %v", body, err)
			}
			_ = resp.Body.Close() // read to its end
			last = resp.Header
		}
		after := mustMetrics(t, p)
		of := func(side string) float64 {
			name := fmt.Sprintf("berm_header_bytes_%s_total{protocol=%q}", side, protocol)
			return (after[name] - before[name]) / answers
		}
		return bytes{of("raw"), of("wire")}, last
	}
	full := map[string]bytes{}
	for protocol, rt := range map[string]http.RoundTripper{"h2": h2, "h3": h3} {
		got, head := ask(protocol, rt)
		if full[protocol] = got; head.Get("X-Powered-By") == "" || got.raw < 800 || got.raw > 1300 {
			t.Errorf("%s: %+v, %v", protocol, got, head)
		}
	}
	p.write(t, onLoopback, lines, diet)
	if _, err := p.client.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		protocol string
		rt       http.RoundTripper
		most     float64
	}{{"h2", h2, 0.15}, {"h3", h3, 0.45}} {
		got, head := ask(c.protocol, c.rt)
		was := full[c.protocol]
		t.Logf("%s: %.0f bytes a head raw, %.0f on the wire (%.1f %%); with the diet %.0f raw, %.0f on the wire: %.1f %% of what there was",
			c.protocol, was.raw, was.wire, 100*was.wire/was.raw, got.raw, got.wire, 100*got.wire/was.raw)
		if got.wire > c.most*was.raw || got.wire == 0 || head.Get("X-Powered-By")+head.Get("X-Debug-Node") != "" || head.Get("Content-Security-Policy") == "" {
			t.Errorf("%s: want at most %.0f %%; %+v of %+v, %v", c.protocol, 100*c.most, got, was, head)
		}
	}
}

// mustMetrics reads every metric by its name and labels.
func mustMetrics(t *testing.T, p *process) map[string]float64 {
	t.Helper()
	resp, err := http.Get("http://" + p.metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	all := map[string]float64{}
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, text, _ := strings.Cut(lines.Text(), " ")
		if value, err := strconv.ParseFloat(text, 64); err == nil { // else a comment
			all[name] = value
		}
	}
	return all
}
