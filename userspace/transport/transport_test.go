package transport_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/net/http2"

	"github.com/bermedge/berm/userspace/certs"
	"github.com/bermedge/berm/userspace/transport"
)

func TestMain(m *testing.M) {
	os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
	os.Exit(m.Run())
}

func testConfig() transport.Config {
	c := transport.Default()
	c.HTTP, c.HTTPS = []string{"127.0.0.1:0"}, []string{"127.0.0.1:0"}
	c.Drain = 5 * time.Second
	return c
}

func mustListen(t *testing.T, cfg transport.Config, h http.Handler) *transport.Server {
	t.Helper()
	s, err := transport.Listen(cfg, options(t, h))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Drain(ctx)
	})
	return s
}

func options(t *testing.T, h http.Handler) transport.Options {
	t.Helper()
	store, err := certs.Open(certs.Default(), "", []string{"localhost", "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	return transport.Options{TLS: store.TLS(), Handler: h, Log: slog.New(slog.DiscardHandler), Failed: func(err error) { t.Error(err) }}
}

// where returns the address that serves a protocol.
func where(t *testing.T, s *transport.Server, protocol string, secure bool) string {
	t.Helper()
	for _, a := range s.Addresses() {
		if strings.Contains(strings.Join(a.Protocols, " "), protocol) && (protocol != "h1" || secure == (len(a.Protocols) == 2)) {
			return a.Address
		}
	}
	t.Fatalf("nothing serves %s in %+v", protocol, s.Addresses())
	return ""
}

var insecure = &tls.Config{InsecureSkipVerify: true}

// client returns a client that speaks one protocol only, over one connection.
func client(t *testing.T, protocol string) *http.Client {
	t.Helper()
	var rt http.RoundTripper
	switch protocol {
	case "h1":
		tr := &http.Transport{TLSClientConfig: insecure.Clone(), Protocols: new(http.Protocols)}
		tr.Protocols.SetHTTP1(true)
		rt = tr
	case "h2":
		tr := &http.Transport{TLSClientConfig: insecure.Clone(), Protocols: new(http.Protocols)}
		tr.Protocols.SetHTTP2(true)
		rt = tr
	case "h3":
		tr := &http3.Transport{TLSClientConfig: insecure.Clone()}
		t.Cleanup(func() { tr.Close() })
		rt = tr
	}
	c := &http.Client{Transport: rt, Timeout: 20 * time.Second}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

func echo(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestTimeout)
		return
	}
	fmt.Fprintf(w, "%s %s %s", r.Proto, r.URL.Path, b)
}

func TestEveryProtocol(t *testing.T) {
	s := mustListen(t, testConfig(), http.HandlerFunc(echo))
	for _, c := range []struct{ client, url, proto string }{
		{"h1", "http://" + where(t, s, "h1", false), "HTTP/1.1"},
		{"h1", "https://" + where(t, s, "h1", true), "HTTP/1.1"},
		{"h2", "https://" + where(t, s, "h2", true), "HTTP/2.0"},
		{"h3", "https://" + where(t, s, "h3", true), "HTTP/3.0"},
	} {
		resp, err := client(t, c.client).Post(c.url+"/p", "text/plain", strings.NewReader("body"))
		if err != nil {
			t.Fatalf("%s %s: %v", c.client, c.url, err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(b) != c.proto+" /p body" {
			t.Errorf("%s: %q", c.url, b)
		}
		_, port, _ := net.SplitHostPort(where(t, s, "h3", true))
		want := `h3=":` + port + `"; ma=86400`
		if c.client == "h3" || strings.HasPrefix(c.url, "http:") {
			want = ""
		}
		if got := resp.Header.Get("Alt-Svc"); got != want {
			t.Errorf("%s %s: Alt-Svc %q, want %q", c.client, c.url, got, want)
		}
	}
	st := s.Stats()
	if a, b, c := st.H1.Requests.Load(), st.H2.Requests.Load(), st.H3.Requests.Load(); a != 2 || b != 1 || c != 1 {
		t.Errorf("requests counted: h1 %d, h2 %d, h3 %d", a, b, c)
	}
	if where(t, s, "h2", true) != where(t, s, "h3", true) {
		t.Error("h3 is not on h2's port")
	}
}

// A cache answers requests without a body only; a plain GET has none in any protocol.
func TestPlainGetHasNoBody(t *testing.T) {
	s := mustListen(t, testConfig(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.ContentLength, " ", r.Body == http.NoBody)
	}))
	for _, proto := range []string{"h1", "h2", "h3"} {
		resp, err := client(t, proto).Get("https://" + where(t, s, proto, true))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(b) != "0 true" {
			t.Errorf("%s: %s", proto, b)
		}
	}
}

func TestSlowHeadIsCut(t *testing.T) {
	cfg := testConfig()
	cfg.HeaderTimeout = 200 * time.Millisecond
	s := mustListen(t, cfg, http.HandlerFunc(echo))
	for _, secure := range []bool{false, true} {
		var c net.Conn
		var err error
		if secure {
			c, err = tls.Dial("tcp", where(t, s, "h1", true), insecure)
		} else {
			c, err = net.Dial("tcp", where(t, s, "h1", false))
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		start := time.Now()
		go func() { // a byte at a time, for as long as it is let
			for range time.Tick(20 * time.Millisecond) {
				if _, err := io.WriteString(c, "X"); err != nil {
					return
				}
			}
		}()
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("secure %t: still open after %s", secure, time.Since(start))
		}
	}
}

func TestStalledBodyIsCut(t *testing.T) {
	cfg := testConfig()
	cfg.StallTimeout = 300 * time.Millisecond
	result := make(chan error, 8)
	s := mustListen(t, cfg, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		result <- err
	}))
	for _, p := range []struct{ proto, base string }{
		{"h1", "http://" + where(t, s, "h1", false)},
		{"h2", "https://" + where(t, s, "h2", true)},
		{"h3", "https://" + where(t, s, "h3", true)},
	} {
		pr, pw := io.Pipe()
		go func() { _, _ = io.WriteString(pw, "first") }()
		req, _ := http.NewRequest(http.MethodPost, p.base+"/", pr)
		go func() {
			if resp, err := client(t, p.proto).Do(req); err == nil {
				resp.Body.Close()
			}
		}()
		select {
		case err := <-result:
			if err == nil {
				t.Errorf("%s: a body that stopped ended well", p.proto)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: still waiting for a body that stopped", p.proto)
		}
		pw.Close()
	}
}

