package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/bermedge/berm/test/rig"
)

// actorArg as first argument makes the program an actor: a process of the lab that must live in
// a node of its own and may outlive the program that started it.
const actorArg = "lab-actor"

// MaybeActor turns the calling program into an actor if it was started as one, and then never
// returns. Programs that bring topologies up call it first in main or TestMain.
func MaybeActor() {
	if len(os.Args) < 3 || os.Args[1] != actorArg {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run, ok := map[string]func(context.Context, []string) error{
		"origin": actOrigin,
		"sink":   actSink,
		"echo":   actEcho,
		"rtc":    actRTC,
		"nat":    actNAT,
		"unwrap": actUnwrap,
		"unit":   actUnit,
		"wire":   actWire,
	}[os.Args[2]]
	if !ok {
		fmt.Fprintf(os.Stderr, "no actor %q\n", os.Args[2])
		os.Exit(2)
	}
	if err := run(ctx, os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// startActor starts this program again as an actor in a node.
func startActor(n *rig.Node, name string, args ...string) (*rig.Proc, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return n.Start(rig.Daemon{Name: name, Args: append([]string{self, actorArg, name}, args...)})
}

// serveCounts answers every request on a Unix socket with what counts returns, as JSON.
// Such sockets are files, so they are reached from outside of the actor's node.
func serveCounts(ctx context.Context, path string, counts func() any) error {
	return serveActor(ctx, path, func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(counts()); err != nil {
			fmt.Fprintln(os.Stderr, "answer:", err)
		}
	})
}

// serveActor answers requests on a Unix socket until ctx ends.
func serveActor(ctx context.Context, path string, handle http.HandlerFunc) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: handle}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // ends Serve, which says why
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// readCounts asks an actor.
func readCounts(ctx context.Context, path string, into any) error {
	return askActor(ctx, http.MethodGet, path, into)
}

func askActor(ctx context.Context, method, path string, into any) error {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://actor/", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(resp.Body)
		return errors.Join(fmt.Errorf("actor: %s: %s", resp.Status, text), err)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}
