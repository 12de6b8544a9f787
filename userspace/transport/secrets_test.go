package transport_test

import (
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/bermedge/berm/maps/mapstest"
	"github.com/bermedge/berm/userspace/transport"
)

// h2Heads asks a server n times for a path over one connection, and returns the heads of the answers as they were encoded.
func h2Heads(t *testing.T, address, path string, n uint32) (heads [][]hpack.HeaderField) {
	t.Helper()
	conn := dialH2(t, address)
	f := http2.NewFramer(conn, conn)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var block strings.Builder
	enc := hpack.NewEncoder(&block)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		block.Reset()
		for _, h := range []hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "localhost"}, {Name: ":path", Value: path}} {
			if err := enc.WriteField(h); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: []byte(block.String()), EndStream: true, EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
		for done := false; !done; {
			frame, err := f.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			switch frame := frame.(type) {
			case *http2.MetaHeadersFrame:
				heads = append(heads, frame.Fields)
				done = frame.StreamEnded()
			case *http2.DataFrame:
				done = frame.StreamEnded()
			}
		}
	}
	return heads
}

// What is secret is sent as never to be indexed, the first time and when it is repeated, and all else is as it was. Clients of
// others take it.
func TestNeverIndexed(t *testing.T) {
	secrets := map[string]string{"set-cookie": "session=0123456789abcdef; Secure", "authorization": "Bearer 0123456789", "proxy-authenticate": "Basic realm=proxy", "authentication-info": "nextnonce=42"}
	s := mustListen(t, testConfig(), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for name, value := range secrets {
			w.Header().Set(name, value)
		}
		w.Header().Add("Set-Cookie", "second=fedcba9876543210")
		w.Header().Set("Etag", `"5f3c"`)
	}))
	address := where(t, s, "h2", true)
	for i, head := range h2Heads(t, address, "/", 3) {
		seen := map[string]int{}
		for _, f := range head {
			want, is := secrets[f.Name]
			if seen[f.Name]++; is && seen[f.Name] == 1 && f.Value != want {
				t.Errorf("answer %d: %s is %q, want %q", i, f.Name, f.Value, want)
			}
			if f.Sensitive != (is && transport.NeverIndexes) {
				t.Errorf("answer %d: %s: never to be indexed: %v", i, f.Name, f.Sensitive)
			}
		}
		if seen["set-cookie"] != 2 || seen["etag"] != 1 || len(seen) < len(secrets)+2 {
			t.Errorf("answer %d has %v", i, seen)
		}
	}
	for _, command := range [][]string{{"curl", "-sSki", "--http2"}, {"nghttp", "-nv"}} {
		_, err := exec.LookPath(command[0])
		mapstest.Require(t, err)
		command = append(command, "https://"+address+"/", "https://"+address+"/again")
		out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
		if n := strings.Count(string(out), secrets["set-cookie"]); err != nil || n != 2 {
			t.Errorf("%v: %v, cookies: %d\n%s", command, err, n, out)
		}
	}
}
