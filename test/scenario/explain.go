package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

// Watch captures on the router's links to the edges, where client packets and tunnels pass.
func (m *Main) Watch() (func(bool) ([]string, error), error) {
	var procs []*rig.Proc
	for _, e := range m.edges {
		p, err := m.router.Capture(e.Name)
		if err != nil {
			return nil, err
		}
		procs = append(procs, p)
	}
	return func(keep bool) (kept []string, err error) {
		for _, p := range procs {
			err = errors.Join(err, p.Stop(2*time.Second))
		}
		for _, e := range m.edges {
			file := m.lab.Path("router-" + e.Name + ".pcap")
			if !keep {
				err = errors.Join(err, os.Remove(file))
				continue
			}
			// Out of the lab's directory, which goes with the lab.
			to := filepath.Join(os.TempDir(), fmt.Sprintf("bermlab-%s-%s-%d.pcap", m.lab.Name, e.Name, time.Now().UnixNano()))
			data, readErr := os.ReadFile(file)
			if err = errors.Join(err, readErr); readErr == nil {
				err = errors.Join(err, os.WriteFile(to, data, 0o644))
				kept = append(kept, to)
			}
		}
		return kept, err
	}, nil
}

// Explain tells each edge's drops and pipeline exits and the end of its daemon's log.
func (m *Main) Explain(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var b strings.Builder
	for _, e := range m.edges {
		fmt.Fprintf(&b, "%s:", e.Name)
		var d control.Drops
		if err := e.ask(ctx, &d, "drops"); err != nil {
			fmt.Fprintf(&b, " %v", err)
		}
		for _, x := range d.Drops {
			if x.Dropped.Packets+x.Shadowed.Packets > 0 {
				fmt.Fprintf(&b, " %s=%d/%d", x.Reason, x.Dropped.Packets, x.Shadowed.Packets)
			}
		}
		for _, x := range d.Stages {
			if x.Count.Packets > 0 {
				fmt.Fprintf(&b, " %s/%s=%d", x.Stage, x.Exit, x.Count.Packets)
			}
		}
		if e.bermd != nil {
			for line := range strings.Lines(e.bermd.Tail(4)) {
				fmt.Fprintf(&b, "\n  %.300s", strings.TrimSpace(line))
			}
		}
		b.WriteByte('\n')
	}
	return strings.TrimSpace(b.String())
}
