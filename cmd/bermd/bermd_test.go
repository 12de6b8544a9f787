package main_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bermedge/berm/maps/mapstest"
	"github.com/bermedge/berm/test/rig/rigtest"
	"github.com/bermedge/berm/userspace/control"
)

// Real clients, each protocol: the first miss is the only request that the origin sees.
func TestServesEveryProtocolFromCache(t *testing.T) {
	for _, program := range []string{"curl", "gtlsclient"} {
		rigtest.Require(t, need(program))
	}
	origin, seen := withOrigin(t)
	p := mustStart(t, onLoopback, origin)
	ask := func(want string, args ...string) {
		t.Helper()
		out, err := exec.Command("curl", append([]string{"-sk", "-m", "10", "-o", "/dev/null", "-w", "%{http_version} %{http_code} %{size_download}", "-D", "/dev/stderr"}, args...)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("curl %v: %v\n%s", args, err, out)
		}
	}
	h1, h2 := p.url(t, "h1")+"/objects/7?size=5000", p.url(t, "h2")+"/objects/7?size=5000"
	ask("1.1 200 5000", "--http1.1", h1)
	ask("berm; hit", "--http1.1", h1)
	ask("2 200 5000", "--http2", "--connect-to", "localhost::"+strings.TrimPrefix(p.url(t, "h2"), "https://"), "https://localhost/objects/7?size=5000")
	ask("alt-svc: h3=", "--http2", h2)
	if n := seen.Served(); n != 3 { // three hosts and schemes are three objects
		t.Errorf("the origin saw %d requests", n)
	}

	dir := t.TempDir()
	host, port, _ := net.SplitHostPort(strings.TrimPrefix(p.url(t, "h3"), "https://"))
	for range 2 {
		out, err := exec.Command("gtlsclient", "-q", "--exit-on-all-streams-close", "--download="+dir, host, port, h2).CombinedOutput()
		if err != nil {
			t.Fatalf("gtlsclient: %v\n%s", err, out)
		}
	}
	files, err := os.ReadDir(dir) // named after path and query
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if fi, err := files[0].Info(); err != nil || fi.Size() != 5000 {
		t.Errorf("h3 gave %+v, %v", fi, err)
	}
	if n := seen.Served(); n != 3 {
		t.Errorf("the origin saw %d requests after those over h3", n)
	}
	done, err := p.client.Purge(t.Context(), control.Purge{URL: h1})
	if err != nil || len(done.Changed) != 1 {
		t.Errorf("%v %v", done, err)
	}
	ask("fwd=uri-miss", "--http1.1", h1)
	s, err := p.client.Status(t.Context())
	if err != nil || s.Cache.Hits < 3 || !s.Ready || s.Requests < 6 || len(s.Problems) == 0 || !strings.Contains(s.Problems[0], "kernel half is not there") {
		t.Errorf("%+v %v", s, err)
	}
}

