// Package viewer subscribes to live streams over WebTransport, repairs them, reports what the path loses, and asks for what
// blocks lack: for probes, labs and tests.
package viewer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/quic-go/webtransport-go"

	"github.com/bermedge/berm/userspace/fec"
)

const (
	// window is how many blocks are remembered: as many as edges keep.
	window = 8
	// reportEvery is what players do as well.
	reportEvery = 200 * time.Millisecond
)

// Options of a viewer. The zero value is one that watches as the player in the page does.
type Options struct {
	TLS    *tls.Config
	Header http.Header
	// Conn is the socket to subscribe from, which the viewer closes; nil: one of any address.
	Conn net.PacketConn
	// Packet is the largest packet in bytes; 0: what the longest datagram carries.
	Packet int
	// Deliver gets each packet, and must not keep it; nil: nobody does.
	Deliver func(adu []byte, repaired bool)
	// Lose says which datagrams are lost on purpose, by their number; nil: none.
	Lose func(n int) bool
	// Tell changes what is reported; nil: nothing.
	Tell func(*fec.Counts)
	// Silent viewers ask for no more parity.
	Silent bool
}

// Viewer is a subscriber of a stream.
type Viewer struct {
	opts    Options
	session *webtransport.Session

	mu    sync.Mutex
	dec   *fec.Decoder
	kinds [2]int
	nacks int

	running sync.WaitGroup
	done    chan struct{} // the edge knows, and the socket is closed
}

// Subscribe asks for a stream, and watches it until Close or the edge ends it. The response is there where an edge refused.
func Subscribe(ctx context.Context, url string, opts Options) (_ *Viewer, _ *http.Response, err error) {
	if opts.Conn == nil {
		if opts.Conn, err = net.ListenUDP("udp", nil); err != nil {
			return nil, nil, err
		}
	}
	if opts.Packet == 0 {
		opts.Packet = 1200
	}
	if opts.Deliver == nil {
		opts.Deliver = func([]byte, bool) {}
	}
	way := &quic.Transport{Conn: opts.Conn}
	var conn *quic.Conn
	shut := func() error {
		if conn != nil { // closing the rest tells the edge nothing
			_ = conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "")
		}
		return errors.Join(way.Close(), opts.Conn.Close())
	}
	v := &Viewer{opts: opts, done: make(chan struct{})}
	if v.dec, err = fec.NewDecoder(window, opts.Packet, opts.Deliver); err != nil {
		return nil, nil, errors.Join(err, shut())
	}
	config := opts.TLS.Clone()
	if config == nil {
		config = new(tls.Config)
	}
	config.NextProtos = []string{http3.NextProtoH3}
	dialer := webtransport.Transport{
		TLSClientConfig: config,
		QUICConfig:      &quic.Config{EnableDatagrams: true, EnableStreamResetPartialDelivery: true},
		DialAddr: func(ctx context.Context, addr string, t *tls.Config, c *quic.Config) (*quic.Conn, error) {
			to, err := net.ResolveUDPAddr("udp", addr)
			if err == nil {
				conn, err = way.DialEarly(ctx, to, t, c)
			}
			return conn, err
		},
	}
	res, session, err := dialer.Dial(ctx, url, opts.Header)
	if err != nil {
		return nil, res, errors.Join(fmt.Errorf("subscribe to %s: %w", url, err), shut())
	}
	v.session = session
	context.AfterFunc(session.Context(), func() {
		_ = shut()
		close(v.done)
	})
	v.running.Go(v.receive)
	v.running.Go(v.report)
	return v, res, nil
}

// Close ends the session.
func (v *Viewer) Close() {
	_ = v.session.CloseWithError(0, "") // the edge may have ended it
	v.running.Wait()
	<-v.done
}

// Done is closed when the session has ended.
func (v *Viewer) Done() <-chan struct{} { return v.session.Context().Done() }

// Counts returns what the decoder has seen.
func (v *Viewer) Counts() fec.Counts {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.dec.Counts()
}

// Kinds returns how many datagrams came, by kind, those included that were lost on purpose, and how many asked for more parity.
func (v *Viewer) Kinds() (source, parity, nacks int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.kinds[fec.KindSource], v.kinds[fec.KindRepair], v.nacks
}

func (v *Viewer) receive() {
	ctx := v.session.Context()
	for n := 0; ; n++ {
		b, err := v.session.ReceiveDatagram(ctx)
		if err != nil {
			return
		}
		if len(b) == 0 {
			continue
		}
		if nack := v.take(n, b); len(nack) > 0 {
			_ = v.session.SendDatagram(nack) // like one that the path loses
		}
	}
}

// take decodes a datagram, and returns what asks for more.
func (v *Viewer) take(n int, b []byte) (nack []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.kinds[b[0]&1]++
	switch {
	case v.opts.Lose != nil && v.opts.Lose(n):
		return nil
	case b[0] == fec.KindRepair:
		_ = v.dec.Repair(b[1:]) // what is wrong with it is counted
	default:
		_ = v.dec.Source(b[1:])
	}
	if v.opts.Silent {
		return nil
	}
	if nack = v.dec.AppendNack(nil); len(nack) > 0 {
		v.nacks++
	}
	return nack
}

func (v *Viewer) report() {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		select {
		case <-v.Done():
			return
		case <-tick.C:
		}
		c := v.Counts()
		if v.opts.Tell != nil {
			v.opts.Tell(&c)
		}
		if v.session.SendDatagram(c.AppendReport(nil)) != nil {
			return
		}
	}
}
