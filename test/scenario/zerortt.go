package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

// ZeroRTT is the topology of certificates' rotation with a wire that delays and records.
type ZeroRTT struct {
	*CertRotation
	wire string // where it takes orders
}

// wireAddr is the wire's end in the client's node.
const (
	wireHost = "127.0.0.1"
	wirePort = "4443"
)

func upZeroRTT(ctx context.Context, lab *rig.Lab, opts Options) (Topology, error) {
	z := &ZeroRTT{CertRotation: &CertRotation{Main: newMain(lab, opts), dir: lab.Path("tls")}, wire: lab.Path("wire.sock")}
	z.makeCert = z.prepare
	if err := z.up(ctx); err != nil {
		return z, err
	}
	p, err := startActor(z.good, "wire", wireHost+":"+wirePort, vipPort(vip4, 443), z.wire)
	if err != nil {
		return z, err
	}
	return z, awaitCounts(ctx, p, z.wire)
}

// Steps are run in this order.
func (z *ZeroRTT) Steps() []Step {
	return []Step{
		{Name: "early data", Run: z.checkEarly},
		{Name: "first packets sent again", Run: z.checkReplays},
		{Name: "sessions on every edge", Run: z.checkSessions},
	}
}

// ask asks over h3 with ngtcp2's client, in its first packets when it has a ticket, and returns the answer's status.
func (z *ZeroRTT) ask(ctx context.Context, target string, args ...string) (status string, rejected bool, err error) {
	args = append([]string{
		"gtlsclient", "--exit-on-all-streams-close", "--timeout=20s", "--no-quic-dump", "--no-http-dump", "--sni=" + edgeName,
		"--session-file=" + z.lab.Path("gtls.session"), "--tp-file=" + z.lab.Path("gtls.tp"),
	}, args...)
	out, err := z.good.Run(ctx, append(args, wireHost, wirePort, "https://"+edgeName+target)...)
	if err != nil {
		return "", false, fmt.Errorf("gtlsclient %s: %w: %.500s", target, err, out)
	}
	return parseGTLS(out)[0][":status"], strings.Contains(out, "rejected by server"), nil
}

// seen returns what the origin was asked below /early/.
func (z *ZeroRTT) seen(ctx context.Context) (map[string]uint64, error) {
	var c originCounts
	err := readCounts(ctx, z.originCounts, &c)
	return c.Early, err
}

// tickets returns what became of tickets for early data, by edge and result.
func (z *ZeroRTT) tickets(ctx context.Context) (sum map[string]uint64, err error) {
	sum = map[string]uint64{}
	for _, e := range z.edges {
		var s control.Status
		if err := e.ask(ctx, &s, "status"); err != nil {
			return nil, err
		}
		for result, n := range s.TLS.Early {
			sum[result] += n
		}
	}
	return sum, nil
}

func (z *ZeroRTT) checkEarly(ctx context.Context, r *Recorder) error {
	body := z.lab.Path("body")
	if err := os.WriteFile(body, []byte("x"), 0o644); err != nil {
		return err
	}
	for _, c := range []struct {
		name, target, status string
		args                 []string
		origin               string // what it sees of it; "": nothing
	}{
		{"a full handshake", "/early/first", "200", nil, "GET /early/first early="},
		{"GET in the first packets", "/early/get", "200", nil, "GET /early/get early=1"},
		{"HEAD in the first packets", "/early/head", "200", []string{"--http-method=HEAD"}, "HEAD /early/head early=1"},
		{"POST in the first packets", "/early/post", "425", []string{"--http-method=POST", "--data=" + body}, ""},
		{"a query in the first packets", "/early/query?q=1", "425", nil, ""},
		{"POST after the handshake", "/early/late", "200", []string{"--disable-early-data", "--http-method=POST", "--data=" + body}, "POST /early/late early="},
	} {
		before, err := z.seen(ctx)
		if err != nil {
			return err
		}
		status, rejected, err := z.ask(ctx, c.target, c.args...)
		if err != nil {
			return err
		}
		r.Same(c.name+": status", c.status, status, "")
		r.Same(c.name+": early data rejected", "false", fmt.Sprint(rejected), "")
		after, err := z.seen(ctx)
		if err != nil {
			return err
		}
		var got []string
		for what, n := range after {
			if n > before[what] {
				got = append(got, what)
			}
		}
		r.Same(c.name+": the origin sees", c.origin, strings.Join(got, ", "), "")
	}
	return nil
}

const replays = 10

// checkReplays records the first packets of one request and sends them again, until every edge has had them to judge. An
// edge that has a connection of theirs open takes copies for stray packets of that.
func (z *ZeroRTT) checkReplays(ctx context.Context, r *Recorder) error {
	if _, _, err := z.ask(ctx, "/early/ticket"); err != nil {
		return err
	}
	var w wireCounts
	if err := askActor(ctx, http.MethodDelete, z.wire, &w); err != nil {
		return err
	}
	if status, rejected, err := z.ask(ctx, "/early/once"); err != nil || status != "200" || rejected {
		return errors.Join(err, fmt.Errorf("the request to record: status %s, rejected %v", status, rejected))
	}
	before, err := z.tickets(ctx)
	if err != nil {
		return err
	}
	var after map[string]uint64
	err = rig.Until(ctx, 30*time.Second, "each edge judges a copy", func() (bool, error) {
		if err := askActor(ctx, http.MethodPost, z.wire, &w); err != nil {
			return false, err
		}
		if w.Copies < replays {
			return false, nil
		}
		var err error
		after, err = z.tickets(ctx)
		return after["replayed"] > before["replayed"] && after["elsewhere"] > before["elsewhere"], err
	})
	if err != nil {
		return fmt.Errorf("%w: %d copies of %d datagrams, tickets %v, before %v", err, w.Copies, w.Flight, after, before)
	}
	if _, _, err := z.ask(ctx, "/early/last"); err != nil { // what a copy could have caused is done
		return err
	}
	seen, err := z.seen(ctx)
	if err != nil {
		return err
	}
	r.AtLeast("copies of the first packets", replays, float64(w.Copies), fmt.Sprintf("copies of %d datagrams, each from a port of its own", w.Flight))
	r.AtLeast("refused by the edge that gave out the ticket", 1, float64(after["replayed"]-before["replayed"]), "connections")
	r.AtLeast("refused by the other edge", 1, float64(after["elsewhere"]-before["elsewhere"]), "connections")
	r.Equal("accepted", before["accepted"], after["accepted"], "connections, the recorded one among them")
	r.Equal("requests that the origin saw", 1, seen["GET /early/once early=1"]+seen["GET /early/once early="], "requests")
	return nil
}
