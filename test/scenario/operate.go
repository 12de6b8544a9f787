package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/maps"
)

// checkPrivilege reads what the daemons may do from the kernel, not from them.
func (m *Main) checkPrivilege(_ context.Context, r *Recorder) error {
	for _, e := range m.edges {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", e.bermd.PID()))
		if err != nil {
			return err
		}
		fields := map[string]string{}
		for line := range strings.Lines(string(status)) {
			name, value, _ := strings.Cut(line, ":")
			fields[name] = strings.TrimSpace(value)
		}
		user, _, _ := strings.Cut(fields["Uid"], "\t")
		r.Same(e.Name+": bermd runs as user", strconv.Itoa(daemonUser), user, "")
		r.Same(e.Name+": bermd may at most bind low ports", fmt.Sprintf("%016x", 1<<unix.CAP_NET_BIND_SERVICE), fields["CapEff"], "CapEff")
	}
	return nil
}

// checkPurge forgets one object on every edge by its URL.
func (m *Main) checkPurge(ctx context.Context, r *Recorder) error {
	const path = "/o/purge/7"
	url := "http://" + edgeName + path
	flows := map[string]*flow{} // one to each edge
	for len(flows) < len(m.edges) {
		f, err := m.openFlow(ctx, m.good, vip4, flowLimit)
		if err != nil {
			return err
		}
		defer f.close()
		a, err := f.get(path)
		if err != nil {
			return err
		}
		flows[a.edge] = f
	}
	for _, e := range m.edges {
		f := flows[e.Name]
		if f == nil {
			return fmt.Errorf("no flow went to %s: answers came from %d others", e.Name, len(flows))
		}
		warm, err := f.get(path)
		if err != nil {
			return err
		}
		if _, err := e.berm(ctx, "purge", url); err != nil {
			return err
		}
		cold, err := f.get(path)
		if err != nil {
			return err
		}
		again, err := f.get(path)
		if err != nil {
			return err
		}
		r.Same("purge on "+e.Name+": before, after, again", "hit miss hit",
			hitOrMiss(warm)+" "+hitOrMiss(cold)+" "+hitOrMiss(again), "")
	}
	return nil
}

func hitOrMiss(a answer) string {
	if a.hit {
		return "hit"
	}
	return "miss"
}

// checkCrash kills one edge's daemon: its kernel half goes on refusing, and a new daemon serves.
func (m *Main) checkCrash(ctx context.Context, r *Recorder) error {
	e := m.edges[0]
	before, _, err := m.drops(ctx, "geo")
	if err != nil {
		return err
	}
	if err := e.bermd.Kill(); err != nil {
		return err
	}
	reached, err := m.sunk(ctx, blocked4)
	if err != nil {
		return err
	}
	own, _, err := e.drops(ctx, "geo") // without the daemon: root's CLI reads the maps
	if err != nil {
		return err
	}
	total, err := m.packets(ctx, m.blocked, "--src", blocked4, "--dst", vipPort(vip4, sinkPort), "--pps", "20000", "--count", "10000")
	if err != nil {
		return err
	}
	after, _, err := m.drops(ctx, "geo")
	if err != nil {
		return err
	}
	ownAfter, _, err := e.drops(ctx, "geo")
	if err != nil {
		return err
	}
	reachedAfter, err := m.sunk(ctx, blocked4)
	if err != nil {
		return err
	}
	r.Equal("bermd killed: packets of the blocked country dropped", total, after-before, "packets")
	r.AtLeast("bermd killed: of those by the edge without a daemon", float64(total)/4, float64(ownAfter-own), "packets")
	r.Equal("bermd killed: packets that reach a socket", 0, reachedAfter-reached, "packets")

	if err := m.verdictByHand(ctx, r, e); err != nil {
		return err
	}

	start := time.Now()
	if err := e.startDaemon(ctx); err != nil {
		return err
	}
	if err := m.awaitService(ctx); err != nil {
		return err
	}
	r.Timed().AtMost("bermd restarted: serves again in", 10, time.Since(start).Seconds(), "s")
	var l load
	err = m.probe(ctx, m.good, nil, &l, "load", "http://"+vipPort(vip4, 80)+"/o/crash/1", "--reconnect",
		"--conns", "4", "--requests", "1000", "--duration", "30s")
	if err != nil {
		return err
	}
	r.Equal("bermd restarted: new flows answered", 1000, l.Status["200"], "flows "+failures(l.Failures))
	return nil
}

// verdictByHand refuses a source with root's CLI on an edge whose daemon is down.
func (m *Main) verdictByHand(ctx context.Context, r *Recorder, e *Edge) error {
	if _, err := e.berm(ctx, "verdict", "add", watched4, "--for", "1m", "--reason", "lab"); err != nil {
		return err
	}
	dropped, _, err := e.drops(ctx, "verdict")
	if err != nil {
		return err
	}
	arrived, err := m.sunk(ctx, watched4)
	if err != nil {
		return err
	}
	total, err := m.packets(ctx, m.good, "--src", watched4, "--dst", vipPort(vip4, sinkPort), "--pps", "10000", "--count", "4000")
	if err != nil {
		return err
	}
	got, err := m.settled(ctx, watched4, arrived+total)
	if err != nil {
		return err
	}
	after, _, err := e.drops(ctx, "verdict")
	if err != nil {
		return err
	}
	// The other edge knows nothing of the verdict and lets its share in.
	r.AtLeast("bermd killed: packets dropped by a verdict given by hand", float64(total)/4, float64(after-dropped), "packets")
	r.Equal("bermd killed: of that source passed and dropped", total, got-arrived+after-dropped, "packets")
	_, err = e.berm(ctx, "verdict", "rm", watched4)
	return err
}

// checkPaths reads what the kernel half learned about the good client's prefix from its TCP
// connections.
func (m *Main) checkPaths(_ context.Context, r *Recorder) error {
	for _, e := range m.edges {
		set, err := maps.Open(maps.PinDir(e.pins))
		if err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
		for _, client := range []string{good4, good6} {
			p, err := set.Paths.Get(netip.MustParseAddr(client), maps.ProtocolTCP)
			if err != nil {
				return errors.Join(fmt.Errorf("%s: %w", e.Name, err), set.Close())
			}
			name := fmt.Sprintf("%s: network facts of %s: ", e.Name, p.Prefix)
			r.AtLeast(name+"connections", 8, float64(p.Connections), "connections")
			r.AtLeast(name+"delivered", 1000, float64(p.Delivered), "segments")
			r.Timed().AtMost(name+"smallest round trip", 50, float64(p.MinRTT.Microseconds())/1000, "ms")
		}
		if err := set.Close(); err != nil {
			return err
		}
	}
	return nil
}
