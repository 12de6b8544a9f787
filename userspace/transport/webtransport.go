package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/quic-go/quic-go/quicvarint"
)

// WebTransport over HTTP/3 (draft-ietf-webtrans-http3), for datagrams alone. It stands on http3's own server and
// not on webtransport-go's, which takes connections away from it: they would then get no GOAWAY when the edge drains.

// Settings by which a server offers WebTransport: that of drafts up to 06, which browsers still look for, that of later
// ones, and the number of sessions that those between want.
const (
	settingWebTransport06  = 0x2b603742
	settingWebTransport    = 0x2c7cf000
	settingWebTransportMax = 0x14e9cd29
)

const (
	capsuleCloseSession = 0x2843
	sessionGone         = quic.StreamErrorCode(0x170d7b68) // WT_SESSION_GONE
	// settingsWait is how long a client may take to say what it can do.
	settingsWait = 5 * time.Second
)

// Errors of requests that are no session, or cannot become one.
var (
	ErrNoWebTransport = errors.New("not a WebTransport request")
	ErrNoDatagrams    = errors.New("the client takes no datagrams")
)

// IsWebTransport reports whether a request asks for a session.
func IsWebTransport(r *http.Request) bool {
	return r.Method == http.MethodConnect && r.ProtoMajor == 3 && (r.Proto == "webtransport" || r.Proto == "webtransport-h3")
}

// offerDatagrams lets connections carry datagrams, and sessions of WebTransport, where the edge has a use for them.
func (u *unit) offerDatagrams(qc *quic.Config) {
	if offer := u.s.opts.Datagrams; offer == nil || !offer() {
		return
	}
	u.datagrams = true
	qc.EnableDatagrams = true
	qc.EnableStreamResetPartialDelivery = true
}

// offerWebTransport is offerDatagrams on the layer above.
func (u *unit) offerWebTransport() {
	if !u.datagrams {
		return
	}
	u.h3.EnableDatagrams = true
	u.h3.AdditionalSettings = map[uint64]uint64{settingWebTransport06: 1, settingWebTransport: 1, settingWebTransportMax: 1}
}

// connKey is where contexts of connections that may carry sessions have the connection.
type connKey struct{}

// Session is a client's session of WebTransport. It lives no longer than the request's handler.
type Session struct {
	conn   *quic.Conn
	str    *http3.Stream
	ctx    context.Context
	cancel context.CancelFunc
}

// Accept answers a request with a session. On an error nothing has been answered.
func Accept(w http.ResponseWriter, r *http.Request) (*Session, error) {
	peer, ok := w.(interface {
		http3.Settingser
		http3.HTTPStreamer
	})
	conn, carries := r.Context().Value(connKey{}).(*quic.Conn)
	if !ok || !carries || !IsWebTransport(r) {
		return nil, ErrNoWebTransport
	}
	late := time.NewTimer(settingsWait)
	defer late.Stop()
	select {
	case <-peer.ReceivedSettings():
	case <-r.Context().Done():
		return nil, context.Cause(r.Context())
	case <-late.C:
		return nil, fmt.Errorf("no settings within %s: %w", settingsWait, ErrNoDatagrams)
	}
	if !peer.Settings().EnableDatagrams {
		return nil, ErrNoDatagrams
	}
	w.WriteHeader(http.StatusOK)
	s := &Session{conn: conn, str: peer.HTTPStream()}
	s.ctx, s.cancel = context.WithCancel(r.Context())
	go s.awaitEnd() // Close ends it, and so does the end of the connection
	return s, nil
}

// awaitEnd reads what the client says on the session's stream until it ends the session.
func (s *Session) awaitEnd() {
	defer s.cancel()
	capsules := http3.NewCapsuleParser(s.str)
	for {
		kind, body, err := capsules.Next()
		if err != nil || kind == capsuleCloseSession {
			return
		}
		if _, err := io.Copy(io.Discard, body); err != nil {
			return
		}
	}
}

// Context ends with the session.
func (s *Session) Context() context.Context { return s.ctx }

// RTT returns the round-trip time of the connection, smoothed.
func (s *Session) RTT() time.Duration { return s.conn.ConnectionStats().SmoothedRTT }

// SendDatagram sends b, which it does not keep. It waits while the connection may not send.
func (s *Session) SendDatagram(b []byte) error {
	if err := s.str.SendDatagram(b); err != nil {
		return fmt.Errorf("send a datagram of %d bytes: %w", len(b), err)
	}
	return nil
}

// ReceiveDatagram waits for the client's next datagram.
func (s *Session) ReceiveDatagram(ctx context.Context) ([]byte, error) {
	b, err := s.str.ReceiveDatagram(ctx)
	if err != nil {
		return nil, fmt.Errorf("receive a datagram: %w", err)
	}
	return b, nil
}

// Close ends the session and tells the client why, if that can be sent at once.
func (s *Session) Close(code uint32, why string) {
	b := binary.BigEndian.AppendUint32(nil, code)
	b = append(b, why...)
	b = append(quicvarint.Append(quicvarint.Append(nil, capsuleCloseSession), uint64(len(b))), b...)
	if s.str.TryWriteAll(b) != nil {
		s.str.CancelWrite(sessionGone)
	}
	s.str.CancelRead(sessionGone)
	_ = s.str.Close() // the connection may be gone
	<-s.ctx.Done()    // awaitEnd's, at the latest
}
