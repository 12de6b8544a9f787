package transport

import (
	"context"
	"crypto/tls"
	"net/http"

	"golang.org/x/net/http2"
)

// configureH2 has h2 served above a gatherConn. It takes x/net's h2 server, which is net/http's own
// under another name, since that accepts connections that are not bare TLS ones.
//
//nolint:staticcheck // x/net sends everybody to net/http, which takes no connection of ours above TLS
func (u *unit) configureH2() error {
	h2 := new(http2.Server) // limits are those of u.http
	neverIndex(h2)
	if err := http2.ConfigureServer(u.http, h2); err != nil {
		return err
	}
	u.http.TLSNextProto["h2"] = func(hs *http.Server, c *tls.Conn, h http.Handler) {
		opts := &http2.ServeConnOpts{BaseConfig: hs, Handler: h}
		if b, ok := h.(interface{ BaseContext() context.Context }); ok { // net/http's, with what it put into it
			opts.Context = b.BaseContext()
		}
		cork, _ := c.NetConn().(*corkConn)
		h2.ServeConn(h2Conn{newGatherConn(c, cork), c, &frameMeter{wire: &u.s.stats.H2.HeadWire}}, opts)
	}
	return nil
}

// h2Conn is what the h2 server writes to.
type h2Conn struct {
	*gatherConn
	tls   *tls.Conn
	heads *frameMeter
}

// Write takes p; the server's writes come one after the other.
func (c h2Conn) Write(p []byte) (int, error) {
	c.heads.note(p)
	return c.gatherConn.Write(p)
}

// ConnectionState lets requests tell how they are secured.
func (c h2Conn) ConnectionState() tls.ConnectionState { return c.tls.ConnectionState() }
