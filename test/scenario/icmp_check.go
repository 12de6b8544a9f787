package scenario

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

// answered adds up the echo requests that the edges' kernel halves have answered.
func (m *Main) answered(ctx context.Context) (n uint64, err error) {
	for _, e := range m.edges {
		var d control.Drops
		if err := e.ask(ctx, &d, "drops"); err != nil {
			return 0, err
		}
		for _, s := range d.Stages {
			if s.Stage == "icmp" && s.Exit == "answer" {
				n += s.Count.Packets
			}
		}
	}
	return n, nil
}

// echoed adds up the echo requests that the edges' stacks have had.
func (m *Main) echoed() (n uint64, err error) {
	for _, e := range m.edges {
		c, err := e.node.Counters()
		if err != nil {
			return 0, err
		}
		n += c["Icmp.InEchos"] + c["Icmp6InEchos"]
	}
	return n, nil
}

// checkEcho: the kernel half answers for the VIPs alone; requests with options the owner's stack answers;
// all other addresses are left to who has them.
func (i *ICMP) checkEcho(ctx context.Context, r *Recorder) error {
	const pings = 20
	nobody4, nobody6 := "203.0.113.99", "2001:db8:f::99"
	for to, via := range map[string]string{nobody4 + "/32": i.edges[0].addr4, nobody6 + "/128": i.edges[0].addr6} {
		if err := i.router.Route(to, via); err != nil {
			return err
		}
	}
	for _, c := range []struct {
		name, to           string
		args               []string
		got, kernel, stack uint64
	}{
		{"echo to the VIP, IPv4", vip4, nil, pings, pings, 0},
		{"echo to the VIP, IPv6", vip6, nil, pings, pings, 0},
		{"echo with options to the VIP", vip4, []string{"-T", "tsonly"}, pings, 0, pings},
		{"echo to an edge's own address, IPv4", i.edges[0].addr4, nil, pings, 0, pings},
		{"echo to an edge's own address, IPv6", i.edges[0].addr6, nil, pings, 0, pings},
		{"echo to nobody's address, IPv4", nobody4, nil, 0, 0, 0},
		{"echo to nobody's address, IPv6", nobody6, nil, 0, 0, 0},
	} {
		kernel, err := i.answered(ctx)
		if err != nil {
			return err
		}
		stack, err := i.echoed()
		if err != nil {
			return err
		}
		args := append([]string{"ping", "-q", "-n", "-c", strconv.Itoa(pings), "-i", "0.01", "-W", "5"}, c.args...)
		if c.got == 0 {
			args = append(args, "-W", "0.5") // the last one counts
		}
		out, _ := i.good.Run(ctx, append(args, c.to)...) // fails where nobody answers
		kernelAfter, err := i.answered(ctx)
		if err != nil {
			return err
		}
		stackAfter, err := i.echoed()
		if err != nil {
			return err
		}
		r.Equal(c.name+": answers", c.got, number(pingReceived, out), "answers")
		r.Equal(c.name+": by the kernel half", c.kernel, kernelAfter-kernel, "requests")
		r.Equal(c.name+": seen by stacks", c.stack, stackAfter-stack, "requests")
	}
	return nil
}

// What is fetched through the narrow link; over QUIC more, which looks for larger packets only after some
// round trips.
const (
	narrowSize     = 1_000_000
	narrowSizeQUIC = 6_000_000
)

// errors checks where errors about a flow went: all that landed anywhere reached its owner, and nobody
// else; those that landed elsewhere came through a tunnel.
func (i *ICMP) errors(r *Recorder, name, owner string, t told) (elsewhere uint64) {
	elsewhere = total(t.landed) - t.landed[owner]
	r.AtLeast(name+": errors that landed at an edge", 1, float64(total(t.landed)), fmt.Sprintf("errors (%d not at the owner)", elsewhere))
	r.Equal(name+": that an edge passed on", elsewhere, total(t.passed)-t.passed[owner], "errors")
	r.Equal(name+": that reached the owner", total(t.landed), t.reached[owner], "errors")
	r.Equal(name+": that reached another edge's stack", 0, total(t.reached)-t.reached[owner], "errors")
	return elsewhere
}

