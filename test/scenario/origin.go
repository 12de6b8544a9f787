package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// objectBody is what the origin answers for a path; anyone can check it without asking.
func objectBody(path string) string {
	n := 0
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		n, _ = strconv.Atoi(path[i+1:]) // not a number: the smallest size
	}
	line := path + "\n"
	return strings.Repeat(line, 1+(200+n*97%16000)/len(line)) // 200 bytes to 16 kB
}

// maxBig bounds the objects below /big/, whose name is their size.
const maxBig = 16 << 20

// originCounts is what the origin has been asked for.
type originCounts struct {
	Objects uint64 `json:"objects"` // below /o/
	Paced   uint64 `json:"paced"`   // below /paced/
	Other   uint64 `json:"other"`   // probes
	// Early are requests below /early/: method, target and what Early-Data says.
	Early map[string]uint64 `json:"early"`
}

// actOrigin serves cacheable objects below /o/ and, of any size, below /big/ at the first argument, counts at
// the second. A third is its name, which it gives as a cache's, so that clients see who answers.
func actOrigin(ctx context.Context, args []string) error {
	var objects, paced, other atomic.Uint64
	var ill atomic.Bool
	var mu sync.Mutex
	early := map[string]uint64{}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		other.Add(1)
		w.Header().Set("Cache-Control", "no-store")
		fmt.Fprintln(w, "lab origin")
	})
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
		other.Add(1)
		if ill.Load() {
			http.Error(w, "ill", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("/o/", func(w http.ResponseWriter, r *http.Request) {
		objects.Add(1)
		h := w.Header()
		h.Set("Cache-Control", "public, max-age=3600")
		h.Set("Content-Type", "text/plain")
		h.Set("ETag", strconv.Quote(r.URL.Path))
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(objectBody(r.URL.Path)))
	})
	mux.HandleFunc("/early/", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		early[fmt.Sprintf("%s %s early=%s", r.Method, r.URL, r.Header.Get("Early-Data"))]++
		mu.Unlock()
		w.Header().Set("Cache-Control", "no-store")
		fmt.Fprintln(w, "lab origin")
	})
	mux.HandleFunc("/paced/", func(w http.ResponseWriter, r *http.Request) {
		paced.Add(1)
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Length", strconv.Itoa(pacedSize))
		servePaced(r.Context(), w)
	})
	mux.HandleFunc("/big/", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/big/"))
		if err != nil || n < 0 || n > maxBig {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Cache-Control", "public, max-age=3600")
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(strings.Repeat(".", n)))
	})
	ln, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: mux}
	if len(args) > 2 {
		srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Status", args[2])
			mux.ServeHTTP(w, r)
		})
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	err = serveActor(ctx, args[1], func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost { // ill, or well again
			ill.Store(!ill.Load())
		}
		mu.Lock()
		defer mu.Unlock()
		_ = json.NewEncoder(w).Encode(originCounts{objects.Load(), paced.Load(), other.Load(), early}) // who asked is gone
	})
	return errors.Join(err, srv.Close(), ignoreClosed(<-failed))
}

// What is below /paced/ comes as a live stream does: so many bytes over so long.
const (
	pacedSize = 2 << 20
	pacedStep = 20 * time.Millisecond
	pacedTime = 4 * time.Second
)

func pacedBody() []byte {
	line := []byte("what comes slowly is cut by what changes meanwhile\n")
	return bytes.Repeat(line, pacedSize/len(line)+1)[:pacedSize]
}

func servePaced(ctx context.Context, w http.ResponseWriter) {
	body := pacedBody()
	each := len(body) / int(pacedTime/pacedStep)
	tick := time.NewTicker(pacedStep)
	defer tick.Stop()
	for len(body) > 0 {
		n := min(each, len(body))
		if _, err := w.Write(body[:n]); err != nil {
			return // the client's trouble
		}
		body = body[n:]
		_ = http.NewResponseController(w).Flush() // the next Write would say why not
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
