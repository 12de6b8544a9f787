// Package watch subscribes to a live stream, repairs it, and tells what its path loses.
package watch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/bermedge/berm/userspace/fec"
	"github.com/bermedge/berm/userspace/fec/viewer"
)

// Options say what to watch, and how.
type Options struct {
	URL      string        `arg:"" help:"Route of a live stream, such as https://192.0.2.10/live/stage; with ?fec=off it comes without parity."`
	Duration time.Duration `short:"d" default:"10s" help:"How long to watch."`
	Silent   bool          `help:"Ask for no more parity of blocks that lack some (NACK)."`
	Secure   bool          `help:"Verify the certificate; without it none is."`
	Timeout  time.Duration `default:"10s" help:"Of subscribing."`
}

// Validate reports every mistake at once.
func (o *Options) Validate() error {
	var errs []error
	if u, err := url.Parse(o.URL); err != nil || u.Scheme != "https" || u.Host == "" {
		errs = append(errs, fmt.Errorf("URL %q: want https://host/…", o.URL))
	}
	if o.Duration <= 0 {
		errs = append(errs, fmt.Errorf("--duration %s: want more than 0", o.Duration))
	}
	return errors.Join(errs...)
}

// Report is what came.
type Report struct {
	Seconds float64 `json:"seconds"`
	fec.Counts
	Parity uint64 `json:"parity"` // datagrams of it
	Nacks  int    `json:"nacks"`
}

// Run watches until the time is over, or the edge ends the session.
func Run(ctx context.Context, o Options) (Report, error) {
	dial, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	began := time.Now()
	v, _, err := viewer.Subscribe(dial, o.URL, viewer.Options{TLS: &tls.Config{InsecureSkipVerify: !o.Secure}, Silent: o.Silent})
	if err != nil {
		return Report{}, err
	}
	defer v.Close()
	over := time.NewTimer(o.Duration)
	defer over.Stop()
	select {
	case <-ctx.Done():
	case <-v.Done():
	case <-over.C:
	}
	_, parity, nacks := v.Kinds()
	return Report{time.Since(began).Seconds(), v.Counts(), uint64(parity), nacks}, nil
}

// Text prints the report for people.
func (r Report) Text(w io.Writer) {
	share := func(part, whole uint64) float64 { return 100 * float64(part) / float64(max(whole, 1)) }
	fmt.Fprintf(w, "%d packets in %.1f s, %d of them repaired with %d of parity; asked for more %d times\n", r.Delivered, r.Seconds, r.Repaired, r.Parity, r.Nacks)
	fmt.Fprintf(w, "lost on the way %d of %d (%.2f %%), stayed lost %d (%.3f %%)\n", r.Lost, r.Expected, share(r.Lost, r.Expected), r.Residual, share(r.Residual, r.Residual+r.Delivered))
}