// After a body has been read the connection must not carry its deadline on.
func TestStallEndsWithTheBody(t *testing.T) {
	cfg := testConfig()
	cfg.StallTimeout = 200 * time.Millisecond
	s := mustListen(t, cfg, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-r.Context().Done():
			t.Errorf("%s: canceled while the handler worked", r.Proto)
		case <-time.After(500 * time.Millisecond): // longer than the stall timeout
		}
		_, _ = io.WriteString(w, "done")
	}))
	for _, p := range []struct{ proto, base string }{
		{"h1", "http://" + where(t, s, "h1", false)},
		{"h2", "https://" + where(t, s, "h2", true)},
		{"h3", "https://" + where(t, s, "h3", true)},
	} {
		c := client(t, p.proto)
		for range 2 { // the second reuses the connection
			resp, err := c.Post(p.base, "text/plain", strings.NewReader("x"))
			if err != nil {
				t.Fatalf("%s: %v", p.proto, err)
			}
			if b, err := io.ReadAll(resp.Body); string(b) != "done" || err != nil {
				t.Errorf("%s: %q %v", p.proto, b, err)
			}
			resp.Body.Close()
		}
	}
}

// A client that asks and then takes nothing is let go, in every protocol.
func TestReaderThatStops(t *testing.T) {
	cfg := testConfig()
	cfg.StallTimeout = 300 * time.Millisecond
	result := make(chan error, 8)
	s := mustListen(t, cfg, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		block := make([]byte, 1<<20)
		for range 1000 {
			if _, err := w.Write(block); err != nil {
				result <- err
				return
			}
		}
		result <- nil
	}))
	wait := func(proto string) {
		t.Helper()
		select {
		case err := <-result:
			if err == nil {
				t.Errorf("%s: sent 1 GB to a client that does not read", proto)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s: still sending to a client that does not read", proto)
		}
	}
	c, err := net.Dial("tcp", where(t, s, "h1", false))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	wait("h1")
	for _, proto := range []string{"h2", "h3"} {
		resp, err := client(t, proto).Get("https://" + where(t, s, proto, true) + "/")
		if err != nil {
			t.Fatal(err)
		}
		wait(proto) // the body is not read: the stream's window closes
		resp.Body.Close()
	}
}

