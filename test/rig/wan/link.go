package wan

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Link is two devices of one node, and what is between them.
type Link struct {
	Name string    `json:"name"`
	Devs [2]string `json:"devs"`
	Both           // Up is from the first device to the second
}

// Both are the directions of a link.
type Both struct {
	Up   Profile `json:"up"`
	Down Profile `json:"down"`
}

// Same gives both directions one profile.
func Same(p Profile) Both { return Both{Up: p, Down: p} }

// Validate reports every mistake at once.
func (b Both) Validate() error {
	var errs []error
	if err := b.Up.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("up: %w", err))
	}
	if err := b.Down.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("down: %w", err))
	}
	return errors.Join(errs...)
}

const (
	// maxFrame is above what links of labs carry.
	maxFrame = 9216
	// batch bounds how long frames that are due wait for those that come.
	batch = 32
	// idle bounds how long the end of the process may wait for a link to notice.
	idle = 100 * time.Millisecond
)

// wire carries one link's frames in one goroutine: reading, waiting and sending need no lock but that of who asks for
// counters.
type wire struct {
	name string
	fds  [2]int
	pool [][]byte // frames to be filled; the loop's alone

	mu    sync.Mutex
	paths [2]*path // up, down: from fds[i] to the other
}

func newWire(l Link, seed, stream uint64) (_ *wire, err error) {
	w := &wire{name: l.Name, fds: [2]int{-1, -1}}
	w.paths = [2]*path{newPath(l.Up, seed, stream), newPath(l.Down, seed, stream+1)}
	for i, dev := range l.Devs {
		if w.fds[i], err = openDevice(dev); err != nil {
			return nil, errors.Join(fmt.Errorf("link %s: %w", l.Name, err), w.close())
		}
	}
	return w, nil
}

func (w *wire) close() error {
	var errs []error
	for _, fd := range w.fds {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// run carries frames until ctx ends.
func (w *wire) run(ctx context.Context) error {
	for ctx.Err() == nil {
		wait := idle
		w.mu.Lock()
		if due, ok := w.first(); ok {
			wait = min(wait, max(0, time.Duration(due-monotonic())))
		}
		w.mu.Unlock()
		if err := w.await(wait); err != nil {
			return fmt.Errorf("link %s: %w", w.name, err)
		}
		w.mu.Lock()
		err := errors.Join(w.receive(0), w.receive(1))
		w.send()
		w.mu.Unlock()
		if err != nil {
			return fmt.Errorf("link %s: %w", w.name, err)
		}
	}
	return nil
}

// first is when the next frame of either direction is due.
func (w *wire) first() (due int64, ok bool) {
	for _, p := range w.paths {
		if next, waits := p.next(); waits && (!ok || next < due) {
			due, ok = next, true
		}
	}
	return due, ok
}

func (w *wire) await(wait time.Duration) error {
	polled := []unix.PollFd{{Fd: int32(w.fds[0]), Events: unix.POLLIN}, {Fd: int32(w.fds[1]), Events: unix.POLLIN}}
	timeout := unix.NsecToTimespec(int64(wait))
	if _, err := unix.Ppoll(polled, &timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("poll: %w", err)
	}
	return nil
}

// receive takes what has come from one device.
func (w *wire) receive(from int) error {
	for range batch {
		buf := w.buffer()
		n, err := unix.Read(w.fds[from], buf)
		switch {
		case err == nil:
			if w.paths[from].take(monotonic(), buf[:n]) {
				continue
			}
			w.pool = append(w.pool, buf)
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN):
			w.pool = append(w.pool, buf) // a device that is down may come up again
		default:
			w.pool = append(w.pool, buf)
			if !errors.Is(err, unix.EAGAIN) {
				return fmt.Errorf("receive: %w", err)
			}
			return nil
		}
	}
	return nil
}

func (w *wire) buffer() []byte {
	if n := len(w.pool); n > 0 {
		b := w.pool[n-1]
		w.pool = w.pool[:n-1]
		return b
	}
	return make([]byte, maxFrame)
}

// send gives the devices what is due.
func (w *wire) send() {
	for i, p := range w.paths {
		for range batch {
			frame := p.give(monotonic())
			if frame == nil {
				break
			}
			if _, err := unix.Write(w.fds[1-i], frame); err != nil {
				p.n.Failed++ // the device is down, or its peer's ring is full
			} else {
				p.n.Sent++
				p.n.Bytes += uint64(len(frame))
			}
			w.pool = append(w.pool, frame[:maxFrame])
		}
	}
}

// set changes what happens to frames that come from now on; those on their way keep their times.
func (w *wire) set(b Both) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.paths[0].profile, w.paths[1].profile = b.Up, b.Down
}

// state is what a link is now, and what it has done.
func (w *wire) state() State {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, p := range w.paths {
		p.n.Missed += missed(w.fds[i])
	}
	return State{
		Both: Both{Up: w.paths[0].profile, Down: w.paths[1].profile},
		Sum:  Sum{Up: w.paths[0].counters(), Down: w.paths[1].counters()},
	}
}
