package wan

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
)

// Plan is what the process is to do.
type Plan struct {
	Links []Link `json:"links"`
	Seed  uint64 `json:"seed"` // of what is random
}

// Validate reports every mistake at once.
func (p Plan) Validate() error {
	var errs []error
	seen := map[string]bool{}
	for _, l := range p.Links {
		if l.Name == "" || seen[l.Name] {
			errs = append(errs, fmt.Errorf("link %q: has no name, or that of another", l.Name))
		}
		seen[l.Name] = true
		if err := l.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("link %s: %w", l.Name, err))
		}
	}
	return errors.Join(errs...)
}

// State is what a link is, and what became of its frames.
type State struct {
	Both
	Sum `json:"counters"`
}

// Sum counts both directions.
type Sum struct {
	Up   Counters `json:"up"`
	Down Counters `json:"down"`
}

// Serve carries the frames of a plan's links, whose devices are of this process's network namespace, until ctx ends.
// At a Unix socket it answers GET / with the State of each link by name, and takes Both at PUT /name.
func Serve(ctx context.Context, plan Plan, socket string) (err error) {
	if err := plan.Validate(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// What wakes needs a P at once, whatever the others do.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(len(plan.Links) + max(2, runtime.NumCPU())))
	wires := map[string]*wire{}
	defer func() {
		for _, w := range wires {
			err = errors.Join(err, w.close())
		}
	}()
	for i, l := range plan.Links {
		if wires[l.Name], err = newWire(l, plan.Seed, uint64(2*i)); err != nil {
			delete(wires, l.Name)
			return err
		}
	}
	var wg sync.WaitGroup
	for _, w := range wires {
		wg.Go(func() {
			if err := w.run(ctx); err != nil {
				cancel(err)
			}
		})
	}
	defer wg.Wait()
	defer cancel(nil)
	if err := answer(ctx, socket, wires); err != nil {
		return err
	}
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// answer tells and changes what the links do.
func answer(ctx context.Context, socket string, wires map[string]*wire) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		all := map[string]State{}
		for name, l := range wires {
			all[name] = l.state()
		}
		_ = json.NewEncoder(w).Encode(all) // who asked is gone
	})
	mux.HandleFunc("PUT /{name}", func(w http.ResponseWriter, r *http.Request) {
		l := wires[r.PathValue("name")]
		if l == nil {
			http.Error(w, fmt.Sprintf("no link %q", r.PathValue("name")), http.StatusNotFound)
			return
		}
		var b Both
		dec := json.NewDecoder(r.Body)
		dec.DisallowUnknownFields()
		if err := errors.Join(dec.Decode(&b), b.Validate()); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		l.set(b)
	})
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: mux}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // ends Serve, which says why
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
