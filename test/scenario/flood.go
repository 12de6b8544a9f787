package scenario

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

// The flood comes from so many addresses that no limit by source meets one twice: a range that is
// for benchmarks, and one for documentation.
const (
	madeUp4, madeUp6 = "198.18.0.0/15", "3fff::/20"

	floodRate   = 20_000 // SYNs a second
	cookieAbove = 2_000  // on each edge
	retryAbove  = 200
	floodLength = 4 * time.Second

	// goodRate connections a second of a good client, at least so many of them.
	goodRate = 100

	// A SYN or its answer that is lost is sent again after a second: whoever waits less has lost none.
	connectMost = 950.0

	// A gate opens five seconds after the flood; what is left is for a busy machine.
	opensWithin = 20 * time.Second
)

// Flood is the topology of "main", whose edges guard their services.
type Flood struct{ *Main }

func upFlood(ctx context.Context, lab *rig.Lab, opts Options) (Topology, error) {
	f := &Flood{newMain(lab, opts)}
	f.vipSettings = map[string]string{}
	for _, family := range []string{"4", "6"} {
		cookies := fmt.Sprintf(", gate: {cookies: auto, cookies_above: %d}", cookieAbove)
		f.vipSettings["web"+family], f.vipSettings["tls"+family] = cookies, cookies
		f.vipSettings["quic"+family] = fmt.Sprintf(", gate: {retry: auto, retry_above: %d, bad_initials: drop}", retryAbove)
		f.vipSettings["sink"+family] = ", gate: {amplified: drop}"
	}
	f.edgeSysctls = map[string]string{"net.ipv4.tcp_syncookies": "2", "net.ipv4.tcp_timestamps": "2"}
	if err := f.up(ctx); err != nil {
		return nil, err
	}
	// What answers the made-up sources goes nowhere, and nobody tells the edges so.
	for _, args := range [][]string{{"ip", "route", "add", "blackhole", madeUp4}, {"ip", "-6", "route", "add", "blackhole", madeUp6}} {
		if _, err := f.router.Run(ctx, args...); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// Steps are in an order that leaves a gate open again before the next one needs it.
func (f *Flood) Steps() []Step {
	return []Step{
		{Name: "a SYN flood, IPv4", Run: func(ctx context.Context, r *Recorder) error { return f.checkSYN(ctx, r, "4", vip4, madeUp4) }, Loud: true},
		{Name: "a SYN flood, IPv6", Run: func(ctx context.Context, r *Recorder) error { return f.checkSYN(ctx, r, "6", vip6, madeUp6) }, Loud: true},
		{Name: "a flood of QUIC Initials", Run: f.checkInitials, Loud: true},
		{Name: "what no client sends", Run: f.checkStray},
	}
}

// gates adds up over all edges what one service answered, and tells on how many its gate is shut.
func (f *Flood) gates(ctx context.Context, name string) (answered uint64, cookies, retry int, err error) {
	for _, e := range f.edges {
		var list []control.VIP
		if err := e.ask(ctx, &list, "vip", "list"); err != nil {
			return 0, 0, 0, err
		}
		for _, v := range list {
			if v.Name != name {
				continue
			}
			answered += v.Counters.Answered.Packets
			if v.Shut.Cookies {
				cookies++
			}
			if v.Shut.Retry {
				retry++
			}
		}
	}
	return answered, cookies, retry, nil
}

// connect is a good client that makes a connection for each request, to a port of a VIP.
func (f *Flood) connect(ctx context.Context, url string, d time.Duration) (load, error) {
	var l load
	err := f.probe(ctx, f.good, nil, &l, "load", url, "--reconnect", "--conns", "8", "--rate", strconv.Itoa(goodRate), "--duration", d.String())
	return l, err
}

// flooding runs fn while made-up sources send, and returns how many packets they sent.
func (f *Flood) flooding(ctx context.Context, d time.Duration, fn func(context.Context) error, args ...string) (uint64, error) {
	var wg sync.WaitGroup
	var n uint64
	var ferr error
	wg.Go(func() {
		n, ferr = f.packets(ctx, f.greedy, append([]string{"--duration", d.String()}, args...)...)
	})
	err := fn(ctx)
	wg.Wait()
	if err == nil {
		err = ferr
	}
	return n, err
}

// awaitShut waits until the gate of a service is shut on so many edges.
func (f *Flood) awaitShut(ctx context.Context, name string, want int, limit time.Duration) error {
	return rig.Until(ctx, limit, fmt.Sprintf("the gate of %s is shut on %d edges", name, want), func() (bool, error) {
		_, cookies, retry, err := f.gates(ctx, name)
		return cookies+retry == want, err
	})
}

// synCounts is what the edges and their stacks have counted about SYNs.
type synCounts struct {
	answered, neighbour uint64 // SYNs that the kernel half answered, of the flooded service and its neighbour
	shut, beside        int    // edges on which their gates are shut
	right, wrong        uint64 // cookies that came back, by the stacks' own count
}

func (f *Flood) countSYNs(ctx context.Context, family string) (c synCounts, err error) {
	if c.answered, c.shut, _, err = f.gates(ctx, "web"+family); err != nil {
		return c, err
	}
	if c.neighbour, c.beside, _, err = f.gates(ctx, "tls"+family); err != nil {
		return c, err
	}
	for _, e := range f.edges {
		k, err := e.node.Counters()
		if err != nil {
			return c, err
		}
		c.right += k["TcpExt.SyncookiesRecv"]
		c.wrong += k["TcpExt.SyncookiesFailed"]
	}
	return c, nil
}

// checkSYN floods one service, whose good clients have to get through, and whose neighbour's must not
// notice.
func (f *Flood) checkSYN(ctx context.Context, r *Recorder, family, vip, sources string) error {
	name := "SYN flood, IPv" + family + ": "
	url, neighbour := "http://"+vipPort(vip, 80)+"/o/flood", "https://"+vipPort(vip, 443)+"/o/flood"
	quiet, err := f.connect(ctx, url, 2*time.Second)
	if err != nil {
		return err
	}
	before, err := f.countSYNs(ctx, family)
	if err != nil {
		return err
	}
	var loud, beside load
	var during synCounts
	total, err := f.flooding(ctx, floodLength, func(ctx context.Context) error {
		if err := f.awaitShut(ctx, "web"+family, len(f.edges), floodLength); err != nil {
			return err
		}
		var wg sync.WaitGroup
		var err, err2 error
		wg.Go(func() { loud, err = f.connect(ctx, url, 2*time.Second) })
		wg.Go(func() { beside, err2 = f.connect(ctx, neighbour, 2*time.Second) })
		wg.Wait()
		if err = errors.Join(err, err2); err == nil {
			during, err = f.countSYNs(ctx, family)
		}
		return err
	}, "--src", sources, "--dst", vipPort(vip, 80), "--kind", "syn", "--pps", strconv.Itoa(floodRate))
	if err != nil {
		return err
	}
	after, err := f.countSYNs(ctx, family)
	if err != nil {
		return err
	}
	f.opts.logf("good client: p99 of connection and request %.2f ms quiet, %.2f ms under %d SYNs; its neighbour's %.2f ms",
		quiet.Latency.P99, loud.Latency.P99, total, beside.Latency.P99)
	r.Equal(name+"gates that are shut before", 0, uint64(before.shut), "edges")
	r.Equal(name+"edges that answer with cookies", uint64(len(f.edges)), uint64(during.shut), "edges")
	r.AtLeast(name+"SYNs answered by the kernel half", 0.9*float64(total), float64(after.answered-before.answered), "SYNs of "+strconv.FormatUint(total, 10))
	r.Timed().AtLeast(name+"a good client's connections", goodRate, float64(loud.OK), "connections")
	r.Equal(name+"a good client's connections that failed", 0, loud.Errors, "connections")
	r.Timed().AtMost(name+"a good client's p99", connectMost, loud.Latency.P99, fmt.Sprintf("ms (%.2f quiet)", quiet.Latency.P99))
	r.AtLeast(name+"cookies that came back and were right", float64(loud.OK), float64(after.right-before.right), "cookies")
	// A second ACK of the last FIN finds no socket either, and is none: it comes where the machine answers late.
	r.AtMost(name+"cookies that were wrong", float64(after.right-before.right)/100, float64(after.wrong-before.wrong), "cookies")
	r.Equal(name+"gates of the neighbour that are shut", 0, uint64(during.beside), "edges")
	r.Equal(name+"the neighbour's SYNs answered with cookies", 0, after.neighbour-before.neighbour, "SYNs")
	r.Equal(name+"the neighbour's connections that failed", 0, beside.Errors, "connections")
	r.Timed().AtMost(name+"the neighbour's p99", connectMost, beside.Latency.P99, "ms")
	return f.checkOpensAgain(ctx, r, name, family, url)
}

// checkOpensAgain waits for the gate to open after a flood: then connections come without cookies of
// the kernel half's.
func (f *Flood) checkOpensAgain(ctx context.Context, r *Recorder, name, family, url string) error {
	over := time.Now()
	if err := f.awaitShut(ctx, "web"+family, 0, opensWithin); err != nil {
		return err
	}
	r.Timed().AtMost(name+"the gate opens again after", opensWithin.Seconds(), time.Since(over).Seconds(), "s")
	before, err := f.countSYNs(ctx, family)
	if err != nil {
		return err
	}
	l, err := f.connect(ctx, url, time.Second)
	if err != nil {
		return err
	}
	after, err := f.countSYNs(ctx, family)
	if err != nil {
		return err
	}
	r.Equal(name+"connections afterwards that failed", 0, l.Errors, "connections")
	r.Equal(name+"SYNs answered with cookies afterwards", 0, after.answered-before.answered, "SYNs")
	return nil
}

// retries adds up the Retry packets that the edges' daemons sent, and the handshakes they accepted.
func (f *Flood) retries(ctx context.Context) (n uint64, err error) {
	for _, e := range f.edges {
		v, err := e.metric(ctx, "berm_quic_retries_total")
		if err != nil {
			return 0, err
		}
		n += uint64(v)
	}
	return n, nil
}

// checkInitials floods the QUIC service with Initials: the kernel half counts them, the daemons let
// clients show their address, and a good client, which can, is served.
func (f *Flood) checkInitials(ctx context.Context, r *Recorder) error {
	const name, service = "QUIC Initials: ", "quic4"
	url := "https://" + vipPort(vip4, 443) + "/o/flood"
	get := func(ctx context.Context, d time.Duration) (l load, err error) {
		err = f.probe(ctx, f.good, nil, &l, "load", url, "--proto", "h3", "--reconnect", "--conns", "2", "--rate", "20", "--duration", d.String())
		return l, err
	}
	before, err := f.retries(ctx)
	if err != nil {
		return err
	}
	quiet, err := get(ctx, time.Second)
	if err != nil {
		return err
	}
	calm, err := f.retries(ctx)
	if err != nil {
		return err
	}
	var loud load
	var shut int
	// Below what the daemons themselves take for a flood: it is the kernel half that tells.
	_, err = f.flooding(ctx, floodLength, func(ctx context.Context) (err error) {
		if err := f.awaitShut(ctx, service, len(f.edges), floodLength); err != nil {
			return err
		}
		if loud, err = get(ctx, 2*time.Second); err != nil {
			return err
		}
		_, _, shut, err = f.gates(ctx, service)
		return err
	}, "--src", madeUp4, "--dst", vipPort(vip4, 443), "--kind", "initial", "--pps", strconv.Itoa(6*retryAbove))
	if err != nil {
		return err
	}
	after, err := f.retries(ctx)
	if err != nil {
		return err
	}
	r.Equal(name+"Retry packets before", 0, calm-before, "packets")
	r.Equal(name+"a good client's connections before that failed", 0, quiet.Errors, "connections")
	r.Equal(name+"edges that send Retry", uint64(len(f.edges)), uint64(shut), "edges")
	r.AtLeast(name+"Retry packets", float64(loud.OK), float64(after-calm), "packets")
	r.Timed().AtLeast(name+"a good client's connections", 20, float64(loud.OK), "connections")
	r.Equal(name+"a good client's connections that failed", 0, loud.Errors, "connections")
	if err := f.awaitShut(ctx, service, 0, opensWithin); err != nil {
		return err
	}
	calm, err = f.retries(ctx)
	if err != nil {
		return err
	}
	if _, err := get(ctx, time.Second); err != nil {
		return err
	}
	after, err = f.retries(ctx)
	if err != nil {
		return err
	}
	r.Equal(name+"Retry packets afterwards", 0, after-calm, "packets")
	return nil
}

// checkStray sends what no client sends: none of it reaches a socket.
func (f *Flood) checkStray(ctx context.Context, r *Recorder) error {
	amplified, _, err := f.drops(ctx, "amplified")
	if err != nil {
		return err
	}
	bad, _, err := f.drops(ctx, "bad_initial")
	if err != nil {
		return err
	}
	var total uint64
	for _, c := range []struct{ src, vip string }{{good4, vip4}, {good6, vip6}} {
		n, err := f.packets(ctx, f.good, "--src", c.src, "--sport", "11211", "--dst", vipPort(c.vip, sinkPort), "--pps", "5000", "--count", "1000")
		if err != nil {
			return err
		}
		total += n
	}
	empty, err := f.packets(ctx, f.good, "--src", good4, "--size", "0", "--dst", vipPort(vip4, 443), "--pps", "5000", "--count", "500")
	if err != nil {
		return err
	}
	amplified2, _, err := f.drops(ctx, "amplified")
	if err != nil {
		return err
	}
	bad2, _, err := f.drops(ctx, "bad_initial")
	if err != nil {
		return err
	}
	var reached uint64
	for _, source := range []string{good4, good6} {
		n, err := f.sunk(ctx, source)
		if err != nil {
			return err
		}
		reached += n
	}
	r.Equal("from memcached's port: packets dropped for it", total, amplified2-amplified, "packets")
	r.Equal("from memcached's port: packets that reach a socket", 0, reached, "packets")
	r.Equal("empty datagrams to QUIC: packets dropped for it", empty, bad2-bad, "packets")
	return nil
}
