package main_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/bermedge/berm/test/rig/rigtest"
	"github.com/bermedge/berm/userspace/certs"
	"github.com/bermedge/berm/userspace/control"
)

// mustCert makes a self-signed certificate for localhost that clients can be told to trust, as PEM.
func mustCert(t *testing.T, serial int64) (cert, key []byte) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: fmt.Sprint("cert ", serial)}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour + time.Duration(serial)*time.Second), NotAfter: time.Now().Add(30 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &priv.PublicKey, priv)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

func mustWrite(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// subject is whose certificate openssl sees.
func subject(t *testing.T, address string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "openssl", "s_client", "-connect", address, "-servername", "localhost").CombinedOutput()
	if err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "subject="); ok {
			return strings.TrimPrefix(name, "CN = ")
		}
	}
	t.Fatalf("openssl names no subject:\n%s", out)
	return ""
}

// handshakes makes full handshakes over TCP and QUIC until stopped.
type handshakes struct {
	done, failed atomic.Int64
	why          atomic.Value
	wg           sync.WaitGroup
}

func (h *handshakes) run(ctx context.Context, once func(context.Context) error) {
	h.wg.Go(func() {
		for ctx.Err() == nil {
			err := once(context.WithoutCancel(ctx))
			if h.done.Add(1); err != nil {
				h.failed.Add(1)
				h.why.Store(err.Error())
			}
		}
	})
}

// Certificates of tls.dir change, break and mend while clients come: none of them is refused.
func TestCertificatesRotateUnderLoad(t *testing.T) {
	rigtest.Require(t, need("openssl"))
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	cert, key := mustCert(t, 1)
	mustWrite(t, path("www.crt"), cert)
	mustWrite(t, path("www.key"), key)
	p := mustStart(t, onLoopback, fmt.Sprintf("tls: {dir: %s}", dir))
	address := strings.TrimPrefix(p.url(t, "h2"), "https://")
	if got := subject(t, address); got != "cert 1" {
		t.Fatalf("openssl got %q", got)
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var load handshakes
	client := &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", NextProtos: []string{"h2"}}
	h3 := client.Clone()
	h3.NextProtos = []string{"h3"}
	for range 2 {
		load.run(ctx, func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			c, err := (&tls.Dialer{Config: client}).DialContext(ctx, "tcp", address)
			if err != nil {
				return err
			}
			return c.Close()
		})
	}
	load.run(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		c, err := quic.DialAddr(ctx, address, h3, nil)
		if err != nil {
			return err
		}
		return c.CloseWithError(0, "")
	})
	serves := func(want string) {
		t.Helper()
		within(t, 30*time.Second, "another certificate", func() (bool, error) { return subject(t, address) == want, nil })
	}
	problem := func(want string) {
		t.Helper()
		within(t, 30*time.Second, "a problem", func() (bool, error) {
			s, err := p.client.Status(t.Context())
			all := strings.Join(s.Problems, "\n")
			return strings.Contains(all, want) || want == "" && !strings.Contains(all, "tls.dir"), err
		})
	}
	next := int64(2)
	for ; next <= 4; next++ { // in place, a half after the other
		cert, key = mustCert(t, next)
		mustWrite(t, path("www.crt"), cert)
		mustWrite(t, path("www.key"), key)
		serves(fmt.Sprint("cert ", next))
	}
	last := fmt.Sprint("cert ", next-1)
	_, other := mustCert(t, 100) // a key of another certificate
	mustWrite(t, path("www.key"), other)
	problem(path("www.key") + " is not the key of the certificate in " + path("www.crt") + "; the certificate before it stays")
	if got := subject(t, address); got != last {
		t.Errorf("%q with a key that does not fit", got)
	}
	if err := os.Remove(path("www.key")); err != nil {
		t.Fatal(err)
	}
	problem(path("www.key") + " does not exist; the certificate before it stays")
	mustWrite(t, path("www.key"), key)
	problem("")

	cert, key = mustCert(t, next) // another pair of the same name, by one rename
	mustWrite(t, path(".new.pem"), append(cert, key...))
	if err := os.Rename(path(".new.pem"), path("new.pem")); err != nil {
		t.Fatal(err)
	}
	serves(fmt.Sprint("cert ", next))
	if err := os.Remove(path("new.pem")); err != nil { // it vanishes: the one before serves again
		t.Fatal(err)
	}
	serves(last)
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	problem(dir + " does not exist; the certificates that it held stay")
	if got := subject(t, address); got != last {
		t.Errorf("%q without the directory", got)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	problem("")
	stop()
	load.wg.Wait()
	t.Logf("%d handshakes, %d failed", load.done.Load(), load.failed.Load())
	if n := load.failed.Load(); n != 0 || load.done.Load() < 100 {
		t.Errorf("of %d handshakes %d failed, the last: %v", load.done.Load(), n, load.why.Load())
	}
}

