// Package e2e runs the labs' scenarios as tests: behaviour as a client on the wire sees it.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/bermedge/berm/test/rig/rigtest"
	"github.com/bermedge/berm/test/scenario"
)

func TestMain(m *testing.M) {
	scenario.MaybeActor()
	dir, err := os.MkdirTemp("", "berm-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	built = sync.OnceValue(func() error { return build(dir) })
	if set := os.Getenv("BERM_BIN"); set != "" {
		dir, built = set, func() error { return nil }
	}
	if bin, err = filepath.Abs(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if os.Getenv("BERM_BIN") == "" {
		_ = os.RemoveAll(dir) // a temporary directory
	}
	os.Exit(code)
}

// What the labs run: BERM_BIN, or built into a directory for all of them by the first.
var (
	bin   string
	built func() error
)

func build(dir string) error {
	cmd := exec.Command("go", "build", "-o", dir, "github.com/bermedge/berm/cmd/...")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

// binaries returns where they are.
func binaries(t *testing.T) string {
	t.Helper()
	if err := built(); err != nil {
		t.Fatal(err)
	}
	return bin
}

// Labs that check what happens, rather than how fast, run beside each other, and after those that measure.

// TestMainPath runs the scenario "main".
func TestMainPath(t *testing.T) {
	runScenario(t, "main", "ip", "bird", "curl", "gtlsclient", "wrk", "ss", "taskset", "chrt", "tcpdump")
}

// TestQUICRebind runs the scenario "quic-rebind".
func TestQUICRebind(t *testing.T) {
	t.Parallel()
	runScenario(t, "quic-rebind", "ip", "bird", "curl", "gtlsclient", "tcpdump")
}

// TestDrain runs the scenario "drain".
func TestDrain(t *testing.T) {
	runScenario(t, "drain", "ip", "bird", "birdc", "curl", "tcpdump")
}

// TestTwoSites runs the scenario "two-sites".
func TestTwoSites(t *testing.T) {
	t.Parallel()
	runScenario(t, "two-sites", "ip", "curl", "gtlsclient", "tcpdump")
}

// TestDeadman runs the scenario "deadman".
func TestDeadman(t *testing.T) {
	runScenario(t, "deadman", "ip", "bird", "curl", "tcpdump")
}

// TestUpgrade runs the scenario "upgrade".
func TestUpgrade(t *testing.T) {
	runScenario(t, "upgrade", "ip", "bird", "curl", "wrk", "tcpdump")
}

// TestFlood runs the scenario "flood".
func TestFlood(t *testing.T) {
	runScenario(t, "flood", "ip", "bird", "curl", "tcpdump")
}

// TestICMP runs the scenario "icmp".
func TestICMP(t *testing.T) {
	t.Parallel()
	runScenario(t, "icmp", "ip", "bird", "curl", "gtlsclient", "nft", "ping", "ss", "tcpdump")
}

// TestFragments runs the scenario "fragments".
func TestFragments(t *testing.T) {
	t.Parallel()
	runScenario(t, "fragments", "ip", "bird", "curl", "ping", "tcpdump")
}

// TestCertRotation runs the scenario "cert-rotation".
func TestCertRotation(t *testing.T) {
	t.Parallel()
	runScenario(t, "cert-rotation", "ip", "bird", "curl", "openssl", "tcpdump")
}

// TestZeroRTT runs the scenario "zero-rtt".
func TestZeroRTT(t *testing.T) {
	t.Parallel()
	runScenario(t, "zero-rtt", "ip", "bird", "curl", "gtlsclient", "openssl", "tcpdump")
}

// TestWebRTC runs the scenario "webrtc".
func TestWebRTC(t *testing.T) {
	t.Parallel()
	runScenario(t, "webrtc", "ip", "bird", "curl", "python3", "tcpdump")
}

// TestCC runs the scenario "cc".
func TestCC(t *testing.T) {
	runScenario(t, "cc", "ip", "bird", "chrt", "curl", "gtlsclient", "ss", "tcpdump")
}

// TestMigration runs the scenario "migration".
func TestMigration(t *testing.T) {
	runScenario(t, "migration", "ip", "bird", "chrt", "curl", "gtlsclient", "tcpdump")
}

// TestBackends runs the scenario "backends".
func TestBackends(t *testing.T) {
	t.Parallel()
	runScenario(t, "backends", "ip", "curl", "tcpdump")
}

// runScenario runs a scenario that needs these programs; every step is a subtest and every check can
// fail it.
func runScenario(t *testing.T, id string, programs ...string) {
	t.Helper()
	s, err := scenario.Find(id)
	if err != nil {
		t.Fatal(err)
	}
	lab := rigtest.New(t, programs...)
	opts := scenario.Options{Bin: binaries(t), Log: t.Logf, Out: t.TempDir()}
	top, err := s.Up(t.Context(), lab, opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range top.Steps() {
		t.Run(step.Name, func(t *testing.T) {
			opts := opts
			opts.Log = t.Logf
			rec := &scenario.Recorder{OnCheck: func(c scenario.Check) {
				if !c.OK {
					t.Errorf("%s: %s %s, want %s", c.Name, c.Got, c.Unit, c.Want)
				} else {
					t.Logf("%s: %s %s (want %s)", c.Name, c.Got, c.Unit, c.Want)
				}
			}}
			scenario.RunStep(t.Context(), top, step, opts, rec)
		})
	}
}
