package main

import (
	"bufio"
	"bytes"
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/bermedge/berm/cmd/bermd/internal/edge"
	"github.com/bermedge/berm/userspace/clock"
	"github.com/bermedge/berm/userspace/config"
	"github.com/bermedge/berm/userspace/demo"
)

//go:embed allinone.yaml.tmpl
var builtIn string

// builtInValues are what the built-in settings depend on.
type builtInValues struct {
	Interfaces []string
	Addresses  []builtInAddress
	Group      string
	Origin     string
}

type builtInAddress struct {
	Address netip.Addr
	Suffix  string // of the VIPs' names
}

// allInOneConfig is the file given, or the built-in settings for this host.
func (r *run) allInOneConfig() (*config.Config, error) {
	if r.Config != "" {
		cfg, err := config.Load(r.Config)
		if err == nil && len(r.Interface) > 0 {
			cfg.Kernel.Interfaces = r.Interface
		}
		return cfg, err
	}
	return r.builtInConfig("berm", "http://127.0.0.1:9")
}

// builtInConfig renders the built-in settings and reads them like a file.
func (r *run) builtInConfig(group, origin string) (*config.Config, error) {
	v := builtInValues{Interfaces: r.Interface, Group: group, Origin: origin}
	if len(v.Interfaces) == 0 {
		v.Interfaces = defaultInterfaces()
	}
	for i, a := range hostAddresses(v.Interfaces) {
		suffix := ""
		if i > 0 {
			suffix = fmt.Sprintf("-%d", i+1)
		}
		v.Addresses = append(v.Addresses, builtInAddress{a, suffix})
	}
	var text bytes.Buffer
	if err := template.Must(template.New("built-in").Parse(builtIn)).Execute(&text, v); err != nil {
		return nil, err
	}
	cfg, err := config.Parse("built-in settings", text.Bytes())
	if err != nil {
		return nil, err
	}
	cfg.Kernel.Pins = cmp.Or(r.Pins, cfg.Kernel.Pins)
	cfg.Admin.Socket = cmp.Or(r.Socket, cfg.Admin.Socket)
	return cfg, nil
}

// defaultInterfaces are lo, over which this host reaches its own addresses, and the default
// route's.
func defaultInterfaces() []string {
	out := []string{"lo"}
	f, err := os.Open("/proc/net/route")
	if err != nil {
		return out
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		cols := strings.Fields(lines.Text())
		if len(cols) > 7 && cols[1] == "00000000" && cols[7] == "00000000" && !slices.Contains(out, cols[0]) {
			out = append(out, cols[0])
		}
	}
	return out
}

// maxAddresses bounds the VIPs that the built-in settings make.
const maxAddresses = 4

// hostAddresses are the addresses that become VIPs: those on the interfaces, without loopback ones
// (packets from such are refused at a VIP) and link-local ones.
func hostAddresses(interfaces []string) []netip.Addr {
	var out []netip.Addr
	for _, name := range interfaces {
		ifc, err := net.InterfaceByName(name)
		if err != nil {
			continue // the loader names interfaces that do not exist
		}
		addrs, err := ifc.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err == nil && p.Addr().IsGlobalUnicast() && !slices.Contains(out, p.Addr()) {
				out = append(out, p.Addr())
			}
		}
	}
	return out[:min(len(out), maxAddresses)]
}

// serveAllInOne is the unprivileged child: the daemon with its demo origin.
func (r *run) serveAllInOne() error {
	c, err := told()
	if err != nil {
		return err
	}
	load := func() (*config.Config, error) { return config.Load(r.Config) }
	if r.Config == "" {
		origin, stop, err := serveDemo()
		if err != nil {
			return err
		}
		defer stop()
		load = func() (*config.Config, error) { return r.builtInConfig(c.Group, origin) }
	}
	return r.serve(edge.Options{Path: r.path(), Load: load}, func(e *edge.Edge) { r.welcome(os.Stdout, e, c) })
}

// serveDemo runs the demo origin on a port that the kernel chooses.
func serveDemo() (url string, stop func(), err error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", nil, fmt.Errorf("demo origin: %w", err)
	}
	srv := &http.Server{Handler: demo.New(clock.System{}), ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintf(os.Stderr, "bermd: demo origin: %v\n", err)
		}
	}()
	return "http://" + l.Addr().String(), func() { _ = srv.Close() }, nil
}

