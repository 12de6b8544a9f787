package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

// daemonUser runs bermd: no account of the machine's but the one that owns nothing.
const daemonUser = 65534

// Edge is one edge host: the kernel half on eth0, bermd, BIRD and a counting UDP service.
type Edge struct {
	Name string

	m                        *Main
	node                     *rig.Node
	addr4, addr6             string // of eth0: tunnels and peers' probes arrive here
	link4router, link6router string // the router's end
	pins, config, socket     string
	sinkCounts               string
	cgroup                   string
	bermd, bird, sink        *rig.Proc
}

func newEdge(m *Main, n int) *Edge {
	name := fmt.Sprintf("edge%d", n)
	return &Edge{
		Name:        name,
		m:           m,
		addr4:       fmt.Sprintf("10.77.%d.1", n),
		addr6:       fmt.Sprintf("2001:db8:77:%d::1", n),
		link4router: fmt.Sprintf("10.77.%d.254", n),
		link6router: fmt.Sprintf("2001:db8:77:%d::fe", n),
		socket:      m.lab.Path(name + "-run/berm.sock"),
		sinkCounts:  m.lab.Path(name + "-sink.counts"),
	}
}

// connect makes the edge's node and its link.
func (e *Edge) connect(ctx context.Context) (err error) {
	if e.node, err = e.m.lab.AddNode(e.Name); err != nil {
		return err
	}
	err = rig.Connect(ctx,
		rig.End{Node: e.node, Dev: "eth0", Addrs: []string{e.addr4 + "/24", e.addr6 + "/64"}},
		rig.End{Node: e.m.router, Dev: e.Name, Addrs: []string{e.link4router + "/24", e.link6router + "/64"}}, e.m.mtu)
	if err != nil {
		return err
	}
	// Else the kernel forgets IPv6 addresses of a link that goes down, and the edge never returns.
	if err := e.node.Sysctl("net.ipv6.conf.eth0.keep_addr_on_down", "1"); err != nil {
		return err
	}
	for key, value := range e.m.edgeSysctls {
		if err := e.node.Sysctl(key, value); err != nil {
			return err
		}
	}
	// bermd binds below 1024 with a capability of its own, the VIP lives on lo.
	if err := e.node.AddAddr("lo", vip4+"/32", vip6+"/128"); err != nil {
		return err
	}
	if err := defaultRoutes(e.node, e.link4router, e.link6router); err != nil {
		return err
	}
	return e.m.router.AcceptXDP(e.Name)
}

// start brings up everything but the announcement.
func (e *Edge) start(ctx context.Context) error {
	if err := e.prepare(ctx); err != nil {
		return err
	}
	return e.raise(ctx)
}

// prepare lays what both halves need, and starts the sink.
func (e *Edge) prepare(ctx context.Context) (err error) {
	if err := e.lay(); err != nil {
		return err
	}
	if e.sink, err = startActor(e.node, "sink", vipPort(vip4, sinkPort), vipPort(vip6, sinkPort), e.sinkCounts); err != nil {
		return err
	}
	return awaitCounts(ctx, e.sink, e.sinkCounts)
}

// lay makes the edge's directories and its file.
func (e *Edge) lay() (err error) {
	if e.pins, err = e.m.lab.MountBPF(e.Name + "-bpf"); err != nil {
		return err
	}
	if e.cgroup, err = e.m.lab.AddCgroup(e.Name); err != nil {
		return err
	}
	run := e.m.lab.Path(e.Name + "-run")
	if err := errors.Join(os.Mkdir(run, 0o755), os.Chown(run, daemonUser, daemonUser)); err != nil {
		return err
	}
	e.config, err = e.m.lab.WriteFile(e.Name+".yaml", 0o644, []byte(e.configFile()))
	return err
}

// raise brings both halves up.
func (e *Edge) raise(ctx context.Context) error {
	if err := e.loadKernel(ctx); err != nil {
		return err
	}
	return e.startDaemon(ctx)
}

func (e *Edge) loadKernel(ctx context.Context) error {
	if out, err := e.berm(ctx, "kernel", "up"); err != nil {
		return fmt.Errorf("%s: %w: %s", e.Name, err, out)
	}
	return nil
}

// reload gives the edge the file that it should have now.
func (e *Edge) reload(ctx context.Context) error {
	if _, err := e.m.lab.WriteFile(e.Name+".yaml", 0o644, []byte(e.configFile())); err != nil {
		return err
	}
	_, err := e.berm(ctx, "reload")
	return err
}

// startDaemon starts bermd without privilege, as its unit would, and waits until it is ready.
func (e *Edge) startDaemon(ctx context.Context) error {
	if err := e.launchDaemon(ctx); err != nil {
		return err
	}
	return e.awaitReady(ctx)
}

// launchDaemon starts bermd, and waits only for what stands in for systemd.
func (e *Edge) launchDaemon(ctx context.Context) (err error) {
	bin, err := rig.Binary(e.m.opts.Bin, "bermd")
	if err != nil {
		return err
	}
	if bin, err = e.m.lab.Publish(bin); err != nil {
		return err
	}
	if e.m.units {
		return e.startUnit(bin)
	}
	e.bermd, err = e.node.Start(rig.Daemon{
		Name: "bermd", Args: e.daemon(bin),
		UID: daemonUser, GID: daemonUser, Caps: []uintptr{unix.CAP_NET_BIND_SERVICE}, Cgroup: e.cgroup,
	})
	return err
}

