package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/bermedge/berm/test/rig"
)

// gtls downloads over HTTP/3 for a while, and asks the edge which controllers its connections began with: one that begins
// meanwhile is this one.
func (c *CC) gtls(ctx context.Context, p *pathClient) (mbps float64, controller string, err error) {
	before, err := c.quicControllers(ctx)
	if err != nil {
		return 0, "", err
	}
	if mbps, err = c.h3(ctx, p, vip4, "443"); err != nil {
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
func (c *CC) h3(ctx context.Context, p *pathClient, server, port string) (mbps float64, err error) {
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
	watched, cancel := context.WithTimeout(ctx, c.downloadFor()-2*ccDelay)
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
