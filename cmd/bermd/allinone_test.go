package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/test/rig/rigtest"
	"github.com/bermedge/berm/userspace/control"
)

// status reads the fields of /proc/<pid>/status of every thread, and fails when threads differ.
func status(t *testing.T, pid int) map[string]string {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("no threads of %d: %v", pid, err)
	}
	out := map[string]string{}
	for _, path := range tasks {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // a thread that just ended
		}
		for _, line := range strings.Split(string(b), "\n") {
			name, value, _ := strings.Cut(line, ":")
			if !strings.HasPrefix(name, "Cap") && name != "Uid" && name != "Gid" && name != "Groups" && name != "NoNewPrivs" {
				continue
			}
			value = strings.Join(strings.Fields(value), " ")
			if before, ok := out[name]; ok && before != value {
				t.Errorf("threads differ in %s: %s, %s", name, before, value)
			}
			out[name] = value
		}
	}
	return out
}

// mustHoldNothing asserts that a process is nobody's with CAP_NET_BIND_SERVICE alone.
func mustHoldNothing(t *testing.T, pid int) {
	t.Helper()
	const bind = "0000000000000400"
	s := status(t, pid)
	for name, want := range map[string]string{"CapInh": bind, "CapPrm": bind, "CapEff": bind, "CapBnd": bind, "CapAmb": bind, "NoNewPrivs": "1", "Groups": ""} {
		if s[name] != want {
			t.Errorf("%s is %q, want %q", name, s[name], want)
		}
	}
	for _, name := range []string{"Uid", "Gid"} {
		if ids := strings.Fields(s[name]); len(ids) != 4 || ids[0] == "0" || ids[0] != ids[1] || ids[0] != ids[2] || ids[0] != ids[3] {
			t.Errorf("%s is %q", name, s[name])
		}
	}
}

