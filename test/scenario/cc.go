package scenario

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/bermedge/berm/test/rig"
)

// checkControllers gives the good client's addresses a controller each, and asks ss on the edges what their
// connections run.
func (m *Main) checkControllers(ctx context.Context, r *Recorder) (err error) {
	given := map[string]string{good4 + "/32": "reno", good6 + "/128": "cubic"} // the host's default is neither
	defer func() {
		for _, e := range m.edges {
			for prefix := range given {
				_, rerr := e.berm(context.WithoutCancel(ctx), "cc", "rm", prefix)
				err = errors.Join(err, rerr)
			}
		}
	}()
	for _, e := range m.edges {
		for prefix, controller := range given {
			for _, args := range [][]string{{"cc", "profile", controller, "--controller", controller}, {"cc", "set", prefix, controller}} {
				if out, err := e.berm(ctx, args...); err != nil {
					return fmt.Errorf("%s: %w: %s", e.Name, err, out)
				}
			}
		}
	}
	for client, vip := range map[string]string{good4: vip4, good6: vip6} {
		f, err := m.openFlow(ctx, m.good, vip, newFlowLimit)
		if err != nil {
			return err
		}
		defer f.close()
		a, err := f.get("/o/cc/1")
		if err != nil {
			return err
		}
		want := given[fmt.Sprintf("%s/%d", client, map[bool]int{true: 32, false: 128}[client == good4])]
		runs, err := m.controllers(ctx, a.edge, f.conn.LocalAddr().String())
		if err != nil {
			return err
		}
		r.Same("controller of "+client+" by ss", want, runs, "")
	}
	return nil
}

// controllers asks an edge's ss which of the lab's controllers a connection runs.
func (m *Main) controllers(ctx context.Context, edge, client string) (string, error) {
	for _, e := range m.edges {
		if e.Name != edge {
			continue
		}
		var found string
		err := rig.Until(ctx, 5*time.Second, "ss shows "+client, func() (_ bool, err error) {
			found, err = runsController(ctx, e.node, client)
			return found != "", err
		})
		return found, err
	}
	return "", fmt.Errorf("no edge is called %q", edge)
}

// runsController is what ss says that a connection to a client runs, or nothing when there is none.
func runsController(ctx context.Context, n *rig.Node, client string) (string, error) {
	out, err := n.Output(ctx, "ss", "-tinH", "dst", client)
	if err != nil {
		return "", err
	}
	found := ""
	for word := range strings.FieldsSeq(string(out)) {
		if word == "bbr" || word == "cubic" || word == "reno" {
			found = word
		}
	}
	return found, nil
}
