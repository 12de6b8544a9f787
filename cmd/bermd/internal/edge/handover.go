package edge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/control"
)

// A handover goes in these words, a line each:
//
//	successor                             predecessor
//	ready: it has read the file,
//	opened what it can, serves nobody  →
//	                                   ←  go
//	serving: it accepts clients too    →  tells systemd whom to watch, ends what only one may
//	                                      do, and lets go of what only one may have
//	                                   ←  released: it ends what it began, and then itself
//
// Until "serving" the predecessor goes on as if nothing had been, whatever happens to the successor. Each
// takes the end of the other for its answer.
const (
	sayReady, sayGo, sayServing, sayReleased, sayFailed = "ready", "go", "serving", "released", "failed"

	startWithin = time.Minute      // to read the file and its databases
	serveWithin = 10 * time.Second // only sockets are left to do
)

// A Successor is another process of the daemon, started with copies of sockets.
type Successor interface {
	net.Conn
	PID() int
	Kill() error
}

// explain tells the process before why this one cannot take over.
func explain(to io.Writer, err error) {
	_ = say(to, sayFailed+" "+strconv.Quote(err.Error())) // else it sees the end
}

var errEnded = errors.New("it ended before it served (its last words are in the journal)")

func say(to io.Writer, word string) error {
	_, err := io.WriteString(to, word+"\n")
	return err
}

// hear waits for a word of the other process.
func hear(from *bufio.Reader, want string) error {
	line, err := from.ReadString('\n')
	word, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("it does not say %q in time", want)
	case err != nil:
		return errEnded
	case word == sayFailed:
		if text, err := strconv.Unquote(rest); err == nil {
			rest = text
		}
		return errors.New(rest)
	case word != want:
		return fmt.Errorf("it says %q, not %q: another version, which takes over in another way", word, want)
	}
	return nil
}

// Upgrade starts the program that is installed now beside this process, and hands over to it. On an error
// this process serves as before.
func (e *Edge) Upgrade(ctx context.Context) (control.Changes, error) {
	refuse := func(format string, args ...any) (control.Changes, error) {
		return control.Changes{}, &control.Error{Status: http.StatusConflict, Message: fmt.Sprintf(format, args...), Hint: "systemctl restart bermd ends connections of QUIC, and loses nobody else"}
	}
	if !e.upgrade.TryLock() {
		return refuse("another process is taking over already")
	}
	defer e.upgrade.Unlock()
	// A reload under way ends first, and none begins: the other process reads the file. It is locked for ever where
	// this process ends. Not reloading, which what release waits for takes.
	e.upgrading.Lock()
	defer e.upgrading.Unlock()
	select {
	case <-e.handed:
		return refuse("another process has taken over already")
	case <-e.stopping:
		return refuse("this process ends")
	default:
	}
	if !e.ready.Load() {
		return refuse("this process is starting")
	}
	if e.opts.Start == nil {
		return refuse("nobody would watch another process: this one was not started by systemd")
	}
	if err := e.kernel.use(func(*maps.Set) error { return e.generation.trouble() }); err != nil {
		return refuse("connections of QUIC would end: %v", err)
	}
	pid, err := e.handOver(context.WithoutCancel(ctx))
	if err != nil {
		e.log.Error("upgrade refused: this process serves as before", "error", err)
		return control.Changes{}, &control.Error{
			Message: fmt.Sprintf("the new process could not take over: %v", err), Hint: "this one serves as before",
		}
	}
	drain := e.cfg.Load().Listen.Drain
	return control.Changes{Changed: []string{
		fmt.Sprintf("process %d serves now, with an empty cache", pid),
		fmt.Sprintf("process %d ends what it began, within %s", os.Getpid(), drain),
	}}, nil
}

// handOver returns the successor's process id once it serves and this one has let go.
func (e *Edge) handOver(ctx context.Context) (pid int, err error) {
	files, err := e.server.Listeners()
	if err != nil {
		return 0, err
	}
	next, err := e.opts.Start(files)
	for _, f := range files {
		_ = f.Close() // only copies
	}
	if err != nil {
		return 0, err
	}
	defer next.Close() //nolint:errcheck // all was said
	over := make(chan struct{})
	defer close(over)
	go func() { // a stop does not wait for it
		select {
		case <-e.stopping:
			_ = next.SetDeadline(time.Now())
		case <-over:
		}
	}()
	if err := e.lead(next); err != nil {
		return 0, errors.Join(err, e.takeBack(next))
	}
	e.notify(fmt.Sprintf("MAINPID=%d", next.PID()))
	e.release()
	close(e.handed)
	if err := say(next, sayReleased); err != nil {
		e.log.Warn("the process that serves now ended at once: systemd starts another", "error", err)
	}
	return next.PID(), nil
}

// lead brings the successor to serve.
func (e *Edge) lead(next Successor) error {
	words := bufio.NewReader(next)
	for _, step := range []struct {
		hear   string
		within time.Duration
		answer string
	}{{sayReady, startWithin, sayGo}, {sayServing, serveWithin, ""}} {
		if err := next.SetReadDeadline(time.Now().Add(step.within)); err != nil {
			return err
		}
		if err := hear(words, step.hear); err != nil {
			return err
		}
		if step.answer != "" {
			if err := say(next, step.answer); err != nil {
				return errEnded
			}
		}
	}
	return nil
}

// takeBack undoes what a successor that failed has done.
func (e *Edge) takeBack(next Successor) error {
	errs := []error{next.Kill()}
	err := e.kernel.use(func(set *maps.Set) error {
		return errors.Join(e.generation.lead(), set.Generations.Sweep())
	})
	return errors.Join(append(errs, err)...)
}

// release ends what only one process may do, and lets go of what only one may have. Clients' sockets stay.
func (e *Edge) release() {
	e.ready.Store(false)
	e.stopWork()
	e.workers.Wait()
	e.admin.SetKeepAlivesEnabled(false)
	err := errors.Join(
		e.anycast.Close(), // routers find this edge again when the other process has their sessions
		e.probes.close(), e.relays.Close(), e.streams.Close(), e.scrape.apply(""),
		e.socket.Close(), // whoever asks is answered yet
	)
	if err != nil {
		e.log.Warn("let go for the process that serves now", "error", err)
	}
}

// takeOver becomes the process that serves.
func (e *Edge) takeOver(from io.ReadWriter) error {
	words := bufio.NewReader(from)
	if err := say(from, sayReady); err != nil {
		return fmt.Errorf("tell the process before: %w", err)
	}
	if err := hear(words, sayGo); err != nil {
		return fmt.Errorf("the process before: %w", err)
	}
	e.server.Serve()
	if err := e.generation.lead(); err != nil {
		return err
	}
	if err := say(from, sayServing); err != nil {
		return fmt.Errorf("tell the process before: %w", err)
	}
	if err := hear(words, sayReleased); err != nil {
		e.log.Warn("the process before ended in the middle", "error", err)
	}
	e.server.Hold()
	return nil
}