// daemon is its command. What it keeps is its own, and goes with the lab.
func (e *Edge) daemon(bermd string) []string {
	return []string{bermd, "run", "--config", e.config, "--state", e.m.lab.Path(e.Name + "-run")}
}

func (e *Edge) awaitReady(ctx context.Context) error {
	var status control.Status
	err := rig.Until(ctx, 20*time.Second, "bermd is ready and lacks nothing", func() (bool, error) {
		if done, err := e.bermd.Exited(); done {
			return false, fmt.Errorf("bermd ended: %w", err)
		}
		if _, err := e.node.Run(ctx, "curl", "-sf", "-m", "1", "http://127.0.0.1:9190/readyz"); err != nil {
			return false, nil
		}
		return e.ask(ctx, &status, "status") == nil && len(status.Problems) == 0, nil
	})
	if err != nil {
		return fmt.Errorf("%w; its problems: %q\n%s", err, status.Problems, e.bermd.Tail(10))
	}
	return nil
}

// announce starts the edge's BIRD.
func (e *Edge) announce() (err error) {
	e.bird, err = startBIRD(e.m.lab, e.node, e.birdConfig(vip4, vip6))
	return err
}

// berm runs the operator's CLI on the edge and returns what it printed.
func (e *Edge) berm(ctx context.Context, args ...string) ([]byte, error) {
	bin, err := rig.Binary(e.m.opts.Bin, "berm")
	if err != nil {
		return nil, err
	}
	return e.node.Output(ctx, append([]string{bin, "--config", e.config, "--json"}, args...)...)
}

// ask runs the CLI and decodes its answer.
func (e *Edge) ask(ctx context.Context, into any, args ...string) error {
	out, err := e.berm(ctx, args...)
	if err != nil {
		return err
	}
	return decode(e, out, into, args...)
}

func decode(e *Edge, out []byte, into any, args ...string) error {
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("%s: berm %s: %w in %.200q", e.Name, strings.Join(args, " "), err, out)
	}
	return nil
}

func vipPort(vip string, port int) string {
	if strings.Contains(vip, ":") {
		vip = "[" + vip + "]"
	}
	return fmt.Sprintf("%s:%d", vip, port)
}

// service is one that the edges' files name.
type service struct {
	name, addr, proto string
	port              int
}

// configFile is what the operator of this edge would have written.
func (e *Edge) configFile() string {
	if e.m.edgeFile != nil {
		return e.m.edgeFile(e)
	}
	var vips, backends strings.Builder
	for _, v := range append([]service{
		{"web4", vip4, "tcp", 80},
		{"tls4", vip4, "tcp", 443},
		{"quic4", vip4, "udp", 443},
		{"sink4", vip4, "udp", sinkPort},
		{"web6", vip6, "tcp", 80},
		{"tls6", vip6, "tcp", 443},
		{"quic6", vip6, "udp", 443},
		{"sink6", vip6, "udp", sinkPort},
	}, e.m.services...) {
		fmt.Fprintf(&vips, "  - {name: %s, address: %q, port: %d, protocol: %s, backends: edges, geo: default, rate: default%s}\n",
			v.name, v.addr, v.port, v.proto, e.m.vipSettings[v.name])
	}
	for _, peer := range e.m.peers() {
		if peer.site() == e.site() {
			fmt.Fprintf(&backends, "    - {name: %s, address: %s}\n", peer.Name, peer.addr4)
		}
	}
	lab := e.m.lab
	more := e.otherSites()
	if e.m.edgeConfig != nil {
		more += e.m.edgeConfig(e)
	}
	return fmt.Sprintf(`node: {name: %s, site: %s, region: %q, address4: %s, address6: %q}
kernel:
  interfaces: [eth0]
  mode: native
  pins: %s
  cgroup: %s
  group: nogroup
  rate_cells: 65536
listen:
  http: ["0.0.0.0:80", "[::]:80"]
  https: ["0.0.0.0:443", "[::]:443"]
  status_allow: [127.0.0.0/8, "::1/128"]
  drain: 6s # below the 10 s that clients are patient for: new ones may wait as long as old ones take
tls: %s
admin: {socket: %s, metrics: "127.0.0.1:9190"}
vips:
%sbackends:
  edges:
%ssteer:
  secret_file: %s
  probe: {interval: 150ms, timeout: 100ms, failures: %d, successes: 2, port: 9191}
%sgeo:
  policies:
    default: {fallback: allow, drop: [XX], shadow: [XS]}
  overrides:
    - {prefix: 198.51.100.0/25, country: XX}
    - {prefix: "2001:db8:b::/48", country: XX}
    - {prefix: 192.0.2.128/25, country: XS}
    - {prefix: 198.51.100.128/25, rate: greedy}
    - {prefix: "2001:db8:c::/48", rate: greedy}
rate:
  classes:
    default: {packets: 200000, packets_burst: 100000}
    greedy: {packets: %d, packets_burst: %d}
cache: {memory: 128MiB, name: %s}
origins:
  lab: {urls: ["http://%s"]}
routes: [{host: "*", path: /, origin: lab}]
log: {level: info, format: text}
%s`, e.Name, e.site(), e.region(), e.addr4, e.addr6, e.pins, e.cgroup, e.m.tls, e.socket,
		vips.String(), backends.String(), lab.Path("secret"), e.m.failures, e.m.steering, greedyRate, greedyBurst, e.Name, originAddr, more)
}

// peers are the edges that the files name, whether built yet or not: every file names the same backends.
func (m *Main) peers() []*Edge {
	var all []*Edge
	for i := range m.listed {
		all = append(all, newEdge(m, i+1))
	}
	return all
}
