package transport_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/bermedge/berm/userspace/transport"
)

// keeper is systemd as far as sockets go: it keeps copies.
type keeper struct {
	t    *testing.T
	mu   sync.Mutex
	kept map[string]*os.File
}

func (k *keeper) Keep(name string, f *os.File) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	copied, err := dup(name, f)
	if old := k.kept[name]; old != nil {
		err = errors.Join(err, old.Close())
	}
	k.kept[name] = copied
	return err
}

func dup(name string, f *os.File) (copied *os.File, err error) {
	raw, err := f.SyscallConn() // not Fd, which makes the socket block
	if err != nil {
		return nil, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		var n int
		if n, failed = syscall.Dup(int(fd)); failed == nil {
			copied = os.NewFile(uintptr(n), name)
		}
	})
	return copied, errors.Join(err, failed)
}

func (k *keeper) Forget(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.kept[name]
	if f == nil {
		k.t.Errorf("never kept %s", name)
		return nil
	}
	delete(k.kept, name)
	return f.Close()
}

// held are copies for the next process.
func (k *keeper) held() (files []*os.File) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, f := range k.kept {
		copied, err := dup(name, f)
		if err != nil {
			k.t.Fatal(err)
		}
		files = append(files, copied)
	}
	return files
}

// Clients who come between two servers wait in the sockets that outlive the first, and are answered by the second.
func TestHeldSockets(t *testing.T) {
	k := &keeper{t: t, kept: map[string]*os.File{}}
	opts := options(t, http.HandlerFunc(echo))
	opts.Keeper = k
	first, err := transport.Listen(testConfig(), opts)
	if err != nil {
		t.Fatal(err)
	}
	urls := map[string]string{"h1": "http://" + where(t, first, "h1", false), "h2": "https://" + where(t, first, "h2", true), "h3": "https://" + where(t, first, "h3", true)}
	if err := first.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	answers := make(chan error, len(urls))
	for proto, url := range urls {
		c := client(t, proto)
		go func() {
			resp, err := c.Get(url)
			if err == nil {
				err = resp.Body.Close()
			}
			if err != nil {
				err = fmt.Errorf("%s: %w", proto, err)
			}
			answers <- err
		}()
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(urls["h1"], "http://"))
	if err != nil {
		t.Fatal("refused between two servers: ", err)
	}
	conn.Close()
	opts.Held = k.held()
	second, err := transport.Listen(testConfig(), opts)
	if err != nil {
		t.Fatal(err)
	}
	for range urls {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	for proto, url := range urls {
		if at := where(t, second, proto, proto != "h1"); !strings.HasSuffix(url, "//"+at) {
			t.Errorf("%s moved from %s to %s", proto, url, at)
		}
	}

	// The third serves one of the addresses; whoever comes to the others must not wait for nobody.
	if err := second.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	opts.Held = k.held()
	cfg := testConfig()
	cfg.HTTPS = nil
	third, err := transport.Listen(cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Drain(t.Context())
	if len(k.kept) != 1 {
		t.Errorf("kept %v", k.kept)
	}
	if conn, err := net.Dial("tcp", strings.TrimPrefix(urls["h2"], "https://")); err == nil {
		conn.Close()
		t.Error("an address that is no longer served takes connections")
	}
}

// A standing connection that is busy ends with a response that says so, and not under a request.
func TestLastCall(t *testing.T) {
	s := mustListen(t, testConfig(), http.HandlerFunc(echo))
	conn, err := net.Dial("tcp", where(t, s, "h1", false))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	ask := func() (*http.Response, error) {
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return nil, err
		}
		resp, err := http.ReadResponse(in, nil)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
		}
		return resp, err
	}
	if resp, err := ask(); err != nil || resp.Close {
		t.Fatal(resp, err)
	}
	drained := make(chan error, 1)
	go func() { drained <- s.Drain(context.Background()) }()
	for said := false; !said; {
		resp, err := ask()
		if err != nil {
			t.Fatal("closed without a word: ", err)
		}
		said = resp.Close
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
}
