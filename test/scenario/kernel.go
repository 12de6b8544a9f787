package scenario

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

// drops adds up one drop reason over all edges, as `berm drops` tells it.
func (m *Main) drops(ctx context.Context, reason string) (dropped, shadowed uint64, err error) {
	for _, e := range m.edges {
		d, s, err := e.drops(ctx, reason)
		if err != nil {
			return 0, 0, err
		}
		dropped, shadowed = dropped+d, shadowed+s
	}
	return dropped, shadowed, nil
}

func (e *Edge) drops(ctx context.Context, reason string) (dropped, shadowed uint64, err error) {
	var all control.Drops
	if err := e.ask(ctx, &all, "drops"); err != nil {
		return 0, 0, err
	}
	for _, d := range all.Drops {
		if d.Reason == reason {
			return d.Dropped.Packets, d.Shadowed.Packets, nil
		}
	}
	return 0, 0, nil // reasons that never happened may be left out
}

// metric reads one of the daemon's metrics: all of its labels are added up, unless the name has some.
func (e *Edge) metric(ctx context.Context, name string) (sum float64, err error) {
	text, err := e.node.Run(ctx, "curl", "-sf", "-m", "5", "http://127.0.0.1:9190/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if of, _, _ := strings.Cut(series, "{"); !ok || of != name && series != name {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: metric %s: %w", e.Name, name, err)
		}
		sum += v
	}
	return sum, nil
}

// sunk adds up what reached the edges' counting sockets from one source.
func (m *Main) sunk(ctx context.Context, source string) (uint64, error) {
	var sum uint64
	for _, e := range m.edges {
		n, err := e.sunk(ctx, source)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

func (e *Edge) sunk(ctx context.Context, source string) (uint64, error) {
	counts := map[string]uint64{}
	if err := readCounts(ctx, e.sinkCounts, &counts); err != nil {
		return 0, fmt.Errorf("%s: %w", e.Name, err)
	}
	return counts[source], nil
}

// sent is what bermprobe packets reports.
type sent struct {
	Sent    uint64  `json:"sent"`
	Lost    uint64  `json:"lost_at_device"`
	Seconds float64 `json:"seconds"`
}

// onCPU is the beginning of a command that is to have a CPU before all others.
func onCPU(n int) []string { return []string{"chrt", "-f", "1", "taskset", "-c", strconv.Itoa(n)} }

// probe runs bermprobe in a node, behind another command when one is given.
func (m *Main) probe(ctx context.Context, n *rig.Node, prefix []string, into any, args ...string) error {
	bin, err := rig.Binary(m.opts.Bin, "bermprobe")
	if err != nil {
		return err
	}
	out, err := n.Output(ctx, slices.Concat(prefix, []string{bin, "--json"}, args)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("bermprobe %s: %w in %.200q", args[0], err, out)
	}
	return nil
}

// packets sends counted packets and returns how many left the sender's device.
func (m *Main) packets(ctx context.Context, n *rig.Node, args ...string) (uint64, error) {
	var s sent
	if err := m.probe(ctx, n, nil, &s, append([]string{"packets"}, args...)...); err != nil {
		return 0, err
	}
	return s.Sent - s.Lost, nil
}

// load is what bermprobe load reports.
type load struct {
	Requests uint64            `json:"requests"`
	OK       uint64            `json:"ok"`
	Errors   uint64            `json:"errors"`
	Unsent   uint64            `json:"unsent"`
	RPS      float64           `json:"rps"`
	Status   map[string]uint64 `json:"status"`
	Failures map[string]uint64 `json:"failures"`
	Latency  struct {
		P50 float64 `json:"p50"`
		P99 float64 `json:"p99"`
	} `json:"latency_ms"`
}
