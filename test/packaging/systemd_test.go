package packaging

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/test/rig/rigtest"
)

// TestUnderSystemd runs the units for real: systemd as process 1 of a throw-away system over this
// one installs, starts, reloads, kills, upgrades and removes. A sandbox that is too tight shows
// nowhere else.
func TestUnderSystemd(t *testing.T) {
	rigtest.Require(t, needRoot())
	require(t, "unshare", "dpkg", "curl", "jq", "ip", "make")
	_, err := os.Stat("/lib/systemd/systemd")
	rigtest.Require(t, err)

	dir := t.TempDir()
	mustRun(t, "cp", mustBuild(t, "1.0.0"), filepath.Join(dir, "berm.deb"))
	mustRun(t, "cp", mustBuild(t, "1.1.0"), filepath.Join(dir, "newer.deb"))
	mustRun(t, "cp", "test/packaging/testdata/inside.sh", dir)

	cmd := exec.CommandContext(t.Context(), "timeout", "--kill-after=5", "180",
		"bash", "-c", `echo $$ >"$1/cgroup.procs"; exec unshare --pid --mount --net --uts --ipc --cgroup --fork bash test/packaging/testdata/boot.sh "$2"`,
		"boot", mustCgroup(t), dir)
	out, err := cmd.CombinedOutput() // powering off in there ends it by a signal
	log, lerr := os.ReadFile(filepath.Join(dir, "log"))
	if lerr != nil {
		t.Fatalf("systemd did not come up: %v, %v\n%s", err, lerr, out)
	}
	if !strings.HasSuffix(string(log), "all of it held\n") {
		t.Errorf("%s", log)
	}
}

// mustCgroup makes a cgroup for systemd to rule, and takes it away with all that is in it.
func mustCgroup(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("findmnt", "--noheadings", "--output", "TARGET", "--types", "cgroup2").Output()
	if err != nil {
		rigtest.Require(t, fmt.Errorf("find cgroup2: %w", err))
	}
	root, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	dir := filepath.Join(root, fmt.Sprintf("berm-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0); err != nil {
			t.Error(err)
		}
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) { // poll
			// Children go before parents; what still ends is busy.
			_ = exec.Command("find", dir, "-depth", "-type", "d", "-delete").Run()
			if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("cgroup %s cannot be removed", dir)
				return
			}
		}
	})
	return dir
}
