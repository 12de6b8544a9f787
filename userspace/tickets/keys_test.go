package tickets_test

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/userspace/certs"
	"github.com/bermedge/berm/userspace/clock"
	"github.com/bermedge/berm/userspace/tickets"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var start = time.Date(2026, 3, 1, 12, 10, 0, 0, time.UTC)

func in(dir string) tickets.Config {
	c := tickets.Default()
	c.Dir = dir
	return c
}

func mustOpen(t *testing.T, cfg tickets.Config, c clock.Clock) *tickets.Keys {
	t.Helper()
	k, err := tickets.Open(cfg, "", c)
	must(t, err)
	return k
}

// node serves TLS with keys, and returns its address.
func node(t *testing.T, k *tickets.Keys) string {
	t.Helper()
	store, err := certs.Open(certs.Default(), "", []string{"localhost"})
	must(t, err)
	l, err := tls.Listen("tcp", "127.0.0.1:0", k.TLS(store.TLS()))
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, "x") // TLS 1.3's ticket comes before it
				_, _ = io.Copy(io.Discard, c)
			}()
		}
	}()
	return l.Addr().String()
}

// resumes connects with what client remembers, and reports whether a session was resumed.
func resumes(t *testing.T, address string, client *tls.Config) bool {
	t.Helper()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", address, client)
	must(t, err)
	defer c.Close()
	_, err = c.Read(make([]byte, 1))
	must(t, err)
	return c.ConnectionState().DidResume
}

func newClient(version uint16) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
}

// pass lets time go by and waits until the keys have followed.
func pass(t *testing.T, c *clock.Fake, d time.Duration, all ...*tickets.Keys) {
	t.Helper()
	c.Advance(d)
	for _, k := range all {
		k.Load()
	}
}

func TestTicketsAreGoodOnEveryEdgeAndUntilTheirKeyRetires(t *testing.T) {
	for version, name := range map[uint16]string{tls.VersionTLS12: "1.2", tls.VersionTLS13: "1.3"} {
		t.Run(name, func(t *testing.T) {
			now := clock.NewFake(start)
			dir := t.TempDir()
			a, b := mustOpen(t, in(dir), now), mustOpen(t, in(dir), now)
			first, second := node(t, a), node(t, b)
			client := newClient(version)
			if resumes(t, first, client) {
				t.Error("resumed what never was")
			}
			if !resumes(t, second, client) {
				t.Error("the second edge does not resume the first one's session")
			}
			// A key makes tickets for an hour, and two hours more they are accepted.
			fresh := func() *tls.Config { // a client with a ticket of this hour
				c := newClient(version)
				resumes(t, first, c)
				return c
			}
			early, late := fresh(), fresh()
			pass(t, now, 2*time.Hour+49*time.Minute, a, b) // 14:59
			if !resumes(t, second, early) {
				t.Error("the key is retired before its time")
			}
			pass(t, now, time.Minute, a, b) // 15:00
			if resumes(t, second, late) {
				t.Error("a ticket of a retired key was accepted")
			}
			if !resumes(t, first, late) { // it was served nevertheless, and got a new one
				t.Error("no new ticket in place of the retired one")
			}
			files, err := os.ReadDir(dir)
			must(t, err)
			for _, f := range files {
				fi, err := f.Info()
				must(t, err)
				if fi.Mode().Perm() != 0o600 {
					t.Errorf("%s has mode %v", f.Name(), fi.Mode())
				}
			}
			if h := a.Stats().Handshakes(); len(h) < 2 || h[0].Transport != "tcp" {
				t.Errorf("%+v", h)
			}
		})
	}
}

func TestKeysOutliveTheProcess(t *testing.T) {
	now := clock.NewFake(start)
	state := t.TempDir()
	open := func() *tickets.Keys {
		k, err := tickets.Open(tickets.Default(), state, now)
		must(t, err)
		return k
	}
	client := newClient(0)
	resumes(t, node(t, open()), client)
	if !resumes(t, node(t, open()), client) {
		t.Error("a restart forgets sessions")
	}
}

// Removing the files revokes the keys.
func TestRevocation(t *testing.T) {
	dir := t.TempDir()
	k := mustOpen(t, in(dir), clock.NewFake(start))
	client, address := newClient(0), node(t, k)
	resumes(t, address, client)
	before := names(t, dir)
	for _, name := range before {
		must(t, os.Remove(filepath.Join(dir, name)))
	}
	k.Load()
	if resumes(t, address, client) {
		t.Error("a ticket of a revoked key was accepted")
	}
	if after := names(t, dir); !slices.Equal(before, after) || !resumes(t, address, client) {
		t.Error("no new key in its place", after)
	}
}

