package steer

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"
)

// A probe and its answer: kind, nonce, and the first half of HMAC-SHA256 over both with the site's
// key. The answer is no longer than the probe, so that nobody is flooded through us.
const (
	kindLen, nonceLen, macLen = 8, 16, 16
	messageLen                = kindLen + nonceLen + macLen
	kindAsk                   = "bermask1"
	kindAnswer                = "bermans1"
)

func message(key [32]byte, kind string, nonce []byte) []byte {
	m := append([]byte(kind), nonce...)
	h := hmac.New(sha256.New, key[:])
	h.Write(m)
	return h.Sum(m)[:messageLen]
}

// nonceOf returns the nonce of a message of this kind that is whole and authentic.
func nonceOf(key [32]byte, kind string, m []byte) ([]byte, bool) {
	if len(m) != messageLen {
		return nil, false
	}
	nonce := m[kindLen : kindLen+nonceLen]
	return nonce, subtle.ConstantTimeCompare(m, message(key, kind, nonce)) == 1
}

// Responder answers other edges' probes while this one is fit to serve.
type Responder struct {
	conn     net.PacketConn
	key      atomic.Pointer[[32]byte]
	draining atomic.Bool
}

// NewResponder answers on a socket, which it closes in the end.
func NewResponder(conn net.PacketConn) *Responder { return &Responder{conn: conn} }

// SetKey says with what probes are authenticated; before, none is answered.
func (r *Responder) SetKey(key [32]byte) { r.key.Store(&key) }

// SetDraining stops answering, so that other edges take over this one's rows, or starts again.
func (r *Responder) SetDraining(on bool) { r.draining.Store(on) }

// Serve answers until the context ends, which is no error, or the socket breaks.
func (r *Responder) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = r.conn.Close() }) // wakes ReadFrom below
	defer func() {
		if stop() {
			_ = r.conn.Close() // the error that ended Serve is the one to tell
		}
	}()
	buf := make([]byte, messageLen+1)
	for {
		n, from, err := r.conn.ReadFrom(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("answer probes: %w", err)
		}
		key := r.key.Load()
		if key == nil || r.draining.Load() {
			continue
		}
		if nonce, ok := nonceOf(*key, kindAsk, buf[:n]); ok {
			_, _ = r.conn.WriteTo(message(*key, kindAnswer, nonce), from) // lost answers are what probes are for
		}
	}
}

// ask probes a backend once.
func (p Probe) ask(ctx context.Context, addr netip.Addr, key [32]byte) error {
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	to := netip.AddrPortFrom(addr, p.Port).String()
	switch p.Protocol {
	case "tcp":
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", to)
		if err != nil {
			return err
		}
		return conn.Close()
	case "http":
		return askHTTP(ctx, "http://"+to+p.Path)
	}
	return askUDP(ctx, to, key)
}

func askUDP(ctx context.Context, to string, key [32]byte) (err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	var nonce [nonceLen]byte
	rand.Read(nonce[:]) // never fails
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := conn.Write(message(key, kindAsk, nonce[:])); err != nil {
		return err
	}
	buf := make([]byte, messageLen+1)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		if got, ok := nonceOf(key, kindAnswer, buf[:n]); ok && [nonceLen]byte(got) == nonce {
			return nil
		}
	}
}

// probeClient keeps no connection: what is asked is whether a new one can be made.
var probeClient = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true, Proxy: nil},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func askHTTP(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "berm-probe")
	resp, err := probeClient.Do(req)
	if err != nil {
		return err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		err = fmt.Errorf("answered %s", resp.Status)
	}
	return errors.Join(err, resp.Body.Close())
}

// health follows a backend's probes.
type health struct {
	alive bool
	run   int // results in a row that say otherwise
}

// note takes a result and says whether the backend's state changes.
func (h *health) note(ok bool, p Probe) (changed bool) {
	if ok == h.alive {
		h.run = 0
		return false
	}
	h.run++
	if h.run < p.Failures && h.alive || h.run < p.Successes && !h.alive {
		return false
	}
	h.alive, h.run = ok, 0
	return true
}

// watch probes a backend until the context ends and tells each result that changes its state. After a
// result that speaks against the state the next probe comes twice as soon.
func (p Probe) watch(ctx context.Context, ask func(context.Context) error, start bool, changed func(alive bool, why error), beat func()) {
	h := health{alive: start}
	for {
		asked := time.Now()
		err := ask(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			beat()
		}
		if h.note(err == nil, p) {
			changed(h.alive, err)
		}
		pause := p.Interval
		if h.run > 0 {
			pause /= 2
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(asked.Add(pause))):
		}
	}
}
