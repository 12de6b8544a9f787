package packaging

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/bermedge/berm/test/rig/rigtest"
)

// around runs in network and mount namespaces of its own, with its own bpffs and directories:
// what README.md says to type meets no edge that runs on this host. Ctrl-C is a signal to all of
// a terminal's foreground group, which setsid stands for.
const around = `
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
ip link set lo up
sudo() { "$@"; }
ctrl_c() { kill -INT -- -$edge; wait $edge; }

setsid make --no-print-directory run >"$log" 2>&1 &
edge=$!
trap 'kill -KILL -- -$edge' ERR
for ((i = 0; i < 300; i++)); do
	curl -fso /dev/null http://127.0.0.1:9190/readyz && break
	read -rt 0.1 <> <(:) || true
done
`

// after asserts that nothing is left.
const after = `
trap - ERR
ctrl_c
[[ ! -e /sys/fs/bpf/berm ]] || { echo 'pins are left'; exit 1; }
[[ ! -e /run/berm/berm.sock ]] || { echo 'the admin socket is left'; exit 1; }
`

// TestTour types what README.md says under "Two minutes with it". Each line must succeed, and
// Ctrl-C must take everything down.
func TestTour(t *testing.T) {
	rigtest.Require(t, needRoot())
	require(t, "unshare", "curl", "gtlsclient", "ip", "make")
	mustRun(t, "make", "--no-print-directory", "build")

	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	section := regexp.MustCompile("(?s)## Two minutes with it\n.*?```sh\n(.*?)```").FindSubmatch(readme)
	if section == nil {
		t.Fatal("README.md has no such section")
	}
	// Top goes on until somebody stops it.
	lines := strings.ReplaceAll(string(section[1]), "sudo bin/berm top\n", "timeout 3 bin/berm top || [[ $? == 124 ]]\n")

	log := filepath.Join(t.TempDir(), "run.log")
	script := "set -eEuo pipefail\nlog=" + log + "\n" + around + "set -x\n" + lines + "set +x\n" + after
	out, err := exec.Command("unshare", "--net", "--mount", "bash", "-c", script).CombinedOutput()
	if err != nil {
		edge, _ := os.ReadFile(log) // may not be there: the script says why
		t.Fatalf("%v\n%s\nthe edge:\n%s", err, out, edge)
	}
	for _, want := range []string{"hit; ttl=", "\nrefused\n", "\n200\n", "a verdict about the source"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("the tour does not show %q:\n%s", want, out)
		}
	}
}
