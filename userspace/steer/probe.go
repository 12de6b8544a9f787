package steer

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A probe and its answer: kind, nonce, and the first half of HMAC-SHA256 over both with the site's
// key. The answer is no longer than the probe, so that nobody is flooded through us.
const (
	kindLen, nonceLen, macLen = 8, 16, 16
	messageLen                = kindLen + nonceLen + macLen
	kindAsk                   = "bermask1"
	kindAnswer                = "bermst" // and what the edge says of itself
)

func message(key [32]byte, kind string, nonce []byte) []byte {
	m := append([]byte(kind), nonce...)
	h := hmac.New(sha256.New, key[:])
	h.Write(m)
	return h.Sum(m)[:messageLen]
}

// Says is what an edge tells of itself with its answers, so that all edges of the site come to the same
// rows: what an operator asked of it goes before the file.
type Says struct {
	Draining bool `json:"draining,omitempty"` // it takes no new flows
	Weight   int  `json:"weight,omitempty"`   // 0 = as in the file
	Share    int  `json:"share,omitempty"`    // as a canary: basis points of the rows; 0 = it is none
}

// The 16 bits of an answer: draining, whether the number is a share, and the number.
const (
	saysDraining = 1 << 15
	saysShare    = 1 << 14
	saysNumber   = saysShare - 1
)

func (s Says) kind() string {
	n := uint16(min(s.Weight, maxWeight))
	if s.Share > 0 {
		n = saysShare | uint16(min(s.Share, whole))
	}
	if s.Draining {
		n |= saysDraining
	}
	return string(binary.BigEndian.AppendUint16([]byte(kindAnswer), n))
}

// saysOf reads an authentic answer to this nonce.
func saysOf(key [32]byte, nonce [nonceLen]byte, m []byte) (Says, bool) {
	if len(m) != messageLen || string(m[:len(kindAnswer)]) != kindAnswer {
		return Says{}, false
	}
	if got, ok := nonceOf(key, string(m[:kindLen]), m); !ok || [nonceLen]byte(got) != nonce {
		return Says{}, false
	}
	n := binary.BigEndian.Uint16(m[len(kindAnswer):])
	s := Says{Draining: n&saysDraining != 0}
	if number := int(n & saysNumber); n&saysShare != 0 {
		s.Share = min(number, whole)
	} else {
		s.Weight = min(number, maxWeight)
	}
	return s, true
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
	conn net.PacketConn
	key  atomic.Pointer[[32]byte]
	says atomic.Pointer[Says]

	mu    sync.Mutex
	asked map[netip.Addr]asked // by edge: only edges have the key
}

// asked is when an edge was answered, and when the time before.
type asked struct{ last, before time.Time }

// NewResponder answers on a socket, which it closes in the end.
func NewResponder(conn net.PacketConn) *Responder {
	return &Responder{conn: conn, asked: map[netip.Addr]asked{}}
}

// Told counts the edges that ask: those that have acted since a time on what they were answered, and those that have yet
// to. An edge asks again only when its rows say what the answer before said.
func (r *Responder) Told(since time.Time) (told, yet int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.asked {
		switch {
		case !a.before.Before(since):
			told++
		case since.Sub(a.last) < lately:
			yet++
		}
	}
	return told, yet
}

// lately bounds how long after its last probe an edge is expected to ask again.
const lately = 2 * time.Second

// note remembers who was answered, and forgets who asks no more.
func (r *Responder) note(from net.Addr) {
	a, ok := from.(*net.UDPAddr)
	if !ok {
		return
	}
	now, by := time.Now(), a.AddrPort().Addr()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked[by] = asked{now, r.asked[by].last}
	maps.DeleteFunc(r.asked, func(_ netip.Addr, a asked) bool { return now.Sub(a.last) > 2*lately })
}

// SetKey says with what probes are authenticated; before, none is answered.
func (r *Responder) SetKey(key [32]byte) { r.key.Store(&key) }