func TestNotifiesSystemd(t *testing.T) {
	p := mustStart(t, onLoopback)
	p.await(t, "WATCHDOG=1")
	p.await(t, "WATCHDOG=1")
	if _, err := p.client.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := p.await(t, "RELOADING=1"); !strings.Contains(s, "MONOTONIC_USEC=") {
		t.Errorf("%q", s)
	}
	if s := p.await(t, "READY=1"); !strings.Contains(s, "STATUS=serving 127.0.0.1") {
		t.Errorf("%q", s)
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.await(t, "STOPPING=1")
	if err := <-p.ended; err != nil {
		t.Error(err)
	}
	p.ended <- nil
	if _, err := os.Stat(filepath.Join(p.dir, "berm.sock")); err == nil {
		t.Error("the socket was left behind")
	}
}

func TestReload(t *testing.T) {
	origin, _ := withOrigin(t)
	p := mustStart(t, onLoopback, origin)
	url := p.url(t, "h1") + "/objects/1"
	hits := func(want string) {
		t.Helper()
		resp, err := get(url)
		if err != nil || !strings.Contains(resp.Header.Get("Cache-Status"), want) {
			t.Errorf("%+v %v", resp, err)
		}
	}
	hits("stored")
	p.write(t, onLoopback, origin, "ruotes: []", "log: {level: loud}")
	_, err := p.client.Reload(t.Context())
	if err == nil || !strings.Contains(err.Error(), "did you mean routes?") || !strings.Contains(err.Error(), "log.level") || !strings.Contains(err.Error(), "berm.yaml:8:7") {
		t.Errorf("a bad file: %v", err)
	}
	hits("hit")
	if s, err := p.client.Status(t.Context()); err != nil || !strings.Contains(s.Config.Error, "ruotes") {
		t.Errorf("%+v %v", s.Config, err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	p.write(t, fmt.Sprintf("listen: {http: [\"127.0.0.1:0\", %q], https: []}", taken.Addr()), origin)
	if _, err = p.client.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "is in use by") {
		t.Errorf("a port that is taken: %v", err)
	}
	hits("hit")
	p.write(t, onLoopback, "routes: []", "log: {level: debug}")
	done, err := p.client.Reload(t.Context())
	if err != nil || !strings.Contains(strings.Join(done.Changed, "\n"), "section routes") {
		t.Errorf("%v %v", done, err)
	}
	if resp, err := get(url); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("%+v %v", resp, err)
	}
	p.write(t, onLoopback, origin)
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "the old routes by SIGHUP", func() (bool, error) {
		resp, err := get(url)
		return err == nil && strings.Contains(resp.Header.Get("Cache-Status"), "hit"), nil // the cache kept its content
	})
}

func TestDrainsOnTerm(t *testing.T) {
	origin, _ := withOrigin(t)
	p := mustStart(t, onLoopback, origin)
	url := p.url(t, "h1")
	resp, err := http.Get(url + "/slow?ms=0")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	type answer struct {
		body string
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		resp, err := http.Get(url + "/slow?ms=1500")
		if err != nil {
			got <- answer{"", err}
			return
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		got <- answer{string(b), err}
	}()
	within(t, 20*time.Second, "the request in flight", func() (bool, error) {
		s, err := p.client.Status(t.Context())
		return s.InFlight > 0, err
	})
	if err := p.stop(t, syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if a := <-got; a.err != nil || !strings.Contains(a.body, "1500") {
		t.Errorf("%+v", a)
	}
}

func TestRefusesToStart(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, c := range map[string]struct {
		lines string
		code  int
		want  []string
	}{
		"a bad file":    {"listen: {htps: []}\nvips: x", 78, []string{"berm.yaml:4:10: listen.htps: unknown key (did you mean https?)", "berm.yaml:5:7: vips: want a list", "not started: 2 problems"}},
		"a taken port":  {fmt.Sprintf("listen: {http: [%q], https: []}", taken.Addr()), 1, []string{taken.Addr().String() + " is in use by bermd.test (pid"}},
		"a certificate": {"tls: {certificates: [{cert: /nowhere/c, key: /nowhere/k}]}", 78, []string{"tls.certificates[0].cert: /nowhere/c does not exist"}},
	} {
		p := start(t, c.lines)
		err := <-p.ended
		p.ended <- err
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != c.code {
			t.Errorf("%s: %v, want exit code %d", name, err, c.code)
		}
		for _, want := range c.want {
			if !strings.Contains(p.out.String(), want) {
				t.Errorf("%s: %q is not in\n%s", name, want, p.out)
			}
		}
	}
}

// An interface that is gone is a problem that is told: what comes through it passes no policy.
func TestTellsOfAbsentInterfaces(t *testing.T) {
	p := mustStart(t, onLoopback, "kernel: {interfaces: [lo, gone0]}")
	s, err := p.client.Status(t.Context())
	if err != nil || !slices.ContainsFunc(s.Problems, func(text string) bool { return strings.HasPrefix(text, "interface gone0 ") }) ||
		slices.ContainsFunc(s.Problems, func(text string) bool { return strings.HasPrefix(text, "interface lo ") }) {
		t.Errorf("%q, %v", s.Problems, err)
	}
}

// Two relays of one daemon, one behind the other, hand a packet on; a reload ends them.
func TestRelays(t *testing.T) {
	app, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = app.Close() })
	in, wire, parity := freeUDP(t), freeUDP(t), freeUDP(t)
	p := mustStart(t, onLoopback, "fec:", "  relays:",
		fmt.Sprintf("    - {name: a, role: protect, listen: %q, to: %q, parity: %q}", in, wire, parity),
		fmt.Sprintf("    - {name: b, role: repair, listen: %q, to: %q, parity: %q}", wire, app.LocalAddr(), parity))
	conn, err := net.Dial("udp", in)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := conn.Write([]byte("through both")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if err := app.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, _, err := app.ReadFrom(buf); err != nil || string(buf[:n]) != "through both" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	relays, err := p.client.Relays(t.Context())
	if err != nil || len(relays) != 2 || relays[0].Packets != 1 || relays[1].Received != 1 {
		t.Errorf("%+v, %v", relays, err)
	}
}

func freeUDP(t *testing.T) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	return c.LocalAddr().String()
}

