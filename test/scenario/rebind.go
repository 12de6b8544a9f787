package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

// QUICRebind is the topology of main, in which QUIC clients change their address and port in the
// middle of downloads, so that the router and the rows would send their packets to another edge.
type QUICRebind struct{ *Main }

func upQUICRebind(ctx context.Context, lab *rig.Lab, opts Options) (Topology, error) {
	q := QUICRebind{newMain(lab, opts)}
	if err := q.up(ctx); err != nil {
		return nil, err
	}
	return q, q.good.AddAddr("eth0", other4+"/24")
}

// other4 is a second address of the good client.
const other4 = "192.0.2.11"

// Guide tells a person what is where.
func (q QUICRebind) Guide() string {
	return q.Main.Guide() + fmt.Sprintf(`
A download that takes seconds: https://%s/paced/1. Connection IDs: berm steer explain --cid HEX.
`, edgeName)
}

// Steps end with the control: without connection IDs the same must fail.
func (q QUICRebind) Steps() []Step {
	return []Step{
		{Name: "a client behind a NAT that rebinds", Run: q.checkRebind, Loud: true},
		{Name: "clients that migrate", Run: q.checkMigrate, Loud: true},
		{Name: "the same with encrypted connection IDs", Run: q.checkEncrypted, Loud: true},
		{Name: "the same without connection IDs", Run: q.checkWithout, Loud: true},
	}
}

const (
	rebindings   = 10
	natPort      = 4433
	firstNATPort = 30000
	downloadTime = 20 * time.Second // pacedTime, and what a busy machine adds
)

// bindings are addresses and ports of the good client whose flows to the VIP are of edges that take
// turns, but the first one's is none of the others': whatever edge the connection begins at, the rows
// name the other one after the first rebinding, and stay there.
func (q QUICRebind) bindings(ctx context.Context, first int) ([]string, error) {
	var out []string
	owner := ""
	for port := first; len(out) <= rebindings; port++ {
		at := net.JoinHostPort([]string{good4, other4}[port%2], fmt.Sprint(port))
		var says control.Steering
		if err := q.edges[0].ask(ctx, &says, "steer", "explain", at, vipPort(vip4, 443), "udp"); err != nil {
			return nil, err
		}
		if says.Owner == "" {
			return nil, fmt.Errorf("flow from %s has no owner: %v", at, says.Steps)
		}
		if owner == "" {
			owner = says.Owner
		} else if says.Owner == owner {
			continue
		}
		out = append(out, at)
	}
	return out, nil
}

// download is how one went.
type download struct {
	complete   bool
	rebindings uint64
	requests   uint64 // that the origin saw
	took       time.Duration
	said       string // by the client, at the end
}

// throughNAT downloads through a NAT that rebinds.
func (q QUICRebind) throughNAT(ctx context.Context, first int, limit time.Duration) (d download, err error) {
	at, err := q.bindings(ctx, first)
	if err != nil {
		return d, err
	}
	counts := q.lab.Path("nat.counts")
	inside := fmt.Sprintf("127.0.0.1:%d", natPort)
	p, err := startActor(q.good, "nat", append([]string{inside, vipPort(vip4, 443), counts}, at...)...)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, p.Stop(time.Second)) }()
	if err := awaitCounts(ctx, p, counts); err != nil {
		return d, err
	}
	if d, err = q.download(ctx, "127.0.0.1", natPort, limit); err != nil {
		return d, err
	}
	var n natCounts
	err = readCounts(ctx, counts, &n)
	d.rebindings = n.Rebindings
	return d, err
}

// download fetches the paced object with ngtcp2's client over one connection.
func (q QUICRebind) download(ctx context.Context, host string, port int, limit time.Duration, args ...string) (d download, err error) {
	dir := q.lab.Path("paced")
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return d, err
	}
	before, err := q.originPaced(ctx)
	if err != nil {
		return d, err
	}
	args = append([]string{"gtlsclient", "--exit-on-all-streams-close", "--timeout=" + limit.String(), "--no-quic-dump", "--no-http-dump", "--quiet", "--sni=" + edgeName, "--download=" + dir}, args...)
	args = append(args, host, fmt.Sprint(port), "https://"+edgeName+"/paced/1")
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	start := time.Now()
	d.said, err = q.good.Run(limited, args...)
	d.took = time.Since(start)
	if err != nil {
		d.said = err.Error()
	}
	body, err := os.ReadFile(filepath.Join(dir, "1"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return d, err
	}
	d.complete = bytes.Equal(body, pacedBody())
	after, err := q.originPaced(ctx)
	d.requests = after - before
	return d, err
}

func (m *Main) originPaced(ctx context.Context) (uint64, error) {
	var c originCounts
	err := readCounts(ctx, m.originCounts, &c)
	return c.Paced, err
}