// Say is what the answers say from now on.
func (r *Responder) Say(s Says) { r.says.Store(&s) }

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
		if key == nil {
			continue
		}
		if nonce, ok := nonceOf(*key, kindAsk, buf[:n]); ok {
			var says Says
			if p := r.says.Load(); p != nil {
				says = *p
			}
			_, _ = r.conn.WriteTo(message(*key, says.kind(), nonce), from) // lost answers are what probes are for
			r.note(from)
		}
	}
}

// String says how: "tcp 443".
func (p Probe) String() string {
	if p.Protocol == "http" {
		return fmt.Sprintf("http %d%s", p.Port, p.Path)
	}
	return fmt.Sprintf("%s %d", p.Protocol, p.Port)
}

// ask probes a backend once. Only edges say something of themselves.
func (p Probe) ask(ctx context.Context, addr netip.Addr, key [32]byte) (Says, error) {
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	if p.Protocol != "udp" {
		return Says{}, p.connect(ctx, new(net.Dialer), addr)
	}
	return askUDP(ctx, netip.AddrPortFrom(addr, p.Port).String(), key)
}

// connect asks by TCP. When it returns, the connection is closed.
func (p Probe) connect(ctx context.Context, d *net.Dialer, addr netip.Addr) (err error) {
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	to := netip.AddrPortFrom(addr, p.Port).String()
	conn, err := d.DialContext(ctx, "tcp", to)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) }) // wakes reads and writes below
	defer func() {
		stop()
		err = errors.Join(err, conn.Close())
	}()
	if p.Protocol == "tcp" {
		return nil
	}
	return askHTTP(ctx, conn, "http://"+to+p.Path, p.Host)
}

func askUDP(ctx context.Context, to string, key [32]byte) (says Says, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", to)
	if err != nil {
		return says, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	var nonce [nonceLen]byte
	rand.Read(nonce[:]) // never fails
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return says, err
	}
	if _, err := conn.Write(message(key, kindAsk, nonce[:])); err != nil {
		return says, err
	}
	buf := make([]byte, messageLen+1)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return says, err
		}
		if says, ok := saysOf(key, nonce, buf[:n]); ok {
			return says, nil
		}
	}
}

// hostUp says whether a host is there whose daemon did not answer with err: its stack refuses, or
// accepts, a TCP connection. Such a host may still have flows.
func (p Probe) hostUp(ctx context.Context, addr netip.Addr, err error) bool {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", netip.AddrPortFrom(addr, p.Port).String())
	if err == nil {
		_ = conn.Close() // it has said what it was for
	}
	return err == nil || errors.Is(err, syscall.ECONNREFUSED)
}

// headMax bounds what a server may send before its answer's body.
const headMax = 64 << 10

func askHTTP(ctx context.Context, conn net.Conn, url, host string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Host = host // empty: the URL's
	req.Close = true
	req.Header.Set("User-Agent", "berm-probe")
	if err := req.Write(conn); err != nil {
		return err
	}
	r := bufio.NewReader(io.LimitReader(conn, headMax))
	for {
		resp, err := http.ReadResponse(r, req)
		switch {
		case err != nil:
			return err
		case resp.StatusCode >= http.StatusBadRequest:
			return fmt.Errorf("answered %s", resp.Status)
		case resp.StatusCode >= http.StatusOK:
			return nil
		}
	}
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

// result is what a probe has shown.
type result struct {
	alive   bool // after it
	changed bool // by it
	says    Says // if err is nil
	err     error
}

// watch probes a backend until the context ends and tells what each probe has shown. After one
// that speaks against the state the next comes twice as soon.
func (p Probe) watch(ctx context.Context, ask func(context.Context) (Says, error), start bool, tell func(result)) {
	h := health{alive: start}
	for {
		asked := time.Now()
		says, err := ask(ctx)
		if ctx.Err() != nil {
			return
		}
		changed := h.note(err == nil, p)
		tell(result{h.alive, changed, says, err})
		pause := p.Interval
		if h.run > 0 {
			pause /= 2
		}
		pause -= mathrand.N(pause/10 + 1) // else all edges ask at the same time
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(asked.Add(pause))):
		}
	}
}