// Two edges with the same keys resume each other's sessions, over TCP and QUIC; so does a daemon that was started again.
func TestSessionsResumeAcrossEdgesAndRestarts(t *testing.T) {
	for _, program := range []string{"openssl", "gtlsclient"} {
		rigtest.Require(t, need(program))
	}
	dir, keep := t.TempDir(), t.TempDir()
	shared := fmt.Sprintf("tls: {tickets: {dir: %s}}", dir)
	one, two := mustStart(t, onLoopback, shared), mustStart(t, onLoopback, shared)
	session := filepath.Join(keep, "openssl")
	openssl := func(p *process, args ...string) string {
		t.Helper()
		address := strings.TrimPrefix(p.url(t, "h2"), "https://")
		cmd := exec.Command("openssl", append([]string{"s_client", "-connect", address, "-servername", "localhost", "-ign_eof"}, args...)...)
		cmd.Stdin = strings.NewReader("GET / HTTP/1.0\r\n\r\n") // the ticket comes before the answer
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("openssl: %v\n%s", err, out)
		}
		return string(out)
	}
	gtls := func(p *process) {
		t.Helper()
		address := strings.TrimPrefix(p.url(t, "h3"), "https://")
		host, port, _ := net.SplitHostPort(address)
		out, err := exec.Command("gtlsclient", "-q", "--exit-on-all-streams-close", "--disable-early-data", "--timeout=20s",
			"--session-file="+filepath.Join(keep, "gtls"), "--tp-file="+filepath.Join(keep, "tp"), host, port, "https://"+address+"/").CombinedOutput()
		if err != nil {
			t.Fatalf("gtlsclient: %v\n%s", err, out)
		}
	}
	remember := &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", ClientSessionCache: newSessions()}
	quicGo := func(p *process) bool {
		t.Helper()
		_, conn := mustAsk(t, strings.TrimPrefix(p.url(t, "h3"), "https://"), remember, http.MethodGet, "/")
		return conn.TLS.DidResume
	}
	counts := func(p *process) control.TLSInfo {
		t.Helper()
		s, err := p.client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s.TLS
	}
	if out := openssl(one, "-sess_out", session); strings.Contains(out, "Reused, TLSv1.3") {
		t.Error("openssl resumed what never was")
	}
	gtls(one)
	quicGo(one)
	if got, want := counts(one), (control.TLSInfo{TCP: control.Handshakes{Full: 1}, QUIC: control.Handshakes{Full: 2}}); !reflect.DeepEqual(got, want) {
		t.Errorf("on the first edge %+v, want %+v", got, want)
	}
	resumed := control.TLSInfo{TCP: control.Handshakes{Resumed: 1}, QUIC: control.Handshakes{Resumed: 2}}
	for _, p := range []*process{two, mustStart(t, onLoopback, shared)} {
		if out := openssl(p, "-sess_in", session); !strings.Contains(out, "Reused, TLSv1.3") {
			t.Errorf("openssl did not resume:\n%s", out)
		}
		gtls(p)
		if !quicGo(p) {
			t.Error("quic-go did not resume")
		}
		if got := counts(p); !reflect.DeepEqual(got, resumed) {
			t.Errorf("on another edge %+v, want %+v", got, resumed)
		}
	}
	// Without the keys there is a full handshake, and no error.
	stranger := mustStart(t, onLoopback)
	if out := openssl(stranger, "-sess_in", session); !strings.Contains(out, "New, TLSv1.3") {
		t.Errorf("openssl with a ticket of unknown keys:\n%s", out)
	}
	gtls(stranger)
	quicGo(stranger)
	if got, want := counts(stranger), (control.TLSInfo{TCP: control.Handshakes{Full: 1}, QUIC: control.Handshakes{Full: 2}}); !reflect.DeepEqual(got, want) {
		t.Errorf("without the keys %+v, want %+v", got, want)
	}
	for _, p := range []*process{one, two} { // ended, they have said all
		if err := p.stop(t, syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	}
	for _, f := range mustKeys(t, dir) {
		secret, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if text := strings.TrimSpace(string(secret)); len(text) != 64 || strings.Contains(one.out.String()+two.out.String(), text) {
			t.Errorf("%s is no key, or its secret is in a log", f)
		}
	}
}