// pair makes an edge and a client that reaches it.
func pair(t *testing.T) (l *rig.Lab, edge, client *rig.Node) {
	t.Helper()
	l = rigtest.New(t, "curl")
	var err error
	if edge, err = l.AddNode("edge"); err == nil {
		client, err = l.AddNode("client")
	}
	if err == nil {
		err = rig.Connect(t.Context(), rig.End{Node: edge, Dev: "eth0", Addrs: []string{"192.0.2.1/24", "2001:db8::1/64"}},
			rig.End{Node: client, Dev: "eth0", Addrs: []string{"192.0.2.2/24", "2001:db8::2/64"}}, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return l, edge, client
}

// Started by root with a file, the daemon becomes nobody before it reads anything, and still binds
// ports below 1024.
func TestRootBecomesNobody(t *testing.T) {
	l, edge, client := pair(t)
	bermd := mustHide(t)
	config, err := l.WriteFile("berm.yaml", 0o644, []byte(fmt.Sprintf(`
listen: {http: [":80"], https: [":443"]}
kernel: {pins: %s}
admin: {socket: %s/berm/berm.sock, metrics: ""}
`, l.Path("pins"), l.Dir)))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(l.Path("berm"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(l.Path("berm"), 0o777); err != nil {
		t.Fatal(err)
	}
	p, err := edge.Start(rig.Daemon{Name: "bermd", Args: []string{bermd, "run", "--config", config, "--state", l.Path("state", "berm")}})
	if err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "an answer from port 80", func() (bool, error) {
		out, _ := client.Run(t.Context(), "curl", "-s", "-m", "2", "-o", "/dev/null", "-w", "%{http_code}", "http://192.0.2.1/")
		return strings.HasSuffix(out, "404"), nil
	})
	mustHoldNothing(t, p.PID())
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.PID())); err != nil || string(b) != "bermd\n" {
		t.Errorf("it is called %q %v", b, err)
	}
	if out, err := client.Run(t.Context(), "curl", "-sk", "-m", "2", "-o", "/dev/null", "-w", "%{http_code}", "https://[2001:db8::1]/"); err != nil || out != "404" {
		t.Errorf("%q %v", out, err)
	}
	if err := p.Stop(10 * time.Second); err != nil {
		t.Error(err)
	}
}

// curlCode asks once and returns the status, "000" when there was no answer.
func curlCode(t *testing.T, from *rig.Node, url string) string {
	t.Helper()
	return curlWithin(t, from, url, "3") // a busy machine's first answer takes a while
}

// curlWithin asks once, for so many seconds.
func curlWithin(t *testing.T, from *rig.Node, url, seconds string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	out, err := from.Output(ctx, "curl", "-sk", "-m", seconds, "-o", "/dev/null", "-w", "%{http_code}", url)
	if err != nil && len(out) == 0 {
		return "000"
	}
	return string(out)
}

// One command: kernel half, daemon without privilege, demo origin; and all gone at the end.
func TestAllInOne(t *testing.T) {
	l, edge, client := pair(t)
	pins := fmt.Sprintf("/sys/fs/bpf/bermd-%s", l.Name)
	socket := l.Path("berm", "a.sock")
	p, err := edge.Start(rig.Daemon{Name: "bermd", Args: []string{
		bermd, "run", "--all-in-one", "-i", "lo", "-i", "eth0", "--pins", pins,
		"--socket", socket, "--state", l.Path("state", "berm"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	c := control.NewClient(socket)
	defer c.Close()
	var s control.Status
	ready := func() (bool, error) {
		s, err = c.Status(t.Context())
		return err == nil && s.Ready && s.Kernel.Attached, nil
	}
	within(t, 60*time.Second, "the edge to be ready", ready)
	mustHoldNothing(t, s.PID)
	if s.PID == p.PID() {
		t.Error("the daemon is its own supervisor")
	}
	if len(s.VIPs) != 6 || len(s.Problems) != 0 {
		t.Errorf("VIPs %+v, problems %q", s.VIPs, s.Problems)
	}
	for _, url := range []string{"http://192.0.2.1:8080/", "https://192.0.2.1:8443/objects/1", "https://[2001:db8::1]:8443/objects/1"} {
		if code := curlCode(t, client, url); code != "200" {
			t.Errorf("%s: %s", url, code)
		}
		if code := curlCode(t, edge, url); code != "200" {
			t.Errorf("%s from the host itself: %s", url, code)
		}
	}
	log, err := os.ReadFile(p.Log)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"on eth0 (native)", "on lo (generic)", "VIP          tls 192.0.2.1:8443/tcp", "curl -ksD", filepath.Join(filepath.Dir(bermd), "berm") + " --socket " + socket + " status", "Ctrl-C takes everything down"} {
		if !strings.Contains(string(log), want) {
			t.Errorf("it does not say %q", want)
		}
	}

	country, err := l.WriteFile("country.csv", 0o644, []byte("192.0.2.2/32,ZZ\n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.LoadGeo(t.Context(), control.GeoLoad{Databases: []string{country}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.SetGeoPolicy(t.Context(), control.GeoPolicy{Name: "default", Fallback: "allow", Drop: []string{"ZZ"}}); err != nil {
		t.Fatal(err)
	}
	refused := func(when string) {
		t.Helper()
		// Not longer: a daemon that has started again does not know of the rule.
		if code := curlWithin(t, client, "http://192.0.2.1:8080/", "1"); code != "000" {
			t.Errorf("%s: the blocked country got %s", when, code)
		}
	}
	refused("with a rule")
	if code := curlCode(t, edge, "http://192.0.2.1:8080/"); code != "200" {
		t.Errorf("everyone else got %s", code)
	}

	before := s.PID
	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	refused("after kill -9")
	within(t, 20*time.Second, "another daemon", func() (bool, error) {
		ok, err := ready()
		return ok && s.PID != before, err
	})
	mustHoldNothing(t, s.PID)
	if code := curlCode(t, edge, "http://192.0.2.1:8080/"); code != "200" {
		t.Errorf("after the restart: %s", code)
	}

	if err := p.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := p.Wait(ctx); err != nil {
		t.Error("after Ctrl-C: ", err)
	}
	if _, err := os.Stat(pins); err == nil {
		t.Error("pins were left behind")
	}
	if err := syscall.Kill(s.PID, 0); err == nil {
		t.Error("the daemon outlives its supervisor")
	}
	out, err := edge.Output(t.Context(), "ip", "-j", "-d", "link", "show", "dev", "eth0")
	var links []map[string]json.RawMessage
	if err != nil || json.Unmarshal(out, &links) != nil || links[0]["xdp"] != nil {
		t.Errorf("something is still attached: %s %v", out, err)
	}
}

// mustHide puts the program where only root may look, as in a home directory.
func mustHide(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(bermd)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "bermd")
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// Where XDP cannot attach, the daemon runs alone and says why.
func TestAllInOneWithoutXDP(t *testing.T) {
	l, edge, client := pair(t)
	socket := l.Path("berm", "a.sock")
	bermd := mustHide(t)
	p, err := edge.Start(rig.Daemon{Name: "bermd", Args: []string{
		bermd, "run", "--all-in-one", "-i", "eth0", "-i", "nowhere0", "--pins", "/sys/fs/bpf/bermd-" + l.Name,
		"--socket", socket, "--state", l.Path("state", "berm"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	within(t, 60*time.Second, "an answer", func() (bool, error) { return curlCode(t, client, "http://192.0.2.1:8080/") == "200", nil })
	log, err := os.ReadFile(p.Log)
	if err != nil || !strings.Contains(string(log), "nowhere0") || !strings.Contains(string(log), "The daemon runs alone") {
		t.Errorf("%v:\n%s", err, log)
	}
	c := control.NewClient(socket)
	defer c.Close()
	s, err := c.Status(t.Context())
	if err != nil || s.Kernel.Attached || len(s.Problems) == 0 {
		t.Errorf("%+v %v", s.Kernel, err)
	}
	mustHoldNothing(t, s.PID)
	if _, err := os.Stat("/sys/fs/bpf/bermd-" + l.Name); err == nil {
		t.Error("half of the kernel half stays")
	}
	if err := p.Stop(20 * time.Second); err != nil {
		t.Error(err)
	}
}

// So it does for somebody who is not root.
func TestAllInOneWithoutRoot(t *testing.T) {
	l, edge, client := pair(t)
	if err := os.Mkdir(l.Path("own"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(l.Path("own"), 65534, 65534); err != nil {
		t.Fatal(err)
	}
	p, err := edge.Start(rig.Daemon{Name: "bermd", Args: []string{
		"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
		bermd, "run", "--all-in-one", "--socket", l.Path("own", "a.sock"), "--state", l.Path("own"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	within(t, 60*time.Second, "an answer", func() (bool, error) { return curlCode(t, client, "http://192.0.2.1:8080/") == "200", nil })
	log, err := os.ReadFile(p.Log)
	if err != nil || !strings.Contains(string(log), "it takes root to load it") {
		t.Errorf("%v:\n%s", err, log)
	}
	if err := p.Stop(20 * time.Second); err != nil {
		t.Error(err)
	}
}
