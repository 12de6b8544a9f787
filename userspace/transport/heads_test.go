package transport_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/bermedge/berm/userspace/transport"
)

// usualHead is what a page's answer has, some 900 bytes.
var usualHead = http.Header{
	"Content-Type":                      {"text/html; charset=utf-8"},
	"Cache-Control":                     {"public, max-age=300, stale-while-revalidate=600, stale-if-error=86400"},
	"Content-Language":                  {"en"},
	"Content-Security-Policy":           {"default-src 'self'; img-src 'self' https://images.example.com data:; script-src 'self' https://scripts.example.com; style-src 'self'; frame-ancestors 'none'; report-uri /csp"},
	"Cross-Origin-Opener-Policy":        {"same-origin"},
	"Cross-Origin-Resource-Policy":      {"same-origin"},
	"Etag":                              {`"5f3c-61a9b2c3d4e5f"`},
	"Last-Modified":                     {"Tue, 24 Nov 2026 10:11:12 GMT"},
	"Date":                              {"Tue, 01 Dec 2026 10:11:12 GMT"},
	"Permissions-Policy":                {"camera=(), microphone=(), geolocation=(), payment=()"},
	"Referrer-Policy":                   {"strict-origin-when-cross-origin"},
	"Strict-Transport-Security":         {"max-age=31536000; includeSubDomains; preload"},
	"Vary":                              {"Accept-Encoding"},
	"X-Content-Type-Options":            {"nosniff"},
	"X-Frame-Options":                   {"DENY"},
	"X-Powered-By":                      {"Example Framework 7.1.4"},
	"X-Permitted-Cross-Domain-Policies": {"none"},
	"Server":                            {"example/2.3.4"},
}

const answers = 1000

// askAll asks answers times over one connection of a protocol, and returns the heads' bytes raw and on the wire.
func askAll(t testing.TB, s *transport.Server, address, protocol string, c *http.Client) (raw, wire uint64) {
	t.Helper()
	for range answers {
		resp, err := c.Get("https://" + address + "/")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close() // read to its end
	}
	st := &s.Stats().H2
	if protocol == "h3" {
		st = &s.Stats().H3
	}
	return st.HeadRaw.Load(), st.HeadWire.Load()
}

// The same head again and again: h2 repeats by reference, h3 (without a table in quic-go) by Huffman's code and names
// that everybody knows.
func TestHeadBytes(t *testing.T) {
	for _, c := range []struct {
		protocol string
		most     float64 // of raw, on the wire
	}{{"h2", 0.15}, {"h3", 0.75}} {
		s := mustListen(t, testConfig(), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			for name, values := range usualHead {
				w.Header()[name] = values
			}
			w.WriteHeader(http.StatusOK)
		}))
		raw, wire := askAll(t, s, where(t, s, c.protocol, true), c.protocol, client(t, c.protocol))
		ratio := float64(wire) / float64(raw)
		t.Logf("%s: %d answers, %d bytes each raw, %d on the wire: %.1f %%", c.protocol, answers, raw/answers, wire/answers, 100*ratio)
		if raw < answers*850 || raw > answers*1100 || wire == 0 || ratio > c.most {
			t.Errorf("%s: %d bytes of %d, want at most %.0f %%", c.protocol, wire, raw, 100*c.most)
		}
	}
}

// What is counted is what a client sees come, also where heads take more than one frame and bodies lie between.
func TestHeadBytesAsAClientCounts(t *testing.T) {
	long := strings.Repeat("a long field's value ", 1500) // two frames
	s := mustListen(t, testConfig(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Long", long)
		w.Header().Set("Set-Cookie", "secret"+r.URL.Path)
		_, _ = io.WriteString(w, strings.Repeat("body", 10_000)) // the client looks at what comes
	}))
	conn := dialH2(t, where(t, s, "h2", true))
	f := http2.NewFramer(conn, conn)
	var block strings.Builder
	enc := hpack.NewEncoder(&block)
	for _, h := range []hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "localhost"}, {Name: ":path", Value: "/"}} {
		if err := enc.WriteField(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	const streams = 3
	for i := range uint32(streams) {
		text := block.String()
		if i > 0 { // by reference to the encoder's table, which the first one filled: write it plainly again
			block.Reset()
			enc = hpack.NewEncoder(&block)
			for _, h := range []hpack.HeaderField{{Name: ":method", Value: "GET", Sensitive: true}, {Name: ":scheme", Value: "https", Sensitive: true}, {Name: ":authority", Value: "localhost", Sensitive: true}, {Name: ":path", Value: "/", Sensitive: true}} {
				if err := enc.WriteField(h); err != nil {
					t.Fatal(err)
				}
			}
			text = block.String()
		}
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: []byte(text), EndStream: true, EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
	}
	var seen uint64
	for heads := 0; heads < streams; {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch frame := frame.(type) {
		case *http2.HeadersFrame:
			seen += 9 + uint64(frame.Length)
			if frame.HeadersEnded() {
				heads++
			}
		case *http2.ContinuationFrame:
			seen += 9 + uint64(frame.Length)
			if frame.HeadersEnded() {
				heads++
			}
		}
	}
	if got := s.Stats().H2.HeadWire.Load(); got != seen || seen < uint64(len(long))/2 {
		t.Errorf("counted %d bytes, the client saw %d", got, seen)
	}
}

// A larger table keeps heads that a smaller one forgets between two that are alike, where the client lets it.
func TestHeaderTable(t *testing.T) {
	var all []uint64
	for _, size := range []int{4 << 10, 16 << 10, 64 << 10} {
		cfg := testConfig()
		cfg.HeaderTable = size
		s := mustListen(t, cfg, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// Thirty fields of 300 bytes, in turn: 10 kB of table.
			w.Header().Set("X-Turn-"+r.URL.Query().Get("n"), strings.Repeat(r.URL.Query().Get("n")+"-", 100))
			w.WriteHeader(http.StatusOK)
		}))
		rt := &http.Transport{TLSClientConfig: insecure.Clone(), Protocols: new(http.Protocols), HTTP2: &http.HTTP2Config{MaxDecoderHeaderTableSize: 64 << 10}}
		rt.Protocols.SetHTTP2(true)
		t.Cleanup(rt.CloseIdleConnections)
		c := &http.Client{Transport: rt, Timeout: 20 * time.Second}
		for i := range 300 {
			resp, err := c.Get("https://" + where(t, s, "h2", true) + "/?n=" + string(rune('A'+i%30)))
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close() // it is empty
		}
		wire := s.Stats().H2.HeadWire.Load()
		t.Logf("a table of %d bytes: %d bytes on the wire", size, wire)
		all = append(all, wire)
	}
	if all[1]*3 > all[0] || all[2] > all[1]*11/10 {
		t.Errorf("tables of 4, 16 and 64 KiB took %v bytes", all)
	}
}

// dialH2 opens a connection of h2, and says so.
func dialH2(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	return conn
}
