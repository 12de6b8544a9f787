package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

const handoverRounds = 3 // on each edge, quickly: with the process that served at first, as many as a host has slots

// checkHandovers has both daemons hand over to another process again and again. Connections that stand end in order, QUIC
// ones too; what was asked for is answered by the process that was asked.
func (u *Upgrade) checkHandovers(ctx context.Context, r *Recorder) error {
	before, err := u.originPaced(ctx)
	if err != nil {
		return err
	}
	beside := 0 // at most
	l, err := u.underLoad(ctx, quicMoves, handoverRounds, func(ctx context.Context, e *Edge) error {
		if err := u.awaitDownload(ctx, before); err != nil {
			return err
		}
		n, err := e.handOver(ctx)
		beside = max(beside, n)
		return err
	})
	if err != nil {
		return err
	}
	after, err := u.originPaced(ctx)
	if err != nil {
		return err
	}
	r.AtLeast("handovers: processes that served one edge at once", 2, float64(beside), "processes")
	r.Equal("handovers: downloads over QUIC begun again", 0, after-before-l.h3Whole.requests, "requests to the origin beside the first")
	l.check(r, "daemons handed over")
	if err := u.awaitAlone(ctx); err != nil {
		return err
	}
	return u.awaitService(ctx)
}

// awaitDownload waits until the origin has been asked for something that takes long.
func (u *Upgrade) awaitDownload(ctx context.Context, before uint64) error {
	return rig.Until(ctx, 20*time.Second, "downloads over QUIC are under way", func() (bool, error) {
		n, err := u.originPaced(ctx)
		return n >= before+quicDownloads, err
	})
}

// handOver has a daemon hand over, and returns how many processes have connections then.
func (e *Edge) handOver(ctx context.Context) (int, error) {
	var status control.Status
	err := rig.Until(ctx, 20*time.Second, "there is room for another process", func() (bool, error) {
		return e.ask(ctx, &status, "status") == nil && len(status.Generations) < maps.GenerationSlots, nil
	})
	if err != nil {
		return 0, err
	}
	was := status.PID
	if out, err := e.berm(ctx, "upgrade"); err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	var is unitState
	err = rig.Until(ctx, 20*time.Second, "systemd watches the new process", func() (bool, error) {
		err := askActor(ctx, http.MethodGet, e.m.lab.Path(e.Name+".unit"), &is)
		return is.PID != was, err
	})
	if err != nil {
		return 0, err
	}
	err = rig.Until(ctx, 20*time.Second, "the new process is ready", func() (bool, error) {
		return e.ask(ctx, &status, "status") == nil && status.Ready && status.PID == is.PID, nil
	})
	return len(status.Generations), err
}

// awaitAlone waits until the processes that served before have ended by themselves.
func (u *Upgrade) awaitAlone(ctx context.Context) error {
	for _, e := range u.edges {
		err := rig.Until(ctx, 20*time.Second, e.Name+" has one process", func() (bool, error) {
			var s unitState
			if err := askActor(ctx, http.MethodGet, u.lab.Path(e.Name+".unit"), &s); err != nil {
				return false, err
			}
			var status control.Status
			err := e.ask(ctx, &status, "status")
			return s.Others == 0 && len(status.Generations) == 1, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

const quicDownloads = 2 // at once

// quicDownloadRound has ngtcp2's client download what takes seconds, each over a connection of its own.
func (u *Upgrade) quicDownloadRound(ctx context.Context, sum *loadSum) error {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range quicDownloads {
		name := fmt.Sprintf("%d-%d", sum.requests, i)
		wg.Go(func() {
			said, err := u.quicDownload(ctx, []string{vip4, vip6}[i%2], name)
			mu.Lock()
			defer mu.Unlock()
			sum.requests++
			if err == nil {
				return
			}
			sum.lose(fmt.Sprintf("%v: %.300s", err, said), 1)
		})
	}
	wg.Wait()
	return ctx.Err()
}

func (u *Upgrade) quicDownload(ctx context.Context, vip, name string) (said string, err error) {
	dir := u.lab.Path("handover-" + name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	limited, cancel := context.WithTimeout(ctx, downloadTime)
	defer cancel()
	said, err = u.good.Run(limited, "gtlsclient", "--exit-on-all-streams-close", "--timeout="+downloadTime.String(), "--no-quic-dump",
		"--no-http-dump", "--quiet", "--sni="+edgeName, "--download="+dir, vip, "443", "https://"+edgeName+"/paced/"+name)
	if err != nil {
		return said, err
	}
	body, err := os.ReadFile(filepath.Join(dir, name))
	if err == nil && !bytes.Equal(body, pacedBody()) {
		err = fmt.Errorf("%d bytes, not the %d asked for", len(body), pacedSize)
	}
	return said, err
}

// quicFreshRound is of new connections.
func (u *Upgrade) quicFreshRound(ctx context.Context, sum *loadSum) error {
	return u.probeRound(ctx, sum, "--proto", "h3", "--reconnect")
}
