package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/vishvananda/netlink"
)

// packets runs the tests of bpf, and connections those of maps, that the kernel's command line names.
func packets(ctx context.Context) error { return runTests(ctx, "packets") }

func connections(ctx context.Context) error { return runTests(ctx, "connections") }

// runTests runs a program of tests at the archive's root: those that the command line has by the program's name.
func runTests(ctx context.Context, program string) error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	run := ""
	for _, arg := range os.Args[1:] {
		if v, ok := strings.CutPrefix(arg, program+"="); ok {
			run = v
		}
	}
	if run == "" {
		return fmt.Errorf("the command line names no test (%s=…)", program)
	}
	cmd := exec.CommandContext(ctx, "/"+program, "-test.v", "-test.run", run)
	cmd.Env = append(os.Environ(), "BERM_NO_SKIP=1", "GODEBUG=asyncpreemptoff=1", "TMPDIR=/run")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	passed, failed := 0, []string(nil)
	var tail []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "--- PASS:"):
			passed++
			fmt.Println("    " + strings.TrimPrefix(line, "--- "))
		case strings.Contains(line, "--- FAIL:"), strings.Contains(line, "--- SKIP:"):
			failed = append(failed, line)
		}
		if !strings.HasPrefix(line, "=== ") && !strings.Contains(line, "--- PASS:") {
			tail = append(tail, line)
		}
	}
	err = cmd.Wait()
	if err == nil && passed != 1+strings.Count(run, "|") {
		err = fmt.Errorf("%d tests passed, want those of %s", passed, run)
	}
	if err != nil {
		return fmt.Errorf("%w; %q\n\t%s", err, failed, strings.Join(tail[max(0, len(tail)-60):], "\n\t"))
	}
	fmt.Printf("    %d tests passed\n", passed)
	return nil
}
