package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestCommandLine(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Status", "edge1; hit")
	}))
	defer srv.Close()
	for _, c := range []struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		{[]string{"--help"}, 0, "Load and protocol client", ""},
		{[]string{"load", "--help"}, 0, "bermprobe load https://192.0.2.10/", ""},
		{[]string{"load", srv.URL, "-n", "3"}, 0, "3 answered, 0 failed", ""},
		{[]string{"load", srv.URL, "-n", "3", "--json"}, 0, `"hits":3,"hit_ratio":1,`, ""},
		{[]string{"load", "ftp://x"}, 2, "", "want http://host/"},
		{[]string{"load", "ftp://x", "--json"}, 2, "", `"code":2`},
		{[]string{"watch", "--help"}, 0, "bermprobe watch https://192.0.2.10/live/stage", ""},
		{[]string{"watch", "http://x", "-d", "0s"}, 2, "", "want https://host/…"},
		{[]string{"watch", "https://127.0.0.1:1/live", "--timeout", "50ms"}, 1, "", "subscribe to https://127.0.0.1:1/live"},
		{[]string{"nonsense"}, 2, "", "unexpected argument nonsense"},
		{[]string{"packets", "--dst", "192.0.2.1:9"}, 2, "", "--src and --dst: both are needed"},
		{[]string{"packets", "--src", "x", "--dst", "192.0.2.1:9"}, 2, "", "want 198.51.100.7 or 198.51.100.0/24"},
		{[]string{"packets", "--src", "192.0.2.1", "--dst", "192.0.2.1:9"}, 2, "", "say when to stop"},
		{[]string{"packets", "--src", "192.0.2.1", "--dst", "9.9.9.9:9", "-n", "1"}, 2, "", "packets are for labs"},
	} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), c.args, &stdout, &stderr)
		if code != c.code || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
			t.Errorf("bermprobe %q: exit %d, want %d\nstdout: %swant %q\nstderr: %swant %q", c.args, code, c.code, &stdout, c.stdout, &stderr, c.stderr)
		}
		if c.code == 0 && stderr.Len() > 0 || c.code != 0 && stdout.Len() > 0 {
			t.Errorf("bermprobe %q: prints on the wrong side: stdout %q, stderr %q", c.args, &stdout, &stderr)
		}
	}
}

// The lab reads these names.
func TestStableNames(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	var stdout bytes.Buffer
	if code := run(t.Context(), []string{"load", srv.URL, "-n", "2", "--json"}, &stdout, &stdout); code != 0 {
		t.Fatal(&stdout)
	}
	var got map[string]any
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"requests", "ok", "errors", "unsent", "rps", "bytes", "latency_ms", "service_ms", "status", "cache", "hits", "hit_ratio", "protos", "failures"} {
		if _, ok := got[name]; !ok {
			t.Errorf("no %q in %s", name, &stdout)
		}
	}
	if s, _ := got["status"].(map[string]any); s["404"] != 2.0 {
		t.Errorf("status %v, want 404 twice", s)
	}
}
