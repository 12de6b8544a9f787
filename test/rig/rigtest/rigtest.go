// Package rigtest gives tests their labs: named after the process, removed at cleanup, and
// telling on failure what the daemons said.
package rigtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/bermedge/berm/test/rig"
)

var count atomic.Uint32 // labs made by this process

// New makes a lab for one test. It skips, or fails where BERM_NO_SKIP is set, without root
// or one of the programs named.
func New(t testing.TB, programs ...string) *rig.Lab {
	t.Helper()
	Require(t, rig.CheckPrivilege())
	for _, p := range append(programs, "ethtool") {
		Require(t, has(p))
	}
	l, err := rig.New(fmt.Sprintf("t%dx%d", os.Getpid(), count.Add(1)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			Explain(t, l)
		}
		if err := l.Close(); err != nil {
			t.Error("take the lab down:", err)
		}
	})
	return l
}

// Explain logs the end of what every daemon of the lab printed.
func Explain(t testing.TB, l *rig.Lab) {
	t.Helper()
	logs, err := filepath.Glob(l.Path("*.log"))
	if err != nil {
		t.Log(err)
	}
	for _, path := range logs {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Log(err)
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		t.Logf("%s:\n%s", path, strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
}

// Require skips a test the machine cannot run. Where BERM_NO_SKIP is set a skip is a failure:
// a test that never runs is not a test.
func Require(t testing.TB, err error) {
	t.Helper()
	if err != nil && os.Getenv("BERM_NO_SKIP") != "" {
		t.Fatal("may not skip:", err)
	} else if err != nil {
		t.Skip(err)
	}
}

// has says which program is missing; sbin is not on everyone's PATH.
func has(program string) error {
	if _, err := exec.LookPath(program); err == nil {
		return nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if _, err := os.Stat(filepath.Join(dir, program)); err == nil {
			return os.Setenv("PATH", os.Getenv("PATH")+":"+dir)
		}
	}
	return errors.New(program + " is not installed")
}
