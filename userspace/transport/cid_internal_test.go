package transport

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/bermedge/berm/userspace/certs"
	"github.com/bermedge/berm/userspace/quiclb"
)

// tap passes datagrams between a client and a server, and keeps the connection IDs that the server
// gives in long headers, by the types of those.
type tap struct {
	mu  sync.Mutex
	ids map[byte][][]byte
}

func (p *tap) run(t *testing.T, server netip.AddrPort) string {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		buf := make([]byte, 2048)
		var client netip.AddrPort
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return // closed
			}
			to := server
			if from == server {
				to = client
				p.note(buf[:n])
			} else {
				client = from
			}
			_, _ = c.WriteToUDPAddrPort(buf[:n], to) // what is lost is sent again
		}
	}()
	return c.LocalAddr().String()
}

func (p *tap) note(b []byte) {
	if len(b) < 7 || b[0]&0x80 == 0 {
		return
	}
	at := 6 + int(b[5]) // behind the ID that it is for
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ids[b[0]>>4&3] = append(p.ids[b[0]>>4&3], append([]byte{}, b[at+1:at+1+int(b[at])]...))
}

const typeRetry = 3

// The IDs of connections are the generator's, those in Retry packets too.
func TestConnectionIDs(t *testing.T) {
	for _, retry := range []bool{false, true} {
		format := quiclb.Format{ID: 2, ServerIDLen: 2, NonceLen: 6, Key: make([]byte, 16)}
		server := uint64(4711)
		g := quiclb.NewGenerator(format.Len())
		if err := g.Use([]quiclb.Format{format}, &server); err != nil {
			t.Fatal(err)
		}
		store, err := certs.Open(certs.Default(), "", []string{"127.0.0.1"})
		if err != nil {
			t.Fatal(err)
		}
		cfg := Default()
		cfg.HTTP, cfg.HTTPS = nil, []string{"127.0.0.1:0"}
		s := &Server{units: map[unitKey]*unit{}, retryAbove: retryAbove, workers: 1, opts: Options{
			TLS: store.TLS(), Log: slog.New(slog.DiscardHandler), Failed: func(err error) { t.Error(err) }, ConnectionIDs: func(int) quic.ConnectionIDGenerator { return g },
			Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "here") }),
		}}
		if retry {
			s.retryAbove = -1
		}
		if err := s.Apply(cfg); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Drain(t.Context()) }) // its context is over: at once
		p := &tap{ids: map[byte][][]byte{}}
		at := p.run(t, s.units[unitKey{"https", "127.0.0.1:0"}].workers[0].udp.LocalAddr().(*net.UDPAddr).AddrPort())
		client := &http.Client{Timeout: 20 * time.Second, Transport: &http3.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, QUICConfig: &quic.Config{},
		}}
		resp, err := client.Get("https://" + at)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || string(body) != "here" {
			t.Errorf("%q, %v", body, err)
		}
		client.CloseIdleConnections()
		p.mu.Lock()
		defer p.mu.Unlock()
		if got := len(p.ids[typeRetry]) > 0; got != retry {
			t.Errorf("Retry packets: %v, want %v", got, retry)
		}
		seen := 0
		for kind, ids := range p.ids {
			for _, id := range ids {
				seen++
				if n, err := quiclb.Number(format, id); err != nil || n != server || len(id) != format.Len() {
					t.Errorf("a header of type %d has %x, which names %d, %v", kind, id, n, err)
				}
			}
		}
		if seen < 2 {
			t.Errorf("saw %d connection IDs", seen)
		}
	}
}