// The kernel half may come and go; a killed daemon leaves it in force, and the next one finds it.
func TestKernelHalfComesAndGoes(t *testing.T) {
	k := mapstest.New(t)
	pins := filepath.Dir(k.Pin(t))
	hidden := pins + "/v2"
	lines := []string{
		onLoopback, fmt.Sprintf("kernel: {pins: %s}", pins), "geo: {policies: {default: {drop: [XX]}}}",
		"rate: {classes: {default: {packets: 10}}}", "vips: [{name: web, address: 192.0.2.1, port: 80, protocol: tcp, geo: default, rate: default}]",
	}
	away := pins + "/away"
	if err := os.Rename(hidden, away); err != nil {
		t.Fatal(err)
	}
	p := mustStart(t, lines...)
	if _, err := p.client.VIPs(t.Context()); err == nil || !strings.Contains(err.Error(), "berm kernel up") {
		t.Errorf("without a kernel half: %v", err)
	}
	if err := os.Rename(away, hidden); err != nil {
		t.Fatal(err)
	}
	attached := func(want bool) func() (bool, error) {
		return func() (bool, error) {
			s, err := p.client.Status(t.Context())
			return s.Kernel.Attached == want && (!want || len(s.VIPs) == 1), err
		}
	}
	within(t, 20*time.Second, "the kernel half to be picked up", attached(true))
	done, err := p.client.AddVIP(t.Context(), control.VIP{Name: "mine", Address: netip.MustParseAddr("192.0.2.2"), Port: 80, Protocol: "tcp"})
	if err != nil || len(done.Changed) != 1 {
		t.Fatal(done, err)
	}

	_ = p.stop(t, syscall.SIGKILL)
	if list, err := k.VIPs.List(); err != nil || len(list) != 2 {
		t.Errorf("after kill -9: %+v %v", list, err)
	}
	if policies, err := k.Geo.ListPolicies(); err != nil || len(policies) != 1 {
		t.Errorf("after kill -9: %+v %v", policies, err)
	}
	p = mustStart(t, lines...)
	if list, err := p.client.VIPs(t.Context()); err != nil || len(list) != 2 {
		t.Errorf("after the restart: %+v %v", list, err)
	}
	p.write(t, append(lines[:2:2], "rate: {classes: {default: {packets: 10}}}", "vips: [{name: mine, address: 192.0.2.9, port: 80, protocol: tcp}]")...)
	if _, err := p.client.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "already taken") {
		t.Errorf("a file that takes an operator's name: %v", err)
	}
	if list, err := p.client.VIPs(t.Context()); err != nil || len(list) != 2 || list[0].Geo != "default" {
		t.Errorf("after the refused reload: %+v %v", list, err)
	}
	if err := os.Rename(hidden, away); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "the kernel half to be let go", attached(false))
	if resp, err := get(p.url(t, "h1") + "/"); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("serving without it: %+v %v", resp, err)
	}
}

