package scenario

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/bermedge/berm/test/rig"
)

// The edges announce their VIPs over BGP, watched by BFD, from a BIRD of their own beside
// bermd; the router spreads over all of them by address and port (ECMP).
const (
	routerAS = 64512
	edgeAS   = 64513
)

// birdCommon watches with BFD, which is for edges that hang: a lost link is seen at once. One
// second, since a busy lab machine may keep a BIRD from its CPU for some hundred milliseconds.
const birdCommon = `log stderr { info, remote, warning, error, auth, fatal, bug, trace };
router id %s;
protocol device { scan time 1; }
protocol bfd {
  interface "*" { min rx interval 200 ms; min tx interval 200 ms; idle tx interval 500 ms; multiplier 5; };
}
`

// birdRouter is the router's configuration: one session per edge and family.
func birdRouter(common, id string, edges []*Edge, extra ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, common, id)
	for _, f := range []int{4, 6} {
		fmt.Fprintf(&b, `protocol kernel kernel%[1]d {
  merge paths on limit 16;
  ipv%[1]d { import none; export where source = RTS_BGP; };
}
`, f)
		for _, e := range edges {
			local, remote := e.link4router, e.addr4
			if f == 6 {
				local, remote = e.link6router, e.addr6
			}
			b.WriteString(birdSession(e.Name, f, local, remote, routerAS, edgeAS, "import all; export none;", extra...))
		}
	}
	return b.String()
}

// birdEdge is an edge's configuration.
func (e *Edge) birdConfig(vip4, vip6 string) string {
	var b strings.Builder
	fmt.Fprintf(&b, birdCommon, e.addr4)
	fmt.Fprintf(&b, "protocol static { ipv4; route %s/32 blackhole; }\n", vip4)
	fmt.Fprintf(&b, "protocol static { ipv6; route %s/128 blackhole; }\n", vip6)
	b.WriteString(birdSession("router", 4, e.addr4, e.link4router, edgeAS, routerAS, "import none; export all;"))
	b.WriteString(birdSession("router", 6, e.addr6, e.link6router, edgeAS, routerAS, "import none; export all;"))
	return b.String()
}

func birdSession(name string, family int, local, remote string, localAS, remoteAS int, policy string, extra ...string) string {
	return fmt.Sprintf(`protocol bgp %s_%d {
  local %s as %d;
  neighbor %s as %d;
  direct;
  bfd on; debug { states };
  connect delay time 1; connect retry time 1; error wait time 1, 2; hold time 9;
  %s
  ipv%d { %s };
}
`, name, family, local, localAS, remote, remoteAS, strings.Join(extra, " "), family, policy)
}

// startBIRD writes the configuration and starts BIRD in a node.
func startBIRD(lab *rig.Lab, n *rig.Node, config string) (*rig.Proc, error) {
	path, err := lab.WriteFile(n.Name+"-bird.conf", 0o644, []byte(config))
	if err != nil {
		return nil, err
	}
	return n.Start(rig.Daemon{
		Name: "bird",
		Args: []string{"bird", "-f", "-c", path, "-s", lab.Path(n.Name + "-bird.ctl"), "-P", lab.Path(n.Name + "-bird.pid")},
	})
}

// awaitPaths waits until the router has as many ways to both VIPs as asked.
func (m *Main) awaitPaths(ctx context.Context, want int, limit time.Duration) error {
	what := fmt.Sprintf("router has %d ways to each VIP", want)
	return rig.Until(ctx, limit, what, func() (bool, error) {
		for _, args := range [][]string{{"ip", "route", "show", vip4}, {"ip", "-6", "route", "show", vip6}} {
			out, err := m.router.Run(ctx, args...)
			if err != nil {
				return false, err
			}
			if strings.Count(out, "via ") != want {
				return false, nil
			}
		}
		return true, nil
	})
}
