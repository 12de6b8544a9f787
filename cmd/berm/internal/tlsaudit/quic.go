package tlsaudit

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"sync/atomic"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// quic connects three times: a full handshake, one that resumes, and one that may send early data.
func (a *auditor) quic() {
	cache := &sessions{ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	first, err := a.h3(cache)
	if err != nil {
		a.found("h3", nil, Warn, "nobody answers QUIC there: "+err.Error())
		return
	}
	second, err := a.h3(cache)
	note := "group " + first.TLS.CurveID.String()
	switch {
	case err != nil:
		a.found("h3", []string{"h3"}, Bad, "the second connection failed: "+err.Error())
		return
	case second.TLS.DidResume:
		a.found("h3", []string{"h3", "resumption"}, OK, note)
	default:
		a.found("h3", []string{"h3"}, Warn, note+"; every connection is a full handshake")
	}
	third, err := a.early(cache)
	switch {
	case !cache.early.Load():
		a.found("early_data", nil, OK, "not offered")
	case err != nil || !third.Used0RTT:
		a.found("early_data", []string{"offered"}, Warn, "offered, and refused to a ticket that was not used yet: tickets of another edge?")
	default:
		a.found("early_data", []string{"accepted"}, OK, "")
	}
}

// h3 asks for the root of the site and returns how the connection was.
func (a *auditor) h3(cache tls.ClientSessionCache) (state quic.ConnectionState, err error) {
	ctx, cancel := context.WithTimeout(a.ctx, a.Wait)
	defer cancel()
	var conn *quic.Conn
	tr := &http3.Transport{
		TLSClientConfig: a.quicTLS(cache),
		Dial: func(ctx context.Context, _ string, c *tls.Config, q *quic.Config) (_ *quic.Conn, err error) {
			conn, err = quic.DialAddr(ctx, a.Address, c, q)
			return conn, err
		},
	}
	defer func() { _ = tr.Close() }() // the answer is what counts
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, "https://"+urlHost(a.Name)+"/", nil)
	if err != nil {
		return state, err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return state, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return state, err
	}
	return conn.ConnectionState(), nil
}

// early makes a connection that may send early data, sends none, and returns how it was.
func (a *auditor) early(cache tls.ClientSessionCache) (state quic.ConnectionState, err error) {
	ctx, cancel := context.WithTimeout(a.ctx, a.Wait)
	defer cancel()
	c := a.quicTLS(cache)
	c.NextProtos = []string{http3.NextProtoH3}
	conn, err := quic.DialAddrEarly(ctx, a.Address, c, &quic.Config{})
	if err != nil {
		return state, err
	}
	defer func() { _ = conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "") }() // all is known
	select {
	case <-conn.HandshakeComplete():
		return conn.ConnectionState(), nil
	case <-conn.Context().Done():
		return state, context.Cause(conn.Context())
	case <-ctx.Done():
		return state, ctx.Err()
	}
}

func (a *auditor) quicTLS(cache tls.ClientSessionCache) *tls.Config {
	return a.complete(&tls.Config{ClientSessionCache: cache, MinVersion: tls.VersionTLS13})
}

// sessions notes whether a ticket was good for early data.
type sessions struct {
	tls.ClientSessionCache
	early atomic.Bool
}

// Put keeps a session.
func (s *sessions) Put(key string, session *tls.ClientSessionState) {
	if session != nil {
		if _, state, err := session.ResumptionState(); err == nil && state != nil {
			s.early.Store(state.EarlyData)
		}
	}
	s.ClientSessionCache.Put(key, session)
}
