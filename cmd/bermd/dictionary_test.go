package main_test

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bermedge/berm/test/rig/rigtest"
)

// versions is an origin of a page that loads one version of a script and then, until it comes encoded with the
// dictionary that the first one is, the next. The browser writes dictionaries down in its own time.
func versions(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "public, max-age=3600")
	if r.URL.Path == "/" {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, page) // a browser that left shows in the test
		return
	}
	var number int
	if _, err := fmt.Sscanf(r.URL.Path, "/js/app.%d.js", &number); err != nil {
		http.NotFound(w, r)
		return
	}
	body := version(number)
	w.Header().Set("Content-Type", "text/javascript")
	w.Header().Set("Use-As-Dictionary", `match="/js/*"`)
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	_, _ = io.WriteString(w, body)
}

func version(number int) string {
	var b strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&b, "function f%d(a) { return a * %d }\n", i, i*2654435761%1000003)
	}
	fmt.Fprintf(&b, "self.version = %d\n", number)
	return b.String()
}

const page = `<!doctype html><title>waiting</title><script src="/js/app.1.js"></script><script>
(async () => {
  for (let n = 2; n < 200; n++) {
    const text = await (await fetch("/js/app." + n + ".js")).text();
    (0, eval)(text);
    const [entry] = performance.getEntriesByName(new URL("/js/app." + n + ".js", location.href).href);
    if (entry.encodedBodySize * 20 < entry.decodedBodySize) {
      document.body.append("delta " + (self.version === n) + " of " + entry.decodedBodySize + " in " + entry.encodedBodySize);
      document.title = "done";
      return;
    }
    await new Promise(done => setTimeout(done, 50));
  }
  document.title = "never";
})();
</script><body></body>`

// keyHash names the key of a server as browsers are told to trust it. A certificate with an error that is overlooked will not
// do: then they use no dictionaries.
func keyHash(t *testing.T, address string) string {
	t.Helper()
	c, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, ServerName: "localhost"}}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sum := sha256.Sum256(c.(*tls.Conn).ConnectionState().PeerCertificates[0].RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}

func TestDictionaryInABrowser(t *testing.T) {
	rigtest.Require(t, need("chromium"))
	origin := httptest.NewServer(http.HandlerFunc(versions))
	t.Cleanup(origin.Close)
	p := mustStart(t, onLoopback, "compression: {dictionaries: {memory: 64MiB}}",
		fmt.Sprintf("origins: {www: {urls: [%q]}}\nroutes: [{host: \"*\", path: /, origin: www}]", origin.URL))
	_, port, _ := strings.Cut(strings.TrimPrefix(p.url(t, "h2"), "https://"), ":")
	out, err := exec.CommandContext(t.Context(), "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--user-data-dir="+filepath.Join(t.TempDir(), "profile"), "--ignore-certificate-errors-spki-list="+keyHash(t, "localhost:"+port),
		"--virtual-time-budget=20000", "--dump-dom", "https://localhost:"+port+"/").Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), "delta true of ") {
		t.Errorf("no version came as a delta that makes it:\n%.4000s", out)
	}
	t.Logf("%s", out[max(0, len(out)-200):])
}