// steered adds up what the edges steered by connection ID, and what they could not.
func (q QUICRebind) steered(ctx context.Context) (byCID, lost uint64, err error) {
	for _, e := range q.edges {
		var vips []control.VIP
		if err := e.ask(ctx, &vips, "vip", "list"); err != nil {
			return 0, 0, err
		}
		for _, v := range vips {
			byCID += v.Counters.CID.Packets
			lost += v.Counters.CIDLost.Packets
		}
	}
	return byCID, lost, nil
}

func (q QUICRebind) checkRebind(ctx context.Context, r *Recorder) error {
	return q.rebind(ctx, r, "rebinding", firstNATPort)
}

// rebind checks that a download survives a NAT that rebinds.
func (q QUICRebind) rebind(ctx context.Context, r *Recorder, name string, first int) error {
	before, lostBefore, err := q.steered(ctx)
	if err != nil {
		return err
	}
	d, err := q.throughNAT(ctx, first, downloadTime)
	if err != nil {
		return err
	}
	after, lost, err := q.steered(ctx)
	if err != nil {
		return err
	}
	if !d.complete {
		q.opts.logf("gtlsclient: %s", d.said)
	}
	r.Same(name+": the download is complete", "true", fmt.Sprint(d.complete), fmt.Sprintf("(after %.1f s)", d.took.Seconds()))
	r.AtLeast(name+": rebindings within it", rebindings, float64(d.rebindings), "rebindings")
	r.Equal(name+": restarts", 0, d.requests-1, "requests to the origin beside the first")
	r.AtLeast(name+": packets steered by connection ID", 50, float64(after-before), "packets")
	r.Equal(name+": packets whose connection ID named nobody", 0, lost-lostBefore, "packets")
	return nil
}

// checkMigrate: the client itself changes its port, as it does when its network changes, and validates
// the path with a connection ID that it has not used before.
func (q QUICRebind) checkMigrate(ctx context.Context, r *Recorder) error {
	for _, c := range []struct {
		name, vip string
		args      []string
	}{
		{"migration, IPv4", vip4, []string{"--change-local-addr=300ms"}},
		{"migration, IPv6", vip6, []string{"--change-local-addr=300ms"}},
	} {
		d, err := q.download(ctx, c.vip, 443, downloadTime, c.args...)
		if err != nil {
			return err
		}
		if !d.complete {
			q.opts.logf("gtlsclient: %s", d.said)
		}
		r.Same(c.name+": the download is complete", "true", fmt.Sprint(d.complete), fmt.Sprintf("(after %.1f s)", d.took.Seconds()))
		r.Equal(c.name+": restarts", 0, d.requests-1, "requests to the origin beside the first")
	}
	return nil
}

// checkEncrypted rotates to a format with a key, while the plain one is still understood.
func (q QUICRebind) checkEncrypted(ctx context.Context, r *Recorder) error {
	key, err := q.lab.WriteFile("cid.key", 0o640, []byte("8f95f09245765f80256934e50c66207f\n"))
	if err != nil {
		return err
	}
	if err := os.Chown(key, 0, daemonUser); err != nil {
		return err
	}
	// Of the plain format's length, which open listeners keep: four passes over less than a block.
	cids := fmt.Sprintf("[{id: 1, nonce_length: 6, key_file: %s}, {id: 0}]", key)
	if err := q.setCIDs(ctx, cids); err != nil {
		return err
	}
	return q.rebind(ctx, r, "encrypted", firstNATPort+1000)
}

// checkWithout is the control: by rows alone the download cannot go on after the first rebinding.
func (q QUICRebind) checkWithout(ctx context.Context, r *Recorder) error {
	if err := q.setCIDs(ctx, "[]"); err != nil {
		return err
	}
	before, _, err := q.steered(ctx)
	if err != nil {
		return err
	}
	d, err := q.throughNAT(ctx, firstNATPort+2000, pacedTime+3*time.Second)
	if err != nil {
		return err
	}
	after, _, err := q.steered(ctx)
	if err != nil {
		return err
	}
	r.Same("without connection IDs: the download is complete", "false", fmt.Sprint(d.complete), fmt.Sprintf("(after %.1f s)", d.took.Seconds()))
	r.Equal("without connection IDs: requests that reached the origin", 1, d.requests, "requests")
	r.Equal("without connection IDs: packets steered by them", 0, after-before, "packets")
	return q.setCIDs(ctx, "[{id: 0}]")
}

// setCIDs changes the formats on all edges, as an operator would.
func (q QUICRebind) setCIDs(ctx context.Context, list string) error {
	for _, e := range q.edges {
		raw, err := os.ReadFile(e.config)
		if err != nil {
			return err
		}
		kept, _, _ := strings.Cut(string(raw), "quic: ")
		if err := os.WriteFile(e.config, []byte(kept+"quic: {cid: "+list+"}\n"), 0o644); err != nil {
			return err
		}
		if out, err := e.berm(ctx, "reload"); err != nil {
			return fmt.Errorf("%s: %w: %s", e.Name, err, out)
		}
	}
	return nil
}
