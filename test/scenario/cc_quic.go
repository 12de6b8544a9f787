package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

// gtls downloads over HTTP/3 for a while, and asks the edge which controllers its connections began with: one that begins
// meanwhile is this one.
func (c *CC) gtls(ctx context.Context, p *pathClient) (mbps float64, controller string, err error) {
	return c.visit(ctx, p, c.downloadFor())
}

func (c *CC) visit(ctx context.Context, p *pathClient, limit time.Duration) (mbps float64, controller string, err error) {
	before, err := c.quicControllers(ctx)
	if err != nil {
		return 0, "", err
	}
	if mbps, err = c.h3(ctx, p, vip4, "443", limit); err != nil {
		return 0, "", err
	}
	after, err := c.quicControllers(ctx)
	for name, count := range after {
		if before[name] != count {
			controller += name
		}
	}
	return mbps, controller, err
}

// h3 downloads from a server for a while with ngtcp2's client.
func (c *CC) h3(ctx context.Context, p *pathClient, server, port string, limit time.Duration) (mbps float64, err error) {
	dir := c.lab.Path(p.name + "-h3")
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return 0, err
	}
	// In real time: its socket's buffer is small, and what does not fit would be taken for loss of the path.
	proc, err := p.node.Start(rig.Daemon{Name: "gtlsclient", Args: []string{
		"chrt", "-f", "1", "gtlsclient", "--no-quic-dump", "--no-http-dump", "--quiet", "--exit-on-all-streams-close",
		"--sni=" + edgeName, "--download=" + dir, server, port, "https://" + edgeName + ccObject,
	}})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, proc.Kill()) }()
	file := dir + strings.TrimPrefix(ccObject, "/big")
	size := func() int64 {
		if info, err := os.Stat(file); err == nil {
			return info.Size()
		}
		return 0
	}
	err = rig.Until(ctx, 10*time.Second, p.name+": the download begins", func() (bool, error) {
		if done, err := proc.Exited(); done {
			return false, fmt.Errorf("gtlsclient ended: %w: %s", err, proc.Tail(5))
		}
		return size() > 0, nil
	})
	if err != nil {
		return 0, err
	}
	// The first byte comes a round trip after it was asked for.
	began, first := time.Now().Add(-2*ccDelay), size()
	watched, cancel := context.WithTimeout(ctx, limit-2*ccDelay)
	defer cancel()
	if err := proc.Wait(watched); watched.Err() == nil || ctx.Err() != nil {
		return 0, fmt.Errorf("%s: gtlsclient ended too early: %w: %s", p.name, err, proc.Tail(5))
	}
	return float64(size()-first) * 8 / 1e6 / time.Since(began).Seconds(), nil
}

// quicControllers counts the edge's QUIC connections by the controller that they began with.
func (c *CC) quicControllers(ctx context.Context) (map[string]string, error) {
	text, err := c.edges[0].node.Run(ctx, "curl", "-sf", "-m", "5", "http://127.0.0.1:9190/metrics")
	if err != nil {
		return nil, err
	}
	counts := map[string]string{}
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, `berm_quic_cc_connections_total{controller="`); ok {
			name, rest, _ := strings.Cut(rest, `"`)
			counts[name] += rest // of each profile: that it differs is all that matters
		}
	}
	return counts, nil
}

// checkSecond compares the first second of who comes to a lossy prefix that is known with that of who came before anything was: over
// QUIC, with what the daemon chooses. How soon the first losses hit CUBIC is chance, so there are some of each.
func (c *CC) checkSecond(ctx context.Context, r *Recorder) (err error) {
	const visitors = 4
	edge, p := c.edges[0], c.clients[0]
	prefix := strings.TrimSuffix(p.addr, "2") + "0/24"
	order := func(args ...string) error {
		if out, err := edge.berm(ctx, append([]string{"cc"}, args...)...); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	if err := errors.Join(c.lose(ctx, 0.02), c.choose(ctx, "cubic"), order("rm", prefix)); err != nil {
		return err
	}
	var first, next float64
	for range visitors {
		mbps, runs, err := c.visit(ctx, p, time.Second)
		if err != nil {
			return err
		}
		r.Same("first visitor: controller of QUIC", "cubic", runs, fmt.Sprintf("(%.1f Mbit/s)", mbps))
		first += mbps / visitors
	}
	if err := order("learn", "on"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, order("learn", "off")) }()
	var choice struct {
		Learned *control.Learned `json:"learned"`
	}
	err = rig.Until(ctx, 30*time.Second, "a choice for who comes next", func() (bool, error) {
		if _, _, err := c.visit(ctx, p, time.Second); err != nil {
			return false, err
		}
		err := edge.ask(ctx, &choice, "cc", "explain", p.neighbour())
		return choice.Learned != nil && choice.Learned.Profile != "", err
	})
	if err != nil {
		return err
	}
	r.Same("chosen for the lossy prefix", "learn-bbr", choice.Learned.Profile, "("+choice.Learned.Why+")")
	// Somebody else of the prefix.
	if _, err := p.node.Run(ctx, "ip", "route", "replace", "default", "via", p.router(), "src", p.neighbour()); err != nil {
		return err
	}
	defer func() {
		_, rerr := p.node.Run(context.WithoutCancel(ctx), "ip", "route", "replace", "default", "via", p.router())
		err = errors.Join(err, rerr)
	}()
	chosen := 0
	for i := 0; chosen < visitors && i < 4*visitors; i++ {
		mbps, runs, err := c.visit(ctx, p, time.Second)
		if err != nil {
			return err
		}
		if runs != "bbr" {
			continue // one in twenty is held out
		}
		chosen++
		next += mbps / visitors
	}
	r.Equal("next visitors with what was chosen", visitors, uint64(chosen), "visitors")
	r.Timed().AtLeast("goodput of next visitors over that of first ones, in their first second", 2, next/first,
		fmt.Sprintf("times (%.1f and %.1f Mbit/s)", next, first))
	return nil
}