// A client may forbid all data on a stream by an initial window of zero, and answer PINGs for ever.
func TestZeroWindowIsCut(t *testing.T) {
	cfg := testConfig()
	cfg.StallTimeout = 300 * time.Millisecond
	s := mustListen(t, cfg, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "small") }))
	tc := insecure.Clone()
	tc.NextProtos = []string{"h2"}
	c, err := tls.Dial("tcp", where(t, s, "h2", true), tc)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, http2.ClientPreface)
	fr := http2.NewFramer(c, bufio.NewReader(c))
	_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	// GET https / of host "a", from the static table and one literal (RFC 7541, appendix A).
	_ = fr.WriteHeaders(http2.HeadersFrameParam{
		StreamID: 1, EndStream: true, EndHeaders: true,
		BlockFragment: []byte{0x82, 0x87, 0x84, 0x01, 0x01, 'a'},
	})
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatal("no reset of the stream: ", err)
		}
		if rst, ok := f.(*http2.RSTStreamFrame); ok && rst.StreamID == 1 {
			return
		}
	}
}

func TestBigHeadIsRefused(t *testing.T) {
	s := mustListen(t, testConfig(), http.HandlerFunc(echo))
	for _, p := range []struct{ proto, base string }{
		{"h1", "http://" + where(t, s, "h1", false)},
		{"h2", "https://" + where(t, s, "h2", true)},
		{"h3", "https://" + where(t, s, "h3", true)},
	} {
		req, _ := http.NewRequest(http.MethodGet, p.base, nil)
		req.Header.Set("X-Big", strings.Repeat("x", 200<<10))
		resp, err := client(t, p.proto).Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
				t.Errorf("%s: 200 KiB of head answered with %s", p.proto, resp.Status)
			}
		}
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// Its TCP half is free, which cannot be said of any port: those that connections had a moment ago are taken.
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp4", free.Addr().String())
	free.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	cfg := testConfig()
	cfg.HTTP = []string{"127.0.0.1:0", l.Addr().String()}
	cfg.HTTPS = []string{udp.LocalAddr().String(), "192.0.2.77:0"}
	_, err = transport.Listen(cfg, options(t, http.HandlerFunc(echo)))
	if err == nil || !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatal(err)
	}
	for _, want := range []string{
		"listen.http: tcp " + l.Addr().String() + " is in use by this process itself",
		"listen.https: udp " + udp.LocalAddr().String() + " is in use by this process itself",
		"192.0.2.77:0: no interface of this host has the address",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in\n%v", want, err)
		}
	}
	// Listening there would tell as well, unless some other test's connection comes from that port.
	if c, err := net.Dial("tcp", udp.LocalAddr().String()); err == nil {
		c.Close()
		t.Error("the TCP half was not released")
	}
}