// sessions remembers the last ticket, and tells when one has come: it may come after the answer.
type sessions struct {
	tls.ClientSessionCache
	came chan struct{}
}

func newSessions() *sessions {
	return &sessions{tls.NewLRUClientSessionCache(1), make(chan struct{}, 100)}
}

// Put keeps a session.
func (s *sessions) Put(key string, session *tls.ClientSessionState) {
	s.ClientSessionCache.Put(key, session)
	if session != nil {
		s.came <- struct{}{}
	}
}

// mustAsk asks over h3 with quic-go, and returns the answer and how the connection was.
func mustAsk(t *testing.T, address string, client *tls.Config, method, target string) (*http.Response, quic.ConnectionState) {
	t.Helper()
	var conn *quic.Conn
	tr := &http3.Transport{TLSClientConfig: client, Dial: func(ctx context.Context, _ string, c *tls.Config, q *quic.Config) (_ *quic.Conn, err error) {
		dial := quic.DialAddr
		if method == http3.MethodGet0RTT {
			dial = quic.DialAddrEarly
		}
		conn, err = dial(ctx, address, c, q)
		return conn, err
	}}
	defer tr.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	remember, ok := client.ClientSessionCache.(*sessions)
	for ok && len(remember.came) > 0 { // of a connection before
		<-remember.came
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://localhost"+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	<-conn.HandshakeComplete()
	if ok {
		select {
		case <-remember.came:
		case <-ctx.Done():
			t.Fatal("no ticket comes")
		}
	}
	return resp, conn.ConnectionState()
}

func mustKeys(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "ticket-*.key"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	return files
}

// A client that has the key from DNS hides the name that it asks for, over QUIC too.
func TestHidesNamesOverQUIC(t *testing.T) {
	text, err := certs.NewECH("public.example")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ech.pem")
	mustWrite(t, path, text)
	_, list, err := certs.ReadECH(text)
	if err != nil {
		t.Fatal(err)
	}
	p := mustStart(t, onLoopback, fmt.Sprintf("tls: {ech: [%s]}", path))
	client := &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", EncryptedClientHelloConfigList: list, MinVersion: tls.VersionTLS13}
	if _, conn := mustAsk(t, strings.TrimPrefix(p.url(t, "h3"), "https://"), client, http.MethodGet, "/"); !conn.TLS.ECHAccepted {
		t.Error("ECH was not accepted")
	}
}

// notes is an origin that remembers what it was asked, and forbids storing it.
type notes struct {
	mu   sync.Mutex
	seen []string
}

func (n *notes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen = append(n.seen, fmt.Sprintf("%s %s early=%s", r.Method, r.URL, r.Header.Get("Early-Data")))
	w.Header().Set("Cache-Control", "no-store")
	fmt.Fprintln(w, "hello")
}

// take returns what was asked since it was last called.
func (n *notes) take() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	defer func() { n.seen = nil }()
	return n.seen
}

func withNotes(t *testing.T) (lines string, n *notes) {
	t.Helper()
	n = &notes{}
	srv := httptest.NewServer(n)
	t.Cleanup(srv.Close)
	return fmt.Sprintf("origins: {notes: {urls: [%q]}}\nroutes: [{host: \"*\", path: /, origin: notes}]", srv.URL), n
}

const earlyOn = "tls: {early_data: {enabled: true, queries: [/search]}}"

func mustEarly(t *testing.T, p *process) map[string]uint64 {
	t.Helper()
	s, err := p.client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s.TLS.Early
}

