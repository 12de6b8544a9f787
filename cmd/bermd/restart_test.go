package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/bermedge/berm/test/rig"
)

// unit runs bermd as its unit does, on these addresses.
func unit(t *testing.T, http, https string) *rig.Unit {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "berm.yaml")
	text := fmt.Sprintf("node: {name: edge1}\nkernel: {pins: /sys/fs/bpf/bermd-test-%d}\nadmin: {socket: %s/berm.sock, metrics: \"\"}\nlisten: {http: [%q], https: [%q], drain: 5s}\n",
		os.Getpid(), dir, http, https)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	u, err := rig.NewUnit(filepath.Join(dir, "notify"), []string{bermd, "run", "--allow-root", "--config", config, "--state", dir},
		func(cmd *exec.Cmd) { cmd.Stdout, cmd.Stderr = &out, &out })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := u.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("bermd said:\n%s", out.String())
		}
	})
	return u
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Clients who ask while the daemon is started again, ended or killed, are answered: each connection is new, none is refused.
func TestRestartRefusesNobody(t *testing.T) {
	plain, secure := freePort(t), freePort(t)
	u := unit(t, plain, secure)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := u.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if kept := strings.Join(u.Kept(), " "); len(u.Kept()) != 3 || !strings.Contains(kept, "https-udp-127.0.0.1_") {
		t.Fatalf("kept %s", kept)
	}
	var asked atomic.Uint64
	var done atomic.Bool
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
			for !done.Load() {
				resp, err := c.Get("http://" + plain + "/")
				if err != nil {
					t.Errorf("after %d requests: %v", asked.Load(), err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				asked.Add(1)
			}
		})
	}
	more := func() {
		t.Helper()
		n := asked.Load()
		within(t, 20*time.Second, "requests to be answered", func() (bool, error) { return asked.Load() > n+20, nil })
	}
	for range 3 {
		more()
		if err := u.Stop(ctx, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := u.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	more()
	done.Store(true)
	wg.Wait()

	// Killed: what was accepted is cut, as nobody can help; who comes then waits.
	var exit *exec.ExitError
	if err := u.Stop(ctx, syscall.SIGKILL); !errors.As(err, &exit) {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", plain)
	if err != nil {
		t.Fatal("refused while it is down: ", err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := u.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(conn); err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 404")) {
		t.Errorf("%q %v", answer, err)
	}
	t.Logf("%d requests on as many connections over 3 restarts", asked.Load())
}
