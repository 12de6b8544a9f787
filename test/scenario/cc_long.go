package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/bermedge/berm/test/rig"
)

// overNgtcp2 is QUIC by another implementation, as figures and charts name it.
const overNgtcp2 = "ngtcp2"

// wantNgtcp2 is how much of what ngtcp2's BBR brings QUIC's is to bring on the lossy link, and wantKept how much of what CUBIC
// keeps beside the kernel's BBR it is to keep beside QUIC's, but for the scatter of a few short downloads.
const (
	wantNgtcp2 = 0.9
	wantKept   = 0.9
)

// hasNgtcp2 tells whether there is ngtcp2's server.
func hasNgtcp2() bool {
	_, err := exec.LookPath("gtlsserver")
	return err == nil
}

// checkNgtcp2 downloads over the lossy link from ngtcp2's server, as a yardstick for what the edge brought.
func (c *CC) checkNgtcp2(ctx context.Context, r *Recorder, loss float64) (err error) {
	if err := c.lose(ctx, loss); err != nil {
		return err
	}
	server, err := c.startNgtcp2(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Kill()) }()
	p := c.clients[0]
	mbps, err := c.h3(ctx, p, p.router(), ngtcp2Port, c.downloadFor())
	if err != nil {
		return err
	}
	theirs := goodput{Loss: loss, Transport: overNgtcp2, Controller: "bbr2", Mbps: mbps}
	c.figures[theirs.series()+theirs.percent()] = theirs
	c.compare(r, loss, wantNgtcp2, goodput{Transport: overQUIC, Controller: "bbr"}, theirs)
	return c.write(r)
}

const ngtcp2Port = "4433"

// startNgtcp2 starts ngtcp2's server where the links begin.
func (c *CC) startNgtcp2(ctx context.Context) (*rig.Proc, error) {
	root := c.lab.Path("ngtcp2")
	file := filepath.Join(root, ccObject)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return nil, err
	}
	if err := errors.Join(os.WriteFile(file, nil, 0o644), os.Truncate(file, maxBig)); err != nil {
		return nil, err
	}
	server, err := c.router.Start(rig.Daemon{Name: "gtlsserver", Args: []string{
		"chrt", "-f", "1", "gtlsserver", "--quiet", "--no-quic-dump", "--no-http-dump", "--cc=bbr2", "--htdocs=" + root,
		"*", ngtcp2Port, c.lab.Path("key.pem"), c.cert,
	}})
	if err != nil {
		return nil, err
	}
	return server, rig.Until(ctx, 10*time.Second, "gtlsserver listens", func() (bool, error) {
		if done, err := server.Exited(); done {
			return false, fmt.Errorf("gtlsserver ended: %w: %s", err, server.Tail(5))
		}
		out, err := c.router.Output(ctx, "ss", "-ulnH", "sport", "=", ":"+ngtcp2Port)
		return len(out) > 0, err
	})
}

// checkNeighbours downloads with CUBIC from a second address of the clean client, beside BBR over TCP and over QUIC by turns: what
// CUBIC keeps beside the kernel's BBR it is to keep beside ours.
func (c *CC) checkNeighbours(ctx context.Context, r *Recorder) error {
	bbr := c.clients[1]
	cubic := *bbr
	cubic.addr = bbr.neighbour()
	if err := errors.Join(c.choose(ctx, "cubic"), c.choose(ctx, "bbr")); err != nil {
		return err
	}
	if out, err := c.edges[0].berm(ctx, "cc", "set", cubic.addr+"/32", "cubic"); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	downloads := map[string]ccDownload{overTCP: c.curl, overQUIC: c.gtls}
	kept := map[string]float64{}
	const rounds = 3
	for i := range 2 * rounds {
		transport := []string{overTCP, overQUIC}[i%2]
		var mine, theirs float64
		var runs [2]string
		var errs [2]error
		var wg sync.WaitGroup
		wg.Go(func() { theirs, runs[0], errs[0] = c.curl(ctx, &cubic) })
		wg.Go(func() { mine, runs[1], errs[1] = downloads[transport](ctx, bbr) })
		wg.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			return err
		}
		r.Same("controllers of TCP and, beside it, "+transport, "cubic, bbr", runs[0]+", "+runs[1], fmt.Sprintf("(%.1f and %.1f Mbit/s)", theirs, mine))
		kept[transport] += theirs / rounds
	}
	r.Timed().AtLeast("goodput of CUBIC beside QUIC's BBR over that beside TCP's", wantKept, kept[overQUIC]/kept[overTCP],
		fmt.Sprintf("times (%.1f and %.1f Mbit/s)", kept[overQUIC], kept[overTCP]))
	return nil
}
