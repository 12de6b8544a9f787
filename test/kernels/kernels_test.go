// Package kernels boots old kernels in an emulator, brings the kernel half up in them and runs the packet
// tests of bpf there, since what one verifier takes another may not. scripts/kernels.sh fetches the kernels.
package kernels

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bermedge/berm/loader"
)

// require skips a test the machine cannot run; where skips are forbidden it fails.
func require(t testing.TB, err error) {
	t.Helper()
	if err != nil && os.Getenv("BERM_NO_SKIP") != "" {
		t.Fatal("may not skip:", err)
	} else if err != nil {
		t.Skip(err)
	}
}

const (
	qemu = "qemu-system-x86_64"
	// Emulation of a busy machine: boots take 4 s on a quiet one.
	bootDeadline = 4 * time.Minute
	// The verifier gives up at 1,000,000 instructions and 512 bytes: hear of it before.
	mostProcessed, mostStack = 800_000, 480
	// The kernel half's tables take 250 MiB, and twice in an upgrade's rehearsal at worst.
	memoryMiB = "1536"
)

// packetTests are those of bpf that run on each kernel: all that give packets to the program, with the tables of
// mutated ones. Not those of userspace's arithmetic (TestRateAccuracy, TestSpread …): they would only repeat it, slowly.
const packetTests = "^(TestForward|TestBareAddress|TestFragments|TestMalformed|TestForeignUntouched|TestNoServices|TestRefusals|" +
	"TestPolicyPasses|TestVerdictHits|TestPrefixLevels|TestRateDimensions|TestSteer|TestDecap|TestThereAndBack|TestEvents|TestHashes|" +
	"TestSecondChanceEnds|TestDeadman|TestClockSteps|TestServers|TestServersThroughTunnel|TestNewcomersCrowded|TestProbeLeaves|TestProbeAnswered)$"

// connectionTests are those of maps that have real connections meet the programs of sockets.
const connectionTests = "^(TestPaths|TestCCInKernel)$"

// TestKernels runs the checks of ./init in each kernel.
func TestKernels(t *testing.T) {
	_, err := exec.LookPath(qemu)
	require(t, err)
	dir := os.Getenv("BERM_KERNELS")
	if dir == "" {
		dir = filepath.Join("..", "..", ".build", "kernels")
	}
	var images []string
	for _, series := range []string{"6.1", "6.12"} {
		image := filepath.Join(dir, series, "vmlinuz")
		if _, err := os.Stat(image); err != nil {
			require(t, fmt.Errorf("%w (fetch it: scripts/kernels.sh)", err))
		}
		images = append(images, image)
	}
	init, packets, connections := buildInit(t), buildTests(t, "packets", "bpf"), buildTests(t, "connections", "maps")
	var mu sync.Mutex
	var table []loader.Verified
	t.Run("in", func(t *testing.T) {
		for _, image := range images {
			kernel := filepath.Dir(image)
			t.Run(filepath.Base(kernel), func(t *testing.T) {
				t.Parallel()
				initrd := filepath.Join(t.TempDir(), "initrd")
				if err := os.WriteFile(initrd, mustArchive(t, kernel, init, packets, connections), 0o600); err != nil {
					t.Fatal(err)
				}
				rows := judge(t, boot(t, image, initrd))
				mu.Lock()
				defer mu.Unlock()
				table = append(table, rows...)
			})
		}
	})
	compare(t, append(table, running(t)...))
}

// running is the machine's own kernel; it takes root to ask it.
func running(t *testing.T) []loader.Verified {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	all, err := loader.Verify()
	if err != nil {
		t.Errorf("on this kernel: %v", err)
	}
	return all
}

func buildInit(t *testing.T) string {
	t.Helper()
	watch(t, "bpf", "loader", "maps", filepath.Join("test", "kernels", "init"))
	return build(t, "init", "build", "-trimpath", "-ldflags=-s -w", "-o", "OUT", "./init")
}

// buildTests builds the tests of a package as a program.
func buildTests(t *testing.T, name, folder string) string {
	t.Helper()
	return build(t, name, "test", "-c", "-trimpath", "-ldflags=-s -w", "-o", "OUT", "../../"+folder)
}

// build runs the go command for a static program and returns its path, which is OUT in args.
func build(t *testing.T, name string, args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), name)
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "OUT", out)
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=-buildvcs=false")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, msg)
	}
	return out
}

// watch looks at the sources of init, so that go test does not take an earlier result for that
// of changed ones: of them it only sees what is linked into the test itself.
func watch(t *testing.T, folders ...string) {
	t.Helper()
	for _, folder := range folders {
		err := filepath.WalkDir(filepath.Join("..", "..", folder), func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			_, err = os.Stat(path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// boot returns what the machine printed until it powered off.
func boot(t *testing.T, image, initrd string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootDeadline)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, qemu, "-M", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", memoryMiB,
		"-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio", "-kernel", image, "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on -- packets="+packetTests+" connections="+connectionTests)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	text := strings.ReplaceAll(out.String(), "\r", "")
	if err != nil {
		t.Fatalf("machine: %v\n%s", errors.Join(err, ctx.Err()), text)
	}
	return text
}

var (
	verdict = regexp.MustCompile(`(?m)^--- (PASS|FAIL): (.*) \(`)
	done    = regexp.MustCompile(`(?m)^BERM-VM done: (\d+) checks, 0 failed`)
	row     = regexp.MustCompile(`(?m)^BERM-VM table: (.*)$`)
)

// judge makes a subtest of each check, and returns the table.
func judge(t *testing.T, out string) (table []loader.Verified) {
	t.Helper()
	verdicts := verdict.FindAllStringSubmatch(out, -1)
	for _, v := range verdicts {
		t.Run(v[2], func(t *testing.T) {
			if v[1] != "PASS" {
				t.Fail()
			}
		})
	}
	end := done.FindStringSubmatch(out)
	if end == nil || end[1] != fmt.Sprint(len(verdicts)) {
		t.Error("the machine did not say that all checks passed")
	}
	for _, r := range row.FindAllStringSubmatch(out, -1) {
		var v loader.Verified
		if err := json.Unmarshal([]byte(r[1]), &v); err != nil {
			t.Errorf("table line %q: %v", r[1], err)
		}
		table = append(table, v)
	}
	if len(table) == 0 {
		t.Error("no verifier statistics")
	}
	for _, v := range table {
		if v.Processed > mostProcessed || v.Stack > mostStack {
			t.Errorf("%s needs %d instructions and %d bytes of stack of the verifier of %s: near its limits", v.Program, v.Processed, v.Stack, v.Kernel)
		}
	}
	if t.Failed() || testing.Verbose() {
		t.Log(out)
	}
	return table
}