// What a client sends before the handshake is done reaches the origin marked, or is refused with 425.
func TestEarlyData(t *testing.T) {
	rigtest.Require(t, need("gtlsclient"))
	origin, asked := withNotes(t)
	p := mustStart(t, onLoopback, origin, earlyOn)
	address := mustPath(t, strings.TrimPrefix(p.url(t, "h3"), "https://")).LocalAddr().String()
	host, port, _ := net.SplitHostPort(address)
	keep := t.TempDir()
	body := filepath.Join(keep, "body")
	mustWrite(t, body, []byte("x"))
	gtls := func(target string, args ...string) string {
		t.Helper()
		args = append([]string{"--exit-on-all-streams-close", "--timeout=20s", "--session-file=" + filepath.Join(keep, "s"), "--tp-file=" + filepath.Join(keep, "tp")}, args...)
		out, err := exec.Command("gtlsclient", append(args, host, port, "https://"+address+target)...).CombinedOutput()
		if err != nil {
			t.Fatalf("gtlsclient: %v\n%s", err, out)
		}
		return string(out)
	}
	gtls("/first")
	if got := asked.take(); !slices.Equal(got, []string{"GET /first early="}) {
		t.Errorf("a full handshake: %q", got)
	}
	for i, c := range []struct {
		target string
		args   []string
		status string
		origin []string
	}{
		{"/a", nil, "200", []string{"GET /a early=1"}},
		{"/b", []string{"--http-method=HEAD"}, "200", []string{"HEAD /b early=1"}},
		{"/c", []string{"--http-method=OPTIONS"}, "200", []string{"OPTIONS /c early=1"}},
		{"/d?q=1", nil, "425", nil},
		{"/search?q=1", nil, "200", []string{"GET /search?q=1 early=1"}},
		{"/search/deep?q=1", nil, "200", []string{"GET /search/deep?q=1 early=1"}},
		{"/searching?q=1", nil, "425", nil},
		{"/e", []string{"--http-method=POST", "--data=" + body}, "425", nil},
		{"/f", []string{"--http-method=DELETE"}, "425", nil},
		{"/g", []string{"--data=" + body}, "425", nil},
		{"/d?q=1", []string{"--disable-early-data"}, "200", []string{"GET /d?q=1 early="}},
		{"/e", []string{"--disable-early-data", "--http-method=POST", "--data=" + body}, "200", []string{"POST /e early="}},
	} {
		out := gtls(c.target, c.args...)
		if !strings.Contains(out, "[:status: "+c.status+"]") || strings.Contains(out, "rejected by server") {
			t.Errorf("%s %v: want status %s\n%s", c.target, c.args, c.status, out)
		}
		if got := asked.take(); !slices.Equal(got, c.origin) {
			t.Errorf("%s %v: the origin saw %q", c.target, c.args, got)
		}
		if got := mustEarly(t, p)["accepted"]; got != uint64(i+1) {
			t.Errorf("%s: %d tickets accepted", c.target, got)
		}
	}

	// quic-go, too. The way is long: its client has a data race where the first answer comes while it sends early data.
	client := &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", ClientSessionCache: newSessions()}
	far := mustPath(t, address).LocalAddr().String()
	for target, want := range map[string]int{"/a": 200, "/a?q=1": 425} {
		mustAsk(t, far, client, http.MethodGet, "/first")
		asked.take()
		resp, conn := mustAsk(t, far, client, http3.MethodGet0RTT, target)
		if !conn.Used0RTT || resp.StatusCode != want {
			t.Errorf("%s: 0-RTT %v, status %d", target, conn.Used0RTT, resp.StatusCode)
		}
		if got := asked.take(); want == 200 && !slices.Equal(got, []string{"GET /a early=1"}) || want != 200 && len(got) > 0 {
			t.Errorf("%s: the origin saw %q", target, got)
		}
	}

	// Another edge, or this one after a restart, resumes without: only who gave the ticket out knows whether it was used.
	again := mustStart(t, onLoopback, origin, strings.Replace(earlyOn, "early_data", "tickets: {dir: "+filepath.Join(p.dir, "tickets")+"}, early_data", 1))
	first := address
	address = strings.TrimPrefix(again.url(t, "h3"), "https://")
	host, port, _ = net.SplitHostPort(address)
	if out := gtls("/a"); !strings.Contains(out, "rejected by server") || !strings.Contains(out, "[:status: 200]") {
		t.Errorf("elsewhere:\n%s", out)
	}
	if got := asked.take(); !slices.Equal(got, []string{"GET /a early="}) || mustEarly(t, again)["elsewhere"] != 1 {
		t.Errorf("elsewhere the origin saw %q, %v", got, mustEarly(t, again))
	}

	// Turned off, it is off for tickets that clients have.
	address = first
	host, port, _ = net.SplitHostPort(address)
	gtls("/first")
	p.write(t, onLoopback, origin)
	if _, err := p.client.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	asked.take()
	for range 2 { // the second time with a ticket of afterwards
		if out := gtls("/a"); !strings.Contains(out, "rejected by server") {
			t.Errorf("off:\n%s", out)
		}
	}
	if got := asked.take(); !slices.Equal(got, []string{"GET /a early=", "GET /a early="}) {
		t.Errorf("off, the origin saw %q", got)
	}
}