func TestStatusPageIsForTheAllowed(t *testing.T) {
	for allow, want := range map[string]int{"127.0.0.0/8": 200, "192.0.2.0/24": 404} {
		p := mustStart(t, strings.Replace(onLoopback, "drain: 5s", fmt.Sprintf("status_allow: [%s]", allow), 1))
		for _, path := range []string{"/.berm/", "/.berm/status.json"} {
			resp, err := get(p.url(t, "h1") + path)
			if err != nil || resp.StatusCode != want {
				t.Errorf("%s with %s: %+v %v", path, allow, resp, err)
			}
		}
		if resp, err := get(p.url(t, "h1") + "/.berm/self"); err != nil || resp.StatusCode != http.StatusNotFound {
			t.Errorf("the self-check answers others: %+v %v", resp, err)
		}
	}
}

func TestPageInABrowser(t *testing.T) {
	rigtest.Require(t, need("chromium"))
	p := mustStart(t, onLoopback)
	out, err := exec.CommandContext(t.Context(), "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--user-data-dir="+t.TempDir(), "--virtual-time-budget=5000", "--dump-dom", p.url(t, "h1")+"/.berm/").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<title>edge1 · Berm</title>", "The kernel half is not there", "Listeners"} {
		if !strings.Contains(strings.ReplaceAll(string(out), "the kernel half is not there", "The kernel half is not there"), want) {
			t.Errorf("%q is not on the page:\n%.2000s", want, out)
		}
	}
	if strings.Contains(string(out), `class="stale"`) {
		t.Error("the page cannot refresh itself: its policy or its script is wrong")
	}
}

// TestNoticesDrift: what is changed behind the daemon is told within five seconds, with the
// difference; what goes through its socket is no drift.
func TestNoticesDrift(t *testing.T) {
	k := mapstest.New(t)
	pins := filepath.Dir(k.Pin(t))
	p := mustStart(t, onLoopback, fmt.Sprintf("kernel: {pins: %s}", pins), "vips: [{name: web, address: 192.0.2.1, port: 80, protocol: tcp}]")
	problems := func() string {
		s, err := p.client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(s.Problems, "\n")
	}
	within(t, 20*time.Second, "the VIP", func() (bool, error) {
		list, err := p.client.VIPs(t.Context())
		return len(list) == 1, err
	})
	for range 3 {
		if _, err := p.client.AddVerdict(t.Context(), control.Verdict{Source: netip.MustParseAddr("198.51.100.7"), Action: "drop"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.client.AddVIP(t.Context(), control.VIP{Name: "mine", Address: netip.MustParseAddr("192.0.2.2"), Port: 80, Protocol: "tcp"}); err != nil {
		t.Fatal(err)
	}
	if err := k.Maps["berm_rate_classes"].Put(uint32(5), make([]byte, k.Maps["berm_rate_classes"].ValueSize())); err != nil { // as it was
		t.Fatal(err)
	}
	// The daemon's own process is another one: this set is somebody else to it.
	if err := k.Config.SetObserveOnly(true); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "the drift to be told", func() (bool, error) {
		return strings.Contains(problems(), "1 change to the kernel half's tables behind the daemon, the last: berm_config[0]: flags is 1, was 0"), nil
	})
	if s := problems(); strings.Contains(s, "berm_vip") || strings.Contains(s, "berm_verdicts") {
		t.Errorf("what went through the socket is told as drift: %s", s)
	}
	if _, err := p.client.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := problems(); s != "" || k.Config.ObserveOnly() {
		t.Errorf("after a reload: %q, observe only %v", s, k.Config.ObserveOnly())
	}
	_ = p.stop(t, syscall.SIGKILL) // nobody writes the log any more
	if out := p.out.String(); strings.Count(out, "behind the daemon") != 1 || !strings.Contains(out, "flags is 1, was 0") {
		t.Errorf("the log does not tell the difference once:\n%s", out)
	}
}
