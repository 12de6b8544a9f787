package main_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/clock"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/demo"
)

var bermd string // the program under test

func TestMain(m *testing.M) { os.Exit(build(m)) }

func build(m *testing.M) int {
	dir, err := os.MkdirTemp("", "bermd-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // it runs as nobody too
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	bermd = filepath.Join(dir, "bermd")
	args := []string{"build", "-o", bermd}
	if raceEnabled {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build bermd: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// process is a bermd that a test runs outside of a lab.
type process struct {
	cmd    *exec.Cmd
	out    *bytes.Buffer
	dir    string
	config string
	client *control.Client

	metrics string      // where the next file has them; "": somewhere
	notes   chan string // what it tells systemd, which always listens
	ended   chan error
}

// mustStart runs bermd on loopback with a file of these lines, and waits until it is ready.
func mustStart(t *testing.T, lines ...string) *process {
	t.Helper()
	p := start(t, lines...)
	p.await(t, "READY=1")
	return p
}

func start(t *testing.T, lines ...string) *process {
	t.Helper()
	p := &process{out: &bytes.Buffer{}, dir: t.TempDir(), notes: make(chan string, 1000), ended: make(chan error, 1)}
	p.config = filepath.Join(p.dir, "berm.yaml")
	p.write(t, lines...)
	systemd, err := net.ListenPacket("unixgram", filepath.Join(p.dir, "notify"))
	if err != nil {
		t.Fatal(err)
	}
	go p.listen(systemd)
	p.cmd = exec.Command(bermd, "run", "--allow-root", "--config", p.config, "--state", p.dir)
	p.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(p.dir, "notify"), "WATCHDOG_USEC=300000", "JOURNAL_STREAM=")
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.ended <- p.cmd.Wait() }()
	p.client = control.NewClient(filepath.Join(p.dir, "berm.sock"))
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
		systemd.Close()
		p.client.Close()
		if t.Failed() {
			t.Logf("bermd said:\n%s", p.out)
		}
	})
	return p
}

// write writes the file: what every test needs, and lines.
func (p *process) write(t *testing.T, lines ...string) {
	t.Helper()
	text := fmt.Sprintf("node: {name: edge1}\nkernel: {pins: /sys/fs/bpf/bermd-test-%d}\n", os.Getpid())
	if all := strings.Join(lines, "\n"); strings.Contains(all, "kernel:") {
		text = "node: {name: edge1}\n"
	}
	text += fmt.Sprintf("admin: {socket: %s/berm.sock, metrics: %q}\n", p.dir, cmp.Or(p.metrics, "127.0.0.1:0")) + strings.Join(lines, "\n") + "\n"
	if err := os.WriteFile(p.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// listen notes what the daemon says. One that nobody listened to would wait for ever.
func (p *process) listen(systemd net.PacketConn) {
	buf := make([]byte, 4096)
	for {
		n, _, err := systemd.ReadFrom(buf)
		if err != nil {
			return // closed
		}
		select {
		case p.notes <- string(buf[:n]):
		default: // a test that waits for none
		}
	}
}

// await reads notifications until one holds want.
func (p *process) await(t *testing.T, want string) string {
	t.Helper()
	deadline, ended, end := time.After(20*time.Second), p.ended, "it runs"
	for {
		select {
		case note := <-p.notes:
			if strings.Contains(note, want) {
				return note
			}
		case err := <-ended: // what it said last may not have been read yet
			p.ended <- err
			deadline, ended, end = time.After(500*time.Millisecond), nil, fmt.Sprintf("it ended: %v", err)
		case <-deadline:
			t.Fatalf("no %s from it; %s\n%s", want, end, p.out)
		}
	}
}

// stop ends it by a signal and returns how it ended.
func (p *process) stop(t *testing.T, sig syscall.Signal) error {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-p.ended:
		p.ended <- err
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
		return nil
	}
}

// url returns where a protocol is served.
func (p *process) url(t *testing.T, protocol string) string {
	t.Helper()
	s, err := p.client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range s.Listeners {
		switch {
		case protocol == "h1" && len(l.Protocols) == 1 && l.Protocols[0] == "h1":
			return "http://" + l.Address
		case protocol != "h1" && strings.Contains(strings.Join(l.Protocols, " "), protocol):
			return "https://" + l.Address
		}
	}
	t.Fatalf("nothing serves %s: %+v", protocol, s.Listeners)
	return ""
}

const onLoopback = `listen: {http: ["127.0.0.1:0"], https: ["127.0.0.1:0"], drain: 5s}`

// withOrigin serves the demo origin, and returns the lines that make it everyone's.
func withOrigin(t *testing.T) (lines string, o *demo.Origin) {
	t.Helper()
	o = demo.New(clock.System{})
	srv := httptest.NewServer(o)
	t.Cleanup(srv.Close)
	return fmt.Sprintf("origins: {demo: {urls: [%q]}}\nroutes: [{host: \"*\", path: /, origin: demo}]", srv.URL), o
}

// within polls until done, or fails the test.
func within(t *testing.T, limit time.Duration, what string, done func() (bool, error)) {
	t.Helper()
	if err := rig.Until(t.Context(), limit, what, done); err != nil {
		t.Fatal(err)
	}
}

// get asks with a new connection.
func get(url string) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return nil, err
	}
	return resp, resp.Body.Close()
}

func need(program string) error {
	if _, err := exec.LookPath(program); err != nil {
		return errors.Join(err, fmt.Errorf("install %s", program))
	}
	return nil
}
