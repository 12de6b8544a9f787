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
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/fec"
	"github.com/bermedge/berm/userspace/fec/viewer"
)

func mustView(t *testing.T, url string, change func(*viewer.Options)) *viewer.Viewer {
	t.Helper()
	v, res, err := view(t, url, change)
	if err != nil {
		t.Fatal(res, err)
	}
	return v
}

func view(t *testing.T, url string, change func(*viewer.Options)) (*viewer.Viewer, *http.Response, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	opts := viewer.Options{TLS: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // the daemon's self-signed one
	if change != nil {
		change(&opts)
	}
	v, res, err := viewer.Subscribe(ctx, url, opts)
	if err == nil {
		t.Cleanup(v.Close)
	}
	return v, res, err
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
	loses := func(o *viewer.Options) { o.Lose, o.Silent = func(n int) bool { return n%20 == 7 }, true }
	lossy := mustView(t, url, loses)
	clean := mustView(t, url, func(o *viewer.Options) {
		// What a busy machine loses by itself is not the path's.
		o.Tell, o.Silent = func(c *fec.Counts) { c.Lost, c.Bursts = 0, [fec.Bursts]uint64{} }, true
	})
	plain := mustView(t, url+"?fec=off", loses)
	contribute(t, in)

	// Parity is planned for single losses, which are all that the viewer makes. A busy machine loses runs of packets by
	// itself, and then we begin anew: they are not what parity was planned for.
	var from, last fec.Counts
	err := rig.Until(t.Context(), 60*time.Second, "800 packets with parity, and no run lost", func() (bool, error) {
		c := lossy.Counts()
		_, parity, _ := lossy.Kinds()
		if parity < 50 || from.Delivered == 0 || !slices.Equal(c.Bursts[1:], from.Bursts[1:]) {
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
	_, parity, _ := clean.Kinds()
	if c := clean.Counts(); parity > 0 || c.Received < 500 {
		t.Errorf("a clean path: %d packets of parity, %+v", parity, c)
	}
	_, parity, _ = plain.Kinds()
	if c := plain.Counts(); parity > 0 || c.Residual < 30 {
		t.Errorf("without parity: %d packets of it, %+v", parity, c)
	}
	if _, res, err := view(t, url, nil); err == nil || res == nil || res.StatusCode != http.StatusServiceUnavailable {
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
		_, res, err := view(t, base+c.path, func(o *viewer.Options) { o.Header = head })
		if res == nil || res.StatusCode != c.want {
			t.Errorf("%s from %q: %v, %v, want %d", c.path, c.origin, res, err, c.want)
		}
	}
}

// A daemon without streams offers no datagrams, and ends connections that bring them.
func TestNoDatagramsUnlessConfigured(t *testing.T) {
	p := mustStart(t, onLoopback)
	if _, res, err := view(t, p.url(t, "h3")+"/live/stage", nil); err == nil {
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