// checkNarrow: downloads by clients that are not ours, of flows of both edges.
func (i *ICMP) checkNarrow(ctx context.Context, r *Recorder) error {
	port := 21000
	for _, f := range []struct{ name, vip, client string }{{"IPv4", vip4, far4}, {"IPv6", vip6, far6}} {
		var elsewhere uint64
		for _, version := range []string{"--http1.1", "--http2"} {
			for _, e := range i.edges {
				name := fmt.Sprintf("%s, %s, a flow of %s", strings.TrimPrefix(version, "--"), f.name, e.Name)
				p, err := i.portOf(ctx, f.client, vipPort(f.vip, 443), "tcp", e.Name, port)
				if err != nil {
					return err
				}
				port = p + 1
				before, err := i.fresh(ctx)
				if err != nil {
					return err
				}
				got, took := i.curlFar(ctx, f.vip, p, 30*time.Second, version)
				after, err := i.settledErrors(ctx, before)
				if err != nil {
					return err
				}
				r.Equal(name+": bytes downloaded", narrowSize, got, fmt.Sprintf("bytes (in %.2f s)", took.Seconds()))
				elsewhere += i.errors(r, name, e.Name, after)
			}
		}
		r.AtLeast(f.name+", TCP: errors that landed at an edge that does not own the flow", 1, float64(elsewhere), "errors")
		if err := i.narrowQUIC(ctx, r, f.name, f.vip, f.client); err != nil {
			return err
		}
	}
	return nil
}

// fresh is what was told before anybody has learned anything.
func (i *ICMP) fresh(ctx context.Context) (told, error) {
	if err := i.forgetAll(ctx); err != nil {
		return told{}, err
	}
	return i.told(ctx)
}

// curlFar downloads from one port, and returns how much came.
func (i *ICMP) curlFar(ctx context.Context, vip string, port int, limit time.Duration, args ...string) (uint64, time.Duration) {
	at := vip
	if strings.Contains(vip, ":") {
		at = "[" + vip + "]"
	}
	args = append([]string{
		"curl", "-s", "-m", strconv.FormatFloat(limit.Seconds(), 'f', 1, 64), "--cacert", i.cert, "-o", "/dev/null", "-w", "%{size_download}",
		"--resolve", edgeName + ":443:" + at, "--local-port", strconv.Itoa(port),
	}, args...)
	start := time.Now()
	out, err := i.far.Output(ctx, append(args, fmt.Sprintf("https://%s/big/%d", edgeName, narrowSize))...)
	took := time.Since(start)
	n, perr := strconv.ParseUint(strings.TrimSpace(string(out)), 10, 64)
	if err != nil || perr != nil {
		i.opts.logf("curl from port %d: %v, %q", port, err, out)
	}
	return n, took
}

// narrowQUIC downloads until flows of all edges have been told of the narrow link: the client chooses its
// port itself, and the server when it looks for larger packets.
func (i *ICMP) narrowQUIC(ctx context.Context, r *Recorder, family, vip, client string) error {
	dir := i.lab.Path("narrow")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	seen := map[string]bool{}
	var elsewhere uint64
	for try := 0; len(seen) < len(i.edges) && try < 20; try++ {
		before, err := i.fresh(ctx)
		if err != nil {
			return err
		}
		out, err := i.far.Run(ctx, "gtlsclient", "--exit-on-all-streams-close", "--timeout=20s", "--no-quic-dump", "--no-http-dump",
			"--sni="+edgeName, "--download="+dir, vip, "443", fmt.Sprintf("https://%s/big/%d", edgeName, narrowSizeQUIC))
		if err != nil {
			return fmt.Errorf("%w: %.300s", err, out)
		}
		headers := parseGTLS(out)[0]
		owner, _ := cacheStatus([]string{headers["cache-status"]})
		if i.edge(owner) == nil {
			return fmt.Errorf("answered by %q", owner)
		}
		after, err := i.settledErrors(ctx, before)
		if err != nil {
			return err
		}
		if seen[owner] || total(after.landed) == 0 {
			continue
		}
		seen[owner] = true
		body, err := os.Stat(fmt.Sprintf("%s/%d", dir, narrowSizeQUIC))
		if err != nil {
			return err
		}
		name := fmt.Sprintf("h3, %s, a flow of %s", family, owner)
		r.Equal(name+": bytes downloaded", narrowSizeQUIC, uint64(body.Size()), "bytes")
		elsewhere += i.errors(r, name, owner, after)
		for _, e := range i.edges {
			mtu, err := learnedMTU(ctx, e.node, client)
			if err != nil {
				return err
			}
			want := map[bool]uint64{true: narrowMTU, false: 0}[e.Name == owner]
			r.Equal(name+": path MTU that "+e.Name+" has learned", want, mtu, "bytes (0: none)")
		}
	}
	r.Equal("h3, "+family+": edges whose flows were seen", uint64(len(i.edges)), uint64(len(seen)), "edges")
	r.AtLeast("h3, "+family+": errors that landed at an edge that does not own the flow", 1, float64(elsewhere), "errors")
	return nil
}

