package main_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/bermedge/berm/loader"
	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/test/rig/rigtest"
	"github.com/bermedge/berm/userspace/control"
)

// served is a daemon under the stand-in for systemd, with a kernel half and an origin whose answers end when the
// test says so.
type served struct {
	t       *testing.T
	unit    *rig.Unit
	client  *control.Client
	program string // a copy, to be replaced
	config  string
	pins    string
	kernel  loader.Options
	address string                        // of https
	finish  atomic.Pointer[chan struct{}] // closed: slow answers end
}

func newServed(t *testing.T) *served {
	t.Helper()
	return newServedIn(t, loader.CgroupNone)
}

// newServedIn has the kernel half see the TCP connections of a cgroup, and adds lines to the file.
func newServedIn(t *testing.T, cgroup string, lines ...string) *served {
	t.Helper()
	if os.Geteuid() != 0 {
		rigtest.Require(t, errors.New("needs root, to load the kernel half"))
	}
	dir := t.TempDir()
	s := &served{t: t, program: filepath.Join(dir, "bermd"), config: filepath.Join(dir, "berm.yaml"), address: freePort(t)}
	origin := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if strings.HasPrefix(r.URL.Path, "/big") {
			_, _ = w.Write(make([]byte, bigAnswer))
			return
		}
		_, _ = io.WriteString(w, "first half, ")
		if strings.HasPrefix(r.URL.Path, "/slow") {
			w.(http.Flusher).Flush()
			<-*s.finish.Load()
		}
		_, _ = io.WriteString(w, "second half")
	}))
	// Its own connections are no clients': they have another prefix.
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = origin.Listener.Close()
	origin.Listener = l
	origin.Start()
	t.Cleanup(origin.Close)
	pins := fmt.Sprintf("/sys/fs/bpf/bermd-handover-%d", os.Getpid())
	s.kernel = loader.Options{Pins: pins, Cgroup: cgroup, Group: "0", Lock: filepath.Join(dir, "lock")}
	if _, err := loader.Up(t.Context(), s.kernel); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := loader.Down(context.WithoutCancel(t.Context()), s.kernel); err != nil {
			t.Error(err)
		}
	})
	text := fmt.Sprintf(`node: {name: edge1}
kernel: {pins: %s, cgroup: %q}
admin: {socket: %s/berm.sock, metrics: "%s"}
listen: {http: ["%s"], https: ["%s"], drain: 8s, quic_workers: 4}
origins: {www: {urls: ["%s"]}}
routes: [{host: "*", path: /, origin: www}]
%s
`, pins, cgroup, dir, freePort(t), freePort(t), s.address, origin.URL, strings.Join(lines, "\n"))
	s.pins = pins
	if err := os.WriteFile(s.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s.install(mustRead(t, bermd))
	said, err := os.Create(filepath.Join(dir, "said")) // a file, which processes may share
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	s.unit, err = rig.NewUnit(filepath.Join(dir, "notify"), []string{s.program, "run", "--allow-root", "--config", s.config, "--state", dir},
		func(cmd *exec.Cmd) {
			out, err := os.OpenFile(said.Name(), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Error(err)
			}
			t.Cleanup(func() { out.Close() })
			cmd.Stdout, cmd.Stderr = out, out
		})
	if err != nil {
		t.Fatal(err)
	}
	s.client = control.NewClient(dir + "/berm.sock")
	t.Cleanup(func() {
		s.client.Close()
		if err := s.unit.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("bermd said:\n%s", mustRead(t, said.Name()))
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.unit.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// install replaces the program as a package does.
func (s *served) install(program []byte) {
	s.t.Helper()
	fresh := s.program + ".new"
	if err := errors.Join(os.WriteFile(fresh, program, 0o755), os.Rename(fresh, s.program)); err != nil {
		s.t.Fatal(err)
	}
}

// clients of both transports, each with a connection of its own.
func (s *served) clients() map[string]*http.Client {
	trust := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // the certificate is self-signed
	h3 := &http3.Transport{TLSClientConfig: trust, QUICConfig: &quic.Config{MaxIdleTimeout: 20 * time.Second}}
	s.t.Cleanup(func() { h3.Close() })
	tcp := &http.Transport{TLSClientConfig: trust, ForceAttemptHTTP2: true}
	s.t.Cleanup(tcp.CloseIdleConnections)
	return map[string]*http.Client{"h3": {Transport: h3, Timeout: 40 * time.Second}, "h2": {Transport: tcp, Timeout: 40 * time.Second}}
}

const (
	whole     = "first half, second half"
	bigAnswer = 300_000 // bytes: more than any first window
)

// mustAnswer asks over new connections.
func (s *served) mustAnswer() {
	s.t.Helper()
	for name, c := range s.clients() {
		if got, err := ask(c, "https://"+s.address+"/quick"); err != nil || got != whole {
			s.t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func ask(c *http.Client, url string) (string, error) {
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// begin asks for what takes until end is called, which returns when all of it came; begin does once the first half is
// there. Others may ask with the usual clients.
func (s *served) begin(others ...*visitor) (end func()) {
	s.t.Helper()
	finish := make(chan struct{})
	s.finish.Store(&finish)
	var wg sync.WaitGroup
	var all []visitor
	for name, c := range s.clients() {
		all = append(all, visitor{c, "https://" + s.address + "/slow/" + name, nil})
	}
	for _, v := range others {
		all = append(all, *v)
	}
	for _, v := range all {
		resp, err := v.client.Get(v.url)
		if err != nil {
			s.t.Fatal(err)
		}
		first := make([]byte, 12)
		if _, err := io.ReadFull(resp.Body, first); err != nil {
			s.t.Fatal(err)
		}
		wg.Go(func() {
			defer resp.Body.Close()
			rest, err := io.ReadAll(resp.Body)
			if got := string(first) + string(rest); err != nil || got != whole {
				s.t.Errorf("%s, over %s: %q, %v", v.url, resp.Proto, got, err)
			}
		})
	}
	return func() {
		close(finish)
		wg.Wait()
	}
}

// settle waits until one process is left, and ready.
func (s *served) settle() {
	s.t.Helper()
	within(s.t, 20*time.Second, "one process to be left", func() (bool, error) {
		_, others := s.unit.Main()
		status, err := s.client.Status(s.t.Context())
		return err == nil && others == 0 && status.Ready && len(status.Generations) == 1 && status.Generations[0].Serves, nil
	})
}

func TestHandover(t *testing.T) {
	s := newServed(t)
	s.mustAnswer()
	for round := range 2 {
		before := s.unit.PID()
		crowd := s.crowd(16)
		end := s.begin(crowd...)
		ch, err := s.client.Upgrade(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		within(t, 10*time.Second, "systemd to watch the new process", func() (bool, error) { return s.unit.PID() != before, nil })
		if want := fmt.Sprintf("process %d serves now", s.unit.PID()); !strings.Contains(strings.Join(ch.Changed, "\n"), want) {
			t.Errorf("%q, want %q", ch.Changed, want)
		}
		s.mustAnswer() // by the new process, while the old one has connections
		rebind(t, crowd)
		var status control.Status
		within(t, 10*time.Second, "the new process to be ready", func() (bool, error) {
			status, err = s.client.Status(t.Context())
			return err == nil && status.Ready, nil
		})
		if g := status.Generations; len(g) != 2 || g[0].PID != s.unit.PID() || !g[0].Serves || g[0].Number != uint32(round+2) || g[1].PID != before || g[1].Serves {
			t.Errorf("generations %+v", g)
		}
		end()
		s.settle()
		s.mustAnswer()
	}
	if kept := s.unit.Kept(); len(kept) != 2+4 { // TCP of both, and four workers
		t.Errorf("systemd keeps %q", kept)
	}
	// Nobody else goes on when systemd ends the main one.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.unit.Stop(ctx, syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := s.unit.Start(ctx); err != nil {
		t.Fatal(err)
	}
	s.mustAnswer()
}

// Whatever the successor does wrong, the process before serves on, with the connections that it has.
func TestHandoverFails(t *testing.T) {
	s := newServed(t)
	end := s.begin()
	before := s.unit.PID()
	good := mustRead(t, s.config)
	// The socket over which the two agree comes after those of http and https.
	const words = 3 + 2
	for name, c := range map[string]struct{ file, program, want string }{
		"a bad file":             {"nonsense: 1\n", "", "nonsense"},
		"it ends at once":        {"", "exit 1", "ended before it served"},
		"it is no program":       {"", "\x00", "start "},
		"it ends before it said": {"", fmt.Sprintf("echo ready >&%d; read x <&%d; exit 1", words, words), "ended before it served"},
		"it speaks otherwise":    {"", fmt.Sprintf("echo hello >&%d; sleep 100", words), "another version"},
		"it says why":            {"", fmt.Sprintf(`printf '%%s\n' 'failed "no\nmemory"' >&%d; exit 1`, words), "no\nmemory"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(s.config, append([]byte(c.file), good...), 0o644); err != nil {
				t.Fatal(err)
			}
			if c.program != "" {
				s.install([]byte("#!/bin/sh\n" + c.program + "\n"))
				if c.program == "\x00" {
					s.install([]byte(c.program))
				}
				defer s.install(mustRead(t, bermd))
			}
			_, err := s.client.Upgrade(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "serves as before") {
				t.Errorf("%v, want %q", err, c.want)
			}
			if pid := s.unit.PID(); pid != before {
				t.Errorf("systemd watches %d, not %d", pid, before)
			}
			s.mustAnswer()
		})
	}
	if err := os.WriteFile(s.config, good, 0o644); err != nil {
		t.Fatal(err)
	}
	end()
	if _, err := s.client.Upgrade(t.Context()); err != nil {
		t.Error("after all that: ", err)
	}
	s.settle()
	s.mustAnswer()
}

// A successor that hangs holds up neither a stop nor anybody but those who would change what it reads.
func TestHandoverHangs(t *testing.T) {
	s := newServed(t)
	s.install([]byte("#!/bin/sh\nexec sleep 100\n"))
	started := make(chan struct{})
	first := make(chan error, 1)
	go func() {
		close(started)
		_, err := s.client.Upgrade(t.Context())
		first <- err
	}()
	<-started
	within(t, 20*time.Second, "a reload to be refused", func() (bool, error) {
		_, err := s.client.Reload(t.Context())
		return err != nil && strings.Contains(err.Error(), "another process is taking over"), nil
	})
	if _, err := s.client.Upgrade(t.Context()); err == nil || !strings.Contains(err.Error(), "another process is taking over already") {
		t.Errorf("a second one: %v", err)
	}
	s.mustAnswer()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.unit.Stop(ctx, syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := <-first; err == nil {
		t.Error("it says that another process serves")
	}
}

// Without the kernel half datagrams would go to either process.
func TestHandoverAlone(t *testing.T) {
	p := mustStart(t, fmt.Sprintf("listen: {http: [], https: [%q]}", freePort(t)))
	_, err := p.client.Upgrade(t.Context())
	if err == nil || !strings.Contains(err.Error(), "connections of QUIC would end") || !strings.Contains(err.Error(), "systemctl restart bermd") {
		t.Error(err)
	}
}