func names(t *testing.T, dir string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// The next key is there half an hour before it is used, and retired ones go.
func TestRotation(t *testing.T) {
	now := clock.NewFake(start)
	dir := t.TempDir()
	k := mustOpen(t, in(dir), now)
	at := func(hours ...int) (want []string) {
		for _, h := range hours {
			want = append(want, fmt.Sprintf("ticket-20260301T%02d0000Z.key", h))
		}
		return want
	}
	for _, step := range []struct {
		pass time.Duration
		want []string
	}{
		{0, at(12)},
		{19 * time.Minute, at(12)},
		{time.Minute, at(12, 13)},
		{time.Hour, at(12, 13, 14)},
		{time.Hour, at(12, 13, 14, 15)},
		{30 * time.Minute, at(13, 14, 15)},
		{24 * time.Hour, []string{"ticket-20260302T150000Z.key"}},
	} {
		pass(t, now, step.pass, k)
		if got := names(t, dir); !slices.Equal(got, step.want) {
			t.Errorf("%s later: %v, want %v", step.pass, got, step.want)
		}
	}
	if p := k.Problems(); len(p) != 0 {
		t.Error(p)
	}
}

// An edge whose keys are copied from another makes none.
func TestFollower(t *testing.T) {
	now := clock.NewFake(start)
	dir, copied := t.TempDir(), t.TempDir()
	leader := mustOpen(t, in(dir), now)
	cfg := in(copied)
	cfg.Create = false
	follower := mustOpen(t, cfg, now)
	if p := follower.Problems(); len(p) != 1 || !strings.Contains(p[0], "no key has come to "+copied) {
		t.Error(p)
	}
	sync := func() {
		for _, name := range names(t, dir) {
			b, err := os.ReadFile(filepath.Join(dir, name))
			must(t, err)
			must(t, os.WriteFile(filepath.Join(copied, name), b, 0o600))
		}
		follower.Load()
	}
	sync()
	client := newClient(0)
	resumes(t, node(t, leader), client)
	address := node(t, follower)
	if !resumes(t, address, client) {
		t.Error("the follower does not resume")
	}
	pass(t, now, time.Hour, leader, follower) // the copy is late: the key before serves on
	if !resumes(t, address, client) || len(names(t, copied)) != 1 {
		t.Error("a follower whose keys are late", names(t, copied))
	}
	sync()
	resumes(t, address, client)
	if !resumes(t, node(t, leader), client) || len(follower.Problems()) != 0 {
		t.Error("the follower did not take the new key", follower.Problems())
	}
}

func TestBadKeyFiles(t *testing.T) {
	now := clock.NewFake(start)
	dir := t.TempDir()
	secret := hex.EncodeToString(make([]byte, 32))
	write := func(name, text string, mode os.FileMode) {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
		must(t, os.Chmod(filepath.Join(dir, name), mode))
	}
	write("ticket-noon.key", secret, 0o600)
	write("ticket-20260301T110000Z.key", secret+"\n", 0o604)
	write("ticket-20260301T100000Z.key", secret[1:]+"x", 0o600)
	write("ticket-20260301T120000Z.key", "short", 0o600) // where the current one should be
	write("README", "not of interest", 0o644)
	k := mustOpen(t, in(dir), now)
	text := strings.Join(k.Problems(), "\n")
	for _, want := range []string{
		"ticket-noon.key is not named after a time", "ticket-20260301T110000Z.key is open to everybody", "ticket-20260301T100000Z.key does not hold 64 hex digits",
		"ticket-20260301T120000Z.key does not hold 64 hex digits; keys are kept in memory",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("nothing says %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, secret[:8]) {
		t.Error("a problem quotes a key")
	}
	client := newClient(0)
	address := node(t, k)
	resumes(t, address, client)
	must(t, os.RemoveAll(dir))
	k.Load()
	if p := k.Problems(); len(p) != 1 || !strings.Contains(p[0], dir+" does not exist; keys are kept in memory") {
		t.Error(p)
	}
	if !resumes(t, address, client) {
		t.Error("a directory that went took its keys along")
	}
}

func TestWatchReportsOnce(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "ticket-noon.key"), nil, 0o600))
	k := mustOpen(t, in(dir), clock.System{})
	reports := make(chan error, 100)
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { defer close(done); k.Watch(ctx, time.Millisecond, func(err error) { reports <- err }) }()
	wait := func(want string) {
		t.Helper()
		select {
		case err := <-reports:
			if !strings.Contains(err.Error(), want) {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("nothing is reported")
		}
	}
	wait("ticket-noon.key")
	must(t, os.WriteFile(filepath.Join(dir, "ticket-later.key"), nil, 0o600))
	wait("ticket-later.key")
	cancel()
	<-done
	if n := len(reports); n != 0 {
		t.Errorf("%d more reports", n)
	}
}

func TestValidate(t *testing.T) {
	for want, c := range map[string]tickets.Config{
		`dir: "here" is not an absolute path`:    {Dir: "here", Rotate: time.Hour, Create: true},
		"rotate: 1s is not between 1m and 48h":   {Rotate: time.Second, Create: true},
		"rotate: 72h0m0s is not":                 {Rotate: 72 * time.Hour, Create: true},
		"create: false needs dir, where another": {Rotate: time.Hour},
	} {
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
		if _, err := tickets.Open(c, "", clock.System{}); err == nil {
			t.Errorf("Open took what is %q", want)
		}
	}
	must(t, tickets.Default().Validate())
}
