package scenario

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
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
	Other   uint64 `json:"other"`   // probes
}

// actOrigin serves cacheable objects below /o/ and, of any size, below /big/ at the first argument, counts at
// the second.
func actOrigin(ctx context.Context, args []string) error {
	var objects, other atomic.Uint64
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		other.Add(1)
		w.Header().Set("Cache-Control", "no-store")
		fmt.Fprintln(w, "lab origin")
	})
	mux.HandleFunc("/o/", func(w http.ResponseWriter, r *http.Request) {
		objects.Add(1)
		h := w.Header()
		h.Set("Cache-Control", "public, max-age=3600")
		h.Set("Content-Type", "text/plain")
		h.Set("ETag", strconv.Quote(r.URL.Path))
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(objectBody(r.URL.Path)))
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
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	err = serveCounts(ctx, args[1], func() any { return originCounts{objects.Load(), other.Load()} })
	return errors.Join(err, srv.Close(), ignoreClosed(<-failed))
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