// welcome says what was done, and what to try.
func (r *run) welcome(w io.Writer, e *edge.Edge, c circumstances) {
	cfg := e.Config()
	if c.Restart > 0 {
		fmt.Fprintf(w, "\nThe daemon serves again (start %d).\n\n", c.Restart+1)
		return
	}
	fmt.Fprintf(w, "\nBerm %s serves on this host.\n\n", version)
	if c.Loaded != nil {
		for _, i := range c.Loaded.Interfaces {
			fmt.Fprintf(w, "  kernel half  on %s (%s)\n", i.Name, i.Mode)
		}
		for _, n := range c.Loaded.Notes {
			fmt.Fprintf(w, "               %s\n", n)
		}
		if c.Loaded.AlreadyUp {
			fmt.Fprint(w, "               it was up before and stays up at the end (berm kernel down)\n")
		}
	} else {
		fmt.Fprintf(w, "  kernel half  not there: %s\n               The daemon runs alone: nothing is filtered, limited or steered.\n", c.Why)
	}
	for _, a := range e.Listeners() {
		fmt.Fprintf(w, "  listening    %s/%s: %s\n", a.Address, a.Network, strings.Join(a.Protocols, ", "))
	}
	for _, v := range cfg.VIPs {
		fmt.Fprintf(w, "  VIP          %s %s/%s\n", v.Name, netip.AddrPortFrom(v.Address, v.Port), v.Protocol)
	}
	fmt.Fprintf(w, "  admin        %s\n", cfg.Admin.Socket)
	if r.Config == "" {
		r.suggest(w, cfg, c)
	}
	fmt.Fprint(w, "\nCtrl-C takes everything down again.\n\n")
}

// suggest prints commands that show what an edge does.
func (r *run) suggest(w io.Writer, cfg *config.Config, c circumstances) {
	host := "127.0.0.1"
	if len(cfg.VIPs) > 0 {
		host = cfg.VIPs[0].Address.String()
		if cfg.VIPs[0].Address.Is6() {
			host = "[" + host + "]"
		}
	}
	fmt.Fprintf(w, `
Try, in another terminal (-k since the certificate is self-signed):
  curl -ksD - -o /dev/null https://%[1]s:8443/objects/1   # twice: Cache-Status says hit
  curl -s http://%[1]s:8080/                               # the demo origin's page
  %[2]s status; %[2]s top
  the status page: http://127.0.0.1:8080/.berm/
`, host, r.cli())
	if c.Loaded == nil || len(cfg.VIPs) == 0 {
		return
	}
	fmt.Fprintf(w, `
Refuse a country, and see it counted:
  printf '%%s,ZZ\n' %[2]s > /tmp/country.csv && %[3]s geo load /tmp/country.csv
  %[3]s geo policy default --drop ZZ
  curl -m 2 -s http://%[1]s:8080/ || %[3]s drops   # geo
  %[3]s geo policy default --allow ZZ

Hold a source to 20 packets a second:
  %[3]s rate set default --packets 20 --packets-burst 20
  for i in $(seq 20); do curl -m 1 -so /dev/null http://%[1]s:8080/; done; %[3]s drops   # rate_packets
  %[3]s reload   # back to the built-in settings
`, host, prefixOf(cfg.VIPs[0].Address), r.cli())
}

// cli is how the one who started this calls berm from where they are: the suggestions are to be pasted.
func (r *run) cli() string {
	name := "berm"
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "berm")
		found, err := exec.LookPath("berm")
		if err != nil || found != beside {
			name = beside
			if wd, err := os.Getwd(); err == nil {
				if rel, err := filepath.Rel(wd, beside); err == nil && !strings.HasPrefix(rel, "..") {
					name = rel
				}
			}
		}
	}
	if r.Socket != "" {
		name += " --socket " + r.Socket
	}
	if os.Getenv("SUDO_UID") != "" {
		name = "sudo " + name
	}
	return name
}

func prefixOf(a netip.Addr) string {
	if a.Is4() {
		return a.String() + "/32"
	}
	return netip.PrefixFrom(a, 64).Masked().String()
}
