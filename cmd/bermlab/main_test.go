package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/test/rig/rigtest"
	"github.com/bermedge/berm/test/scenario"
)

func TestMain(m *testing.M) {
	scenario.MaybeActor()
	os.Exit(m.Run())
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		text string // in either stream
	}{
		{[]string{"list"}, exitOK, "main"},
		{[]string{"list", "--json"}, exitOK, `{"scenarios":[{"id":"`},
		{[]string{"--help"}, exitOK, "Usage: bermlab"},
		{nil, exitUsage, "expected one of"},
		{[]string{"run"}, exitUsage, "expected \"<id>\""},
		{[]string{"run", "nothing"}, exitUsage, `no scenario "nothing"`},
		{[]string{"up", "nothing"}, exitUsage, `no scenario "nothing"`},
		{[]string{"down", "no/name"}, exitFailed, "must match"},
		{[]string{"shell", "nothing", "good"}, exitFailed, "lab nothing is not up"},
	} {
		var out, errs bytes.Buffer
		code := run(t.Context(), c.args, &out, &errs)
		if code != c.code || !strings.Contains(out.String()+errs.String(), c.text) {
			t.Errorf("bermlab %v = %d, %q, %q; want %d and %q", c.args, code, &out, &errs, c.code, c.text)
		}
	}
}

// A lab that cannot come up still prints its one object, fails and leaves nothing.
func TestRunWithoutDaemon(t *testing.T) {
	rigtest.Require(t, rig.CheckPrivilege())
	bin := t.TempDir()
	for _, name := range []string{"berm", "bermd"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\necho no >&2; exit 7\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	lab := fmt.Sprintf("c%d", os.Getpid()) // not one that a person may have up
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"run", "main", "--lab", lab, "--json", "--bin", bin}, &out, &errs); code != exitFailed {
		t.Errorf("exit code %d, want %d: %s", code, exitFailed, &errs)
	}
	var report scenario.Report
	dec := json.NewDecoder(&out)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&report); err != nil {
		t.Fatalf("%v; standard error: %s", err, &errs)
	}
	if dec.More() || report.OK || report.Scenario != "main" || len(report.Checks) != 1 || !strings.Contains(report.Checks[0].Got, "exit status 7") {
		t.Errorf("report %+v", report)
	}
	left, err := exec.Command("ip", "netns").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(left), "bermlab-"+lab) {
		t.Errorf("left behind: %s", left)
	}
}
