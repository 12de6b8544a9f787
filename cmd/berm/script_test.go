package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"berm": func() { os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
	})
}

// require skips a test that cannot run here; where BERM_NO_SKIP is set, that is a failure.
func require(t testing.TB, err error) {
	t.Helper()
	if err != nil && os.Getenv("BERM_NO_SKIP") != "" {
		t.Fatal("may not skip:", err)
	} else if err != nil {
		t.Skip(err)
	}
}

// TestScripts need nothing: no daemon, no kernel half, no privilege.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", Setup: setup, Cmds: commands, RequireExplicitExec: true})
}

// TestRootScripts load the kernel half below a pin root of their own, in a network namespace
// of their own.
func TestRootScripts(t *testing.T) {
	if os.Geteuid() != 0 {
		require(t, errors.New("needs root to load programs"))
	}
	testscript.Run(t, testscript.Params{Dir: "testdata/root", Setup: setupKernel, Cmds: commands, RequireExplicitExec: true})
}

// commands are what scripts can do besides exec.
var commands = map[string]func(*testscript.TestScript, bool, []string){
	"exits":      exits,
	"tty":        tty,
	"deadsocket": deadSocket,
	"serve":      serve,
	"unserve":    unserve,
}

// exits runs a command and checks its exit code: exits 3 berm status.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARGUMENT…]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// setup keeps a script away from a Berm that this machine runs.
func setup(e *testscript.Env) error {
	e.Values[stopKey{}] = new(func())
	e.Setenv("GORACE", os.Getenv("GORACE"))
	e.Setenv("BERM_SOCKET", e.WorkDir+"/berm.sock")
	e.Setenv("BERM_CONFIG", e.WorkDir+"/berm.yaml")
	e.Setenv("BERM_PINS", "/sys/fs/bpf/berm-test-none")
	return os.WriteFile(e.WorkDir+"/berm.yaml", []byte("node: {name: edge1}\n"), 0o644)
}

// setupKernel makes an edge (NS) and a CLIENT that reaches 192.0.2.0/24 through it, and names a
// pin root; all go when the script ends, whatever it did.
func setupKernel(e *testscript.Env) error {
	if err := setup(e); err != nil {
		return err
	}
	name := fmt.Sprintf("bermcli-%d-%s", os.Getpid(), strings.TrimPrefix(e.WorkDir[strings.LastIndexByte(e.WorkDir, '/')+1:], "script-"))
	pins := "/sys/fs/bpf/" + name
	e.Setenv("NS", name)
	e.Setenv("BERM_PINS", pins)
	e.Defer(func() {
		_ = exec.Command("ip", "netns", "del", name).Run()
		_ = exec.Command("ip", "netns", "del", name+"c").Run()
		code := run(context.Background(), []string{"--pins", pins, "kernel", "down", "--json"}, nil, &strings.Builder{}, os.Stderr)
		if _, err := os.Stat(pins); code != 0 || err == nil {
			panic("berm kernel down left " + pins)
		}
	})
	e.Setenv("CLIENT", name+"c")
	conf := "node: {name: edge1}\nkernel: {interfaces: [edge0], rate_cells: 1024, cgroup: none}\n"
	if err := os.WriteFile(e.WorkDir+"/berm.yaml", []byte(conf), 0o644); err != nil {
		return err
	}
	for _, c := range []string{
		"netns add " + name,
		"netns add " + name + "c",
		"-n " + name + " link set lo up",
		"-n " + name + " link add edge0 type veth peer name wire0 netns " + name + "c",
		"-n " + name + " addr add 198.51.100.1/24 dev edge0",
		"-n " + name + " link set edge0 up",
		"-n " + name + "c addr add 198.51.100.7/24 dev wire0",
		"-n " + name + "c link set wire0 up",
		"-n " + name + "c route add 192.0.2.0/24 via 198.51.100.1",
	} {
		if out, err := exec.Command("ip", strings.Fields(c)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", c, err, out)
		}
	}
	return nil
}
