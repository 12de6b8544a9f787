//go:build quiccc

package quiccc

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/qlog"
	"github.com/quic-go/quic-go/qlogwriter"
	"github.com/quic-go/quic-go/testutils/simnet"
)

// witness is a client's trace of what its server promised, and of when its datagram was sent and acknowledged.
type witness struct {
	mu          sync.Mutex
	promised    time.Duration
	number      int64
	sent, acked time.Time
}

func (w *witness) SupportsSchemas(string) bool      { return true }
func (w *witness) AddProducer() qlogwriter.Recorder { return w }
func (w *witness) Close() error                     { return nil }
func (w *witness) RecordEvent(event qlogwriter.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch e := event.(type) {
	case qlog.ParametersSet:
		if e.Initiator == qlog.InitiatorRemote {
			w.promised = e.MaxAckDelay
		}
	case qlog.PacketSent:
		for _, f := range e.Frames {
			if _, ok := f.Frame.(*qlog.DatagramFrame); ok {
				w.number, w.sent = int64(e.Header.PacketNumber), time.Now()
			}
		}
	case qlog.PacketReceived:
		for _, f := range e.Frames {
			if ack, ok := f.Frame.(*qlog.AckFrame); ok && !w.sent.IsZero() && w.acked.IsZero() && int64(ack.LargestAcked()) >= w.number {
				w.acked = time.Now()
			}
		}
	}
}

// A profile's delay is what the server's transport parameters promise, and what a single packet waits for its
// acknowledgement: each client's own, on one socket, and quic-go's where the profile has none.
func TestAckDelay(t *testing.T) {
	const way = 10 * time.Millisecond
	delays := map[netip.Addr]time.Duration{netip.MustParseAddr("192.0.2.1"): 5 * time.Millisecond, netip.MustParseAddr("192.0.2.2"): 40 * time.Millisecond, netip.MustParseAddr("192.0.2.3"): 0}
	cert := mustCert(t)
	synctest.Test(t, func(t *testing.T) {
		c := New(Options{Choose: func(client netip.AddrPort) (Choice, error) { return Choice{AckDelay: delays[client.Addr()]}, nil }})
		sim := &simnet.Simnet{Router: &simnet.PerfectRouter{}}
		endpoint := func(host string) *quic.Transport {
			conn := sim.NewEndpoint(&net.UDPAddr{IP: net.ParseIP(host).To4(), Port: 443}, simnet.NodeBiDiLinkSettings{Latency: way})
			return &quic.Transport{Conn: conn}
		}
		server := endpoint("198.51.100.1")
		clients := map[netip.Addr]*quic.Transport{}
		for a := range delays {
			clients[a] = endpoint(a.String())
		}
		if err := sim.Start(); err != nil {
			t.Fatal(err)
		}
		qc := &quic.Config{EnableDatagrams: true, DisablePathMTUDiscovery: true}
		qc.GetConfigForClient = func(info *quic.ClientInfo) (*quic.Config, error) {
			own := qc.Clone()
			c.Tune(info.RemoteAddr, own)
			return own, nil
		}
		l, err := server.Listen(&tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"t"}}, qc)
		if err != nil {
			t.Fatal(err)
		}
		for a, delay := range delays {
			if delay == 0 {
				delay = 25 * time.Millisecond
			}
			w := &witness{}
			conn, err := clients[a].Dial(t.Context(), l.Addr(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"t"}}, &quic.Config{ //nolint:gosec // the test's own
				EnableDatagrams: true, DisablePathMTUDiscovery: true,
				Tracer: func(context.Context, bool, quic.ConnectionID) qlogwriter.Trace { return w },
			})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second) // sleep: virtual, until the handshake has been acknowledged
			if err := conn.SendDatagram([]byte("alone")); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second) // sleep: virtual
			// A millisecond more is promised, for timers that are late.
			if w.mu.Lock(); w.promised != delay+time.Millisecond || w.acked.Sub(w.sent) != 2*way+delay {
				t.Errorf("%s: promised %s, acknowledged after %s, want %s and %s", a, w.promised, w.acked.Sub(w.sent), delay+time.Millisecond, 2*way+delay)
			}
			w.mu.Unlock()
			_ = conn.CloseWithError(0, "")
		}
		errs := []error{l.Close(), server.Close(), server.Conn.Close()}
		for _, tr := range clients {
			errs = append(errs, tr.Close(), tr.Conn.Close())
		}
		if err := errors.Join(append(errs, sim.Close())...); err != nil {
			t.Error(err)
		}
	})
}