func TestDrainLetsRequestsFinish(t *testing.T) {
	started, finish := make(chan struct{}, 8), make(chan struct{})
	s := mustListen(t, testConfig(), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		started <- struct{}{}
		<-finish
		_, _ = io.WriteString(w, "whole")
	}))
	type result struct{ proto, body, err string }
	results := make(chan result, 8)
	protos := map[string]string{"h1": "http://" + where(t, s, "h1", false), "h2": "https://" + where(t, s, "h2", true), "h3": "https://" + where(t, s, "h3", true)}
	for proto, base := range protos {
		c := client(t, proto)
		go func() {
			resp, err := c.Get(base)
			if err != nil {
				results <- result{proto, "", err.Error()}
				return
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			results <- result{proto, string(b), fmt.Sprint(err)}
		}()
	}
	for range protos {
		<-started
	}
	drained := make(chan error, 1)
	go func() { drained <- s.Drain(context.Background()) }()
	deadline := time.Now().Add(5 * time.Second)
	for { // new connections are refused at once
		c, err := net.Dial("tcp", strings.TrimPrefix(protos["h1"], "http://"))
		if err != nil {
			break
		}
		c.Close()
		if time.Now().After(deadline) {
			t.Fatal("still accepting")
		}
	}
	select {
	case err := <-drained:
		t.Fatal("drained while requests were in flight: ", err)
	default:
	}
	close(finish)
	for range protos {
		if r := <-results; r.body != "whole" || r.err != "<nil>" {
			t.Errorf("%s: %q, %s", r.proto, r.body, r.err)
		}
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

func TestDrainIsBounded(t *testing.T) {
	cfg := testConfig()
	cfg.Drain = 200 * time.Millisecond
	started, finish := make(chan struct{}, 1), make(chan struct{})
	s := mustListen(t, cfg, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { started <- struct{}{}; <-finish }))
	defer close(finish)
	c := client(t, "h1")
	go func() { _, _ = c.Get("http://" + where(t, s, "h1", false)) }()
	<-started
	if err := s.Drain(context.Background()); err == nil || !strings.Contains(err.Error(), "were cut") {
		t.Error(err)
	}
}

func TestApplyKeepsWhatStays(t *testing.T) {
	cfg := testConfig()
	cfg.HTTPS = nil
	cfg.HTTP = []string{freeAddress(t)}
	s := mustListen(t, cfg, http.HandlerFunc(echo))
	c := client(t, "h1")
	get := func(addr string) error {
		resp, err := c.Get("http://" + addr)
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		return err
	}
	first := cfg.HTTP[0]
	if err := get(first); err != nil {
		t.Fatal(err)
	}
	second := freeAddress(t)
	cfg.HTTP = []string{first, second}
	if err := s.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	bad := cfg
	bad.HTTP = []string{second, taken.Addr().String()}
	if err := s.Apply(bad); !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatal(err)
	}
	if err := errors.Join(get(first), get(second)); err != nil {
		t.Error("a refused change took something down: ", err)
	}
	if n := s.Stats().H1.Accepted.Load(); n != 2 {
		t.Errorf("%d connections: the first was not kept", n)
	}
	cfg.HTTP = []string{second}
	cfg.IdleTimeout = 7 * time.Second
	if err := s.Apply(cfg); !errors.Is(err, transport.ErrRestart) {
		t.Error(err)
	}
	for deadline := time.Now().Add(5 * time.Second); get(first) == nil; {
		if time.Now().After(deadline) {
			t.Fatal("the removed listener still answers")
		}
	}
	if err := get(second); err != nil {
		t.Error(err)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestFamilies(t *testing.T) {
	for addr, want := range map[string][2]bool{"0.0.0.0:0": {true, false}, "[::]:0": {false, true}, ":0": {true, true}} {
		cfg := testConfig()
		cfg.HTTPS, cfg.HTTP = []string{addr}, nil
		s := mustListen(t, cfg, http.HandlerFunc(echo))
		port := netip.MustParseAddrPort(s.Addresses()[0].Address).Port()
		for i, host := range []string{"127.0.0.1", "[::1]"} {
			for _, proto := range []string{"h2", "h3"} {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				req, _ := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("https://%s:%d/", host, port), nil)
				resp, err := client(t, proto).Do(req)
				if err == nil {
					resp.Body.Close()
				}
				cancel()
				if (err == nil) != want[i] {
					t.Errorf("%s: %s on %s: %v", addr, proto, host, err)
				}
			}
		}
	}
}

// A daemon that comes back with the same key tells clients of the one before to start anew.
func TestStatelessReset(t *testing.T) {
	opts := options(t, http.HandlerFunc(echo))
	opts.ResetKey = [32]byte{1, 2, 3}
	var addrs [2]net.Addr
	for i := range addrs {
		cfg := testConfig()
		cfg.HTTP, cfg.Drain = nil, 100*time.Millisecond
		s, err := transport.Listen(cfg, opts)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Drain(t.Context())
		addrs[i] = net.UDPAddrFromAddrPort(netip.MustParseAddrPort(where(t, s, "h3", true)))
	}
	var target atomic.Pointer[net.Addr]
	target.Store(&addrs[0])
	relay := mustRelay(t, &target)
	tc := insecure.Clone()
	tc.NextProtos = []string{"h3"}
	conn, err := quic.DialAddr(t.Context(), relay, tc, &quic.Config{MaxIdleTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	// An exchange, after which the handshake is confirmed on both sides: until then datagrams begin
	// with a long header, which is never answered with a reset.
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+relay, nil)
	resp, err := (&http3.Transport{}).NewClientConn(conn).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	target.Store(&addrs[1]) // knows nothing of the connection
	str, err := conn.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = str.Write(make([]byte, 200)) // a reset has to be smaller than what it answers
	select {
	case <-conn.Context().Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the client still believes in its connection")
	}
	var reset *quic.StatelessResetError
	if err := context.Cause(conn.Context()); !errors.As(err, &reset) {
		t.Error(err)
	}
}

// mustRelay passes datagrams between one client and whichever server target names.
func mustRelay(t *testing.T, target *atomic.Pointer[net.Addr]) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	servers := map[string]bool{}
	go func() {
		buf := make([]byte, 2048)
		var client net.Addr
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			to := *target.Load()
			servers[to.String()] = true
			if servers[from.String()] {
				to = client
			} else {
				client = from
			}
			_, _ = c.WriteTo(buf[:n], to)
		}
	}()
	return c.LocalAddr().String()
}