// settledErrors waits until the errors that landed have reached somebody: the last may come after the client
// has gone.
func (i *ICMP) settledErrors(ctx context.Context, before told) (d told, err error) {
	limited, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_ = rig.Poll(limited, 20*time.Millisecond, func() (bool, error) { // the checks say what is missing
		var after told
		after, err = i.told(ctx)
		d = after.since(before)
		return total(d.landed) > 0 && total(d.landed) == total(d.reached), err
	})
	return d, err
}

// checkSockets shows the owner's connection itself: its path MTU is the narrow link's.
func (i *ICMP) checkSockets(ctx context.Context, r *Recorder) error {
	for n, f := range []struct{ name, vip, client string }{{"IPv4", vip4, far4}, {"IPv6", vip6, far6}} {
		for k, e := range i.edges {
			p, err := i.portOf(ctx, f.client, vipPort(f.vip, 80), "tcp", e.Name, 23000+200*n+100*k)
			if err != nil {
				return err
			}
			before, err := i.fresh(ctx)
			if err != nil {
				return err
			}
			at := net.JoinHostPort(f.client, strconv.Itoa(p))
			d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(f.client), Port: p}, Timeout: flowLimit}
			flow, err := i.openFlowAs(ctx, i.far, d, f.vip, flowLimit)
			if err != nil {
				return err
			}
			defer flow.close()
			a, err := flow.get(fmt.Sprintf("/big/%d", narrowSize))
			if err != nil {
				return fmt.Errorf("flow of %s: %w", e.Name, err)
			}
			name := fmt.Sprintf("%s, a connection of %s", f.name, e.Name)
			says, err := socket(ctx, e.node, at)
			if err != nil {
				return err
			}
			after, err := i.settledErrors(ctx, before)
			if err != nil {
				return err
			}
			r.Same(name+": answered by", e.Name, a.edge, "")
			r.Equal(name+": path MTU of its socket", narrowMTU, number(socketMTU, says), fmt.Sprintf("bytes (mss %d)", number(socketMSS, says)))
			i.errors(r, name, e.Name, after)
		}
	}
	return nil
}

// checkWithout is the control: where edges do not pass on the errors that are about others' flows, those
// flows stand still.
func (i *ICMP) checkWithout(ctx context.Context, r *Recorder) error {
	err := i.nft(ctx, `table inet control { chain forward { type filter hook forward priority 10;
ip protocol 4 @nh,232,8 1 @nh,320,8 3 drop
ip protocol 41 @nh,208,8 58 @nh,480,8 2 drop
}
}
`)
	if err != nil {
		return err
	}
	for n, f := range []struct{ name, vip, client string }{{"IPv4", vip4, far4}, {"IPv6", vip6, far6}} {
		var stood uint64
		for k, e := range i.edges {
			p, err := i.portOf(ctx, f.client, vipPort(f.vip, 443), "tcp", e.Name, 24000+200*n+100*k)
			if err != nil {
				return err
			}
			before, err := i.fresh(ctx)
			if err != nil {
				return err
			}
			got, _ := i.curlFar(ctx, f.vip, p, 3*time.Second)
			after, err := i.told(ctx)
			if err != nil {
				return err
			}
			if t := after.since(before); t.reached[e.Name] == 0 && got < narrowSize {
				stood++
			}
		}
		r.Equal(f.name+", without the errors of others: downloads that stood still, of two", 1, stood, "downloads")
	}
	return i.nft(ctx, "delete table inet control\n")
}
