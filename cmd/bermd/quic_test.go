package main_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
	"github.com/bermedge/berm/test/rig/rigtest"
	"github.com/bermedge/berm/userspace/congestion/quiccc"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/transport"
)

// QUIC connections begin with what the policy has for their client: the file's alone without a kernel half, and with one
// also an operator's, which counts for those to come. What they measured is in the table of paths.
func TestControllerOfQUIC(t *testing.T) {
	rigtest.Require(t, need("gtlsclient"))
	k := mapstest.New(t)
	pins := filepath.Dir(k.Pin(t))
	origin, _ := withOrigin(t)
	section := "cc: {profiles: {lossy: {controller: bbr, initial_window: 20}, odd: {controller: vegas}}, prefixes: [{prefix: 127.0.0.0/8, profile: %s}]}"
	fetched := uint64(0) // from this process
	fetch := func(p *process) {
		t.Helper()
		fetched++
		host, port, _ := net.SplitHostPort(strings.TrimPrefix(p.url(t, "h3"), "https://"))
		url := p.url(t, "h2") + "/objects/7?size=300000"
		if out, err := exec.Command("gtlsclient", "-q", "--exit-on-all-streams-close", "--download="+t.TempDir(), host, port, url).CombinedOutput(); err != nil {
			t.Fatalf("gtlsclient: %v\n%s", err, out)
		}
	}
	info := func(p *process) control.QUICInfo {
		t.Helper()
		s, err := p.client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s.QUIC
	}
	expect := func(p *process, controller string, n uint64) {
		t.Helper()
		if !quiccc.Selectable {
			controller, n = "reno", fetched
		}
		if got := info(p); got.Controllers[controller] != n {
			t.Errorf("%d connections with %s wanted: %+v", n, controller, got)
		}
	}

	p := mustStart(t, onLoopback, origin, fmt.Sprintf(section, "lossy"))
	fetch(p)
	expect(p, "bbr", 1)
	itself := info(p)
	if err := p.stop(t, syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if says := strings.Contains(p.out.String(), "QUIC connections run Reno"); says == quiccc.Selectable || itself.Selectable != quiccc.Selectable {
		t.Errorf("it says of itself %+v", itself)
	}
	if says := strings.Contains(p.out.String(), "secrets enter the tables of h2"); says == transport.NeverIndexes {
		t.Errorf("it says so of a build without the patched x/net: %v", says)
	}

	lines := []string{onLoopback, origin, fmt.Sprintf("kernel: {pins: %s}", pins), fmt.Sprintf(section, "odd")}
	fetched = 0
	p = mustStart(t, lines...)
	fetch(p)
	expect(p, "cubic", 1)
	if got := info(p).Refused; got != 1 {
		t.Errorf("a controller that QUIC does not have: %d refused", got)
	}
	_, err := p.client.SetCC(t.Context(), control.CCRule{Prefix: netip.MustParsePrefix("127.0.0.1/32"), Profile: "lossy"})
	if err != nil {
		t.Fatal(err)
	}
	fetch(p)
	expect(p, "bbr", 1)
	mobile := netip.MustParsePrefix("198.51.100.0/24") // a profile that is there without the file
	if _, err := p.client.SetCC(t.Context(), control.CCRule{Prefix: mobile, Profile: "mobile"}); err != nil {
		t.Fatal(err)
	}
	if q, err := p.client.ExplainCC(t.Context(), mobile.Addr()); err != nil || q.QUIC.PacketSize != 1232 || q.QUIC.KeepAlive != 20 || q.QUIC.StreamWindow == 0 {
		t.Errorf("%+v, %v", q.QUIC, err)
	}
	metrics := metricsOf(t, p, lines...)
	choice, err := p.client.ExplainCC(t.Context(), netip.MustParseAddr("127.0.0.1"))
	if err != nil || choice.Profile.Name != "lossy" {
		t.Fatalf("%+v, %v", choice, err)
	}
	if !quiccc.Selectable {
		if choice.QUIC.Controller != "reno" || choice.QUIC.Why == "" || !strings.Contains(metrics, "berm_quic_cc_selectable 0") {
			t.Errorf("%+v", choice.QUIC)
		}
		return
	}
	if choice.QUIC.Controller != "bbr" || choice.QUIC.InitialWindow != 20 || choice.QUIC.Why != "" {
		t.Errorf("%+v", choice.QUIC)
	}
	for _, want := range []string{
		"berm_quic_cc_selectable 1", `berm_quic_cc_connections_total{controller="bbr",profile="lossy",refused="false"} 1`,
		`berm_quic_cc_connections_total{controller="cubic",profile="odd",refused="true"} 1`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no metric %s", want)
		}
	}
	var path maps.Path
	within(t, 20*time.Second, "both connections' reports", func() (bool, error) {
		path, err = k.Paths.Get(netip.MustParseAddr("127.0.0.1"), maps.ProtocolUDP)
		if errors.Is(err, maps.ErrNotFound) {
			err = nil
		}
		return path.Connections == 2, err
	})
	if path.Delivered < 300000/1500 || path.RTT == 0 || path.MinRTT == 0 {
		t.Errorf("%+v", path)
	}
}

// metricsOf has a daemon serve its metrics where nobody else does, and reads them.
func metricsOf(t *testing.T, p *process, lines ...string) string {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.metrics = free.Addr().String()
	_ = free.Close()
	p.write(t, lines...)
	if _, err := p.client.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + p.metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
