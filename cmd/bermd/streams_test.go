package main_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/webtransport-go"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/fec"
)

// viewer subscribes to a stream with another's implementation of WebTransport, and loses some datagrams on purpose.
type viewer struct {
	session *webtransport.Session
	lose    func(n int) bool // of the n-th datagram; nil: none, and none is reported

	mu    sync.Mutex
	dec   *fec.Decoder
	seen  map[uint32]int
	kinds [2]int
}

func mustView(t *testing.T, url string, lose func(n int) bool) *viewer {
	t.Helper()
	v, res, err := view(t, url, http.Header{}, lose)
	if err != nil {
		t.Fatal(res, err)
	}
	return v
}

func view(t *testing.T, url string, head http.Header, lose func(n int) bool) (*viewer, *http.Response, error) {
	t.Helper()
	dialer := &webtransport.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h3"}}, //nolint:gosec // the daemon's self-signed one
		QUICConfig:      &quic.Config{EnableDatagrams: true, EnableStreamResetPartialDelivery: true},
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	res, session, err := dialer.Dial(ctx, url, head)
	if err != nil {
		return nil, res, err
	}
	v := &viewer{session: session, lose: lose, seen: map[uint32]int{}}
	v.dec, err = fec.NewDecoder(8, 1200, func(adu []byte, _ bool) { v.seen[binary.BigEndian.Uint32(adu)]++ })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.CloseWithError(0, "") })
	go v.receive(t.Context())
	go v.report(t.Context())
	return v, res, nil
}

func (v *viewer) receive(ctx context.Context) {
	for n := 0; ; n++ {
		b, err := v.session.ReceiveDatagram(ctx)
		if err != nil {
			return
		}
		v.mu.Lock()
		v.kinds[b[0]&1]++
		switch {
		case v.lose != nil && v.lose(n):
		case b[0] == fec.KindRepair:
			_ = v.dec.Repair(b[1:])
		default:
			_ = v.dec.Source(b[1:])
		}
		v.mu.Unlock()
	}
}

func (v *viewer) report(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		v.mu.Lock()
		c := v.dec.Counts()
		v.mu.Unlock()
		if v.lose == nil { // what a busy machine loses by itself is not the path's
			c.Lost, c.Bursts = 0, [fec.Bursts]uint64{}
		}
		b := c.AppendReport(nil)
		if v.session.SendDatagram(b) != nil {
			return
		}
	}
}

func (v *viewer) counts() (c fec.Counts, kinds [2]int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.dec.Counts(), v.kinds
}

// contribute sends numbered packets into a stream, some 750 a second, until the test ends.
func contribute(t *testing.T, to string) {
	t.Helper()
	conn, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { <-done; _ = conn.Close() })
	ctx := t.Context()
	go func() {
		defer close(done)
		tick := time.NewTicker(4 * time.Millisecond)
		defer tick.Stop()
		pkt := make([]byte, 500)
		for number := uint32(0); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			for range 3 {
				binary.BigEndian.PutUint32(pkt, number)
				number++
				_, _ = conn.Write(pkt)
			}
		}
	}()
}

// A subscriber over WebTransport that loses 5 % gets parity, and all but every packet; one that loses nothing, or
// wants none, gets none.
func TestStreams(t *testing.T) {
	in := freeUDP(t)
	p := mustStart(t, onLoopback, "fec:", "  streams:",
		fmt.Sprintf("    - {name: stage, listen: %q, path: /live/stage, subscribers: 3, page: true}", in))
	url := p.url(t, "h3") + "/live/stage"
	lossy := mustView(t, url, func(n int) bool { return n%20 == 7 })
	clean := mustView(t, url, nil)
	plain := mustView(t, url+"?fec=off", func(n int) bool { return n%20 == 7 })
	contribute(t, in)

	// Parity is planned for single losses, which are all that the viewer makes. A busy machine loses runs of packets by
	// itself, and then we begin anew: they are not what parity was planned for.
	var from, last fec.Counts
	err := rig.Until(t.Context(), 60*time.Second, "800 packets with parity, and no run lost", func() (bool, error) {
		c, kinds := lossy.counts()
		if kinds[1] < 50 || from.Delivered == 0 || !slices.Equal(c.Bursts[1:], from.Bursts[1:]) {
			from = c
		}
		last = c
		return c.Delivered >= from.Delivered+800, nil
	})
	if err != nil {
		t.Fatalf("%v: %+v", err, last)
	}
	// Without repair 40 of 800 would be missing.
	if missing := last.Residual - from.Residual; missing > 8 || last.Repaired < from.Repaired+20 || last.Refused > 0 {
		t.Errorf("%d packets missing: %+v, and from %+v", missing, last, from)
	}
	if c, kinds := clean.counts(); kinds[1] > 0 || c.Received < 500 {
		t.Errorf("a clean path: %v datagrams, %+v", kinds, c)
	}
	if c, kinds := plain.counts(); kinds[1] > 0 || c.Residual < 30 {
		t.Errorf("without parity: %v datagrams, %+v", kinds, c)
	}
	if _, res, err := view(t, url, http.Header{}, nil); err == nil || res == nil || res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a fourth of three subscribers: %v, %v", res, err)
	}
}

// Who may not subscribe is told so, before there is a session.
func TestStreamRefusals(t *testing.T) {
	p := mustStart(t, onLoopback, "fec:", "  streams:",
		fmt.Sprintf("    - {name: stage, listen: %q, path: /live/stage, origins: [\"https://a.example\"]}", freeUDP(t)))
	base := p.url(t, "h3")
	for _, c := range []struct {
		path, origin string
		want         int
	}{
		{"/live/stage", "https://b.example", http.StatusForbidden},
		{"/live/stage", "http://" + strings.TrimPrefix(base, "https://"), http.StatusForbidden},
		{"/live/stage", "https://a.example", http.StatusOK},
		{"/live/stage", base, http.StatusOK},
		{"/live/stage", "", http.StatusOK},
		{"/live/stagehand", "", http.StatusNotFound},
		{"/live", "", http.StatusNotFound},
	} {
		head := http.Header{}
		if c.origin != "" {
			head.Set("Origin", c.origin)
		}
		_, res, err := view(t, base+c.path, head, nil)
		if res == nil || res.StatusCode != c.want {
			t.Errorf("%s from %q: %v, %v, want %d", c.path, c.origin, res, err, c.want)
		}
	}
}

// A daemon without streams offers no datagrams, and ends connections that bring them.
func TestNoDatagramsUnlessConfigured(t *testing.T) {
	p := mustStart(t, onLoopback)
	if _, res, err := view(t, p.url(t, "h3")+"/live/stage", http.Header{}, nil); err == nil {
		t.Errorf("a session without streams: %v", res)
	}
	conn, err := quic.DialAddr(t.Context(), strings.TrimPrefix(p.url(t, "h3"), "https://"), &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{"h3"}, //nolint:gosec // the daemon's self-signed one
	}, &quic.Config{EnableDatagrams: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.CloseWithError(0, "") }()
	if s := conn.ConnectionState().SupportsDatagrams; s.Remote {
		t.Errorf("%+v without streams", s)
	}
	if err := conn.SendDatagram([]byte{0}); err == nil {
		t.Error("a datagram was sent to a daemon that takes none")
	}
}
