package load

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"sync"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// connection keeps to one connection of the chosen protocol until it is renewed.
type connection struct {
	open  func() (http.RoundTripper, func())
	rt    http.RoundTripper
	close func()
}

// renew makes the next request dial. Only for the sole user of the connection.
func (c *connection) renew() {
	if c.close != nil {
		c.close()
	}
	c.rt, c.close = c.open()
}

func (o *Options) dial() *connection {
	c := &connection{open: o.tcp}
	if o.Proto == "h3" {
		c.open = o.quic
	}
	c.renew()
	return c
}

func (o *Options) tcp() (http.RoundTripper, func()) {
	d := &net.Dialer{}
	if o.Source != "" {
		d.LocalAddr = &net.TCPAddr{IP: netip.MustParseAddr(o.Source).AsSlice()}
	}
	var p http.Protocols
	p.SetHTTP1(o.Proto == "h1")
	p.SetHTTP2(o.Proto == "h2")
	p.SetUnencryptedHTTP2(o.Proto == "h2")
	t := &http.Transport{
		TLSClientConfig:     o.tls(),
		Protocols:           &p,
		MaxConnsPerHost:     1,
		MaxIdleConnsPerHost: 1,
		DisableCompression:  true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if o.Connect != "" {
				addr = o.Connect
			}
			return d.DialContext(ctx, network, addr)
		},
	}
	return t, t.CloseIdleConnections
}

// quic has a UDP socket of its own, so that every connection is another flow.
func (o *Options) quic() (http.RoundTripper, func()) {
	var (
		mu      sync.Mutex
		sockets []*quic.Transport
	)
	t := &http3.Transport{TLSClientConfig: o.tls(), DisableCompression: true}
	t.Dial = func(ctx context.Context, addr string, tc *tls.Config, qc *quic.Config) (*quic.Conn, error) {
		if o.Connect != "" {
			addr = o.Connect
		}
		to, err := net.ResolveUDPAddr("udp", addr)
		if err != nil {
			return nil, err
		}
		var from *net.UDPAddr
		if o.Source != "" {
			from = &net.UDPAddr{IP: netip.MustParseAddr(o.Source).AsSlice()}
		}
		socket, err := net.ListenUDP("udp", from)
		if err != nil {
			return nil, err
		}
		tr := &quic.Transport{Conn: socket}
		mu.Lock()
		sockets = append(sockets, tr)
		mu.Unlock()
		return tr.DialEarly(ctx, to, tc, qc)
	}
	return t, func() {
		_ = t.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, s := range sockets { // a Transport does not own its socket
			_ = s.Close()
			_ = s.Conn.Close()
		}
		sockets = nil
	}
}

func (o *Options) tls() *tls.Config {
	// Labs and fresh edges have self-signed certificates; --secure is for the others.
	return &tls.Config{InsecureSkipVerify: !o.Secure}
}