// path carries datagrams to the edge and back, each a while later: what a client sends at once comes before what it
// sends in answer. It keeps what went to the edge.
type path struct {
	net.PacketConn
	to *net.UDPAddr

	mu   sync.Mutex
	out  map[string]net.Conn // to the edge, by client
	sent [][]byte
}

const pathDelay = 100 * time.Millisecond

func mustPath(t *testing.T, address string) *path {
	t.Helper()
	to, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	in, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &path{PacketConn: in, to: to, out: map[string]net.Conn{}}
	t.Cleanup(p.close)
	go p.run()
	return p
}

func (p *path) close() {
	_ = p.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.out {
		_ = c.Close()
	}
}

func (p *path) run() {
	buf := make([]byte, 2048)
	for {
		n, client, err := p.ReadFrom(buf)
		if err != nil {
			return // closed
		}
		b := bytes.Clone(buf[:n])
		p.mu.Lock()
		p.sent = append(p.sent, b)
		out := p.out[client.String()]
		if out == nil {
			if out, err = net.DialUDP("udp", nil, p.to); err != nil {
				p.mu.Unlock()
				return
			}
			p.out[client.String()] = out
			go p.back(out, client)
		}
		p.mu.Unlock()
		time.AfterFunc(pathDelay, func() { _, _ = out.Write(b) }) // a datagram may be lost
	}
}

func (p *path) back(from net.Conn, client net.Addr) {
	buf := make([]byte, 2048)
	for {
		n, err := from.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // nobody listens there just now
		}
		b := bytes.Clone(buf[:n])
		time.AfterFunc(pathDelay, func() { _, _ = p.WriteTo(b, client) }) // a datagram may be lost
	}
}

// flight is what has been sent of first flights since forget: Initials and 0-RTT packets, the first two types of long
// headers (RFC 9000, 17.2).
func (p *path) flight() (out [][]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.sent {
		if b[0]&0x80 != 0 && b[0]>>4&3 < 2 {
			out = append(out, b)
		}
	}
	return out
}

func (p *path) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent = nil
}

// Recorded 0-RTT packets that somebody sends again make no second request, however often and from wherever.
func TestReplayedEarlyDataReachesNoOrigin(t *testing.T) {
	origin, asked := withNotes(t)
	// Copies carry the same connection ID, so that each is judged once the connection before has timed out.
	p := mustStart(t, strings.Replace(onLoopback, "}", ", header_timeout: 1s, idle_timeout: 2s}", 1), origin, earlyOn)
	way := mustPath(t, strings.TrimPrefix(p.url(t, "h3"), "https://"))
	address := way.LocalAddr().String()
	client := &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", ClientSessionCache: newSessions()}
	mustAsk(t, address, client, http.MethodGet, "/first")
	asked.take()
	way.forget()
	if resp, conn := mustAsk(t, address, client, http3.MethodGet0RTT, "/once"); resp.StatusCode != 200 || !conn.Used0RTT {
		t.Fatal(resp.Status, conn.Used0RTT)
	}
	if got := asked.take(); !slices.Equal(got, []string{"GET /once early=1"}) {
		t.Fatalf("the origin saw %q", got)
	}
	flight := way.flight()
	const copies = 3
	within(t, 60*time.Second, "copies to be judged", func() (bool, error) {
		again, err := net.DialUDP("udp", nil, way.to)
		if err != nil {
			return false, err
		}
		defer again.Close()
		for _, b := range flight {
			if _, err := again.Write(b); err != nil {
				return false, err
			}
		}
		return mustEarly(t, p)["replayed"] >= copies, nil
	})
	mustAsk(t, address, client, http.MethodGet, "/last") // what a copy could have caused is done
	if got := asked.take(); !slices.Equal(got, []string{"GET /last early="}) {
		t.Errorf("after copies the origin saw %q", got)
	}
	t.Logf("a flight of %d datagrams sent again; tickets: %v", len(flight), mustEarly(t, p))
}
