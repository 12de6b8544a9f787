package edge

import (
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/fec"
	"github.com/bermedge/berm/userspace/pipeline"
	"github.com/bermedge/berm/userspace/transport"
)

// Reasons of the stage fec.
const (
	reasonStream    pipeline.Reason = "stream"     // a session had the stream to its end
	reasonForeign   pipeline.Reason = "foreign"    // a page of another host asks, which fec.streams[].origins does not name
	reasonFull      pipeline.Reason = "full"       // as many subscribers as there may be
	reasonNoSession pipeline.Reason = "no_session" // the client cannot have datagrams
)

// streamStage serves the routes of live streams: their subscribers, and their player.
type streamStage struct{ e *Edge }

// Name returns "fec".
func (streamStage) Name() string { return "fec" }

// Run takes what is a stream's.
func (s streamStage) Run(x *pipeline.Exchange) pipeline.Action {
	host, path := x.Host, x.R.URL.Path
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	stream, below := s.e.streams.Find(host, path)
	if stream == nil {
		return pipeline.Next
	}
	cfg := stream.Config()
	if transport.IsWebTransport(x.R) && below == "" {
		return s.subscribe(x, stream, cfg)
	}
	if cfg.Page && x.R.Method != http.MethodConnect {
		if file, ok := fec.Player(cfg.Path, below); ok {
			return s.show(x, file)
		}
	}
	return pipeline.Next
}

func (s streamStage) subscribe(x *pipeline.Exchange, stream *fec.Stream, cfg fec.StreamConfig) pipeline.Action {
	if !mayEmbed(x, cfg.Origins) {
		return x.Refuse(http.StatusForbidden, reasonForeign)
	}
	if stream.Full() {
		return x.Refuse(http.StatusServiceUnavailable, reasonFull)
	}
	session, err := transport.Accept(x.W, x.R)
	if err != nil {
		return x.Refuse(http.StatusBadRequest, reasonNoSession)
	}
	err = stream.Subscribe(session, x.Client, x.R.URL.Query().Get("fec") == "off")
	if errors.Is(err, fec.ErrFull) { // somebody else took the last place meanwhile
		session.Close(closeFull, err.Error())
		return x.Wrote(http.StatusOK, reasonFull)
	}
	session.Close(closeEnded, "the stream has ended")
	return x.Wrote(http.StatusOK, reasonStream)
}

// Codes that sessions are closed with.
const (
	closeEnded = 0
	closeFull  = 1
)

// mayEmbed reports whether the page that asks may have the stream: one of the same host, one that the file names, or
// no page at all.
func mayEmbed(x *pipeline.Exchange, origins []string) bool {
	origin := x.R.Header.Get("Origin")
	if origin == "" || slices.Contains(origins, "*") || slices.Contains(origins, origin) {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && u.Scheme == "https" && strings.EqualFold(strings.TrimSuffix(u.Host, ":443"), strings.TrimSuffix(x.R.Host, ":443"))
}

// show answers with a file of the player.
func (streamStage) show(x *pipeline.Exchange, f fec.PlayerFile) pipeline.Action {
	if x.R.Method != http.MethodGet && x.R.Method != http.MethodHead {
		x.SetExtra("Allow", "GET, HEAD")
		return x.Refuse(http.StatusMethodNotAllowed, pipeline.ReasonLocal)
	}
	h := x.W.Header()
	h.Set("Content-Type", f.Type)
	h.Set("Cache-Control", "no-cache")
	h.Set("Content-Security-Policy", "default-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'self'")
	h.Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(x.W, x.R, "", time.Time{}, strings.NewReader(f.Content))
	return x.Wrote(http.StatusOK, pipeline.ReasonLocal)
}

// pathBefore is what the kernel half knows of the path to an address: measured by connections of others there, of QUIC
// if there were any, else of TCP.
func (e *Edge) pathBefore(a netip.Addr) (path fec.Path, known bool) {
	_ = e.kernel.use(func(set *maps.Set) error { // no kernel half knows nothing
		for _, proto := range []maps.Protocol{maps.ProtocolUDP, maps.ProtocolTCP} {
			p, err := set.Paths.Get(a, proto)
			if err != nil || p.Delivered+p.Lost < fewPackets || time.Since(p.Updated) > oldPath {
				continue
			}
			path, known = fec.Path{Loss: p.Loss(), Burst: p.Burst()}, true
			return nil
		}
		return nil
	})
	return path, known
}

const (
	// fewPackets say little of a path: at a loss of 5 %, 500 tell it from one of 3 or 7.
	fewPackets = 500
	// oldPath is not the path of now.
	oldPath = time.Hour
)
