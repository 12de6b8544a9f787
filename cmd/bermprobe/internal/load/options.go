// Package load sends HTTP requests over one protocol, open or closed loop, and measures them.
package load

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// Options say what to ask, how often and over what.
type Options struct {
	URL       string        `arg:"" help:"What to ask for; {n} becomes 0, 1, 2 … below --objects."`
	Proto     string        `enum:"h1,h2,h3" default:"h1" help:"Protocol: h1, h2 (cleartext for http://) or h3."`
	Conns     int           `short:"c" default:"1" help:"Connections."`
	Streams   int           `default:"1" help:"Concurrent requests on each connection (h2, h3)."`
	Rate      float64       `short:"r" help:"Requests per second over all connections; 0 = as fast as answers come."`
	Duration  time.Duration `short:"d" default:"10s" help:"How long to send; with --requests, at most."`
	Requests  int64         `short:"n" help:"Stop after so many requests; 0 = when the time is over."`
	Objects   int64         `default:"1" help:"How many different values {n} takes."`
	Method    string        `short:"X" default:"GET" help:"Method."`
	Header    []string      `short:"H" sep:"none" placeholder:"NAME:VALUE" help:"Header to send; repeatable."`
	Connect   string        `placeholder:"HOST:PORT" help:"Connect there, whatever the URL says."`
	Source    string        `placeholder:"IP" help:"Local address to send from."`
	Reconnect bool          `help:"A new connection for every request."`
	Secure    bool          `help:"Verify the certificate; without it none is."`
	Timeout   time.Duration `default:"10s" help:"Of one request, connecting included."`
	Tally     string        `placeholder:"HEADER" help:"Count the values of this response header."`
	Timeline  bool          `help:"Report every second as well."`
}

// Validate reports every mistake at once.
func (o *Options) Validate() error {
	var errs []error
	u, err := url.Parse(strings.ReplaceAll(o.URL, "{n}", "0"))
	switch {
	case err != nil:
		errs = append(errs, err)
	case u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		errs = append(errs, fmt.Errorf("URL %q: want http://host/… or https://host/…", o.URL))
	case u.Scheme == "http" && o.Proto == "h3":
		errs = append(errs, errors.New("--proto h3: needs an https:// URL, QUIC is always encrypted"))
	}
	if o.Conns < 1 || o.Conns > 100000 {
		errs = append(errs, fmt.Errorf("--conns %d: want 1 to 100000", o.Conns))
	}
	if o.Streams < 1 {
		errs = append(errs, fmt.Errorf("--streams %d: want 1 or more", o.Streams))
	}
	if o.Proto == "h1" && o.Streams > 1 {
		errs = append(errs, errors.New("--streams: HTTP/1.1 answers one request at a time on a connection; use --conns"))
	}
	if o.Reconnect && o.Streams > 1 {
		errs = append(errs, errors.New("--reconnect: needs --streams 1, a connection that ends ends all its streams"))
	}
	if o.Rate < 0 {
		errs = append(errs, fmt.Errorf("--rate %g: is negative", o.Rate))
	}
	if o.Duration <= 0 {
		errs = append(errs, fmt.Errorf("--duration %s: want more than 0", o.Duration))
	}
	if o.Objects < 1 {
		errs = append(errs, fmt.Errorf("--objects %d: want 1 or more", o.Objects))
	}
	if o.Source != "" {
		if _, err := netip.ParseAddr(o.Source); err != nil {
			errs = append(errs, fmt.Errorf("--source %q: not an IP address", o.Source))
		}
	}
	for _, h := range o.Header {
		if name, _, ok := strings.Cut(h, ":"); !ok || strings.TrimSpace(name) == "" {
			errs = append(errs, fmt.Errorf("--header %q: want NAME:VALUE", h))
		}
	}
	return errors.Join(errs...)
}
