package edge

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/pipeline"
)

// The self-check asks the edge as a client would: through a listener, TLS and the pipeline. systemd
// restarts a daemon whose check fails, which a mere timer would keep alive.
const (
	selfPath  = control.PagePrefix + "self"
	selfField = "Berm-Self-Check"
)

// selfCheckStage is a Local with a name of its own.
type selfCheckStage struct{ pipeline.Local }

// Name returns "self".
func (selfCheckStage) Name() string { return "self" }

// clients observes what clients ask, and not the self-check.
type clients struct{ pipeline.Observer }

// Exchange passes a client's exchange on.
func (c clients) Exchange(x *pipeline.Exchange, out pipeline.Outcome) {
	if out.Stage != (selfCheckStage{}).Name() {
		c.Observer.Exchange(x, out)
	}
}

func (e *Edge) isSelfCheck(x *pipeline.Exchange) bool {
	return subtle.ConstantTimeCompare([]byte(x.R.Header.Get(selfField)), []byte(e.token)) == 1
}

func answerSelfCheck(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }

// checkSelf asks once, over a new connection.
func (e *Edge) checkSelf(ctx context.Context) error {
	tr := selfTransport()
	tr.DisableKeepAlives = true
	defer tr.CloseIdleConnections()
	return e.askSelf(ctx, tr)
}

func selfTransport() *http.Transport {
	return &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // asks itself, and shows only a token that nobody else can use
	}
}

func (e *Edge) askSelf(ctx context.Context, tr *http.Transport) error {
	target, secure := e.selfTarget()
	if target == "" {
		return errors.New("no TCP listener is open")
	}
	scheme := "http"
	if secure {
		scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+target+selfPath, nil)
	if err != nil {
		return err
	}
	req.Header.Set(selfField, e.token)
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<10))
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("%s answered %s", target, resp.Status)
	}
	return nil
}

// selfTarget is an address at which this host reaches the edge itself.
func (e *Edge) selfTarget() (address string, secure bool) {
	for _, a := range e.server.Addresses() {
		if a.Network != "tcp" {
			continue
		}
		at, err := netip.ParseAddrPort(a.Address)
		if err != nil {
			continue
		}
		host := at.Addr()
		if host.IsUnspecified() {
			host = netip.MustParseAddr("127.0.0.1")
			if at.Addr().Is6() {
				host = netip.IPv6Loopback()
			}
		}
		address, secure = net.JoinHostPort(host.String(), strconv.Itoa(int(at.Port()))), len(a.Protocols) > 1
		if !secure { // the cheapest
			return address, secure
		}
	}
	return address, secure
}

// watchdog checks, and tells systemd while all is well. Without systemd it still warns.
func (e *Edge) watchdog(ctx context.Context) {
	every := watchdogInterval()
	timeout := min(every, 5*time.Second)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		check, cancel := context.WithTimeout(ctx, timeout)
		err := e.checkSelf(check)
		cancel()
		e.sound.Store(err == nil)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			e.log.Error("self-check failed: systemd restarts a daemon that goes on like this", "error", err)
		default:
			e.notify("WATCHDOG=1")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// watchdogInterval is a third of what systemd allows (WATCHDOG_USEC), or ten seconds.
func watchdogInterval() time.Duration {
	us, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || us <= 0 {
		return 10 * time.Second
	}
	return time.Duration(us) * time.Microsecond / 3
}