func TestConfigMistakes(t *testing.T) {
	if err := transport.Default().Validate(); err != nil {
		t.Error(err)
	}
	bad := transport.Config{
		QUICWorkers: transport.MaxWorkers + 1,
		HTTP:        []string{"8080", "localhost:80", "1.2.3.4:99999", ":80"}, HTTPS: []string{":80", "[::1]:443"},
		Drain: -time.Second, MaxHeader: 1,
	}
	err := bad.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		`http[0]: "8080" is no address`, `http[1]: "localhost" is no IP`, `http[2]: "99999" is no port`,
		"https[0]: :80 is already http[3]'s", "drain:", "max_header:", "max_streams:", "header_table: 0 is none of", "quic_workers: 9 is not between 0 and 8", "header_timeout:", "idle_timeout:", "stall_timeout:",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in\n%v", want, err)
		}
	}
	if err := (transport.Config{}).Validate(); err == nil || !strings.Contains(err.Error(), "neither http nor https") {
		t.Error(err)
	}
}

// Behind a body that is malformed nothing on the connection may be taken for another request.
func TestNothingFollowsAMalformedBody(t *testing.T) {
	var answered atomic.Int64
	s := mustListen(t, testConfig(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answered.Add(1)
		_, err := io.Copy(io.Discard, r.Body)
		_ = r.Body.Close() // as a transport does that sends it on
		fmt.Fprint(w, err != nil)
	}))
	for _, body := range []string{"zz\r\n", "1\r\nabc\r\n", "-1\r\n", "1 1\r\na\r\n"} {
		answered.Store(0)
		c, err := net.Dial("tcp", where(t, s, "h1", false))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%sGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", body)
		got, err := io.ReadAll(c)
		if err != nil || answered.Load() != 1 || strings.Count(string(got), "HTTP/1.1 ") != 1 {
			t.Errorf("%q: %d requests were answered, then %v: %q", body, answered.Load(), err, got)
		}
	}
}
